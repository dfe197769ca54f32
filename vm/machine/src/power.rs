//! The power registers: ACPI sleep control, sleep status and reset, and the keyboard controller's reset pulse that kernels
//! fall back to.

use crate::layout;

/// What the guest asked of the power registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerRequest {
    Off,
    Reset,
}

/// The keyboard controller's command port; only its reset pulse is known.
pub(crate) const KEYBOARD_PORT: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// ACPI 6.4 §4.8.3.7: bit 5 starts the transition, bits 2-4 are the sleep type.
const SLEEP_ENABLE: u8 = 1 << 5;

/// What writing `value` to `port` asks for.
pub(crate) fn written(port: u16, value: u8) -> Option<PowerRequest> {
    match port {
        layout::SLEEP_CONTROL_PORT
            if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == layout::SLEEP_TYPE_S5 =>
        {
            Some(PowerRequest::Off)
        }
        layout::RESET_PORT if value == layout::RESET_VALUE => Some(PowerRequest::Reset),
        KEYBOARD_PORT if value == PULSE_RESET => Some(PowerRequest::Reset),
        _ => None,
    }
}

/// What reading `port` gives.
pub(crate) fn read(port: u16) -> u8 {
    match port {
        layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT | layout::RESET_PORT => 0,
        _ => 0xff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_values_end_the_machine() {
        for value in 0..=u8::MAX {
            assert_eq!(
                written(layout::SLEEP_CONTROL_PORT, value).is_some(),
                value & 0x3c == 0x34,
                "{value:#x}"
            );
            assert_eq!(written(layout::RESET_PORT, value).is_some(), value == 1);
            assert_eq!(written(layout::SLEEP_STATUS_PORT, value), None);
        }
        assert_eq!(written(KEYBOARD_PORT, 0xfe), Some(PowerRequest::Reset));
    }
}
