//! Building a VM: the one place where its parts are put together.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{Kvm, VcpuFd};

use super::devices::Devices;
use super::restore::{PendingPager, SavedTime};
use super::{BuildError, Vm, host};
use crate::arch::acpi::AcpiConfig;
use crate::arch::{self, BootRegisters, HostFeatures, layout};
use crate::config::{MAX_MEMORY_BYTES, MAX_VCPUS, MIN_MEMORY_BYTES, VmConfig};
use crate::event_loop::EventLoop;
use crate::exit::ExitReason;
use crate::hypervisor::Hypervisor;
use crate::memory::{self, GuestMemory, VmWithMemory};
use crate::vcpu::{self, Vcpu, VcpuControl, kick};

fn check(config: &VmConfig) -> Result<(), BuildError> {
    let refuse = |message: String| Err(BuildError::Configuration(message));
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return refuse(format!(
            "a VM has 1 to {MAX_VCPUS} vCPUs, not {}",
            config.vcpus
        ));
    }
    if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&config.memory_bytes) {
        return refuse(format!(
            "a VM has {} MiB to {} MiB of memory, not {} MiB",
            MIN_MEMORY_BYTES >> 20,
            MAX_MEMORY_BYTES >> 20,
            config.memory_bytes >> 20
        ));
    }
    if !config.memory_bytes.is_multiple_of(layout::PAGE_SIZE) {
        return refuse(format!(
            "a VM's memory is a multiple of 4096 bytes, which {} is not",
            config.memory_bytes
        ));
    }
    let longest = layout::COMMAND_LINE_MAX - 1;
    if config.command_line.len() > longest || config.command_line.contains('\0') {
        return refuse(format!(
            "a kernel command line is at most {longest} bytes without a zero byte; this one has {}",
            config.command_line.len()
        ));
    }
    Ok(())
}

pub(super) fn build(mut config: VmConfig) -> Result<Vm, BuildError> {
    check(&config)?;
    kick::install_handler(config.kick_signal).map_err(host("cannot take the kick signal"))?;

    let hypervisor = match config.hypervisor.take() {
        Some(hypervisor) => hypervisor,
        None => Hypervisor::open()?,
    };
    let kvm = hypervisor.kvm();
    let features = HostFeatures::read(kvm).map_err(host("cannot ask KVM for CPU features"))?;
    let memory = memory::map_anonymous(config.memory_bytes).map_err(host(format!(
        "cannot map {} MiB of guest memory",
        config.memory_bytes >> 20
    )))?;
    let vm = new_vm(kvm, memory)?;
    let event_loop = EventLoop::new().map_err(host("cannot create the device thread's epoll"))?;
    let devices = Devices::new(&mut config, &vm)?;
    devices.connect(&vm, &event_loop)?;
    let boot = load_guest(&config, &vm, &devices)?;
    let vcpus = config.vcpus;
    assemble(
        Parts {
            hypervisor,
            vm,
            event_loop,
            devices,
            kick_signal: config.kick_signal,
            vcpus,
            time: None,
            pager: None,
        },
        |index, vcpu| {
            let boot = (index == 0).then_some(boot);
            arch::configure_vcpu(vcpu, &features, index, vcpus, boot)
        },
    )
}

/// A VM with this memory, and the chips that its vCPUs need.
pub(super) fn new_vm(kvm: &Kvm, memory: GuestMemory) -> Result<VmWithMemory, BuildError> {
    let fd = arch::create_vm(kvm).map_err(host("cannot create a VM"))?;
    let vm = VmWithMemory::new(fd, memory).map_err(host("cannot give KVM the guest's memory"))?;
    // Before the first vCPU, which gets its local interrupt controller only if the chip exists.
    arch::create_platform(vm.fd()).map_err(host("cannot create the VM's platform"))?;
    Ok(vm)
}

/// What a VM is put together from, whether it is new or was saved.
pub(super) struct Parts {
    pub(super) hypervisor: Hypervisor,
    pub(super) vm: VmWithMemory,
    pub(super) event_loop: EventLoop,
    /// Connected.
    pub(super) devices: Devices,
    pub(super) kick_signal: i32,
    pub(super) vcpus: u8,
    /// How late it is in a saved VM, to be set when it starts.
    pub(super) time: Option<SavedTime>,
    /// What fills its memory, and is told when the VM can be ended.
    pub(super) pager: Option<PendingPager>,
}

/// Makes the vCPUs, has each set up by `configure`, and starts all threads.
pub(super) fn assemble(
    parts: Parts,
    configure: impl Fn(u8, &VcpuFd) -> Result<(), arch::SetupError>,
) -> Result<Vm, BuildError> {
    let Parts {
        hypervisor,
        vm,
        event_loop,
        devices,
        kick_signal,
        vcpus,
        time,
        pager,
    } = parts;
    let control = Arc::new(VcpuControl::new(usize::from(vcpus), kick_signal));
    let handlers = devices.handlers();
    let bus = Arc::new(devices.bus);
    // From here on the value cleans up after itself: dropping it ends the threads it has so far.
    let mut value = Vm {
        control: Arc::clone(&control),
        event_loop,
        vcpu_threads: Mutex::new(Vec::with_capacity(usize::from(vcpus))),
        vcpus: Vec::with_capacity(usize::from(vcpus)),
        bus: Arc::clone(&bus),
        vsock: devices.vsock,
        balloon: devices.balloon,
        generation_id: devices.generation_id,
        transition: Mutex::new(time),
        pager: None,
        hypervisor,
        vm,
    };
    if let Some(pager) = pager {
        value.pager = Some(pager.start(&value.vm, Arc::clone(&control))?);
    }
    for index in 0..vcpus {
        let vcpu = value
            .vm
            .fd()
            .create_vcpu(u64::from(index))
            .map_err(host(format!("cannot create vCPU {index}")))?;
        configure(index, &vcpu).map_err(host(format!("cannot set up vCPU {index}")))?;
        value.vcpus.push(Vcpu::new(vcpu));
    }
    for (index, vcpu) in value.vcpus.iter().enumerate() {
        let thread = vcpu::spawn(index, vcpu.clone(), Arc::clone(&bus), Arc::clone(&control))
            .map_err(host(format!("cannot start the thread of vCPU {index}")))?;
        value
            .vcpu_threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
    }
    value
        .event_loop
        .start(handlers, move |what| {
            control.finish(ExitReason::MonitorFailed { what });
        })
        .map_err(host("cannot start the device thread"))?;
    Ok(value)
}

/// Puts kernel, initramfs, command line, platform description and boot structures into guest
/// memory; says how the boot vCPU enters the kernel.
fn load_guest(
    config: &VmConfig,
    vm: &VmWithMemory,
    devices: &Devices,
) -> Result<BootRegisters, BuildError> {
    let kernel = config.kernel.load(vm.memory()).map_err(kernel_error)?;
    let tables = AcpiConfig {
        vcpus: config.vcpus,
        virtio_devices: devices.bus.virtio.len(),
        generation_id: devices.generation_id.is_some(),
    };
    let rsdp = arch::acpi::write_tables(vm.memory(), &tables).map_err(kernel_error)?;
    arch::write_boot_structures(
        vm.memory(),
        &kernel,
        &config.initramfs,
        &config.command_line,
        rsdp,
    )
    .map_err(kernel_error)
}

fn kernel_error<E>(error: E) -> BuildError
where
    E: std::error::Error + Send + Sync + 'static,
{
    BuildError::Kernel(Box::new(error))
}
