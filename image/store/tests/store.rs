//! What the store says of its folder; nothing here reaches for the network.

use std::path::Path;
use std::time::SystemTime;

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

/// Adds a field to the image's record.
fn add(folder: &Path, field: &str) {
    let path = folder.join("image.json");
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, record.replacen('{', &format!("{{{field},"), 1)).unwrap();
}

/// A sandbox names the image that it was made with. One with other packages in it must not answer to that name.
#[test]
fn an_image_with_replaced_packages_stands_in_under_a_key_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let pinned = shipped_key();
    image(dir.path(), "with-others", 4096, |folder| add(folder, r#""pinned":"x86_64-another-v1""#));
    assert!(store.base().unwrap().is_none());
    image(dir.path(), "with-newer", 4096, |folder| add(folder, &format!(r#""pinned":"{pinned}""#)));
    assert_eq!(store.base().unwrap().unwrap().key, "with-newer");
    assert!(store.find(&pinned).is_none(), "it is not the pinned image");
    image(dir.path(), &pinned, 4096, |_| {});
    assert_eq!(store.base().unwrap().unwrap().key, pinned);
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
    image(dir.path(), "empty-kernel", 4096, |folder| std::fs::write(folder.join("vmlinux"), "").unwrap());
    image(dir.path(), "short-kernel", 4096, |folder| add(folder, r#""kernel_bytes":5"#));
    image(dir.path(), "whole-kernel", 4096, |folder| add(folder, r#""kernel_bytes":4"#));
    image(dir.path(), ".unfinished", 4096, |_| {});
    image(dir.path(), "older", 4096, |_| {});
    assert_eq!(store.keys(), ["older".to_owned(), "whole-kernel".to_owned(), shipped_key()]);
    assert!(store.find("../images/older").is_none());
    assert!(store.find("older").is_some());
}

/// Whoever writes to a file changes its time; then the content decides.
#[test]
fn a_changed_file_is_damage_and_a_copied_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let sha256 = fetch::Digest::sha256_of(&[0; 4096]).hex();
    let seal = |sha256: &str| {
        format!(r#""seals":[{{"file":"base.erofs","bytes":4096,"modified":7,"sha256":"{sha256}"}}]"#)
    };
    image(dir.path(), "copied", 4096, |folder| add(folder, &seal(&sha256)));
    assert!(store.find("copied").is_some());
    let record = std::fs::read_to_string(dir.path().join("images/copied/image.json")).unwrap();
    assert!(!record.contains(r#""modified": 7"#), "the copy's time is recorded: {record}");
    assert!(store.find("copied").is_some());

    let base = dir.path().join("images/copied/base.erofs");
    let mut bytes = vec![0; 4096];
    bytes[4000] = 1;
    std::fs::write(&base, &bytes).unwrap();
    assert!(store.find("copied").is_none(), "one bit in a file of the right size");

    image(dir.path(), "elsewhere", 4096, |folder| {
        add(folder, &seal(&sha256).replace("base.erofs", "../../../etc/passwd"));
    });
    assert!(store.find("elsewhere").is_some(), "no path of a record is followed");
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

/// Makes a file as old as it is when an image may go, and a little older.
fn age(path: &Path) {
    let long_ago = SystemTime::now() - store::UNUSED - std::time::Duration::from_secs(60);
    std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
}

#[test]
fn images_that_nobody_wants_go_when_they_were_not_used_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for key in ["current", "old", "damaged", "of-a-sandbox", "in-use-elsewhere", "new"] {
        image(dir.path(), key, 4096, |_| {});
    }
    let file = |key: &str, name: &str| dir.path().join("images").join(key).join(name);
    for key in ["current", "old", "damaged", "of-a-sandbox", "in-use-elsewhere"] {
        std::fs::write(file(key, "used"), "").unwrap();
        age(&file(key, "used"));
    }
    std::fs::remove_file(file("damaged", "vmlinux")).unwrap();
    store.note_use("in-use-elsewhere");
    image(dir.path(), ".unfinished", 4096, |_| {});
    let keep = |key: &str| key == "current" || key == "of-a-sandbox";
    let lock = fetch::FileLock::acquire(&dir.path().join("lock"), || {}).unwrap();
    assert!(store.remove_unused(keep).unwrap().is_empty(), "somebody sets up");
    drop(lock);
    let mut removed = store.remove_unused(keep).unwrap();
    removed.sort_unstable();
    assert_eq!(removed, ["damaged", "old"]);
    assert_eq!(store.keys(), ["current", "in-use-elsewhere", "new", "of-a-sandbox"]);
    assert!(file(".unfinished", "image.json").exists() && !file(".gone-old", "image.json").exists());
    age(&file("in-use-elsewhere", "used"));
    assert_eq!(store.remove_unused(keep).unwrap(), ["in-use-elsewhere"]);
    store.note_use("../images");
    assert!(!dir.path().join("images/used").exists());
}

#[test]
fn halves_of_images_are_told_and_removed_but_not_while_somebody_sets_up() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let half = |name: &str| root.path().join("images").join(name);
    for name in [".x86_64-new", ".gone-x86_64-old"] {
        std::fs::create_dir_all(half(name).join("modules")).unwrap();
    }
    let lock = fetch::FileLock::acquire(&root.path().join("lock"), || {}).unwrap();
    assert!(store.leftovers().unwrap().is_empty());
    store.sweep().unwrap();
    assert!(half(".x86_64-new").exists());
    drop(lock);
    assert_eq!(store.leftovers().unwrap().len(), 2);
    store.sweep().unwrap();
    assert!(store.leftovers().unwrap().is_empty() && !half(".gone-x86_64-old").exists());
}
