//! Building a VM: the one place where its parts are put together.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use virtio_bindings::virtio_mmio;
use vm_memory::Address;

use super::Vm;
use crate::arch::acpi::AcpiConfig;
use crate::arch::{self, BootRegisters, HostFeatures, layout};
use crate::config::{MAX_MEMORY_BYTES, MAX_VCPUS, MIN_MEMORY_BYTES, VmConfig};
use crate::devices::bus::Bus;
use crate::devices::generation_id::GenerationId;
use crate::devices::serial::SerialDevice;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{BalloonDevice, BalloonHandle};
use crate::devices::virtio::block::BlockDevice;
use crate::devices::virtio::entropy::EntropyDevice;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::network::NetworkDevice;
use crate::devices::virtio::vsock::{VsockDevice, VsockHandle};
use crate::event_loop::{EventHandler, EventLoop};
use crate::exit::ExitReason;
use crate::memory::{self, VmWithMemory};
use crate::vcpu::{self, VcpuControl, kick};

/// A VM cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// What was asked for is outside what a VM can be.
    #[error("{0}")]
    Configuration(String),
    /// There is no usable `/dev/kvm`.
    #[error(
        "cannot open /dev/kvm; load the kvm-intel or kvm-amd module, and give this user read and \
         write access to the device (usually by membership in the group kvm)"
    )]
    Kvm(#[source] kvm_ioctls::Error),
    /// KVM refused a step.
    #[error("{step}")]
    Host {
        /// What was attempted.
        step: String,
        /// What the host said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel image cannot be started in this VM.
    #[error("cannot load the guest's kernel")]
    Kernel(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn host<E>(step: impl Into<String>) -> impl FnOnce(E) -> BuildError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let step = step.into();
    move |source| BuildError::Host {
        step,
        source: Box::new(source),
    }
}

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

    let kvm = Kvm::new().map_err(BuildError::Kvm)?;
    let features = HostFeatures::read(&kvm).map_err(host("cannot ask KVM for CPU features"))?;
    let fd = create_vm(&kvm)?;
    let memory = memory::map_anonymous(config.memory_bytes).map_err(host(format!(
        "cannot map {} MiB of guest memory",
        config.memory_bytes >> 20
    )))?;
    let vm = VmWithMemory::new(fd, memory).map_err(host("cannot give KVM the guest's memory"))?;
    // Before the first vCPU, which gets its local interrupt controller only if the chip exists.
    arch::create_platform(vm.fd()).map_err(host("cannot create the VM's platform"))?;

    let event_loop = EventLoop::new().map_err(host("cannot create the device thread's epoll"))?;
    let devices = Devices::new(&mut config, &vm)?;
    devices.connect(&vm, &event_loop)?;
    let boot = load_guest(&config, &vm, &devices)?;

    let vcpus = config.vcpus;
    let control = Arc::new(VcpuControl::new(usize::from(vcpus), config.kick_signal));
    let handlers = devices.handlers();
    let bus = Arc::new(devices.bus);
    // From here on the value cleans up after itself: dropping it ends the threads it has so far.
    let value = Vm {
        control: Arc::clone(&control),
        event_loop,
        vcpu_threads: Mutex::new(Vec::with_capacity(usize::from(vcpus))),
        bus: Arc::clone(&bus),
        vsock: devices.vsock,
        balloon: devices.balloon,
        generation_id: devices.generation_id,
        transition: Mutex::new(()),
        vm,
    };
    let fds = (0..vcpus)
        .map(|index| {
            let vcpu = value
                .vm
                .fd()
                .create_vcpu(u64::from(index))
                .map_err(host(format!("cannot create vCPU {index}")))?;
            let boot = (index == 0).then_some(boot);
            arch::configure_vcpu(&vcpu, &features, index, vcpus, boot)
                .map_err(host(format!("cannot set up vCPU {index}")))?;
            Ok(vcpu)
        })
        .collect::<Result<Vec<_>, BuildError>>()?;
    for (index, fd) in fds.into_iter().enumerate() {
        let thread = vcpu::spawn(index, fd, Arc::clone(&bus), Arc::clone(&control))
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

/// Creating a VM takes long enough that a signal can interrupt it.
fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == nix::libc::EINTR => {}
            result => return result.map_err(host("cannot create a VM")),
        }
    }
}

