//! Virtual CPUs: one thread each, which does nothing but run the guest and hand its accesses on.

mod control;
pub(crate) mod kick;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ember_snapshot::vcpu::VcpuRegisters;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch;
use crate::devices::bus::Bus;
use crate::devices::power::PowerEvent;
use crate::exit::ExitReason;
use crate::thread;

pub(crate) use control::{Mode, VcpuControl};

/// A vCPU, which its thread holds while it may be in the guest. Whoever finds the VM paused can
/// have it: to look at its state, or to set it.
#[derive(Debug, Clone)]
pub(crate) struct Vcpu(Arc<Mutex<VcpuFd>>);

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd) -> Self {
        Self(Arc::new(Mutex::new(fd)))
    }

    /// The vCPU, when it is not in the guest.
    pub(crate) fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        // A thread that panicked has ended the VM; what is left is a descriptor.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread of vCPU `index`. It waits, parked, until the VM runs.
pub(crate) fn spawn(
    index: usize,
    vcpu: Vcpu,
    bus: Arc<Bus>,
    control: Arc<VcpuControl>,
) -> io::Result<JoinHandle<()>> {
    let after = Arc::clone(&control);
    let body = move || {
        kick::block_all_but(control.kick_signal());
        run(index, &vcpu, &bus, &control);
    };
    thread::spawn(format!("ember-vcpu{index}"), body, move |what| {
        after.finish(ExitReason::MonitorFailed { what });
        // Counts as parked: whoever waits for all vCPUs need not wait for this one.
        after.park();
    })
}

/// Runs a vCPU until the VM stops.
fn run(index: usize, vcpu: &Vcpu, bus: &Bus, control: &VcpuControl) {
    let Some(target) = control.target(index) else {
        return;
    };
    // Dropped at the end of this function, and so before the vCPU, as it must be.
    let registration = target.register(&mut vcpu.lock());
    control.arrive();
    while control.park() {
        let mut runner = Runner {
            index,
            vcpu: vcpu.lock(),
            bus,
            control,
        };
        runner.run_guest(&registration);
    }
}

struct Runner<'a> {
    index: usize,
    vcpu: MutexGuard<'a, VcpuFd>,
    bus: &'a Bus,
    control: &'a VcpuControl,
}

/// What to do after one exit.
enum Next {
    Continue,
    /// A signal or `immediate_exit` ended the run.
    Interrupted,
    End(ExitReason),
}

impl Runner<'_> {
    /// Runs the guest until the VM is to pause or stop.
    fn run_guest(&mut self, registration: &kick::Registration<'_>) {
        // The flag is cleared before the mode is read: a kick that comes in between sets the flag
        // again, and the next run returns at once.
        registration.clear();
        while self.control.running() {
            match self.step() {
                Next::Continue => {}
                Next::Interrupted => registration.clear(),
                Next::End(reason) => return self.control.finish(reason),
            }
        }
        // The access that ended the last run is completed by the next one, so it has to be
        // completed before anybody looks at the vCPU's state (kernel
        // `Documentation/virt/kvm/api.rst`, section 5, at KVM_EXIT_IO).
        registration.exit_immediately();
        if let Next::End(reason) = self.step() {
            self.control.finish(reason);
        }
    }

    fn step(&mut self) -> Next {
        let exit = match self.vcpu.run() {
            Ok(exit) => exit,
            Err(error) => return self.run_failed(error),
        };
        match exit {
            VcpuExit::MmioWrite(address, data) => self.bus.memory_write(address, data),
            VcpuExit::MmioRead(address, data) => self.bus.memory_read(address, data),
            VcpuExit::IoIn(port, data) => self.bus.port_read(port, data),
            VcpuExit::IoOut(port, data) => {
                if let Some(event) = self.bus.port_write(port, data) {
                    return Next::End(self.power_event(event));
                }
            }
            VcpuExit::Intr => return Next::Interrupted,
            VcpuExit::Shutdown => {
                return Next::End(ExitReason::TripleFault {
                    vcpu: self.index,
                    registers: self.registers(),
                });
            }
            // With the interrupt chip in the kernel a halted vCPU waits there; seeing this exit
            // would mean that the chip is gone.
            other => {
                let what = format!("{other:?}");
                return Next::End(self.internal_error(what));
            }
        }
        Next::Continue
    }

    fn run_failed(&self, error: kvm_ioctls::Error) -> Next {
        match error.errno() {
            nix::libc::EINTR | nix::libc::EAGAIN => Next::Interrupted,
            _ => Next::End(self.internal_error(format!("KVM_RUN failed: {error}"))),
        }
    }

    fn power_event(&self, event: PowerEvent) -> ExitReason {
        match event {
            PowerEvent::PowerOff => ExitReason::PoweredOff,
            // A kernel without a driver for the panic device panics and then resets.
            PowerEvent::Reset => match self.panic_message() {
                Some(message) => ExitReason::Panicked { message },
                None => ExitReason::Reset,
            },
            PowerEvent::Panic => ExitReason::Panicked {
                message: self.panic_message().unwrap_or_default(),
            },
        }
    }

    fn panic_message(&self) -> Option<String> {
        crate::exit::panic_message(&self.bus.serial.console().tail())
    }

    fn internal_error(&self, what: String) -> ExitReason {
        ExitReason::InternalError {
            vcpu: self.index,
            what,
            registers: self.registers(),
        }
    }

    /// The registers for a report. Where KVM cannot give them any more, zeroes.
    fn registers(&self) -> Box<VcpuRegisters> {
        Box::new(arch::read_registers(&self.vcpu).unwrap_or_default())
    }
}
