//! A host whose disk is full while a sandbox runs: the state folder lies on a small file system in memory.

use std::path::PathBuf;
use std::process::Command;

use e2e::{Case, Said, Verdict, World, ensure, eventually, say};
use faults::{Session, kill, processes};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("what_the_guest_writes_waits_for_room", waits),
    ("a_sandbox_that_waits_for_room_can_be_stopped", stopped),
    ("a_start_without_room_says_so_and_ends", start),
    ("a_check_without_room_calls_nothing_damaged", checked),
    ("a_full_workspace_is_the_guests_to_handle", workspace),
];

/// Mebibytes of the host's file system: too few for a guest's file system, too few for what the guest writes, then enough.
const TINY: u32 = 1;
const SMALL: u32 = 100;
const LARGE: u32 = 500;

/// Writes 150 MiB and reads them from the disk again: the two sums are of what was meant and of what is there.
const WRITE: &str = "head -c 150M /dev/urandom | tee ~/big | sha256sum; sync ~/big && echo 1 | sudo tee /proc/sys/vm/drop_caches >/dev/null; sha256sum < ~/big";

/// A small host.
struct Host {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl Host {
    fn new(mebibytes: u32) -> Result<Self, Verdict> {
        let parent = tempfile::Builder::new().prefix("viv-full-").tempdir_in("/var/tmp")?;
        let folder = parent.path().join("state");
        std::fs::create_dir(&folder)?;
        let host = Self { folder, _parent: parent };
        host.mount("rw", mebibytes)?;
        Ok(host)
    }

