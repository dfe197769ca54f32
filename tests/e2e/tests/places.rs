//! Wherever it runs: long paths, folders in memory, CI, no terminal, the limits of containers, and hosts where something
//! is missing, which `viv diagnose` names.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::{Case, Limits, Said, Terminal, Verdict, World, ensure, eventually, say};
use serde_json::Value;

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("a_state_path_of_more_than_a_hundred_bytes_works", long_path),
    ("home_state_and_cache_may_be_in_memory", in_memory),
    ("a_damaged_cache_is_made_again", damaged_cache),
    ("without_a_terminal_nothing_is_drawn_and_a_hang_up_ends_it", no_terminal),
    ("in_ci_nothing_is_asked", ci),
    ("the_limits_of_a_docker_container_are_enough", docker_limits),
    ("a_control_groups_limits_are_in_the_defaults", control_group),
    ("without_executable_memory_the_cause_and_the_mend_are_said", no_executable_memory),
    ("a_set_up_without_network_or_room_is_one_sentence", no_set_up),
    ("diagnose_answers_whatever_the_state_of_the_machine", diagnose),
];

/// A command line with folders of its own.
struct Place<'w> {
    world: &'w World,
    /// Home and state.
    root: tempfile::TempDir,
    project: tempfile::TempDir,
    state: PathBuf,
    cache: PathBuf,
}

impl<'w> Place<'w> {
    fn below(world: &'w World, parent: &Path) -> Result<Self, Verdict> {
        let root = tempfile::Builder::new().prefix("viv-place-").tempdir_in(parent)?;
        let project = tempfile::Builder::new().prefix("viv-project-").tempdir_in("/var/tmp")?;
        let cache = world.cache().parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Self { world, state: root.path().join("state"), cache, root, project })
    }

    /// Copies these folders of the world's cache into one of this place alone.
    fn own_cache(&mut self, folders: &[&str]) -> Case {
        // There is an image from here on.
        self.world.shell_ok(&self.world.project("main"), "true")?;
        self.cache = self.root.path().join("cache");
        let copied = self.cache.join("vivarium");
        std::fs::create_dir_all(&copied)?;
        let mut copy = Command::new("cp");
        copy.args(["-r", "--preserve=timestamps", "--sparse=always"]);
        copy.args(folders.iter().map(|folder| self.world.cache().join(folder))).arg(&copied);
        ensure(copy.status()?.success(), "cp failed")
    }

    fn project(&self) -> &Path {
        self.project.path()
    }

    fn viv<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.world.viv(self.project(), arguments);
        command
            .env("HOME", self.root.path())
            .env("XDG_STATE_HOME", &self.state)
            .env("XDG_CACHE_HOME", &self.cache);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Said, Verdict> {
        say(self.viv(arguments), b"")
    }

    /// `viv diagnose --json`.
    fn diagnosed(&self) -> Result<Value, Verdict> {
        let said = self.run(&["diagnose", "--json"])?;
        ensure(said.code == 0, format!("{said:?}"))?;
        Ok(serde_json::from_str(&said.text())?)
    }

    /// A sandbox from its first start to its end, by commands that `under` may change.
    fn life(&self, under: impl Fn(Command) -> std::io::Result<Command>) -> Case {
        let run = |arguments: &[&str]| say(under(self.viv(arguments))?, b"input");
        let expect = |arguments: &[&str], out: &str| {
            let said = run(arguments)?;
            ensure(said.code == 0 && said.text() == out, format!("{arguments:?}: {said:?}"))
        };
        let first =
            ["run", "shell", ".", "--name", "placed", "--", "-c", "cat > made; sudo touch /kept; id -un"];
        expect(&first, "agent")?;
        ensure(std::fs::read(self.project().join("made"))? == b"input", "the file is on the host")?;
        let docker = "docker version --format {{.Server.Os}}";
        expect(&["exec", "placed", "sh", "-c", docker], "linux")?;
        expect(&["ls", "-q"], "placed")?;
        expect(&["stop", "placed"], "placed")?;
        expect(&["run", "shell", ".", "--", "-c", "ls /kept made"], "/kept\nmade")?;
        expect(&["logs", "placed", "--tail", "0"], "")?;
        expect(&["rm", "-f", "placed"], "placed")?;
        expect(&["ls", "-q"], "")
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for name in self.run(&["ls", "-q"]).map(|said| said.text()).unwrap_or_default().lines() {
            let _ = self.run(&["rm", "-f", name]);
        }
    }
}

