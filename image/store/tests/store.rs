//! What the store says of its folder; nothing here reaches for the network.

use std::path::Path;

use debian::{Arch, Lock};
use store::Store;

/// Puts an image's files where the store looks for them, complete but for `spoil`.
fn image(root: &Path, key: &str, base_bytes: u64, spoil: impl Fn(&Path)) {
    let folder = root.join("images").join(key);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("base.erofs"), vec![0; 4096]).unwrap();
    std::fs::write(folder.join("vmlinux"), b"\x7fELF").unwrap();
    let record = format!(
        r#"{{"schema":1,"key":"{key}","arch":"x86_64","kernel":"6.1","base_bytes":{base_bytes},"replaced":[],"packages":[]}}"#
    );
    std::fs::write(folder.join("image.json"), record).unwrap();
    spoil(&folder);
}

fn shipped_key() -> String {
    let digest = Lock::shipped(Arch::X86_64).unwrap().digest().hex();
    format!("x86_64-{}-v{}", &digest[..16], image_builder::VERSION)
}

#[test]
fn a_whole_image_is_found_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.base().unwrap().is_none());
    image(dir.path(), &shipped_key(), 4096, |_| {});
    let base = store.base().unwrap().unwrap();
    assert!(base.base.ends_with("base.erofs") && base.kernel.release == "6.1");
    image(dir.path(), "short", 8192, |_| {});
    image(dir.path(), "no-kernel", 4096, |folder| std::fs::remove_file(folder.join("vmlinux")).unwrap());
    image(dir.path(), "other-schema", 4096, |folder| {
        std::fs::write(folder.join("image.json"), "{}").unwrap()
    });
    image(dir.path(), ".unfinished", 4096, |_| {});
    image(dir.path(), "older", 4096, |_| {});
    let mut keys = store.keys();
    keys.sort();
    assert_eq!(keys, ["older".to_owned(), shipped_key()]);
    assert!(store.find("../images/older").is_none());
    assert!(store.find("older").is_some());
}

#[test]
fn another_lock_is_another_image() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path(), &shipped_key(), 4096, |_| {});
    let other = Lock { arch: Arch::X86_64, packages: Vec::new(), npm: Vec::new() };
    assert!(Store::open(dir.path()).unwrap().with_lock(other).base().unwrap().is_none());
}

#[test]
fn the_download_is_as_large_as_the_lock_says() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Store::open(dir.path()).unwrap().download_bytes().unwrap();
    assert!((200_000_000..600_000_000).contains(&bytes), "{bytes}");
}
