//! Images made by the writer, judged by the kernel project's own tool. Where it is not installed the case is skipped with its
//! reason, and counted.

mod sample;

use std::fs::File;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Trial};
use sample::sample;

fn main() -> ExitCode {
    let trial = Trial::ignorable_test("fsck_finds_nothing_wrong", || {
        if Command::new("fsck.erofs").arg("--help").output().is_err() {
            return Ok(Completion::ignored_with("fsck.erofs (erofs-utils) is not installed"));
        }
        fsck_finds_nothing_wrong();
        Ok(Completion::Completed)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn fsck_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    sample(File::create(&path).unwrap());
    let extracted = dir.path().join("out");
    let output = Command::new("fsck.erofs").arg("-d1").arg(&path).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // The tool's own extraction gives another opinion on contents. Devices are made by root alone.
    let option = format!("--extract={}", extracted.display());
    let output = Command::new("fsck.erofs").args([&option, "--no-preserve"]).arg(&path).output().unwrap();
    if output.status.success() {
        assert_eq!(std::fs::read(extracted.join("patched")).unwrap(), b"head-rest!");
        assert_eq!(std::fs::read_dir(extracted.join("many")).unwrap().count(), 3000);
    }
}
