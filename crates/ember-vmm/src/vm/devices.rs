//! A VM's devices, before it owns them.

use std::sync::Arc;

use ember_snapshot::state::{DeviceState, VirtioState, VmState};
use kvm_ioctls::{IoEventAddress, NoDatamatch};
use virtio_bindings::virtio_mmio;
use vm_memory::Address;

use super::restore::RestoreConfig;
use super::{BuildError, host};
use crate::arch::layout;
use crate::config::VmConfig;
use crate::devices::bus::Bus;
use crate::devices::generation_id::GenerationId;
use crate::devices::serial::SerialDevice;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{BalloonConfig, BalloonDevice, BalloonHandle};
use crate::devices::virtio::block::{BlockConfig, BlockDevice};
use crate::devices::virtio::entropy::EntropyDevice;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::network::{NetworkConfig, NetworkDevice};
use crate::devices::virtio::vsock::{VsockConfig, VsockDevice, VsockHandle};
use crate::event_loop::{EventHandler, EventLoop};
use crate::memory::VmWithMemory;

/// What one virtio device is to be.
enum VirtioConfig {
    Block(BlockConfig),
    Vsock(VsockConfig),
    Network(NetworkConfig),
    Entropy,
    Balloon(BalloonConfig),
}

/// All of them, and what the embedder holds of them.
pub(super) struct Devices {
    pub(super) bus: Bus,
    pub(super) vsock: Option<VsockHandle>,
    pub(super) balloon: Option<BalloonHandle>,
    pub(super) generation_id: Option<GenerationId>,
}

impl Devices {
    /// Takes the devices of a new VM out of `config` and makes them. Their order is the order of
    /// their windows and so of their names in the guest.
    pub(super) fn new(config: &mut VmConfig, vm: &VmWithMemory) -> Result<Self, BuildError> {
        let console = std::mem::take(&mut config.console);
        let serial = SerialDevice::new(console).map_err(host("cannot create the console"))?;
        let mut virtio: Vec<VirtioConfig> = Vec::new();
        virtio.extend(config.disks.drain(..).map(VirtioConfig::Block));
        virtio.extend(config.vsock.take().map(VirtioConfig::Vsock));
        virtio.extend(config.networks.drain(..).map(VirtioConfig::Network));
        virtio.extend(config.entropy.then_some(VirtioConfig::Entropy));
        virtio.extend(config.balloon.take().map(VirtioConfig::Balloon));
        let generation_id = config
            .generation_id
            .map(|id| GenerationId::new(vm.memory().clone(), id))
            .transpose()
            .map_err(host("cannot create the generation id"))?;
        Self::make(serial, virtio, generation_id, vm)
    }

    /// Makes the devices of a saved VM, on what `config` gives them of this host.
    pub(super) fn restore(
        config: &mut RestoreConfig,
        state: &VmState,
        vm: &VmWithMemory,
    ) -> Result<Self, BuildError> {
        let console = std::mem::take(&mut config.console);
        let serial = SerialDevice::restore(console, &state.serial)
            .map_err(host("cannot restore the console"))?;
        let virtio = virtio_configs(config, &state.virtio)?;
        let generation_id = state
            .generation_id
            .then(|| GenerationId::restore(vm.memory().clone()))
            .transpose()
            .map_err(host("cannot create the generation id"))?;
        let devices = Self::make(serial, virtio, generation_id, vm)?;
        for (index, (device, saved)) in devices.bus.virtio.iter().zip(&state.virtio).enumerate() {
            device
                .restore(saved)
                .map_err(host(format!("cannot restore virtio device {index}")))?;
        }
        Ok(devices)
    }

