//! Shares on two devices. The second is `/dev/shm`; without it the case is skipped with its reason, and counted.

mod scene;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use hostfs::{Options, Share};
use libtest_mimic::{Arguments, Completion, Trial};
use scene::{ROOT, Scene, share};
use tempfile::TempDir;

const SECOND: &str = "/dev/shm";

fn main() -> ExitCode {
    let trial = Trial::ignorable_test("inode_numbers_of_two_devices_do_not_meet", || {
        let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
        let Ok(second) = TempDir::new_in(SECOND) else {
            return Ok(Completion::ignored_with(format!("nothing can be made in {SECOND}")));
        };
        if device(second.path())? == device(&std::env::temp_dir())? {
            return Ok(Completion::ignored_with(format!("{SECOND} is no second device")));
        }
        inode_numbers_of_two_devices_do_not_meet(second.path());
        Ok(Completion::Completed)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn inode_numbers_of_two_devices_do_not_meet(other: &Path) {
    let scene = Scene::serving(Options::default(), |dir| {
        vec![Share::open(&dir.join("share"), false).unwrap(), Share::open(other, false).unwrap()]
    });
    let client = scene.client();
    let (first, second) = (share(&client), client.lookup(ROOT, b"1").unwrap());
    let host = std::fs::metadata(scene.host("")).unwrap();
    assert_eq!(first.inode, host.ino(), "the first device's numbers are the host's");
    assert_ne!(second.inode >> 48, first.inode >> 48);
}
