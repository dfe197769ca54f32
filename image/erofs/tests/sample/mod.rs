//! An image with some of everything.

use std::collections::BTreeMap;
use std::io::{Seek, Write};

use erofs::{Device, Metadata, Writer};

pub(crate) fn meta(mode: u16) -> Metadata {
    Metadata { mode, uid: 1000, gid: 100, mtime: 1_700_000_000, mtime_nsec: 5, xattrs: BTreeMap::new() }
}

/// Large and small directories, contents around block borders, attributes, links, devices.
pub(crate) fn sample<F: Write + Seek>(out: F) -> F {
    let mut image = Writer::new(out).unwrap();
    image.identify([7; 16], "sample", 1_700_000_001);
    image.directory(b"/", Metadata { mode: 0o755, ..Metadata::default() }).unwrap();
    image.directory(b"usr/bin", meta(0o755)).unwrap();
    image.symlink(b"bin", b"usr/bin", meta(0o777)).unwrap();
    for size in [0usize, 1, 4095, 4096, 4097, 100_000] {
        image.file(format!("sizes/{size}").as_bytes(), meta(0o644), &vec![b'x'; size][..]).unwrap();
    }
    let capability = [1, 0, 0, 2, 0, 10, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let xattrs = BTreeMap::from([
        (b"security.capability".to_vec(), capability),
        (b"user.long".to_vec(), vec![9; 5000]),
        (b"system.posix_acl_access".to_vec(), vec![2, 0, 0, 0]),
    ]);
    image.file(b"bin/ping", Metadata { xattrs, ..meta(0o4755) }, &b"#!ping"[..]).unwrap();
    image.hard_link(b"usr/bin/ping6", b"/bin/ping").unwrap();
    for index in 0..3000 {
        image
            .file(format!("many/{index:05}-{}", "n".repeat(index % 200)).as_bytes(), meta(0o600), &b""[..])
            .unwrap();
    }
    image.symlink(b"long-link", "l/".repeat(2000).as_bytes(), meta(0o777)).unwrap();
    image.device(b"dev/null", Device::Character(1, 3), meta(0o666)).unwrap();
    image.device(b"dev/big", Device::Block(259, 70_000), meta(0o660)).unwrap();
    image.device(b"dev/pipe", Device::Fifo, meta(0o600)).unwrap();
    let mut file = image.file_writer(b"patched", meta(0o644)).unwrap();
    file.write_all(b"????-rest").unwrap();
    file.patch(0, b"head").unwrap();
    assert!(file.patch(8, b"ab").is_err(), "beyond what was written");
    file.write_all(b"!").unwrap();
    assert_eq!(file.finish().unwrap(), 10);
    image.finish().unwrap().0
}
