//! Archives by the tar crate and by GNU tar, read with ours; and broken ones.

use super::*;

fn entries(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ErofsError> {
    let mut reader = TarReader::new(archive);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        all.push((entry, bytes));
    }
    Ok(all)
}

fn header(kind: ::tar::EntryType, size: u64) -> ::tar::Header {
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(50);
    header.set_mtime(1_700_000_000);
    header
}

fn sample() -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let long = "d/".repeat(120) + "file";
    builder.append_data(&mut header(::tar::EntryType::Regular, 5), "short", &b"hello"[..]).unwrap();
    builder.append_data(&mut header(::tar::EntryType::Regular, 600), &long, &[7; 600][..]).unwrap();
    builder.append_link(&mut header(::tar::EntryType::Symlink, 0), "link", "t/".repeat(80)).unwrap();
    builder.append_link(&mut header(::tar::EntryType::Link, 0), "hard", "short").unwrap();
    builder.append_data(&mut header(::tar::EntryType::Directory, 0), "dir/", &b""[..]).unwrap();
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", &b"\x01\n=\0\xff"[..]),
            ("size", b"3"),
            ("uid", b"3000000"),
            ("mtime", b"1700000001.25"),
            ("path", "pax-\u{e9}".as_bytes()),
        ])
        .unwrap();
    builder.append_data(&mut header(::tar::EntryType::Regular, 3), "ignored", &b"abc"[..]).unwrap();
    builder.append_data(&mut header(::tar::EntryType::Fifo, 0), "pipe", &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn reads_what_the_tar_crate_writes() {
    let all = entries(&sample()).unwrap();
    let names: Vec<String> =
        all.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect();
    assert_eq!(names, ["short", &("d/".repeat(120) + "file"), "link", "hard", "dir/", "pax-\u{e9}", "pipe"]);
    let (short, bytes) = &all[0];
    assert_eq!(
        (short.meta.mode, short.meta.uid, short.meta.gid, short.meta.mtime),
        (0o4755, 1000, 50, 1_700_000_000)
    );
    assert_eq!(bytes, b"hello");
    assert_eq!(all[1].1, [7; 600]);
    assert_eq!(all[2].0.kind, Kind::Symlink("t/".repeat(80).into_bytes()));
    assert_eq!(all[3].0.kind, Kind::HardLink(b"short".to_vec()));
    assert_eq!(all[4].0.kind, Kind::Directory);
    let (pax, bytes) = &all[5];
    assert_eq!(pax.meta.xattrs[&b"security.capability"[..]], b"\x01\n=\0\xff");
    assert_eq!((pax.meta.uid, pax.meta.mtime, pax.meta.mtime_nsec), (3_000_000, 1_700_000_001, 250_000_000));
    assert_eq!(bytes, b"abc");
    assert_eq!(all[6].0.kind, Kind::Device(Device::Fifo));
}

#[test]
fn every_cut_is_an_error() {
    let whole = sample();
    let end = whole.len() - 1024; // two empty records end an archive
    for cut in 0..=end {
        assert!(entries(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_in_a_header_is_noticed() {
    let whole = sample();
    for at in 0..512 {
        let mut broken = whole.clone();
        broken[at] ^= 1;
        assert!(entries(&broken).is_err(), "byte {at}");
    }
}

#[test]
fn numbers_are_octal_or_marked_binary() {
    assert_eq!(number(b"0000644\0").unwrap(), 0o644);
    assert_eq!(number(b"     12 ").unwrap(), 0o12);
    assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]).unwrap(), 1 << 32);
    for bad in [&b"8"[..], b"-1", b"12x", &[0xff; 12]] {
        assert!(number(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn broken_pax_records_are_errors() {
    for bad in [&b"5 a=b"[..], b"0 a=b\n", b"999 a=b\n", b"x", b"4 ab\n", b"18446744073709551616 a=b\n"] {
        assert!(parse_records(bad).is_err(), "{}", String::from_utf8_lossy(bad));
    }
    assert_eq!(parse_records(b"7 a=\n=\n").unwrap()[&b"a"[..]], b"\n=");
}