fn long_path(world: &World) -> Case {
    let mut place = Place::below(world, Path::new("/var/tmp"))?;
    place.state = place.root.path().join("s".repeat(100)).join("deep er".repeat(8));
    place.life(Ok)
}

/// Memory that is a file system for everybody.
const MEMORY: &str = "/dev/shm";

fn in_memory(world: &World) -> Case {
    /// `TMPFS_MAGIC` of `statfs(2)`.
    const TMPFS: i64 = 0x0102_1994;
    let Ok(stat) = rustix::fs::statfs(MEMORY) else {
        return Err(Verdict::Skipped(format!("there is no {MEMORY}")));
    };
    let room = stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0));
    if stat.f_type != TMPFS || room < 4 << 30 {
        return Err(Verdict::Skipped(format!("{MEMORY} is no tmpfs with 4 GiB of room")));
    }
    let mut place = Place::below(world, Path::new(MEMORY))?;
    place.own_cache(&["images"])?;
    place.life(Ok)
}

/// What was damaged since it was made is made again, and nobody has to know.
fn damaged_cache(world: &World) -> Case {
    let mut place = Place::below(world, Path::new("/var/tmp"))?;
    let long = e2e::long_cases();
    // In the long form the image is made here, too.
    place.own_cache(&[if long { "downloads" } else { "images" }])?;
    let start = || {
        let said = place.run(&["run", "shell", ".", "--name", "placed", "--", "-c", "id -un"])?;
        ensure(said.code == 0 && said.text() == "agent", format!("{said:?}"))?;
        ensure(place.run(&["stop", "placed"])?.code == 0, "it stops")
    };
    start()?;
    let cache = place.cache.join("vivarium");
    for archive in std::fs::read_dir(cache.join("initramfs"))?.flatten() {
        flip(&archive.path())?;
    }
    start()?;
    if !long {
        return Ok(());
    }
    // The image takes minutes to be made again; so does a download that was damaged on the way.
    let download = std::fs::read_dir(cache.join("downloads"))?.flatten().next();
    flip(&download.ok_or_else(|| Verdict::Wrong("there are no downloads".into()))?.path())?;
    let images = || -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(cache.join("images"))?.flatten().map(|entry| entry.path());
        Ok(entries.filter(|path| path.join("base.erofs").is_file()).collect())
    };
    let made = |image: &Path| std::fs::metadata(image).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
    let [image] = &images()?[..] else { return ensure(false, format!("{:?} is one image", images())) };
    let before = made(image)?;
    flip(&image.join("base.erofs"))?;
    start()?;
    ensure(images()? == [image.clone()] && made(image)? != before, "it is the damaged image still")
}

/// Changes one byte in the middle of a file.
fn flip(path: &Path) -> Case {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let (at, mut byte) = (file.metadata()?.len() / 2, [0]);
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], at)?;
    Ok(())
}

fn no_terminal(world: &World) -> Case {
    let place = Place::below(world, Path::new("/var/tmp"))?;
    let session = |arguments: &[&str]| {
        let inner = place.viv(arguments);
        let mut command = Command::new("setsid");
        command.arg("--wait").arg(inner.get_program()).args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(place.project());
        command
    };
    let said =
        say(session(&["run", "shell", ".", "--name", "placed", "--", "-c", "cat; tty"]), b"in\0put\n")?;
    ensure(said.out == b"in\0put\nnot a tty\n" && said.code == 1, format!("{said:?}"))?;
    let drawn = said.err.chars().any(|c| c.is_control() && c != '\n');
    ensure(!drawn, format!("it draws where nobody sees: {:?}", said.err))?;
    // As sshd ends a session whose connection is gone.
    let mut lost = place
        .viv(["exec", "-i", "placed", "sleep", "4399"])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let runs =
        || place.run(&["exec", "placed", "pgrep", "-f", "[s]leep 4399"]).is_ok_and(|said| said.code == 0);
    eventually("the command", runs)?;
    let group = rustix::process::Pid::from_child(&lost);
    rustix::process::kill_process_group(group, rustix::process::Signal::HUP)?;
    lost.wait()?;
    eventually("the end of the command", || !runs())
}

