//! ACPI tables: hardware-reduced, no legacy interrupt routing, so the guest learns of processors, PCI, the serial port and
//! the power registers without probing for a PC.
//!
//! Everything is built once at boot from the layout; the guest can only read it (or spoil its own copy).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use hv::ApStartup;

use crate::layout;

const OEM_ID: [u8; 6] = *b"VIVARM";
const TABLE_ID: [u8; 8] = *b"VIVARIUM";
const REVISION: u32 = layout::VERSION;

/// IA-PC boot architecture flags (ACPI 6.4 §5.2.9.3): no VGA, no CMOS clock; no 8042 and no legacy devices by absence.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// The tables as one piece of memory to be put at [`layout::ACPI_TABLES`].
pub(crate) fn tables(vcpus: u32, ap_startup: ApStartup) -> Vec<u8> {
    let mut place = Placer { base: layout::ACPI_TABLES, bytes: vec![0; Rsdp::len().next_multiple_of(16)] };
    let dsdt = place.put(&dsdt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, TABLE_ID, REVISION);
    xsdt.add_entry(place.put(&fadt(dsdt)));
    xsdt.add_entry(place.put(&madt(vcpus, ap_startup)));
    let mut mcfg = MCFG::new(OEM_ID, TABLE_ID, REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    xsdt.add_entry(place.put(&mcfg));
    let xsdt = place.put(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    place.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    place.bytes
}

struct Placer {
    base: u64,
    bytes: Vec<u8>,
}

impl Placer {
    /// Appends a table; gives its address.
    fn put(&mut self, table: &dyn Aml) -> u64 {
        let at = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        at
    }
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, TABLE_ID, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE_ID).into();
    fadt.finalize()
}

/// The processors. APIC ids from 255 need x2APIC entries (ACPI 6.4 §5.2.12.12); both kinds are tables of bytes here
/// because the wake-up structure (§5.2.12.19) has no builder.
fn madt(vcpus: u32, ap_startup: ApStartup) -> Sdt {
    let mut head =
        MADT::new(OEM_ID, TABLE_ID, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC as u32));
    for id in 0..vcpus.min(255) as u8 {
        head.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    let mut bytes = Vec::new();
    head.to_aml_bytes(&mut bytes);
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM_ID, TABLE_ID, REVISION);
    madt.append_slice(&bytes[36..]);
    for id in 255..vcpus {
        let mut entry = vec![9, 16, 0, 0];
        entry.extend(id.to_le_bytes());
        entry.extend(1u32.to_le_bytes());
        entry.extend(id.to_le_bytes());
        madt.append_slice(&entry);
    }
    if ap_startup == ApStartup::Mailbox {
        let mut entry = vec![0x10, 16, 0, 0, 0, 0, 0, 0];
        entry.extend(layout::MAILBOX.to_le_bytes());
        madt.append_slice(&entry);
    }
    madt
}

fn dsdt(vcpus: u32) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, TABLE_ID, REVISION);
    let mut aml = Vec::new();
    pci_root(&mut aml);
    motherboard(&mut aml);
    serial(&mut aml);
    generation_id(&mut aml);
    processors(vcpus, &mut aml);
    let s5 = layout::SLEEP_TYPE_S5;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &0u8, &0u8])).to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

/// Appends a device with these named objects.
fn device(aml: &mut Vec<u8>, path: &str, objects: &[(&str, &dyn Aml)]) {
    let names: Vec<Name> = objects.iter().map(|(name, value)| Name::new((*name).into(), *value)).collect();
    Device::new(path.into(), names.iter().map(|name| name as &dyn Aml).collect()).to_aml_bytes(aml);
}

fn pci_root(aml: &mut Vec<u8>) {
    let window = |start: u64, len: u64| (start, start + len - 1);
    let (start32, last32) = window(layout::PCI_WINDOW_32, layout::PCI_WINDOW_32_LEN);
    let (start64, last64) = window(layout::PCI_WINDOW_64, layout::PCI_WINDOW_64_LEN);
    let cache = AddressSpaceCacheable::NotCacheable;
    device(
        aml,
        "_SB_.PCI0",
        &[
            ("_HID", &EISAName::new("PNP0A08")),
            ("_CID", &EISAName::new("PNP0A03")),
            ("_UID", &0u8),
            ("_SEG", &0u8),
            ("_BBN", &0u8),
            (
                "_CRS",
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &AddressSpace::new_memory(cache, true, start32 as u32, last32 as u32, None),
                    &AddressSpace::new_memory(cache, true, start64, last64, None),
                ]),
            ),
        ],
    );
}

