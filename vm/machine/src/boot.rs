//! Direct 64-bit boot of an uncompressed Linux kernel: what a boot loader leaves in memory and in the boot processor.
//!
//! The protocol is "64-bit boot protocol" of Linux's `Documentation/arch/x86/boot.rst`: long mode with one-to-one page
//! tables, flat segments 0x10 and 0x18, interrupts off, `boot_params` in RSI, entry at the ELF's entry point. The kernel
//! and the initramfs come from the image store and are trusted for content, not for form: every placement is checked.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use guest_memory::{GuestMemory, GuestRam};
use hv::state::{Gpr, Segment, StateElement, System};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use source::Source;

mod kernel;
mod source;

/// Why the guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is not an x86-64 ELF that fits.
    #[error("The kernel cannot be loaded")]
    Kernel(#[source] linux_loader::loader::Error),
    /// There is no machine of this architecture yet.
    #[error("A machine of the architecture {0} is not supported yet")]
    Architecture(&'static str),
    /// The kernel's entry or end is outside low RAM.
    #[error("The kernel does not fit into {ram} bytes of memory")]
    KernelPlace {
        /// Low RAM in bytes.
        ram: u64,
    },
    /// The initramfs cannot be read.
    #[error("The initramfs cannot be read")]
    Initramfs(#[source] std::io::Error),
    /// The initramfs does not fit between the kernel and the end of low RAM.
    #[error("The initramfs of {len} bytes does not fit into {ram} bytes of memory")]
    InitramfsPlace {
        /// Its length.
        len: u64,
        /// Low RAM in bytes.
        ram: u64,
    },
    /// The command line is longer than the kernel takes, or holds a NUL.
    #[error("The kernel command line has {0} bytes; at most {max} are possible", max = layout::BOOT_CMDLINE_MAX - 1)]
    CommandLine(usize),
    /// Guest memory is not where the layout has it.
    #[error("Guest memory is missing")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// Where the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Guest-physical address of the first instruction.
    pub(crate) rip: u64,
}

/// Loads kernel, initramfs, command line and `boot_params`.
pub(crate) fn load(
    ram: &GuestRam,
    bytes: u64,
    kernel: &mut File,
    initramfs: Option<&mut File>,
    cmdline: &str,
) -> Result<Entry, BootError> {
    let memory = ram.memory();
    let (low, _) = layout::split_ram(bytes);
    let loaded = kernel::load(memory, &mut Source(kernel))?;
    let entry = loaded.entry;
    if loaded.end > low || entry >= loaded.end {
        return Err(BootError::KernelPlace { ram: low });
    }
    let initramfs = match initramfs {
        Some(file) => Some(load_initramfs(memory, file, loaded.end, low)?),
        None => None,
    };
    let line = cmdline.as_bytes();
    if line.len() >= layout::BOOT_CMDLINE_MAX || line.contains(&0) {
        return Err(BootError::CommandLine(line.len()));
    }
    let write = |at: u64, data: &[u8]| memory.write_slice(data, GuestAddress(at)).map_err(BootError::Memory);
    write(layout::BOOT_CMDLINE, line)?;
    write(layout::BOOT_CMDLINE + line.len() as u64, &[0])?;
    write(layout::BOOT_PARAMS, &boot_params(bytes, initramfs, line.len()))?;
    write(layout::STARTUP_TABLES, &page_tables())?;
    for (index, descriptor) in GDT.iter().enumerate() {
        write(layout::STARTUP_GDT + 8 * index as u64, &descriptor.to_le_bytes())?;
    }
    Ok(Entry { rip: entry })
}

/// Puts the initramfs at the end of low RAM; gives its address and length.
fn load_initramfs(
    memory: &GuestMemory,
    file: &mut File,
    floor: u64,
    low: u64,
) -> Result<(u64, u64), BootError> {
    let len = file.seek(SeekFrom::End(0)).map_err(BootError::Initramfs)?;
    file.rewind().map_err(BootError::Initramfs)?;
    // 32-bit `ramdisk_image` fields reach all of low RAM; Linux wants it below 2 GiB only for older protocols.
    let bad = BootError::InitramfsPlace { len, ram: low };
    let Some(start) = low.checked_sub(len).map(|start| start & !(guest_memory::PAGE_SIZE - 1)) else {
        return Err(bad);
    };
    if start < floor {
        return Err(bad);
    }
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut Source(file), len as usize)
        .map_err(BootError::Memory)?;
    Ok((start, len))
}

/// An entry of the memory map that `boot_params` carries: first address, end, e820 type.
type MapEntry = (u64, u64, u32);

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;

/// The e820 map for this much RAM.
pub(crate) fn memory_map(bytes: u64) -> Vec<MapEntry> {
    let (low, high) = layout::split_ram(bytes);
    let mut map = vec![
        (0, layout::STARTUP, RAM),
        (layout::STARTUP, layout::STARTUP_END, RESERVED),
        (layout::STARTUP_END, layout::CONVENTIONAL_END, RAM),
        (layout::CONVENTIONAL_END, layout::ACPI_TABLES, RESERVED),
        (layout::ACPI_TABLES, layout::ACPI_TABLES_END, ACPI),
        (layout::VM_GENERATION_PAGE, layout::HIGH_MEMORY, RESERVED),
        (layout::HIGH_MEMORY, low, RAM),
        (layout::ECAM, layout::ECAM + layout::ECAM_LEN, RESERVED),
        (layout::MAILBOX, layout::MAILBOX + 0x1000, RESERVED),
    ];
    if high > 0 {
        map.push((layout::HIGH_RAM, layout::HIGH_RAM + high, RAM));
    }
    map
}

/// The zero page (Linux `Documentation/arch/x86/zero-page.rst`).
fn boot_params(bytes: u64, initramfs: Option<(u64, u64)>, cmdline_len: usize) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |at: usize, data: &[u8]| page[at..at + data.len()].copy_from_slice(data);
    put(0x70, &layout::ACPI_TABLES.to_le_bytes()); // acpi_rsdp_addr
    let map = memory_map(bytes);
    put(0x1e8, &[map.len() as u8]); // e820_entries
    for (index, (start, end, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + 20 * index;
        put(at, &start.to_le_bytes());
        put(at + 8, &(end - start).to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    put(0x1fe, &0xaa55u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS"); // header
    put(0x206, &0x020fu16.to_le_bytes()); // version 2.15
    put(0x210, &[0xff]); // type_of_loader: undefined
    put(0x211, &[0x01]); // loadflags: LOADED_HIGH
    if let Some((start, len)) = initramfs {
        put(0x218, &(start as u32).to_le_bytes()); // ramdisk_image
        put(0x21c, &(len as u32).to_le_bytes()); // ramdisk_size
        put(0xc0, &((start >> 32) as u32).to_le_bytes()); // ext_ramdisk_image
        put(0xc4, &((len >> 32) as u32).to_le_bytes()); // ext_ramdisk_size
    }
    put(0x228, &(layout::BOOT_CMDLINE as u32).to_le_bytes()); // cmd_line_ptr
    put(0x238, &(cmdline_len as u32).to_le_bytes()); // cmdline_size
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    page
}

/// Null, unused, 64-bit code (0x10), data (0x18), and the busy TSS that some engines want in TR.
const GDT: [u64; 6] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];

/// PML4, PDPT and four page directories of 2 MiB pages: the first 4 GiB one to one.
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let mut entries = vec![0u64; 6 * 512];
    entries[0] = (layout::STARTUP_TABLES + 0x1000) | PRESENT_WRITABLE;
    for directory in 0..4u64 {
        entries[512 + directory as usize] =
            (layout::STARTUP_TABLES + (directory + 2) * 0x1000) | PRESENT_WRITABLE;
    }
    for page in 0..2048u64 {
        entries[1024 + page as usize] = (page << 21) | LARGE | PRESENT_WRITABLE;
    }
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// A processor's state at `entry`, as elements to be set in this order. An application processor that is woken through
/// the mailbox has the same, but for the address it starts at.
pub(crate) fn start_state(entry: Entry, is_boot_processor: bool) -> [StateElement; 2] {
    let flat = |selector: u32, attributes: u32| Segment { selector, base: 0, limit: 0xffff_ffff, attributes };
    let data = flat(0x18, 0xc093);
    let unusable = Segment { selector: 0, base: 0, limit: 0, attributes: 1 << 16 };
    let code = flat(0x10, 0xa09b);
    let task = Segment { selector: 0x20, base: 0, limit: 0x67, attributes: 0x8b };
    let system = System {
        segments: vec![
            data.clone(),
            code,
            data.clone(),
            data.clone(),
            data.clone(),
            data,
            Segment { attributes: unusable.attributes | 0x82, ..unusable },
            task,
        ],
        gdt_base: layout::STARTUP_GDT,
        gdt_limit: 8 * GDT.len() as u32 - 1,
        idt_base: 0,
        idt_limit: 0,
        cr0: 0x8005_0033, // PG, AM, WP, NE, ET, MP, PE: as Linux itself sets it
        cr2: 0,
        cr3: layout::STARTUP_TABLES,
        cr4: 0x20, // PAE
        cr8: 0,
        // LMA, LME; NXE because an application processor takes over the kernel's page tables, with their NX bits, before
        // it sets EFER.
        efer: 0xd00,
        // Enabled; bit 8 marks the boot processor.
        apic_base: 0xfee0_0800 | u64::from(is_boot_processor) << 8,
    };
    let mut regs = vec![0; 16];
    regs[6] = layout::BOOT_PARAMS; // rsi
    [StateElement::System(system), StateElement::Gpr(Gpr { regs, rip: entry.rip, rflags: 2 })]
}

#[cfg(test)]
mod tests;