fn ci(world: &World) -> Case {
    let place = Place::below(world, Path::new("/var/tmp"))?;
    let made = place.run(&["create", "shell", ".", "--name", "placed"])?;
    ensure(made.code == 0, format!("{made:?}"))?;
    let remove = |ci: bool| {
        let mut command = place.viv(["rm", "placed"]);
        if ci {
            command.env("CI", "true");
        }
        Terminal::start(&command, 24, 80)
    };
    let mut asked = remove(false)?;
    asked.wait_for("?")?;
    asked.keys("n\r")?;
    asked.end()?;
    ensure(place.run(&["ls", "-q"])?.text() == "placed", "the answer was no")?;
    let mut told = remove(true)?;
    told.wait_for("there is nobody to ask")?;
    let code = told.end()?;
    ensure(code == 125, format!("rm ended with {code}"))?;
    ensure(place.run(&["rm", "-f", "placed"])?.code == 0, "-f asks nobody")
}

fn docker_limits(world: &World) -> Case {
    world.shell_ok(&world.project("main"), "true")?;
    let place = Place::below(world, Path::new("/var/tmp"))?;
    // That the limits are there.
    let mut refused = Command::new("unshare");
    refused.args(["--user", "true"]).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let said = say(Limits::Docker.on(&refused)?, b"")?;
    ensure(
        said.code != 0 && said.err.contains("not permitted"),
        format!("the limits do not hold: {said:?}"),
    )?;
    place.life(|command| Limits::Docker.on(&command))
}