/// Claims ECAM, as Linux believes MCFG only if a device or the memory map reserves the same range.
fn motherboard(aml: &mut Vec<u8>) {
    let power = layout::SLEEP_CONTROL_PORT;
    device(
        aml,
        "_SB_.MBRD",
        &[
            ("_HID", &EISAName::new("PNP0C02")),
            ("_UID", &0u8),
            (
                "_CRS",
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, layout::ECAM as u32, layout::ECAM_LEN as u32),
                    &IO::new(power, power, 1, 4),
                ]),
            ),
        ],
    );
}

/// A 16550 without an interrupt: the driver polls it.
fn serial(aml: &mut Vec<u8>) {
    let (port, len) = (layout::SERIAL_PORT, layout::SERIAL_PORTS as u8);
    device(
        aml,
        "_SB_.COM1",
        &[
            ("_HID", &EISAName::new("PNP0501")),
            ("_UID", &0u8),
            ("_CRS", &ResourceTemplate::new(vec![&IO::new(port, port, 1, len)])),
        ],
    );
}

/// The VM generation id (Microsoft's "Virtual Machine Generation ID" paper): ADDR is a package of low and high address.
fn generation_id(aml: &mut Vec<u8>) {
    let (low, high) = (layout::VM_GENERATION_ID as u32, 0u32);
    device(
        aml,
        "_SB_.VGEN",
        &[
            ("_HID", &"VIVAGEN0"),
            ("_CID", &"VM_Gen_Counter"),
            ("_DDN", &"VM_Gen_Counter"),
            ("ADDR", &Package::new(vec![&low, &high])),
        ],
    );
}

/// Processor devices, so that Linux ties its logical CPUs to the MADT's uids.
fn processors(vcpus: u32, aml: &mut Vec<u8>) {
    for id in 0..vcpus.min(4096) {
        device(aml, &format!("_SB_.C{id:03X}"), &[("_HID", &"ACPI0007"), ("_UID", &id)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(tables: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
        let at = tables.windows(4).position(|window| window == signature).expect("the table is there");
        let len = u32::from_le_bytes(tables[at + 4..at + 8].try_into().unwrap()) as usize;
        &tables[at..at + len]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_sums_to_zero_and_is_reached_from_the_root() {
        for vcpus in 1..20 {
            check(&tables(vcpus, ApStartup::Mailbox));
            check(&tables(vcpus, ApStartup::Architectural));
        }
    }

    fn check(tables: &[u8]) {
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!(sum(&tables[..36]), 0);
        assert!(layout::ACPI_TABLES + tables.len() as u64 <= layout::ACPI_TABLES_END);
        let xsdt = find(tables, b"XSDT");
        for signature in [b"DSDT", b"FACP", b"APIC", b"MCFG"] {
            let table = find(tables, signature);
            assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(signature));
            let at = layout::ACPI_TABLES + (table.as_ptr() as u64 - tables.as_ptr() as u64);
            let holder = if signature == b"DSDT" { find(tables, b"FACP") } else { xsdt };
            assert!(holder.windows(8).any(|window| window == at.to_le_bytes()), "{at:#x} is linked");
        }
    }

    #[test]
    fn the_wake_up_structure_is_there_only_for_the_mailbox() {
        let entry = [&[0x10u8, 16, 0, 0, 0, 0, 0, 0][..], &layout::MAILBOX.to_le_bytes()].concat();
        let with = tables(2, ApStartup::Mailbox);
        assert_eq!(find(&with, b"APIC").windows(16).filter(|window| *window == entry).count(), 1);
        let without = tables(2, ApStartup::Architectural);
        assert_eq!(find(&without, b"APIC").windows(16).filter(|window| *window == entry).count(), 0);
    }

    #[test]
    fn there_is_an_entry_for_each_processor() {
        let tables = tables(300, ApStartup::Architectural);
        let madt = find(&tables, b"APIC");
        let (mut at, mut ids) = (44, Vec::new());
        while at < madt.len() {
            match madt[at] {
                0 => ids.push(u32::from(madt[at + 3])),
                9 => ids.push(u32::from_le_bytes(madt[at + 4..at + 8].try_into().unwrap())),
                other => panic!("unexpected entry {other}"),
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
    }
}
