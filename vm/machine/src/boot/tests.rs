use super::*;
use guest_memory::RangeSpec;
use std::io::Write;

/// A minimal ELF with one segment of `code` at 16 MiB.
fn elf(code: &[u8], memsz: u64) -> File {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    bytes.extend(0x100_0000u64.to_le_bytes());
    bytes.extend(64u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for field in [120u64, 0xffff_ffff_8100_0000, 0x100_0000, code.len() as u64, memsz, 0x1000] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(code);
    file(&bytes)
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn ram() -> GuestRam {
    GuestRam::new(vec![RangeSpec { gpa: 0, len: 32 * layout::MIB, file: None }]).unwrap()
}

#[test]
fn kernel_initramfs_and_command_line_are_where_boot_params_says() {
    let ram = ram();
    let mut initramfs = file(&[7; 5000]);
    let entry =
        load(&ram, 32 * layout::MIB, &mut elf(&[1, 2, 3], 0x1000), Some(&mut initramfs), "console=ttyS0")
            .unwrap();
    assert_eq!(entry.rip, 0x100_0000);
    let memory = ram.memory();
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    assert_eq!(read(0x100_0000, 4), [1, 2, 3, 0]);
    let start: u32 = memory.read_obj(GuestAddress(layout::BOOT_PARAMS + 0x218)).unwrap();
    let len: u32 = memory.read_obj(GuestAddress(layout::BOOT_PARAMS + 0x21c)).unwrap();
    assert_eq!((start % 4096, len), (0, 5000));
    assert_eq!(read(start.into(), 5001), [vec![7; 5000], vec![0]].concat());
    let line: u32 = memory.read_obj(GuestAddress(layout::BOOT_PARAMS + 0x228)).unwrap();
    assert_eq!(read(line.into(), 14), b"console=ttyS0\0");
}

#[test]
fn what_does_not_fit_is_refused() {
    let bytes = 32 * layout::MIB;
    let load = |kernel: &mut File, initramfs: &mut File, line: &str| {
        load(&ram(), bytes, kernel, Some(initramfs), line).map(|_| ())
    };
    let mut small = file(&[1]);
    let big_kernel = load(&mut elf(&[1], 17 * layout::MIB), &mut small, "");
    assert!(matches!(big_kernel, Err(BootError::KernelPlace { .. })));
    let mut large = file(&vec![1; 16 * layout::MIB as usize]);
    let big_initramfs = load(&mut elf(&[1], 1), &mut large, "");
    assert!(matches!(big_initramfs, Err(BootError::InitramfsPlace { .. })));
    assert!(matches!(
        load(&mut elf(&[1], 1), &mut small, &"x".repeat(2048)),
        Err(BootError::CommandLine(2048))
    ));
    assert!(matches!(load(&mut file(b"MZ"), &mut small, ""), Err(BootError::Kernel(_))));
}

#[test]
fn the_map_reserves_the_engines_tables_and_covers_all_ram() {
    let map = memory_map(5 * layout::GIB);
    let ram: u64 = map.iter().filter(|entry| entry.2 == RAM).map(|entry| entry.1 - entry.0).sum();
    let holes = (layout::STARTUP_END - layout::STARTUP) + (layout::HIGH_MEMORY - layout::CONVENTIONAL_END);
    assert_eq!(ram + holes, 5 * layout::GIB);
    assert!(map.contains(&(0x1000, 0x8000, RESERVED)));
    assert!(map.windows(2).all(|pair| pair[0].1 <= pair[1].0));
}

#[test]
fn the_boot_tables_map_four_gib_one_to_one() {
    let tables = page_tables();
    let entry = |index: usize| u64::from_le_bytes(tables[8 * index..8 * index + 8].try_into().unwrap());
    for address in [0u64, 0x20_0000, 0xfee0_0000, 0xffff_ffff] {
        let pdpt = (entry(0) & !0xfff) - layout::STARTUP_TABLES;
        let directory =
            (entry(pdpt as usize / 8 + (address >> 30) as usize) & !0xfff) - layout::STARTUP_TABLES;
        let page = entry(directory as usize / 8 + (address >> 21 & 511) as usize);
        assert_eq!((page & !0x1f_ffff, page & 0xfff), (address & !0x1f_ffff, 0x83));
    }
}
