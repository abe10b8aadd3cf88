//! The ACPI tables that tell a stock kernel what it runs on (ACPI specification 6.5): its
//! processors, the virtio devices, how to power off and to reset.
//!
//! The platform is *hardware-reduced* (4.1): it has none of the fixed hardware of a PC, so the
//! kernel looks for neither interrupt controllers nor timers nor keyboards of the past.

use acpi_tables::Aml;
use acpi_tables::aml::{self, EISAName, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{
    ACPI_TABLES, GENERATION_ID, GENERATION_ID_GSI, IOAPIC, LAPIC, PVPANIC_PORT, RESET_PORT,
    RESET_VALUE, SERIAL_GSI, SERIAL_PORT, SERIAL_PORT_COUNT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
    SLEEP_TYPE_S5, VIRTIO_MMIO_SIZE, VirtioWindow, virtio_window,
};
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"EMBER ";
const OEM_TABLE_ID: [u8; 8] = *b"EMBERVMM";
const OEM_REVISION: u32 = 1;
const HYPERVISOR_VENDOR: u64 = u64::from_le_bytes(*b"EMBERVMM");

/// Length of the header that all tables but the RSDP begin with.
const HEADER_SIZE: u32 = 36;
/// Tables begin at multiples of this.
const ALIGNMENT: usize = 16;

/// What differs between guests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AcpiConfig {
    /// Number of processors. The APIC id of each is its index.
    pub(crate) vcpus: u8,
    /// Number of virtio devices, at most [`VIRTIO_DEVICE_MAX`](super::layout::VIRTIO_DEVICE_MAX).
    /// Each has the window and the line that [`virtio_window`] gives its index.
    pub(crate) virtio_devices: usize,
    /// Whether there is a VM generation id.
    pub(crate) generation_id: bool,
}

/// Writes the tables to their place in `memory`. Returns where the RSDP is, from which the kernel
/// finds all others.
pub(crate) fn write_tables(
    memory: &GuestMemory,
    config: &AcpiConfig,
) -> Result<GuestAddress, GuestMemoryError> {
    memory.write_slice(&build(config), ACPI_TABLES)?;
    Ok(ACPI_TABLES)
}

/// All tables, as they are to be in memory from [`ACPI_TABLES`] on. The RSDP comes first, the rest
/// in an order in which each only points back. What a configuration can ask for is so bounded that
/// they always fit into `ACPI_TABLES_SIZE`.
fn build(config: &AcpiConfig) -> Vec<u8> {
    let mut area = Area {
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = area.place(&dsdt(config));
    let fadt = area.place(&fadt(dsdt));
    let madt = area.place(&madt(config.vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.place(&xsdt);

    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    area.bytes
}

/// Tables one behind the other.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends `table` and returns the address it will have.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = ACPI_TABLES.0 + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The fixed description table (5.2.9): what is not there, and the registers for sleep and reset.
fn fadt(dsdt: u64) -> impl Aml {
    /// IA-PC boot architecture flags (5.2.9.3). Those of ISA devices and of the 8042 keyboard
    /// controller stay clear, for they are not there either.
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const MSI_NOT_SUPPORTED: u16 = 1 << 3;
    const NO_PCIE_ASPM: u16 = 1 << 4;
    const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // These three are set where the fixed-hardware button or alarm does not exist.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc);
    fadt.iapc_boot_arch =
        (VGA_NOT_PRESENT | MSI_NOT_SUPPORTED | NO_PCIE_ASPM | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = HYPERVISOR_VENDOR.into();
    fadt.finalize()
}

/// The interrupt controllers (5.2.12). There are no overrides: an interrupt line has the number of
/// its IOAPIC pin, which is KVM's default routing.
fn madt(vcpus: u8) -> impl Aml {
    let lapic = LocalInterruptController::Address(LAPIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(
            index,
            index,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, IOAPIC as u32, 0));
    madt
}

/// The devices, in the machine language of ACPI.
fn dsdt(config: &AcpiConfig) -> impl Aml {
    let mut devices = serial();
    devices.extend(panic_notifier());
    for (index, window) in (0..config.virtio_devices)
        .map_while(virtio_window)
        .enumerate()
    {
        devices.extend(virtio(index, window));
    }
    if config.generation_id {
        devices.extend(generation_id());
    }
    let mut code = aml::Scope::raw(Path::new("\\_SB_"), devices);

    // What to write to the sleep control register for S5, soft off (7.4.2). It belongs to the
    // root, not to the system bus.
    let sleep_type = aml::Package::new(vec![&SLEEP_TYPE_S5]);
    code.extend(bytes(&aml::Name::new(Path::new("\\_S5_"), &sleep_type)));

    let mut table = Sdt::new(*b"DSDT", HEADER_SIZE, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// An interrupt of the device itself: edge triggered, active high, not shared.
fn interrupt(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

/// A 16550 at the place of COM1.
fn serial() -> Vec<u8> {
    let ports = aml::IO::new(SERIAL_PORT, SERIAL_PORT, 1, SERIAL_PORT_COUNT as u8);
    bytes(&aml::Device::new(
        Path::new("COM1"),
        vec![
            &aml::Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&ports, &interrupt(SERIAL_GSI)]),
            ),
        ],
    ))
}

/// The panic notifier, as QEMU describes it (`docs/specs/pvpanic.rst`).
fn panic_notifier() -> Vec<u8> {
    let port = aml::IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1);
    bytes(&aml::Device::new(
        Path::new("PEVT"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"QEMU0001"),
            &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port])),
        ],
    ))
}

/// A virtio device with registers in memory, by the id that Linux's `virtio_mmio` knows.
fn virtio(index: usize, window: VirtioWindow) -> Vec<u8> {
    let registers = aml::Memory32Fixed::new(true, window.address.0 as u32, VIRTIO_MMIO_SIZE as u32);
    bytes(&aml::Device::new(
        Path::new(&format!("VR{index:02}")),
        vec![
            &aml::Name::new(Path::new("_HID"), &"LNRO0005"),
            &aml::Name::new(Path::new("_UID"), &index),
            &aml::Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&registers, &interrupt(window.gsi)]),
            ),
        ],
    ))
}

/// The generation id ("Virtual Machine Generation ID", Microsoft 2012; Linux
/// `drivers/virt/vmgenid.c`), and the generic event device (5.6.9) that announces a new one: hardware
/// without a system control interrupt has its events come by an interrupt like any other.
fn generation_id() -> Vec<u8> {
    /// "The generation id changed", by its specification.
    const CHANGED: u8 = 0x80;
    let address = (GENERATION_ID.0 as u32, (GENERATION_ID.0 >> 32) as u32);
    let path = Path::new("\\_SB_.VGEN");

    let mut devices = bytes(&aml::Device::new(
        Path::new("VGEN"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"EMBR0001"),
            // What a driver looks for; the id above is the monitor's own.
            &aml::Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &aml::Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            // Low half, high half.
            &aml::Name::new(
                Path::new("ADDR"),
                &aml::Package::new(vec![&address.0, &address.1]),
            ),
        ],
    ));
    devices.extend(bytes(&aml::Device::new(
        Path::new("GED_"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"ACPI0013"),
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&interrupt(GENERATION_ID_GSI)]),
            ),
            // The argument is the line that was raised; there is only this one.
            &aml::Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&aml::Notify::new(&path, &CHANGED)],
            ),
        ],
    )));
    devices
}

#[cfg(test)]
mod tests;
