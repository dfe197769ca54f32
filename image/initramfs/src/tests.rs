//! Archives from made-up modules, read back entry by entry.

use std::collections::BTreeMap;
use std::io::Write;

use super::*;

/// An ELF64 file with nothing but a `.modinfo` section.
fn module(depends: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends={depends}\0name=x\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut elf = vec![0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let info_at = elf.len();
    elf.extend_from_slice(info.as_bytes());
    let names_at = elf.len();
    elf.extend_from_slice(names);
    let table = elf.len();
    for (name, at, size) in [(0u32, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
        let mut header = [0u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
        elf.extend_from_slice(&header);
    }
    elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    elf[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
    elf[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
    elf[0x3e..0x40].copy_from_slice(&2u16.to_le_bytes());
    elf
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut writer =
        lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).expect("options");
    writer.write_all(bytes).expect("memory");
    writer.finish().expect("memory")
}

fn kernel() -> Modules {
    let mut modules = Modules::new();
    for (file, depends) in [
        ("kernel/net/vmw_vsock/vsock.ko.xz", ""),
        ("kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko.xz", "vsock"),
        (
            "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.xz",
            "vmw_vsock_virtio_transport_common,vsock,virtio_ring",
        ),
        ("kernel/drivers/block/virtio_blk.ko.xz", ""),
        ("kernel/drivers/nvdimm/libnvdimm.ko.xz", ""),
        ("kernel/drivers/nvdimm/nd_pmem.ko.xz", "libnvdimm"),
        ("kernel/drivers/nvdimm/virtio_pmem.ko.xz", "libnvdimm"),
        ("kernel/drivers/char/hw_random/virtio-rng.ko.xz", ""),
        ("kernel/net/core/failover.ko.xz", ""),
        ("kernel/drivers/net/net_failover.ko.xz", "failover"),
        ("kernel/drivers/net/virtio_net.ko.xz", "net_failover"),
        ("kernel/fs/erofs/erofs.ko.xz", "libcrc32c"),
        ("kernel/lib/libcrc32c.ko.xz", ""),
        ("kernel/fs/overlayfs/overlay.ko.xz", ""),
    ] {
        assert!(modules.insert(file, packed(&module(depends))));
    }
    modules.insert_built_in("kernel/drivers/virtio/virtio_ring.ko\nkernel/fs/ext4/ext4.ko\n");
    modules
}

/// Path → (mode, content) of an archive.
fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut at = 0;
    loop {
        let header = &archive[at..at + 110];
        assert_eq!(&header[..6], b"070701");
        let field = |n: usize| {
            let text = std::str::from_utf8(&header[6 + n * 8..14 + n * 8]).expect("hexadecimal");
            u32::from_str_radix(text, 16).expect("hexadecimal") as usize
        };
        let name_end = at + 110 + field(11);
        let name = String::from_utf8(archive[at + 110..name_end - 1].to_vec()).expect("a name");
        assert_eq!(archive[name_end - 1], 0);
        let start = name_end.next_multiple_of(4);
        if name == "TRAILER!!!" {
            return found;
        }
        found.insert(name, (field(1) as u32, archive[start..start + field(6)].to_vec()));
        at = (start + field(6)).next_multiple_of(4);
    }
}

#[test]
fn holds_agent_console_and_modules_in_order() {
    let archive = build(b"the agent", &kernel()).expect("all there");
    let entries = entries(&archive);
    assert_eq!(entries["init"], (0o100_755, b"the agent".to_vec()));
    assert_eq!(entries["dev"].0, 0o040_755);
    assert_eq!(entries["dev/console"].0, 0o020_600);
    assert_eq!(entries["modules/virtio_rng.ko"].1, module(""));
    let order = String::from_utf8(entries["modules/order"].1.clone()).expect("text");
    assert_eq!(
        order,
        "19 vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport\n2 virtio_blk\n\
         27 libnvdimm nd_pmem virtio_pmem\n4 virtio_rng\n1 failover net_failover virtio_net\n* libcrc32c erofs overlay\n"
    );
    for name in order.split_whitespace().filter(|w| w.parse::<u32>().is_err() && *w != "*") {
        assert!(entries.contains_key(&format!("modules/{name}.ko")), "{name}");
    }
}

#[test]
fn same_input_gives_same_bytes() {
    assert_eq!(build(b"a", &kernel()).ok(), build(b"a", &kernel()).ok());
}

#[test]
fn from_a_folder_as_from_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("kernel/drivers");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("b.ko"), module("a-x")).expect("a file");
    std::fs::write(folder.join("a-x.ko.xz"), packed(&module(""))).expect("a file");
    let modules = Modules::from_dir(dir.path()).expect("a folder of modules");
    assert_eq!(modules.closure(&["b"], &mut BTreeMap::new()).expect("both"), ["a_x", "b"]);
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let mut modules = kernel();
    modules.insert("erofs.ko", module("nowhere"));
    assert!(matches!(build(b"", &modules), Err(InitramfsError::MissingModule(m)) if m == "nowhere"));
    modules.insert("erofs.ko", module("erofs"));
    assert!(matches!(build(b"", &modules), Err(InitramfsError::Circle(m)) if m == "erofs"));
    modules.insert("erofs.ko", b"\x7fELF\x02\x01 and no more".to_vec());
    assert!(matches!(build(b"", &modules), Err(InitramfsError::NotAModule(m)) if m == "erofs"));
    modules.insert("erofs.ko.xz", b"not xz".to_vec());
    assert!(matches!(build(b"", &modules), Err(InitramfsError::Unpack { name, .. }) if name == "erofs"));
}

#[test]
fn signatures_are_left_behind() {
    let plain = module("");
    let signed = |length: u32| {
        let tail = [
            &[1; 100][..],
            &[0, 0, 2, 0, 0, 0, 0, 0],
            &length.to_be_bytes(),
            b"~Module signature appended~\n",
        ];
        [&plain[..], &tail.concat()].concat()
    };
    assert_eq!(without_signature(&signed(100)), plain);
    assert_eq!(without_signature(&plain), plain);
    // A length that cannot be leaves the module as it is: the kernel will say what it thinks of it.
    assert_eq!(without_signature(&signed(u32::MAX)), signed(u32::MAX));
    assert_eq!(without_signature(b"~Module signature appended~\n").len(), 28);

    let mut modules = kernel();
    modules.insert("virtio_blk.ko", signed(100));
    let archive = build(b"", &modules).expect("all there");
    assert_eq!(entries(&archive)["modules/virtio_blk.ko"].1, plain);
}
