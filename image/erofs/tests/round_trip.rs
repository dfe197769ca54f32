//! Images made by the writer, read back by our reader.

mod sample;

use std::io::{Cursor, Read};

use erofs::{Image, Writer};
use sample::{meta, sample};

fn read<F: Read + std::io::Seek>(image: &mut Image<F>, path: &str) -> Vec<u8> {
    let found = image.find(path.as_bytes()).unwrap().unwrap_or_else(|| panic!("{path} is missing"));
    let mut bytes = Vec::new();
    image.contents(&found).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_was_written_is_read_back() {
    let mut image = Image::open(sample(Cursor::new(Vec::new()))).unwrap();
    for size in [0usize, 1, 4095, 4096, 4097, 100_000] {
        assert_eq!(read(&mut image, &format!("sizes/{size}")), vec![b'x'; size]);
    }
    let ping = image.find(b"usr/bin/ping").unwrap().unwrap();
    assert_eq!(image.find(b"usr/bin/ping6").unwrap().unwrap().nid, ping.nid);
    assert_eq!((ping.mode, ping.links, ping.uid, ping.mtime), (0o104_755, 2, 1000, 1_700_000_000));
    let xattrs = image.xattrs(&ping).unwrap();
    assert_eq!(xattrs[&b"security.capability"[..]].len(), 20);
    assert_eq!(xattrs[&b"user.long"[..]], vec![9; 5000]);
    assert_eq!(xattrs.len(), 3);
    let bin = image.find(b"bin").unwrap().unwrap();
    assert_eq!(image.link_target(&bin).unwrap(), b"usr/bin");
    let many = image.find(b"many").unwrap().unwrap();
    assert_eq!(image.list(&many).unwrap().len(), 3000);
    let long = image.find(b"long-link").unwrap().unwrap();
    assert_eq!(image.link_target(&long).unwrap().len(), 4000);
    assert_eq!(
        image.find(b"dev/big").unwrap().unwrap().device,
        (70_000 & 0xff) | (259 << 8) | ((70_000 & 0xf_ff00) << 12)
    );
    assert_eq!(read(&mut image, "patched"), b"head-rest!");
    assert_eq!(image.find(b"nothing/here").unwrap(), None);
}

#[test]
fn regular_files_start_at_pages() {
    let mut image = Image::open(sample(Cursor::new(Vec::new()))).unwrap();
    for size in [1usize, 4095, 4096, 4097, 100_000] {
        let found = image.find(format!("sizes/{size}").as_bytes()).unwrap().unwrap();
        assert_eq!(Image::<Cursor<Vec<u8>>>::position(&found) % 4096, 0);
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert!(sample(Cursor::new(Vec::new())).into_inner() == sample(Cursor::new(Vec::new())).into_inner());
}

#[test]
fn impossible_paths_are_refused() {
    let mut image = Writer::new(Cursor::new(Vec::new())).unwrap();
    image.file(b"file", meta(0o644), &b""[..]).unwrap();
    image.symlink(b"loop", b"loop", meta(0o777)).unwrap();
    image.symlink(b"up", b"../../..", meta(0o777)).unwrap();
    let long = vec![b'n'; 256];
    for path in [&b"../escape"[..], b"a/../../b", b"file/child", b"loop/child", b"nul\0", &long] {
        assert!(image.directory(path, meta(0o755)).is_err(), "{}", String::from_utf8_lossy(path));
    }
    image.directory(b"up/inside", meta(0o755)).unwrap();
    assert!(image.exists(b"inside"), "a link upwards ends at the image's root");
    assert!(image.symlink(b"inside", b"x", meta(0o777)).is_err());
    assert!(image.hard_link(b"x", b"inside").is_err());
    assert!(image.hard_link(b"x", b"absent").is_err());
}

#[test]
fn a_directory_over_a_link_to_one_means_its_target() {
    let mut image = Writer::new(Cursor::new(Vec::new())).unwrap();
    image.directory(b"usr/lib", meta(0o755)).unwrap();
    image.symlink(b"lib", b"usr/lib", meta(0o777)).unwrap();
    image.directory(b"lib/", meta(0o700)).unwrap();
    image.file(b"lib/x/y.so", meta(0o644), &b"so"[..]).unwrap();
    assert!(image.exists(b"usr/lib/x/y.so") && image.exists(b"/lib/x/y.so"));
    let mut image = Image::open(image.finish().unwrap().0).unwrap();
    assert_eq!(image.find(b"lib").unwrap().unwrap().mode & 0o170_000, 0o120_000);
    assert_eq!(image.find(b"usr/lib").unwrap().unwrap().mode, 0o040_755);
}
