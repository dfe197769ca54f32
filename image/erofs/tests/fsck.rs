//! Images made by the writer, judged by the kernel project's own tool: the host's, or Debian's, fetched into the tests' cache.
//! Where neither can be had the cases are skipped with the reason, and counted.

#[path = "../../../fuzz/bodies/near.rs"]
mod near;
mod sample;

use std::fs::File;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, ExitCode};

use erofs::{TarReader, Writer};
use libtest_mimic::{Arguments, Completion, Trial};
use sample::sample;

fn main() -> ExitCode {
    let case = |name: &str, run: fn()| {
        Trial::ignorable_test(name, move || match nested::tool("erofs-utils", "fsck.erofs") {
            Ok(_) => {
                run();
                Ok(Completion::Completed)
            }
            Err(why) => Ok(Completion::ignored_with(why.to_string())),
        })
    };
    let trials = vec![
        case("fsck_finds_nothing_wrong", fsck_finds_nothing_wrong),
        case("fsck_takes_what_the_writer_made_of_any_archive", fsck_takes_any_archive),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn fsck() -> Command {
    nested::tool("erofs-utils", "fsck.erofs").unwrap()
}

/// Checks an image, contents included.
fn check(path: &Path) {
    let output = fsck().args(["-d1", "--extract"]).arg(path).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

fn fsck_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    sample(File::create(&path).unwrap());
    check(&path);
    let extracted = dir.path().join("out");
    // The tool's own extraction gives another opinion on contents. Devices are made by root alone.
    let option = format!("--extract={}", extracted.display());
    let output = fsck().args([&option, "--no-preserve"]).arg(&path).output().unwrap();
    if output.status.success() {
        assert_eq!(std::fs::read(extracted.join("patched")).unwrap(), b"head-rest!");
        assert_eq!(std::fs::read_dir(extracted.join("many")).unwrap().count(), 3000);
    }
}

/// The corpus of archives and what is near it: what the writer takes is an image to the tool as well.
fn fsck_takes_any_archive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut images = 0;
    near::replay("erofs_tar", |data| {
        let mut image = Writer::new(Cursor::new(Vec::new())).unwrap();
        let mut tar = TarReader::new(data);
        while let Ok(Some(entry)) = tar.next_entry() {
            if image.add_entry(entry, &mut tar).is_err() {
                break;
            }
        }
        let Ok((file, _)) = image.finish() else { return };
        std::fs::write(&path, file.get_ref()).unwrap();
        check(&path);
        images += 1;
    });
    assert!(images > 100, "{images} images");
}
