use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::*;
use crate::folder::Wish;
use crate::workspace::Share;

struct Host {
    _root: tempfile::TempDir,
    places: Places,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let places = Places {
            state: path("state"),
            cache: path("cache"),
            config: path("config"),
            home: root.path().into(),
        };
        Self { _root: root, places }
    }

    fn images(&self) -> Images<'_> {
        Images::open(&self.places, b"agent").unwrap()
    }

    fn folder(&self, key: &str) -> PathBuf {
        self.places.cache.join("images").join(key)
    }

    /// Puts an image into the cache, as the store would have made it long ago; returns what `images` says of it.
    fn make(&self, key: &str, pinned: &str) {
        let folder = self.folder(key);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("base.erofs"), vec![0; 4096]).unwrap();
        std::fs::write(folder.join("vmlinux"), b"\x7fELF").unwrap();
        let record = format!(
            r#"{{"schema":1,"key":"{key}","arch":"x86_64","kernel":"6.1","base_bytes":4096,"pinned":"{pinned}","replaced":[],"packages":[]}}"#
        );
        std::fs::write(folder.join("image.json"), record).unwrap();
        let long_ago = SystemTime::now() - store::UNUSED - Duration::from_secs(60);
        std::fs::write(folder.join("used"), "").unwrap();
        std::fs::File::open(folder.join("used")).unwrap().set_modified(long_ago).unwrap();
    }

    fn sandbox(&self, workspace: &Path, image: &str) -> PathBuf {
        let share = Share { path: workspace.into(), read_only: false, identity: None };
        let wish = Wish {
            name: None,
            agent: "shell".into(),
            shares: vec![share],
            cpus: 1,
            memory: 1 << 30,
            disk: 1 << 30,
            engine: None,
            image: image.into(),
            network: crate::spec::Networking::default(),
            kits: Vec::new(),
            ports: Vec::new(),
        };
        let made = Sandboxes::open(&self.places).unwrap().create(&wish).unwrap().0;
        made.folder().to_owned()
    }
}

/// The key that this version's image has, by its lock file.
fn shipped_key() -> String {
    let digest = debian::Lock::shipped(debian::Arch::X86_64).unwrap().digest().hex();
    format!("x86_64-{}-v{}", &digest[..16], image_builder::VERSION)
}

#[test]
fn a_deleted_cache_takes_no_sandbox_with_it() {
    let host = Host::new();
    let current = shipped_key();
    host.make(&current, &current);
    assert_eq!(host.images().stock(&current).unwrap(), Stock::Ready);
    std::fs::remove_dir_all(&host.places.cache).unwrap();
    let images = host.images();
    assert_eq!(images.stock(&current).unwrap(), Stock::Makeable);
    let hint = images.assets(&current).unwrap_err().hint().unwrap();
    assert!(hint.contains("viv rm"), "{hint}");
    // Made again, it is the same image.
    host.make(&current, &current);
    assert_eq!(host.images().stock(&current).unwrap(), Stock::Ready);
    // That of another version does not come back by making this version's, so nothing is made.
    assert_eq!(host.images().stock("x86_64-0123456789abcdef-v1").unwrap(), Stock::Gone);
}

#[test]
fn only_images_that_no_sandbox_has_are_removed() {
    let host = Host::new();
    let current = shipped_key();
    for key in [current.as_str(), "old", "of-a-sandbox"] {
        host.make(key, key);
    }
    let sandbox = host.sandbox(Path::new("/a/project"), "of-a-sandbox");
    let spec = std::fs::read(sandbox.join("spec.json")).unwrap();
    std::fs::write(sandbox.join("spec.json"), "{").unwrap();
    host.images().remove_old(&current);
    assert!(host.folder("old").exists(), "a sandbox that cannot be read may have it");
    std::fs::write(sandbox.join("spec.json"), spec).unwrap();
    host.images().remove_old(&current);
    assert!(!host.folder("old").exists());
    assert!(host.folder("of-a-sandbox").exists() && host.folder(&current).exists());
}