    fn mount(&self, how: &str, mebibytes: u32) -> Result<(), Verdict> {
        let options = format!("{how},size={mebibytes}m");
        let said = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&self.folder)
            .output()?;
        if said.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&said.stderr);
        Err(Verdict::Skipped(format!("needs to mount a small file system, as root: {}", why.trim())))
    }

    fn grow(&self) -> Result<(), Verdict> {
        self.mount("remount", LARGE)
    }

    fn viv(&self, world: &World, arguments: &[&str]) -> Command {
        let project = world.project("full");
        let mut command = world.viv(&project, arguments);
        command.env("XDG_STATE_HOME", &self.folder);
        command
    }

    fn run(&self, world: &World, arguments: &[&str]) -> Result<Said, Verdict> {
        say(self.viv(world, arguments), b"")
    }

    /// A session in which this script runs, and all that comes of it.
    fn session(&self, world: &World, script: &str) -> Result<Session, Verdict> {
        let mut words = world.interactive();
        words.extend(["--", "-c", script].map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Session::start(self.viv(world, &words))
    }

    fn log(&self) -> String {
        let folders =
            std::fs::read_dir(self.folder.join("vivarium/sandboxes")).into_iter().flatten().flatten();
        folders
            .filter_map(|folder| std::fs::read_to_string(folder.path().join("logs/shim.log")).ok())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn wait_until_full(session: &Session) -> Case {
    eventually("the notice that the disk is full", || session.errors().contains("disk is full"))
}

/// The file system that holds a project is another than the state's: only the sandbox's disk is in want.
fn waits(world: &World) -> Case {
    let host = Host::new(SMALL)?;
    let go = world.project("full").join("go");
    let session = host.session(world, &format!("{WRITE}; while [ ! -e go ]; do sleep 0.2; done"))?;
    wait_until_full(&session)?;
    // A session that begins meanwhile hears of it, too. Whether it has to wait hangs on what it needs of the disk.
    let other = Session::start(host.viv(world, &["exec", "shell-full", "sh", "-c", "sleep 3; echo alive"]))?;
    wait_until_full(&other)?;
    host.grow()?;
    let said = other.end()?;
    ensure(said.code == 0 && said.text() == "alive", format!("{said:?}"))?;
    let told = eventually("the notice that there is room", || session.errors().contains("there is room"));
    std::fs::write(&go, "")?;
    told?;
    let said = session.end()?;
    let sums: Vec<String> = said.text().lines().map(str::to_owned).collect();
    ensure(
        said.code == 0 && sums.len() == 2 && sums[0] == sums[1] && sums[0].len() > 60,
        format!("what was written is there: {said:?}"),
    )?;
    let notices: Vec<&str> = said.err.lines().filter(|line| line.starts_with("viv: ")).collect();
    ensure(
        notices.len() == 2 && notices[1].contains("room"),
        format!("one notice, and its end: {}", said.err),
    )?;
    ensure(host.log().contains("There is room on the host's disk again"), host.log())?;
    whole(world, &host, "")
}

/// Stops the sandbox and looks at its disk. Deletes it.
fn whole(world: &World, host: &Host, kept: &str) -> Case {
    host.run(world, &["stop", "shell-full"])?;
    let said = host.run(world, &["check", "--json", "shell-full"])?;
    ensure(said.code == 0, format!("check: {said:?}"))?;
    if !kept.is_empty() {
        let said = host.run(world, &["exec", "shell-full", "cat", "/home/agent/kept"])?;
        ensure(said.text() == kept, format!("{said:?}"))?;
    }
    let said = host.run(world, &["rm", "-f", "shell-full"])?;
    ensure(said.code == 0, format!("{said:?}"))
}

/// No guest can make its file system here. The first start says why, and the next one, with room, works.
fn start(world: &World) -> Case {
    let host = Host::new(TINY)?;
    let said = host.session(world, "true")?.end()?;
    ensure(
        said.code == 125 && said.err.lines().count() == 2 && said.err.contains("the host's disk is full"),
        format!("{said:?}"),
    )?;
    host.grow()?;
    let said = host.session(world, "echo up")?.end()?;
    ensure(said.code == 0 && said.text() == "up", format!("{said:?}"))?;
    whole(world, &host, "")
}

/// The workspace lies on the full file system, the sandbox's own disk elsewhere: the guest's programs are told, and nobody else.
fn workspace(world: &World) -> Case {
    const WRITE: &str = "echo before > kept; dd if=/dev/zero of=big bs=1M count=200 conv=fsync status=none";
    let host = Host::new(SMALL)?;
    let project = host.folder.join("short");
    std::fs::create_dir(&project)?;
    let said = world.shell(&project, WRITE, b"")?;
    ensure(
        said.code == 1 && said.err.contains("No space left on device") && !said.err.contains("viv:"),
        format!("{said:?}"),
    )?;
    ensure(std::fs::read(project.join("kept"))? == b"before\n", "what was there before is whole")?;
    host.grow()?;
    let said = world.shell_ok(
        &project,
        "rm big && dd if=/dev/zero of=big bs=1M count=200 conv=fsync status=none; cat kept",
    )?;
    ensure(said == "before", said)?;
    ensure(std::fs::metadata(project.join("big"))?.len() == 200 << 20, "with room it is written")?;
    world.run(&["rm", "-f", "shell-short"]).map(|_| ())
}

/// After a kill the journal is to be replayed, which takes room beside the disk.
fn checked(world: &World) -> Case {
    const WORK: &str =
        "mkdir ~/many && cd ~/many && for i in $(seq 600); do echo $i > $i; done; sync -f ~; echo done";
    let host = Host::new(SMALL)?;
    let said = host.session(world, WORK)?.end()?;
    ensure(said.code == 0 && said.text() == "done", format!("{said:?}"))?;
    let listed = host.run(world, &["ls", "--json"])?.text();
    let row: serde_json::Value = serde_json::from_str(&listed)?;
    let found = processes(row["id"].as_str().unwrap_or_default());
    kill(found.ok_or_else(|| Verdict::Wrong(format!("no shim of {listed}")))?.shim);
    eventually("the end of the sandbox", || {
        host.run(world, &["ls", "--json"]).is_ok_and(|said| said.text().contains("shim killed"))
    })?;
    // A few pages are left: enough for the check's script.
    let filler = host.folder.join("filler");
    let mut file = std::fs::File::create(&filler)?;
    let page = [1; 4096];
    while std::io::Write::write_all(&mut file, &page).is_ok() {}
    let length = file.metadata()?.len();
    file.set_len(length.saturating_sub(5 * 4096))?;
    drop(file);
    let said = host.run(world, &["check", "shell-full"])?;
    ensure(
        said.code == 125
            && said.err.lines().count() == 2
            && said.err.contains("disk is full")
            && said.err.contains("free some space"),
        format!("{said:?}"),
    )?;
    std::fs::remove_file(filler)?;
    let said = host.run(world, &["check", "--json", "shell-full"])?;
    ensure(said.code == 0, format!("with room: {said:?}"))?;
    whole(world, &host, "")
}

fn stopped(world: &World) -> Case {
    let host = Host::new(SMALL)?;
    let session = host.session(world, &format!("echo before > ~/kept; sync -f ~; {WRITE}"))?;
    wait_until_full(&session)?;
    let said = host.run(world, &["stop", "shell-full"])?;
    // Also where the state's file finds no room.
    ensure(said.code == 125 && said.err.contains("cut off: "), format!("stop: {said:?}"))?;
    let said = session.end()?;
    ensure(said.code != 0, format!("the session of the stopped sandbox: {said:?}"))?;
    host.grow()?;
    whole(world, &host, "before")
}
