//! Power-off, reset and panic: the few I/O ports through which a guest says that it ended.

use crate::arch::layout::{
    PVPANIC_PORT, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_CONTROL_S5, SLEEP_STATUS_PORT,
};

/// What a guest asked for through a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerEvent {
    /// ACPI S5, or the agent's orderly power-off.
    PowerOff,
    /// A reset, by any of the ways a PC has.
    Reset,
    /// The guest's kernel panicked.
    Panic,
}

/// The keyboard controller's command port, by which a PC is reset when nothing else works.
const KEYBOARD_COMMAND_PORT: u16 = 0x64;
const KEYBOARD_STATUS_PORT: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// The chipset's reset control register.
const CHIPSET_RESET_PORT: u16 = 0xcf9;

/// The pvpanic event "the guest panicked" (QEMU's `docs/specs/pvpanic.rst`).
const PANICKED: u8 = 1;

/// What writing `value` to `port` asks for, if anything.
pub(crate) fn write(port: u16, value: u8) -> Option<PowerEvent> {
    match port {
        SLEEP_CONTROL_PORT if value == SLEEP_CONTROL_S5 => Some(PowerEvent::PowerOff),
        RESET_PORT if value == RESET_VALUE => Some(PowerEvent::Reset),
        KEYBOARD_COMMAND_PORT if value == KEYBOARD_RESET => Some(PowerEvent::Reset),
        CHIPSET_RESET_PORT if value & 0b110 == 0b110 => Some(PowerEvent::Reset),
        PVPANIC_PORT if value & PANICKED != 0 => Some(PowerEvent::Panic),
        _ => None,
    }
}

/// What reading `port` gives, if it is one of these.
pub(crate) fn read(port: u16) -> Option<u8> {
    match port {
        // The events the device takes.
        PVPANIC_PORT => Some(PANICKED),
        // Ready for a command, so that a driver which waits for it does not wait for ever.
        SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT | RESET_PORT | KEYBOARD_STATUS_PORT => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_values_end_a_guest() {
        assert_eq!(write(SLEEP_CONTROL_PORT, 0x34), Some(PowerEvent::PowerOff));
        assert_eq!(
            write(SLEEP_CONTROL_PORT, 0x14),
            None,
            "a type without the enable bit"
        );
        assert_eq!(write(SLEEP_CONTROL_PORT, 0x2c), None, "S3");
        assert_eq!(write(RESET_PORT, RESET_VALUE), Some(PowerEvent::Reset));
        assert_eq!(write(RESET_PORT, 0), None);
        assert_eq!(write(0x64, 0xfe), Some(PowerEvent::Reset));
        assert_eq!(write(0x64, 0x60), None);
        assert_eq!(write(0xcf9, 0x6), Some(PowerEvent::Reset));
        assert_eq!(write(PVPANIC_PORT, 1), Some(PowerEvent::Panic));
        assert_eq!(write(PVPANIC_PORT, 2), None);
        assert_eq!(write(0x80, 0xff), None);
    }
}