    fn make(
        serial: SerialDevice,
        configs: Vec<VirtioConfig>,
        generation_id: Option<GenerationId>,
        vm: &VmWithMemory,
    ) -> Result<Self, BuildError> {
        if configs.len() > layout::VIRTIO_DEVICE_MAX {
            return Err(BuildError::Configuration(format!(
                "a VM has at most {} virtio devices, not {}",
                layout::VIRTIO_DEVICE_MAX,
                configs.len()
            )));
        }
        let mut virtio = Vec::with_capacity(configs.len());
        let mut vsock = None;
        let mut balloon = None;
        for (index, config) in configs.into_iter().enumerate() {
            let device: Box<dyn VirtioDevice> = match config {
                VirtioConfig::Block(config) => Box::new(
                    BlockDevice::new(config).map_err(host(format!("cannot use disk {index}")))?,
                ),
                VirtioConfig::Vsock(config) => {
                    let (device, handle) =
                        VsockDevice::new(config).map_err(host("cannot create the vsock device"))?;
                    vsock = Some(handle);
                    Box::new(device)
                }
                VirtioConfig::Network(config) => Box::new(
                    NetworkDevice::new(config)
                        .map_err(host(format!("cannot use the network card {index}")))?,
                ),
                VirtioConfig::Entropy => Box::new(
                    EntropyDevice::new().map_err(host("cannot create the entropy device"))?,
                ),
                VirtioConfig::Balloon(config) => {
                    let (device, handle) =
                        BalloonDevice::new(config).map_err(host("cannot create the balloon"))?;
                    balloon = Some(handle);
                    Box::new(device)
                }
            };
            let transport = MmioTransport::new(device, vm.memory().clone())
                .map_err(host("cannot create the eventfds of a device"))?;
            virtio.push(Arc::new(transport));
        }
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
    pub(super) fn handlers(&self) -> Vec<Arc<dyn EventHandler>> {
        let virtio = self.bus.virtio.iter().map(|device| Arc::clone(device) as _);
        virtio
            .chain([Arc::clone(&self.bus.serial) as Arc<dyn EventHandler>])
            .collect()
    }

    /// Connects doorbells, interrupt lines and host descriptors.
    pub(super) fn connect(
        &self,
        vm: &VmWithMemory,
        event_loop: &EventLoop,
    ) -> Result<(), BuildError> {
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
            // For whatever value: the driver writes the queue's number.
            vm.fd()
                .register_ioevent(
                    device.doorbell(),
                    &IoEventAddress::Mmio(doorbell),
                    NoDatamatch,
                )
                .map_err(host("cannot connect a doorbell"))?;
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

/// What the devices of a saved VM are, with this host's files and interfaces in their places.
fn virtio_configs(
    config: &mut RestoreConfig,
    saved: &[VirtioState],
) -> Result<Vec<VirtioConfig>, BuildError> {
    let mut disks = std::mem::take(&mut config.disks).into_iter();
    let mut networks = std::mem::take(&mut config.networks).into_iter();
    let missing = |what: &str| {
        BuildError::Configuration(format!(
            "the saved VM has more {what} than it is given: give it one for each it had"
        ))
    };
    let configs = saved
        .iter()
        .map(|device| match &device.device {
            DeviceState::Block(_) => disks
                .next()
                .map(VirtioConfig::Block)
                .ok_or_else(|| missing("disks")),
            DeviceState::Network(_) => networks
                .next()
                .map(VirtioConfig::Network)
                .ok_or_else(|| missing("network cards")),
            DeviceState::Vsock(vsock) => Ok(VirtioConfig::Vsock(VsockConfig {
                guest_cid: vsock.guest_cid,
                ..config.vsock.clone()
            })),
            DeviceState::Entropy => Ok(VirtioConfig::Entropy),
            DeviceState::Balloon(balloon) => Ok(VirtioConfig::Balloon(BalloonConfig {
                free_page_reporting: balloon.free_page_reporting,
                deflate_on_oom: balloon.deflate_on_oom,
            })),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if disks.next().is_some() || networks.next().is_some() {
        return Err(BuildError::Configuration(
            "the saved VM has fewer disks or network cards than it is given".to_owned(),
        ));
    }
    Ok(configs)
}
