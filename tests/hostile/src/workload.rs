//! A sandbox used in every way that makes its vmm or its shim do something, so that what they do can be recorded.

use std::ffi::OsStr;
use std::path::Path;

use e2e::{Case, Terminal, Verdict, World, ensure, say};

use crate::recorder::{Recorded, UNTRACEABLE, read, recorded};

/// What is done in the workspace: every request of a file system that a guest's kernel can be made to send.
const FILES: &str = r"
import fcntl, os
os.makedirs('d/e', exist_ok=True)
with open('d/f', 'wb') as f:
    f.write(b'x' * 300000); f.flush(); os.fsync(f.fileno()); os.fdatasync(f.fileno())
    os.posix_fallocate(f.fileno(), 0, 400000)
    f.truncate(350000)
os.link('d/f', 'd/hard'); os.symlink('f', 'd/soft'); os.readlink('d/soft')
os.rename('d/hard', 'd/e/moved'); os.chmod('d/f', 0o640); os.utime('d/f', (86400, 86400))
os.utime('d/f'); os.utime('d/soft', follow_symlinks=False)
os.setxattr('d/f', 'user.a', b'b'); os.getxattr('d/f', 'user.a'); os.listxattr('d/f'); os.removexattr('d/f', 'user.a')
a = os.open('d/f', os.O_RDONLY); b = os.open('d/copy', os.O_RDWR | os.O_CREAT)
os.copy_file_range(a, b, 100000); os.lseek(a, 0, os.SEEK_DATA); os.lseek(a, 0, os.SEEK_HOLE)
fcntl.flock(a, fcntl.LOCK_SH); fcntl.lockf(b, fcntl.LOCK_EX)
s = os.open('d/sync', os.O_RDWR | os.O_CREAT | os.O_DSYNC); os.write(s, b'now')
os.statvfs('.'); os.sync(); print(sorted(os.listdir('d')))
os.remove('d/e/moved'); os.rmdir('d/e')
";

/// What is done beside it: the disk (written, flushed, discarded), random numbers, time.
const DISK: &str = "dd if=/dev/urandom of=$HOME/big bs=1M count=16 status=none && sync && rm $HOME/big && sudo fstrim $(findmnt -rno TARGET -t ext4 | head -n 1) && \
                    sudo sh -c 'dd if=/dev/hwrng of=/dev/null bs=64 count=2 2>/dev/null; echo said > /dev/console'";

/// Uses a recorded sandbox from its start to its end, and gives what its roles did.
///
/// # Errors
/// A part of it did not work, or processes cannot be traced here.
pub fn used(world: &World, flags: &[&str]) -> Result<Recorded, Verdict> {
    let folder = world.project("recorded");
    let out = world.project("records").join("calls");
    let mut arguments = vec!["run", "shell", "."];
    arguments.extend(flags);
    arguments.extend(["--", "-c", "echo up"]);
    let mut command = recorded(&out, world.program(), &arguments).map_err(Verdict::Wrong)?;
    world.environment(&mut command, &folder);
    let mut tracer = command.stdout(std::process::Stdio::piped()).spawn()?;
    let outcome = use_it(world, &folder, &mut tracer).and_then(|()| terminate_shim(world));
    let _ = world.run(&["stop", "shell-recorded"]);
    let status = tracer.wait()?;
    if status.code() == Some(UNTRACEABLE) {
        return Err(Verdict::Skipped("processes cannot be traced here".into()));
    }
    outcome?;
    ensure(status.success(), format!("the recorded run ended with {status}"))?;
    read(&out).map_err(Verdict::Wrong)
}

fn use_it(world: &World, folder: &Path, tracer: &mut std::process::Child) -> Case {
    let mut first = [0; 3];
    let stdout = tracer.stdout.as_mut().ok_or_else(|| Verdict::Wrong("no output".into()))?;
    std::io::Read::read_exact(stdout, &mut first)?;
    let exec = |arguments: &[&str], input: &[u8]| {
        let words = ["exec", "-i", "shell-recorded"].into_iter().chain(arguments.iter().copied());
        let said = say(world.viv(folder, words.map(OsStr::new)), input)?;
        ensure(said.code == 0, format!("{arguments:?} ended with {}: {}", said.code, said.err))
    };
    exec(&["python3", "-c", FILES], b"")?;
    exec(&["sh", "-c", DISK], b"")?;
    exec(&["sh", "-c", "cat >/dev/null; head -c 3000000 /dev/zero"], &vec![7; 3_000_000])?;
    let mut terminal = Terminal::start(&world.viv(folder, ["exec", "-it", "shell-recorded", "sh"]), 24, 80)?;
    terminal.resize(30, 90)?;
    terminal.type_until("echo $((6*7))\r", "42")?;
    terminal.keys("exit\r")?;
    terminal.end()?;
    for asked in [&["ls"][..], &["diagnose"]] {
        world.run(asked)?;
    }
    Ok(())
}

/// Asks the one sandbox's shim to end, as a host that shuts down does.
fn terminate_shim(world: &World) -> Case {
    let shim = nix::unistd::Pid::from_raw(shim(world)?);
    Ok(nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGTERM)?)
}

/// The shim of the one sandbox, by its folder.
///
/// # Errors
/// There is none.
pub fn shim(world: &World) -> Result<i32, Verdict> {
    let folders = std::fs::read_dir(world.state().join("sandboxes"))?;
    for folder in folders.flatten() {
        let Ok(text) = std::fs::read(folder.path().join("runtime.json")) else { continue };
        let text = String::from_utf8_lossy(&text);
        let process = text.split_once("\"pid\":").and_then(|(_, rest)| rest.split([',', '}']).next());
        if let Some(process) = process.and_then(|number| number.trim().parse().ok()) {
            return Ok(process);
        }
    }
    Err(Verdict::Wrong("no runtime.json names a shim".into()))
}
