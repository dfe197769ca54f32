//! Any bytes as a sandbox's spec and as its state's file: what can be read is listed and found again, what cannot is named,
//! and neither is changed.

use sandbox::folder::Sandboxes;
use sandbox::places::Places;
use sandbox::spec::State;

/// The two files, with a zero byte between them.
pub(crate) fn run(data: &[u8]) {
    let (spec, runtime) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    let root = tempfile::tempdir().expect("a folder");
    let places = Places {
        state: root.path().join("state"),
        cache: root.path().join("cache"),
        config: root.path().join("config"),
        home: root.path().join("home"),
    };
    let folder = places.sandboxes().join("0123456789abcdef");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("spec.json"), spec).expect("a file");
    std::fs::write(folder.join("runtime.json"), runtime).expect("a file");
    let sandboxes = Sandboxes::open(&places).expect("the folder can be read");
    let (found, wrong) = sandboxes.list().expect("the folder can be read");
    assert_eq!(found.len() + wrong.len(), 1, "nothing is passed over");
    for damaged in wrong {
        assert!(!damaged.cause().to_string().is_empty() && !damaged.mend().is_empty());
        // It goes by its id whatever is in it.
        assert_eq!(damaged.name(), "0123456789abcdef");
        assert!(sandboxes.find("0123456789abcdef").is_err());
        assert_eq!(sandboxes.find_folder("0123456789abcdef").expect("it is there").path(), folder);
    }
    for sandbox in found {
        // Nobody holds its lock.
        assert!(!sandbox.is_running());
        assert!(!matches!(sandbox.state(), State::Starting | State::Running | State::Stopping));
        assert!(sandbox.folder().starts_with(&folder) && sandbox.disk_folder().starts_with(&folder));
        let _ = (sandbox.runtime(), sandbox.spec.workspace(), sandbox.disk_use());
        let _ = sandboxes.find(&sandbox.spec.name);
    }
    assert_eq!(std::fs::read(folder.join("spec.json")).ok().as_deref(), Some(spec));
    assert_eq!(std::fs::read(folder.join("runtime.json")).ok().as_deref(), Some(runtime));
}
