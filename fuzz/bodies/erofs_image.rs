//! Any bytes as an image: reading ends and never panics, whatever they say. The superblock is made right first, or nothing would be reached.

use std::io::Cursor;

use erofs::{Image, Metadata, Writer};

/// One input: what overwrites a small image behind its superblock.
pub(crate) fn run(data: &[u8]) {
    let mut writer = Writer::new(Cursor::new(Vec::new())).expect("memory can be written");
    let meta = || Metadata {
        mode: 0o755,
        xattrs: [(b"user.x".to_vec(), b"value".to_vec())].into(),
        ..Metadata::default()
    };
    writer.symlink(b"a/link", b"target", meta()).expect("a link");
    for n in 0..200 {
        writer.directory(format!("a/directory-{n:03}").as_bytes(), meta()).expect("a directory");
    }
    let mut bytes = writer.finish().expect("an image").0.into_inner();
    for (to, from) in bytes.iter_mut().skip(4096).zip(data) {
        *to ^= from;
    }
    let Ok(mut image) = Image::open(Cursor::new(bytes)) else { return };
    for path in ["/", "a", "a/link", "a/directory-100", "a/none"] {
        let Ok(Some(found)) = image.find(path.as_bytes()) else { continue };
        let _ = image.xattrs(&found);
        let _ = image.list(&found);
        let _ = image.link_target(&found);
    }
}