fn control_group(world: &World) -> Case {
    const LIMIT: u64 = 1 << 30;
    let groups = Path::new("/sys/fs/cgroup");
    let (root, file) = if groups.join("cgroup.controllers").exists() {
        (groups.to_owned(), "memory.max")
    } else {
        (groups.join("memory"), "memory.limit_in_bytes")
    };
    let group = root.join(format!("viv-e2e-{}", std::process::id()));
    let limited =
        std::fs::create_dir(&group).and_then(|()| std::fs::write(group.join(file), LIMIT.to_string()));
    if let Err(error) = limited {
        let _ = std::fs::remove_dir(&group);
        return Err(Verdict::Skipped(format!("no control group with a memory limit can be made: {error}")));
    }
    let place = Place::below(world, Path::new("/var/tmp"))?;
    let create = place.viv(["create", "shell", ".", "--name", "placed"]);
    let mut inside = Command::new("sh");
    inside.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
    // One processor, as a container's set of CPUs leaves it.
    inside.args(["taskset", "-c", "0"]).arg(create.get_program()).args(create.get_args());
    inside.env_clear().envs(create.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside.current_dir(place.project());
    let made = say(inside, b"")?;
    // The process has ended, so that its group is empty.
    let removed = std::fs::remove_dir(&group);
    ensure(made.code == 0, format!("{made:?}"))?;
    removed?;
    let inspected: Value = serde_json::from_str(&place.run(&["inspect", "placed"])?.text())?;
    let limits = &inspected["limits"];
    ensure(limits["memory"] == LIMIT / 2 && limits["cpus"] == 1, limits.to_string())
}

fn no_executable_memory(world: &World) -> Case {
    world.shell_ok(&world.project("main"), "true")?;
    let place = Place::below(world, Path::new("/var/tmp"))?;
    let run = place.viv(["run", "shell", ".", "--engine", "soft", "--", "-c", "true"]);
    let said = say(Limits::NoExecutableMemory.on(&run)?, b"")?;
    let good = said.code == 125
        && said.err.lines().count() == 2
        && said.err.contains("executable memory")
        && said.err.contains("hint: ");
    ensure(good, format!("{said:?}"))?;
    ensure(place.run(&["ls", "-q"])?.text().is_empty(), "nothing was made")?;
    let said = say(Limits::NoExecutableMemory.on(&place.viv(["diagnose"]))?, b"")?;
    let named = said.text().contains("executable memory") && said.code == 0;
    ensure(named, format!("{said:?}"))
}

/// What diagnose says is missing.
fn missing(found: &Value, words: &str) -> Case {
    let all = found["missing"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(found["damaged"].as_array().into_iter().flatten());
    let named = |one: &Value| {
        one["what"].as_str().is_some_and(|what| what.contains(words))
            && one["mend"].as_str().is_some_and(|mend| !mend.is_empty())
    };
    ensure({ all }.any(named), format!("\"{words}\" is not named: {found}"))
}

fn diagnose(world: &World) -> Case {
    let mut place = Place::below(world, Path::new("/var/tmp"))?;
    let run = place.run(&["run", "-d", "shell", ".", "--name", "placed"])?;
    ensure(run.code == 0, format!("{run:?}"))?;
    // A busy host may be late with one of the answers.
    let mut found = Value::Null;
    let is_all = |found: &Value| {
        found["missing"].as_array().is_some_and(Vec::is_empty) && found["sandboxes"][0]["name"] == "placed"
    };
    eventually("nothing is missing", || {
        found = place.diagnosed().unwrap_or_default();
        is_all(&found)
    })
    .map_err(|_| Verdict::Wrong(format!("nothing is missing: {found}")))?;
    // A shim that does not answer must be waited for by nobody.
    let inspected: Value = serde_json::from_str(&place.run(&["inspect", "placed"])?.text())?;
    let shim = inspected["processes"]["shim"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let shim =
        shim.and_then(rustix::process::Pid::from_raw).ok_or_else(|| Verdict::Wrong(inspected.to_string()))?;
    rustix::process::kill_process(shim, rustix::process::Signal::STOP)?;
    let (found, listed) = (place.diagnosed(), place.run(&["ls"]));
    rustix::process::kill_process(shim, rustix::process::Signal::CONT)?;
    missing(&found?, "the sandbox placed")?;
    let listed = listed?;
    ensure(listed.code == 0 && listed.text().contains("placed"), format!("{listed:?}"))?;
    place.run(&["stop", "placed"])?;
    // A damaged sandbox, and folders that are none.
    let spec = Path::new(inspected["paths"]["folder"].as_str().unwrap_or_default()).join("spec.json");
    let whole = std::fs::read(&spec)?;
    std::fs::write(&spec, "{")?;
    let found = place.diagnosed();
    std::fs::write(&spec, whole)?;
    missing(&found?, "is damaged")?;
    let file = place.root.path().join("file");
    std::fs::write(&file, "")?;
    let state = std::mem::replace(&mut place.state, file.join("state"));
    let found = place.diagnosed();
    place.state = state;
    missing(&found?, "file is no folder")?;
    let cache = std::mem::replace(&mut place.cache, file.join("cache"));
    let found = place.diagnosed();
    place.cache = cache;
    missing(&found?, "file is no folder")?;
    servers(&mut place)
}

/// Where a set-up is to come and there is no network.
fn servers(place: &mut Place<'_>) -> Case {
    let empty = place.root.path().join("empty");
    let cache = std::mem::replace(&mut place.cache, empty);
    let mut command = place.viv(["diagnose", "--json"]);
    // A port where nothing listens.
    command.env("http_proxy", "http://127.0.0.1:9").env("https_proxy", "http://127.0.0.1:9");
    let said = say(command, b"");
    place.cache = cache;
    let said = said?;
    let found: Value = serde_json::from_str(&said.text())?;
    missing(&found, "cannot download")
}

/// A set-up that cannot be: its cache is empty.
fn no_set_up(world: &World) -> Case {
    let mut place = Place::below(world, Path::new("/var/tmp"))?;
    place.cache = place.root.path().join("cache");
    std::fs::create_dir(&place.cache)?;
    let refused = |said: &Said, cause: &str, mend: &str| {
        let errors: Vec<&str> = said.err.lines().skip_while(|line| !line.starts_with("error: ")).collect();
        let good = said.code == 125
            && errors.len() == 2
            && errors[0].contains(cause)
            && !errors[0].contains("os error")
            && errors[1].trim_start().starts_with("hint: ")
            && errors[1].contains(mend);
        ensure(good, format!("{said:?}"))
    };
    let run = || place.viv(["run", "shell", ".", "--", "-c", "true"]);
    let mut command = run();
    // A port where nothing listens.
    command.env("http_proxy", "http://127.0.0.1:9").env("https_proxy", "http://127.0.0.1:9");
    refused(&say(command, b"")?, "cannot download", "check the network")?;
    if !rustix::process::geteuid().is_root() {
        return Err(Verdict::Skipped(
            "a small disk needs root; without network it is as it should be".into(),
        ));
    }
    let inner = run();
    let mut small = Command::new("unshare");
    small
        .args(["--mount", "sh", "-c", "mount -t tmpfs -o size=40m none \"$0\" && exec \"$@\""])
        .arg(&place.cache);
    small.arg(inner.get_program()).args(inner.get_args());
    small.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    small.current_dir(place.project());
    refused(&say(small, b"")?, "setting up needs", "XDG_CACHE_HOME")
}
