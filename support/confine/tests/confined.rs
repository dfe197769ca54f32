//! A process of either role can do what it must and nothing else. Each case starts this program again as a child, which
//! confines itself and makes one attempt.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use confine::hostile::{PROBES, find, prepare};
use confine::{Access, Grants, Role, confine};
use libtest_mimic::{Arguments, Failed, Trial};

/// What the child prints when the attempt succeeded; nothing else counts as success.
const BROKE_OUT: &str = "BROKE OUT";
const REFUSED: &str = "REFUSED";
/// What it prints first: it was alive and confined when it made the attempt.
const CONFINED: &str = "CONFINED\n";
const FINE: &str = "FINE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, what, folder] = &arguments[..] {
        if mode == "--attempt" {
            return attempt(what, folder);
        }
        if mode == "--go-on" {
            return go_on(what);
        }
        if mode == "--use" {
            let outcome =
                if what.is_empty() { use_grants(Path::new(folder)) } else { kill_as_shim(what, folder) };
            return match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    println!("{why}");
                    ExitCode::FAILURE
                }
            };
        }
    }
    let mut trials = Vec::new();
    for role in ROLES {
        let cannot = |probe: &'static confine::hostile::Probe| {
            Trial::test(format!("{role}_cannot::{}", probe.name), move || fails(probe.name, role))
        };
        trials.extend(PROBES.iter().map(cannot));
        trials.push(Trial::test(format!("{role}_can::abort"), move || aborts(role)));
        trials.push(Trial::test(format!("{role}_can::go_on_after_a_stop"), move || goes_on(role)));
    }
    trials.push(Trial::test("vmm_can::use_what_was_granted", uses_grants));
    trials.push(Trial::test("shim_can::kill_its_vmm_and_nothing_else", kills_its_child));
    trials.push(Trial::test("probes_succeed_when_free", probes_succeed_when_free));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The roles by the names that the cases have.
const ROLES: [&str; 2] = ["vmm", "shim"];

fn role(name: &str) -> Role {
    if name == "vmm" { Role::Vmm } else { Role::Shim }
}

fn child(arguments: &[&str]) -> std::io::Result<std::process::Output> {
    Command::new(std::env::current_exe()?).args(arguments).stdin(Stdio::null()).output()
}

/// The child: confines itself and makes the attempt.
fn attempt(name: &str, of: &str) -> ExitCode {
    prepare();
    let free = name.strip_prefix("free:");
    if free.is_none() {
        if let Err(error) = confine(role(of), &Grants::default()) {
            println!("not confined: {error:?}");
            return ExitCode::FAILURE;
        }
        print!("{CONFINED}");
    }
    let Some(probe) = find(free.unwrap_or(name)) else { return ExitCode::FAILURE };
    match probe.attempt() {
        Ok(()) => println!("{BROKE_OUT}"),
        Err(error) => println!("{REFUSED} {error}"),
    }
    ExitCode::SUCCESS
}

fn fails(name: &str, role: &str) -> Result<(), Failed> {
    let output = child(&["--attempt", name, role])?;
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.strip_prefix(CONFINED).ok_or_else(|| format!("said {said:?}"))?;
    let killed = output.status.signal() == Some(libc::SIGSYS);
    if (killed && said.is_empty()) || (output.status.success() && said.starts_with(REFUSED)) {
        return Ok(());
    }
    Err(format!("ended with {:?} and said {said:?}", output.status).into())
}

/// The child: confines itself, says so, and then aborts or sleeps twice.
fn go_on(what: &str) -> ExitCode {
    let (of, doing) = what.split_once(' ').unwrap_or((what, ""));
    if let Err(error) = confine(role(of), &Grants::default()) {
        println!("not confined: {error:?}");
        return ExitCode::FAILURE;
    }
    print!("{CONFINED}");
    let _ = std::io::stdout().flush();
    if doing == "abort" {
        std::process::abort();
    }
    std::thread::sleep(std::time::Duration::from_secs(1));
    println!("{FINE}");
    ExitCode::SUCCESS
}

/// A process that gives up must be seen to have done so, and not to have been stopped by its own filter.
fn aborts(role: &str) -> Result<(), Failed> {
    let output = child(&["--go-on", &format!("{role} abort"), ""])?;
    if output.status.signal() != Some(libc::SIGABRT) || output.stdout != CONFINED.as_bytes() {
        return Err(format!("ended with {:?}", output.status).into());
    }
    Ok(())
}

