//! The machine's layout, version 1: every guest-physical address, port and PCI slot in one table.
//!
//! A snapshot names the version it was made with; a number here changes only together with [`VERSION`]. There is room for
//! what is not used yet: memory hot-plug behind RAM, 16 spare PCI slots, buses above 0.
//!
//! ```text
//! 0000_0000  zero page                    E000_0000  ECAM, 256 MiB (bus 0 is behind it)
//! 0000_1000  start-up tables (reserved)   FEC0_0000  I/O APIC's place (none)
//! 0000_9000  boot_params, command line    FED0_0000  AP wake-up mailbox (MMIO)
//! 000E_0000  ACPI tables                  FEE0_0000  local APIC
//! 0010_0000  low RAM, kernel at 16 MiB  1_0000_0000  RAM above 4 GiB, then hot-plug
//! C000_0000  PCI window, 512 MiB       40_0000_0000  persistent memory, 128 GiB
//!                                      60_0000_0000  64-bit PCI window, 128 GiB
//! ```

/// The layout's version, for snapshots.
pub const VERSION: u32 = 1;

/// One KiB.
pub const KIB: u64 = 1 << 10;
/// One MiB.
pub const MIB: u64 = 1 << 20;
/// One GiB.
pub const GIB: u64 = 1 << 30;

/// First byte of what processors start with: reserved in the memory map, as application processors need it after the
/// kernel has taken all other memory into use.
pub const STARTUP: u64 = 0x1000;
/// First byte behind it.
pub const STARTUP_END: u64 = 0x8000;
/// Page tables: PML4, PDPT and four page directories that map the first 4 GiB one to one.
pub const STARTUP_TABLES: u64 = 0x1000;
/// The GDT that goes with them.
pub const STARTUP_GDT: u64 = 0x7000;
/// The Linux zero page (`boot_params`).
pub const BOOT_PARAMS: u64 = 0x9000;
/// The kernel's command line.
pub const BOOT_CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes, its NUL included (`COMMAND_LINE_SIZE` of x86 Linux).
pub const BOOT_CMDLINE_MAX: usize = 2048;
/// First byte behind conventional memory.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables, the RSDP first.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// First byte behind the ACPI tables' room.
pub const ACPI_TABLES_END: u64 = 0xf_f000;
/// The page that holds the VM generation id.
pub const VM_GENERATION_PAGE: u64 = 0xf_f000;
/// The 16 bytes of the VM generation id.
pub const VM_GENERATION_ID: u64 = VM_GENERATION_PAGE + 0x28;
/// RAM above the first MiB.
pub const HIGH_MEMORY: u64 = MIB;

/// Most RAM below the PCI hole.
pub const LOW_RAM_MAX: u64 = 3 * GIB;
/// The 32-bit PCI memory window.
pub const PCI_WINDOW_32: u64 = 0xc000_0000;
/// Its length.
pub const PCI_WINDOW_32_LEN: u64 = 0x2000_0000;
/// PCI configuration space (ECAM).
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of ECAM: 256 buses.
pub const ECAM_LEN: u64 = 256 * MIB;
/// Where an I/O APIC would be; reserved, as engines have local APICs only.
pub const IO_APIC: u64 = 0xfec0_0000;
/// The multiprocessor wake-up mailbox (ACPI 6.4 §5.2.12.19).
pub const MAILBOX: u64 = 0xfed0_0000;
/// The local APIC's page.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// RAM behind the PCI hole.
pub const HIGH_RAM: u64 = 4 * GIB;
/// First byte behind RAM and hot-pluggable memory.
pub const HIGH_RAM_END: u64 = 256 * GIB;
/// Persistent memory.
pub const PMEM: u64 = 256 * GIB;
/// First byte behind it.
pub const PMEM_END: u64 = 384 * GIB;
/// Alignment of a persistent memory range and its length: a subsection of Linux's memory map.
pub const PMEM_ALIGN: u64 = 2 * MIB;
/// The 64-bit PCI memory window; nothing is in it yet.
pub const PCI_WINDOW_64: u64 = 384 * GIB;
/// Its length.
pub const PCI_WINDOW_64_LEN: u64 = 128 * GIB;
/// Bits of guest-physical address that the layout needs.
pub const GPA_BITS: u8 = 39;

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its ports.
pub const SERIAL_PORTS: u16 = 8;
/// ACPI sleep control register: one byte; S5 with SLP_EN powers the machine off.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Reset register: writing [`RESET_VALUE`] resets the machine.
pub const RESET_PORT: u16 = 0x602;
/// What a reset writes.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Slots (device numbers) on PCI bus 0. Slot 0 is the host bridge.
pub const PCI_SLOTS: u8 = 32;
/// Each slot's piece of [`PCI_WINDOW_32`]; a function's BAR 0 is at its start and cannot be moved.
pub const PCI_SLOT_BYTES: u64 = MIB;

/// The place of BAR 0 of the function in `slot`.
pub const fn bar_address(slot: u8) -> u64 {
    PCI_WINDOW_32 + slot as u64 * PCI_SLOT_BYTES
}

/// How much RAM lies below the PCI hole and how much above 4 GiB, in bytes.
pub const fn split_ram(bytes: u64) -> (u64, u64) {
    if bytes <= LOW_RAM_MAX { (bytes, 0) } else { (LOW_RAM_MAX, bytes - LOW_RAM_MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        let places = [
            (STARTUP_TABLES, STARTUP_TABLES + 6 * 0x1000),
            (STARTUP_GDT, STARTUP_END),
            (BOOT_PARAMS, BOOT_PARAMS + 0x1000),
            (BOOT_CMDLINE, BOOT_CMDLINE + BOOT_CMDLINE_MAX as u64),
            (CONVENTIONAL_END, ACPI_TABLES),
            (ACPI_TABLES, ACPI_TABLES_END),
            (VM_GENERATION_PAGE, HIGH_MEMORY),
            (HIGH_MEMORY, LOW_RAM_MAX),
            (PCI_WINDOW_32, PCI_WINDOW_32 + PCI_WINDOW_32_LEN),
            (ECAM, ECAM + ECAM_LEN),
            (IO_APIC, IO_APIC + 0x1000),
            (MAILBOX, MAILBOX + 0x1000),
            (LOCAL_APIC, LOCAL_APIC + 0x1000),
            (HIGH_RAM, HIGH_RAM_END),
            (PMEM, PMEM_END),
            (PCI_WINDOW_64, PCI_WINDOW_64 + PCI_WINDOW_64_LEN),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 < pair[0].1 && pair[0].1 <= pair[1].0, "{:x?}", pair);
        }
        const { assert!(STARTUP == STARTUP_TABLES) };
        const { assert!(PCI_WINDOW_64 + PCI_WINDOW_64_LEN <= 1 << GPA_BITS) };
        const { assert!(bar_address(PCI_SLOTS - 1) + PCI_SLOT_BYTES <= ECAM) };
    }

    #[test]
    fn ram_is_split_at_the_hole() {
        assert_eq!(split_ram(512 * MIB), (512 * MIB, 0));
        assert_eq!(split_ram(LOW_RAM_MAX), (LOW_RAM_MAX, 0));
        assert_eq!(split_ram(5 * GIB), (3 * GIB, 2 * GIB));
    }
}
