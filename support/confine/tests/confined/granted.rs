//! What can be done: what was granted, and the end of the vmm by its shim.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use confine::{Access, Grants, Role, confine};
use libtest_mimic::{Failed, Trial};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::{FINE, child};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("vmm_can::use_what_was_granted", uses_grants),
        Trial::test("shim_can::kill_its_vmm_and_nothing_else", kills_its_child),
    ]
}

/// What stands for a vmm and for another process of the user. The second one makes sure that the first was not luck.
fn kills_its_child() -> Result<(), Failed> {
    let mut sleepers = Vec::new();
    for _ in 0..2 {
        sleepers.push(Command::new("/bin/sleep").arg("60").spawn()?);
    }
    let ids: Vec<String> = sleepers.iter().map(|one| one.id().to_string()).collect();
    let outcomes: Result<Vec<_>, _> = ids.iter().map(|victim| child(&["--kill", &ids[0], victim])).collect();
    let outcomes = outcomes?;
    // What was killed ends a moment later; what was not sleeps on for a minute.
    let mut vmm_ended = false;
    for _ in 0..500 {
        vmm_ended |= sleepers[0].try_wait()?.is_some();
        if vmm_ended {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let other_ended = sleepers[1].try_wait()?.is_some();
    for mut one in sleepers {
        let _ = one.kill();
        let _ = one.wait();
    }
    if !outcomes[0].status.success() || !vmm_ended {
        return Err(format!("the vmm was not killed: {:?}", outcomes[0]).into());
    }
    if outcomes[1].status.signal() != Some(libc::SIGSYS) || other_ended {
        return Err(format!("another process could be killed: {:?}", outcomes[1]).into());
    }
    Ok(())
}

/// The child: confines itself as the shim of one process and kills one.
pub(crate) fn kill_as_shim(vmm: &str, victim: &str) -> Result<(), String> {
    let parse = |text: &str| text.parse::<i32>().map_err(|error| error.to_string());
    let grants = Grants { child: Some(parse(vmm)?.cast_unsigned()), ..Grants::default() };
    confine(Role::Shim, &grants).map_err(|error| format!("{error:?}"))?;
    let victim = rustix::process::Pid::from_raw(parse(victim)?).ok_or("no process has the number 0")?;
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).map_err(|error| error.to_string())
}

fn uses_grants() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for name in ["rw", "ro", "outside"] {
        std::fs::create_dir(folder.path().join(name))?;
        std::fs::write(folder.path().join(name).join("file"), b"content")?;
    }
    let path = folder.path().to_str().ok_or("the folder's name is not text")?;
    let output = child(&["--use", path])?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || !said.ends_with(&format!("{FINE}\n")) {
        return Err(format!("ended with {:?} and said {said:?}", output.status).into());
    }
    if std::fs::read(folder.path().join("ro/file"))? != b"content" {
        return Err("a read-only file was changed".into());
    }
    if std::fs::read(folder.path().join("rw/new"))? != b"written" {
        return Err("what was written did not arrive".into());
    }
    let modified = std::fs::metadata(folder.path().join("rw/new"))?.modified()?;
    if modified != std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400) {
        return Err("the file's time was not set".into());
    }
    Ok(())
}

/// Opens as the file server does, by `openat2`; the standard library's way is refused.
fn open(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    Ok(rustix::fs::openat2(CWD, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::empty())?.into())
}

/// The child: confines itself with two grants and uses them, threads and memory.
pub(crate) fn use_grants(folder: &Path) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let rw = File::open(folder.join("rw")).map_err(text)?;
    let ro = File::open(folder.join("ro")).map_err(text)?;
    let grants = Grants {
        directories: vec![(rw.as_fd(), Access::ReadWrite), (ro.as_fd(), Access::ReadOnly)],
        inherited: Vec::new(),
        most_descriptors: Some(512),
        child: None,
    };
    let report = confine(Role::Vmm, &grants).map_err(|error| format!("{error:?}"))?;
    if report.landlock.is_none() {
        println!("this kernel has no Landlock: {:?}", report.layers);
    }
    let check = |right: bool, what: &str| if right { Ok(()) } else { Err(what.to_owned()) };

    let worker =
        std::thread::Builder::new().name("worker".into()).spawn(|| vec![1u8; 1 << 22].len()).map_err(text)?;
    check(worker.join().is_ok_and(|len| len == 1 << 22), "a thread did not run")?;

    let mut content = String::new();
    let mut file = open(&folder.join("ro/file"), OFlags::RDONLY).map_err(text)?;
    file.read_to_string(&mut content).map_err(text)?;
    check(content == "content", "a read-only file reads wrong")?;
    let create = OFlags::WRONLY | OFlags::CREATE;
    let mut new = open(&folder.join("rw/new"), create).map_err(text)?;
    new.write_all(b"written").and_then(|()| new.sync_all()).map_err(text)?;
    let day = rustix::fs::Timespec { tv_sec: 86_400, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: day, last_modification: day };
    rustix::fs::futimens(&new, &times).map_err(|errno| text(errno.into()))?;
    if report.landlock.is_some() {
        check(open(&folder.join("ro/new"), create).is_err(), "a file was made in a read-only directory")?;
        // Older versions have no right for it, and the report says so.
        if report.landlock >= Some(3) {
            let emptied = open(&folder.join("ro/file"), OFlags::RDONLY | OFlags::TRUNC);
            check(emptied.is_err(), "a read-only file was truncated")?;
        } else {
            check(report.layers.iter().any(|layer| layer.contains("truncated")), "the gap is not reported")?;
        }
        let removed =
            rustix::fs::unlinkat(rustix::fs::CWD, folder.join("ro/file"), rustix::fs::AtFlags::empty());
        check(removed.is_err(), "a read-only file was removed")?;
        check(open(&folder.join("outside/file"), OFlags::RDONLY).is_err(), "a file outside was opened")?;
        let escaped = folder.join("rw/../outside/file");
        check(
            open(&escaped, OFlags::RDONLY).is_err(),
            "a file outside was opened through the granted directory",
        )?;
    }
    println!("{FINE}");
    Ok(())
}