/// The kernel makes `restart_syscall` for a sleep that a stop of the process interrupted.
fn goes_on(role: &str) -> Result<(), Failed> {
    use rustix::process::{Pid, Signal, kill_process};
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--go-on", &format!("{role} sleep"), ""])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().ok_or("there is no output")?;
    let mut said = vec![0; CONFINED.len()];
    out.read_exact(&mut said)?;
    let process = Pid::from_child(&child);
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kill_process(process, Signal::STOP)?;
        std::thread::sleep(std::time::Duration::from_millis(5));
        kill_process(process, Signal::CONT)?;
    }
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    let status = child.wait()?;
    if !status.success() || rest != format!("{FINE}\n") {
        return Err(format!("ended with {status:?} and said {rest:?}").into());
    }
    Ok(())
}

/// What stands for a vmm and for another process of the user. The second one makes sure that the first was not luck.
fn kills_its_child() -> Result<(), Failed> {
    let mut sleepers = Vec::new();
    for _ in 0..2 {
        sleepers.push(Command::new("/bin/sleep").arg("60").spawn()?);
    }
    let ids: Vec<String> = sleepers.iter().map(|one| one.id().to_string()).collect();
    let outcomes: Result<Vec<_>, _> = ids.iter().map(|victim| child(&["--use", &ids[0], victim])).collect();
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
fn kill_as_shim(vmm: &str, victim: &str) -> Result<(), String> {
    let parse = |text: &str| text.parse::<i32>().map_err(|error| error.to_string());
    let grants = Grants { child: Some(parse(vmm)?.cast_unsigned()), ..Grants::default() };
    confine(Role::Shim, &grants).map_err(|error| format!("{error:?}"))?;
    let victim = rustix::process::Pid::from_raw(parse(victim)?).ok_or("no process has the number 0")?;
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).map_err(|error| error.to_string())
}

/// The probes must be able to succeed, or their failure would prove nothing. Some need what this machine may lack.
fn probes_succeed_when_free() -> Result<(), Failed> {
    for name in [
        "open-passwd",
        "list-root",
        "socket-inet",
        "socket-unix",
        "fork",
        "kill-parent",
        "map-executable",
        "touch-by-path",
    ] {
        let output = child(&["--attempt", &format!("free:{name}"), ""])?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !said.starts_with(BROKE_OUT) {
            return Err(format!("{name} did not succeed in a free process: {said}").into());
        }
    }
    Ok(())
}

fn uses_grants() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for name in ["rw", "ro", "outside"] {
        std::fs::create_dir(folder.path().join(name))?;
        std::fs::write(folder.path().join(name).join("file"), b"content")?;
    }
    let path = folder.path().to_str().ok_or("the folder's name is not text")?;
    let output = child(&["--use", "", path])?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || !said.ends_with(&format!("{FINE}\n")) {
        return Err(format!("ended with {:?} and said {said:?}", output.status).into());
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

/// The child: confines itself with two grants and uses them, threads and memory.
fn use_grants(folder: &Path) -> Result<(), String> {
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
    File::open(folder.join("ro/file"))
        .and_then(|mut file| file.read_to_string(&mut content))
        .map_err(text)?;
    check(content == "content", "a read-only file reads wrong")?;
    let mut new = File::create(folder.join("rw/new")).map_err(text)?;
    new.write_all(b"written").and_then(|()| new.sync_all()).map_err(text)?;
    let day = rustix::fs::Timespec { tv_sec: 86_400, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: day, last_modification: day };
    rustix::fs::futimens(&new, &times).map_err(|errno| text(errno.into()))?;
    if report.landlock.is_some() {
        check(File::create(folder.join("ro/new")).is_err(), "a file was made in a read-only directory")?;
        let removed =
            rustix::fs::unlinkat(rustix::fs::CWD, folder.join("ro/file"), rustix::fs::AtFlags::empty());
        check(removed.is_err(), "a read-only file was removed")?;
        check(File::open(folder.join("outside/file")).is_err(), "a file outside was opened")?;
        let escaped = folder.join("rw/../outside/file");
        check(File::open(escaped).is_err(), "a file outside was opened through the granted directory")?;
    }
    println!("{FINE}");
    Ok(())
}
