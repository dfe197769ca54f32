//! Any bytes as a tar archive made into an image: what the writer takes, the reader finds again, below the root.

use std::collections::BTreeSet;
use std::io::{Cursor, Read, Seek};

use erofs::{Found, Image, TarReader, Writer};

/// One input: the archive.
pub(crate) fn run(data: &[u8]) {
    let mut image = Writer::new(Cursor::new(Vec::new())).expect("memory can be written");
    let mut tar = TarReader::new(data);
    while let Ok(Some(entry)) = tar.next_entry() {
        if image.add_entry(entry, &mut tar).is_err() {
            break;
        }
    }
    // An attribute may be too large for its field: then there is no image, and that is all.
    let Ok((file, summary)) = image.finish() else { return };
    assert_eq!(summary.bytes, file.get_ref().len() as u64);
    let mut image = Image::open(file).expect("what was written can be opened");
    let root = image.find(b"/").expect("the root can be read").expect("there is a root");
    let mut seen = BTreeSet::new();
    walk(&mut image, &root, &mut seen, 0);
    assert_eq!(seen.len() as u64, summary.inodes);
}

fn walk<F: Read + Seek>(image: &mut Image<F>, found: &Found, seen: &mut BTreeSet<u64>, depth: usize) {
    if !seen.insert(found.nid) || depth > 200 {
        return;
    }
    image.xattrs(found).expect("attributes can be read");
    match found.mode & 0o170_000 {
        0o040_000 => {
            for (name, nid) in image.list(found).expect("a directory can be read") {
                assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&b'/'));
                let child = image.inode(nid).expect("a name leads to an inode");
                walk(image, &child, seen, depth + 1);
            }
        }
        0o100_000 => {
            let copied =
                std::io::copy(&mut image.contents(found).expect("a file can be found"), &mut std::io::sink());
            assert_eq!(copied.expect("memory can be read"), found.size);
        }
        0o120_000 => assert!(!image.link_target(found).expect("a link can be read").is_empty()),
        _ => {}
    }
}
