//! Any bytes as the description in a disk's folder, with a layer's file of some length or none: what is opened is whole, what is
//! refused is left as it was.

use std::os::fd::AsFd;

const SIZE: u64 = 64 << 10;

/// One input: a byte that says what else is in the folder, then the description.
pub(crate) fn run(data: &[u8]) {
    let Some((which, description)) = data.split_first() else { return };
    // A larger one is sparse, and too much to read here.
    if disk::Description::parse(description).is_ok_and(|description| description.size > 1 << 20) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("disk.json"), description).expect("a file");
    // None, too short, as it should be, too long.
    let length = [None, Some(SIZE - 1), Some(SIZE), Some(SIZE + 4096)][usize::from(which & 3)];
    if let Some(length) = length {
        let mut content = vec![0x5a; 4096];
        content.resize(length as usize, 0);
        std::fs::write(path("layer-0.raw"), content).expect("a file");
    }
    let unmade = which & 4 != 0;
    if unmade {
        std::fs::write(path("unmade"), b"").expect("a file");
    }
    let folder = std::fs::File::open(dir.path()).expect("the folder");
    let before = std::fs::read(path("layer-0.raw")).ok();

    let report = disk::check(folder.as_fd());
    let looked = disk::open_to_look(folder.as_fd());
    assert_eq!(report.is_ok(), looked.is_ok());
    drop(looked);
    assert_eq!(std::fs::read(path("layer-0.raw")).ok(), before, "looking changes nothing");
    let opened = disk::open(folder.as_fd());
    let after = std::fs::read(path("layer-0.raw")).ok();
    match opened {
        Ok(disk) => {
            let size = backends::BlockBackend::len(&disk);
            assert_eq!(after.as_ref().map(|content| content.len() as u64), Some(size));
            // Only one that no guest ever used is made blank, which mends its length, too.
            let blank = after.is_some_and(|content| content.iter().all(|byte| *byte == 0));
            assert!(if unmade { blank } else { report.is_ok() && !blank });
        }
        Err(_) => assert!(report.is_err() && (unmade || after == before)),
    }
    // A second disk is never made over the first.
    assert!(matches!(disk::create(folder.as_fd(), SIZE), Err(disk::DiskError::Exists)));
    assert_eq!(std::fs::read(path("disk.json")).ok().as_deref(), Some(description));
}