/// A VM's devices, before it owns them.
struct Devices {
    bus: Bus,
    vsock: Option<VsockHandle>,
    balloon: Option<BalloonHandle>,
    generation_id: Option<GenerationId>,
}

impl Devices {
    /// Takes the devices out of `config` and makes them. Their order is the order of their windows
    /// and so of their names in the guest.
    fn new(config: &mut VmConfig, vm: &VmWithMemory) -> Result<Self, BuildError> {
        let console = std::mem::take(&mut config.console);
        let serial = SerialDevice::new(console).map_err(host("cannot create the console"))?;
        let mut virtio: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for (index, disk) in config.disks.drain(..).enumerate() {
            let disk = BlockDevice::new(disk).map_err(host(format!("cannot use disk {index}")))?;
            virtio.push(Box::new(disk));
        }
        let mut vsock = None;
        if let Some(config) = config.vsock.take() {
            let (device, handle) =
                VsockDevice::new(config).map_err(host("cannot create the vsock device"))?;
            virtio.push(Box::new(device));
            vsock = Some(handle);
        }
        for (index, network) in config.networks.drain(..).enumerate() {
            let network = NetworkDevice::new(network)
                .map_err(host(format!("cannot use network card {index}")))?;
            virtio.push(Box::new(network));
        }
        if config.entropy {
            let device = EntropyDevice::new().map_err(host("cannot create the entropy device"))?;
            virtio.push(Box::new(device));
        }
        let mut balloon = None;
        if let Some(config) = config.balloon.take() {
            let (device, handle) =
                BalloonDevice::new(config).map_err(host("cannot create the balloon"))?;
            virtio.push(Box::new(device));
            balloon = Some(handle);
        }
        if virtio.len() > layout::VIRTIO_DEVICE_MAX {
            return Err(BuildError::Configuration(format!(
                "a VM has at most {} virtio devices, not {}",
                layout::VIRTIO_DEVICE_MAX,
                virtio.len()
            )));
        }
        let virtio = virtio
            .into_iter()
            .map(|device| MmioTransport::new(device, vm.memory().clone()).map(Arc::new))
            .collect::<io::Result<_>>()
            .map_err(host("cannot create the eventfds of a device"))?;
        let generation_id = config
            .generation_id
            .map(|id| GenerationId::new(vm.memory().clone(), id))
            .transpose()
            .map_err(host("cannot create the generation id"))?;
        let bus = Bus {
            serial: Arc::new(serial),
            virtio,
        };
        Ok(Self {
            bus,
            vsock,
            balloon,
            generation_id,
        })
    }

    /// What the device thread calls, in the order of the numbers [`Self::connect`] registers.
    fn handlers(&self) -> Vec<Arc<dyn EventHandler>> {
        let virtio = self.bus.virtio.iter().map(|device| Arc::clone(device) as _);
        virtio
            .chain([Arc::clone(&self.bus.serial) as Arc<dyn EventHandler>])
            .collect()
    }

    /// Connects doorbells, interrupt lines and host descriptors.
    fn connect(&self, vm: &VmWithMemory, event_loop: &EventLoop) -> Result<(), BuildError> {
        let line = |fd, gsi| {
            vm.fd()
                .register_irqfd(fd, gsi)
                .map_err(host("cannot connect an interrupt line"))
        };
        let mut number = 0;
        for (index, device) in self.bus.virtio.iter().enumerate() {
            let Some(window) = layout::virtio_window(index) else {
                break;
            };
            let doorbell =
                window.address.raw_value() + u64::from(virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY);
            for (queue, fd) in (0u32..).zip(device.doorbells()) {
                vm.fd()
                    .register_ioevent(fd, &IoEventAddress::Mmio(doorbell), queue)
                    .map_err(host("cannot connect a doorbell"))?;
            }
            line(device.interrupt_line(), window.gsi)?;
            device
                .attach(&event_loop.registry(number))
                .map_err(host("cannot watch a device's descriptors"))?;
            number += 1;
        }
        line(self.bus.serial.interrupt_line(), layout::SERIAL_GSI)?;
        self.bus
            .serial
            .attach(&event_loop.registry(number))
            .map_err(host("cannot watch the console"))?;
        if let Some(generation_id) = &self.generation_id {
            line(generation_id.interrupt_line(), layout::GENERATION_ID_GSI)?;
        }
        Ok(())
    }
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
        config.initramfs.as_deref(),
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
