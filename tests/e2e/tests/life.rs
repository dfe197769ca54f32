//! The life of a sandbox: made, started, watched, copied to, ended in every way, and deleted.

use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use e2e::{Case, Said, Verdict, World, ensure, eventually, say};
use serde_json::Value;

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("create_makes_and_starts_nothing", create),
    ("a_detached_sandbox_is_told_from_others", detached),
    ("a_detached_sandbox_outlives_its_sessions", outlives),
    ("a_sandbox_keeps_nothing_that_its_starter_had_open", inherited),
    ("every_end_has_its_name", ends),
    ("a_stop_that_breaks_is_named_and_told", broken_stop),
    ("out_of_memory_is_137_and_named_in_the_logs", out_of_memory),
    ("logs_have_times_and_outlive_the_sandbox", logs),
    ("cp_keeps_content_modes_and_names", copies),
    ("cp_replaces_only_files_and_leaves_no_pieces", odd_copies),
    ("cp_believes_nothing_that_a_guest_sends", hostile_copy),
    ("prune_says_what_it_deletes", prune),
    ("paths_of_any_bytes_work", any_bytes),
    ("a_killed_client_ends_only_its_command", killed_client),
    ("a_reader_that_does_not_read_blocks_nobody_else", slow_reader),
];

/// What `viv inspect` says of a sandbox.
pub(crate) fn inspect(world: &World, name: &str) -> Result<Value, Verdict> {
    let said = world.run(&["inspect", name])?;
    ensure(said.code == 0, format!("inspect {name}: {said:?}"))?;
    Ok(serde_json::from_slice(&said.out)?)
}

fn well(said: Said) -> Result<String, Verdict> {
    ensure(said.code == 0, format!("{said:?}"))?;
    Ok(said.text())
}

fn create(world: &World) -> Case {
    let folder = world.project("created");
    let arguments = ["create", "shell", ".", "--cpus", "1", "-m", "1g", "--disk", "2g"];
    let name = well(say(world.viv(&folder, arguments), b"")?)?;
    ensure(name == "shell-created", name)?;
    let again = say(world.viv(&folder, arguments), b"")?;
    ensure(again.code == 125 && again.err.contains("viv attach shell-created"), format!("{again:?}"))?;
    let made = inspect(world, "shell-created")?;
    ensure(made["state"] == "stopped" && made["started"].is_null(), made.to_string())?;
    let limits =
        (made["limits"]["cpus"].as_u64(), made["limits"]["memory"].as_u64(), made["limits"]["disk"].as_u64());
    ensure(limits == (Some(1), Some(1 << 30), Some(2 << 30)), made.to_string())?;
    // What was decided holds for the first start, however that comes.
    let script =
        "nproc; pwd; awk '/^MemTotal/ { print $2 }' /proc/meminfo; lsblk -bdno SIZE | sort -n | tr '\\n' ' '";
    let said = well(world.run(&["attach", "shell-crea", "--", "-c", script])?)?;
    let lines: Vec<&str> = said.lines().collect();
    ensure(lines.len() == 4 && lines[..2] == ["1", &*folder.to_string_lossy()], said.clone())?;
    // The kernel keeps some of the memory for itself.
    let memory: u64 = lines[2].parse()?;
    ensure((900 << 10..=1 << 20).contains(&memory), format!("{memory} KiB of memory: {said}"))?;
    let disk = (2u64 << 30).to_string();
    ensure(lines[3].split(' ').any(|size| size == disk), format!("no disk of {disk} bytes: {said}"))?;
    let runs = inspect(world, "shell-created")?;
    ensure(runs["state"] == "running" && runs["processes"]["vmm"].is_u64(), runs.to_string())?;
    world.run(&["rm", "-f", "shell-created"])?;
    // What is not decided is as documented (docs/sandboxes.md).
    let name = well(say(world.viv(&folder, ["create", "shell", "."]), b"")?)?;
    let limits = inspect(world, &name)?["limits"].clone();
    let (cpus, memory) = (limits["cpus"].as_u64(), limits["memory"].as_u64().unwrap_or(0));
    let host = std::thread::available_parallelism()?.get().min(64);
    ensure(cpus == u64::try_from(host).ok() && limits["disk"] == 64u64 << 30, limits.to_string())?;
    ensure((256 << 20..=8 << 30).contains(&memory), limits.to_string())?;
    world.run(&["rm", "-f", &name]).map(|_| ())
}

fn detached(world: &World) -> Case {
    let folder = world.project("detached");
    let name = well(say(world.viv(&folder, ["run", "-d", "shell", "."]), b"")?)?;
    ensure(name == "shell-detached", name)?;
    ensure(inspect(world, "shell-detached")?["detached"] == true, "it is detached")?;
    well(world.run(&["exec", "shell-detached", "true"])?)?;
    ensure(inspect(world, "shell-detached")?["detached"] == true, "after a session, too")?;
    well(world.run(&["stop", "shell-detached"])?)?;
    let stopped = inspect(world, "shell-detached")?;
    ensure(stopped["reason"] == "asked to stop" && stopped["detached"] == false, stopped.to_string())?;
    well(world.run(&["start", "shell-detached"])?)?;
    ensure(inspect(world, "shell-detached")?["detached"] == false, "a plain start is not")?;
    well(world.run(&["start", "-d", "shell-detached"])?)?;
    ensure(inspect(world, "shell-detached")?["detached"] == true, "a running one becomes so")?;
    let refused = say(world.viv(&folder, ["run", "-d", "shell", ".", "--", "-c", "true"]), b"")?;
    ensure(refused.code == 125 && refused.err.contains("hint:"), format!("{refused:?}"))?;
    world.run(&["rm", "-f", "shell-detached"]).map(|_| ())
}

/// Two sandboxes, one of them detached; the other's end says that the time is over.
fn outlives(world: &World) -> Case {
    if !e2e::long_cases() {
        return Err(Verdict::Skipped(e2e::LONG.into()));
    }
    let (kept, idle) = (world.project("kept-on"), world.project("idle"));
    well(say(world.viv(&kept, ["run", "-d", "shell", "."]), b"")?)?;
    world.shell_ok(&idle, "true")?;
    eventually("the end of the idle sandbox", || {
        inspect(world, "shell-idle").is_ok_and(|it| it["state"] == "stopped" && it["reason"] == "idle")
    })?;
    ensure(inspect(world, "shell-kept-on")?["state"] == "running", "it was to go on")?;
    world.run(&["rm", "-f", "shell-kept-on", "shell-idle"]).map(|_| ())
}

/// A shell's lock on descriptor 9 is free again when the shell has ended, whatever it started.
fn inherited(world: &World) -> Case {
    let folder = world.project("inherited");
    let file = folder.canonicalize()?.join("lock");
    let mut shell = std::process::Command::new("sh");
    world.environment(&mut shell, &folder);
    shell.args(["-c", "exec 9>\"$1\"; shift; exec \"$@\"", "sh"]).arg(&file).arg(world.program());
    well(say(
        {
            shell.args(["run", "-d", "shell", "."]);
            shell
        },
        b"",
    )?)?;
    let runs = inspect(world, "shell-inherited")?;
    for role in ["shim", "vmm"] {
        let pid = runs["processes"][role].as_u64().ok_or(std::io::Error::other("no process"))?;
        let descriptors = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Verdict::Skipped(
                    "only root may look into processes that nobody may trace".into(),
                ));
            }
            other => other?,
        };
        let held: Vec<_> = descriptors.flatten().flat_map(|entry| std::fs::read_link(entry.path())).collect();
        ensure(held.len() > 3 && !held.contains(&file), format!("the {role} holds {held:?}"))?;
    }
    world.run(&["rm", "-f", "shell-inherited"]).map(|_| ())
}

fn ends(world: &World) -> Case {
    let folder = world.project("ends");
    let kill = |which: &str| -> Case {
        world.shell_ok(&folder, "true")?;
        let pid = inspect(world, "shell-ends")?["processes"][which].as_i64();
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or(std::io::Error::other("no process"))?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    };
    let within = |script: &str| world.shell(&folder, script, b"").map(|_| ());
    type End<'e> = (&'e str, &'e dyn Fn() -> Case);
    let all: [End<'_>; 6] = [
        ("stopped (powered off)", &|| within("poweroff; sleep 60")),
        ("stopped (rebooted)", &|| within("sudo reboot; sleep 60")),
        ("failed (kernel panic)", &|| within("sudo sh -c 'echo c > /proc/sysrq-trigger'; sleep 60")),
        ("failed (vmm killed: SIGKILL)", &|| kill("vmm")),
        ("failed (shim killed)", &|| kill("shim")),
        ("stopped (asked to stop)", &|| {
            world.shell_ok(&folder, "true")?;
            world.run(&["stop", "shell-ends"]).map(|_| ())
        }),
    ];
    for (state, end) in all {
        end()?;
        eventually(state, || {
            let table = world.run(&["ls"]).map(|said| said.text()).unwrap_or_default();
            table.lines().any(|line| line.starts_with("shell-ends ") && line.contains(state))
        })?;
    }
    let panic = well(world.run(&["logs", "shell-ends", "console"])?)?;
    ensure(panic.contains("Kernel panic - not syncing"), "the panic's words are kept")?;
    world.run(&["rm", "-f", "shell-ends"]).map(|_| ())
}

/// A vmm that dies while its guest goes down was not stopped in order, whoever asked for that.
fn broken_stop(world: &World) -> Case {
    let folder = world.project("breaks");
    // Something that does not end when it is asked to: the guest gives it ten seconds.
    let stubborn =
        "setsid -f sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' >/dev/null 2>&1 </dev/null";
    world.shell_ok(&folder, stubborn)?;
    let pid = inspect(world, "shell-breaks")?["processes"]["vmm"].as_i64();
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or(std::io::Error::other("no process"))?;
    let stop =
        world.viv(&folder, ["stop", "shell-breaks"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    eventually("the guest to go down", || {
        inspect(world, "shell-breaks").is_ok_and(|it| it["state"] == "stopping")
    })?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let said = Said::from(stop.wait_with_output()?);
    let told = said.code == 125 && said.err.contains("vmm killed: SIGKILL") && said.err.contains("hint:");
    ensure(told, format!("{said:?}"))?;
    let after = inspect(world, "shell-breaks")?;
    ensure(after["state"] == "failed" && after["reason"] == "vmm killed: SIGKILL", after.to_string())?;
    ensure(world.shell_ok(&folder, "echo up")? == "up", "it starts again")?;
    world.run(&["rm", "-f", "shell-breaks"]).map(|_| ())
}

fn out_of_memory(world: &World) -> Case {
    let folder = world.project("greedy");
    well(say(world.viv(&folder, ["create", "shell", ".", "-m", "512m"]), b"")?)?;
    let said = world.shell(&folder, "exec tail /dev/zero", b"")?;
    ensure(said.code == 137 && said.err.contains("ran out of memory"), format!("{said:?}"))?;
    let named = |source: &str, words: &str| {
        let words = words.to_owned();
        eventually(&words, || {
            world.run(&["logs", "shell-greedy", source]).is_ok_and(|said| said.text().contains(&words))
        })
    };
    named("console", "Killed process")?;
    named("agent", "out of memory")?;
    world.run(&["rm", "-f", "shell-greedy"]).map(|_| ())
}

fn logs(world: &World) -> Case {
    let folder = world.project("logged");
    world.shell_ok(&folder, "docker info >/dev/null")?;
    let mut follower = world
        .viv(&folder, ["logs", "-f", "-n", "1", "shell-logged"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut out = follower.stdout.take().ok_or_else(|| Verdict::Wrong("no output".into()))?;
    // With its first line it follows.
    let mut heard = vec![0];
    out.read_exact(&mut heard)?;
    well(world.run(&["stop", "shell-logged"])?)?;
    let all = well(world.run(&["logs", "shell-logged"])?)?;
    for (source, words) in
        [("agent", "ready for sessions"), ("shim", "The guest is ready"), ("shim", "The sandbox has ended")]
    {
        let found = all.lines().any(|line| {
            let mut parts = line.split_ascii_whitespace();
            // A time that sorts as it reads.
            parts.next().is_some_and(|time| time.len() == 24 && time.ends_with('Z'))
                && parts.next() == Some(source)
                && line.contains(words)
        });
        ensure(found, format!("{source}: {words} is not in\n{all}"))?;
    }
    // What dockerd says at every start is for who asks.
    ensure(!all.contains("API listen on"), format!("routine is in\n{all}"))?;
    let docker = well(world.run(&["logs", "shell-logged", "dockerd"])?)?;
    ensure(docker.contains("API listen on"), format!("API listen on is not in\n{docker}"))?;
    let times: Vec<&str> = all.lines().filter_map(|line| line.get(..24)).collect();
    ensure(times.is_sorted(), "lines are not in the order of their times")?;
    let last = well(world.run(&["logs", "-n", "2", "--json", "shell-logged", "shim"])?)?;
    let last: Vec<Value> = last.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    ensure(last.len() == 2 && last.iter().all(|line| line["log"] == "shim"), format!("{last:?}"))?;
    let none = well(world.run(&["logs", "--since", "2999-01-01T00:00:00Z", "shell-logged"])?)?;
    ensure(none.is_empty(), none)?;
    // Who followed has heard the end, and has ended with it.
    out.read_to_end(&mut heard)?;
    let heard = String::from_utf8_lossy(&heard).into_owned();
    ensure(follower.wait()?.success() && heard.contains("The sandbox has ended"), heard)?;
    world.run(&["rm", "-f", "shell-logged"]).map(|_| ())
}

fn copies(world: &World) -> Case {
    let folder = world.project("copied");
    let tree = folder.join("out here/tree");
    std::fs::create_dir_all(tree.join("sub"))?;
    std::fs::write(tree.join("sub/run"), "#!/bin/sh\necho ran\n")?;
    std::fs::set_permissions(tree.join("sub/run"), std::os::unix::fs::PermissionsExt::from_mode(0o750))?;
    std::os::unix::fs::symlink("sub/run", tree.join("link"))?;
    std::fs::write(tree.join("large"), vec![b'x'; 3_000_001])?;
    world.shell_ok(&folder, "true")?;
    let cp = |from: &str, to: &str| world.viv(&folder, ["cp", from, to]);
    let run = |from: &str, to: &str| say(cp(from, to), b"");
    let name = "shell-copied";
    let inside = |script: &str| well(world.run(&["exec", name, "sh", "-c", script])?);

    // In: a folder into one that is there and under a new name, its content, a file, a file over another.
    well(run("out here/tree", &format!("{name}:/home/agent"))?)?;
    well(run("out here/tree", &format!("{name}:/home/agent/new"))?)?;
    inside("mkdir /tmp/flat")?;
    well(run("out here/tree/.", &format!("{name}:/tmp/flat/"))?)?;
    well(run("out here/tree/sub/run", &format!("{name}:/tmp/flat/large"))?)?;
    let said = inside(
        "cd ~/tree; ./link; stat -c '%a %U' sub/run; readlink link; stat -c %s large ~/new/large; cat /tmp/flat/large; ls /tmp/flat",
    )?;
    let script = "#!/bin/sh\necho ran";
    let expected = format!("ran\n750 agent\nsub/run\n3000001\n3000001\n{script}\nlarge\nlink\nsub");
    ensure(said == expected, said)?;
    let refused = run("out here/tree/large", &format!("{name}:/etc/"))?;
    ensure(refused.code == 125 && refused.err.contains("viv cp -u root"), format!("{refused:?}"))?;
    well(say(
        world.viv(&folder, ["cp", "-u", "root", "out here/tree/large", &format!("{name}:/etc/")]),
        b"",
    )?)?;

    // Out: the same, and a relative path, which is one of the workspace's.
    let back = world.project("copied-back");
    let back_text = back.display().to_string();
    well(run(&format!("{name}:/home/agent/tree"), &back_text)?)?;
    well(run(&format!("{name}:/home/agent/tree"), &format!("{back_text}/other"))?)?;
    well(run(&format!("{name}:out here/tree/sub/run"), &format!("{back_text}/file"))?)?;
    for copy in ["tree", "other"] {
        let copy = back.join(copy);
        ensure(std::fs::read(copy.join("large"))? == vec![b'x'; 3_000_001], "the content")?;
        ensure(std::fs::read_link(copy.join("link"))? == Path::new("sub/run"), "the link")?;
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(copy.join("sub/run"))?);
        ensure(mode & 0o7777 == 0o750, format!("the mode became {mode:o}"))?;
    }
    ensure(std::fs::read_to_string(back.join("file"))?.contains("ran"), "the file")?;

    // Archives: out of one sandbox's command, into the other's.
    let archive = run(&format!("{name}:/home/agent/tree/sub"), "-")?;
    ensure(archive.code == 0, archive.err)?;
    let into = say(cp("-", &format!("{name}:/tmp")), &archive.out)?;
    ensure(into.code == 0 && inside("/tmp/sub/run")? == "ran", format!("{into:?}"))?;

    // What a kernel makes up as it is read says no size, or a wrong one.
    well(run(&format!("{name}:/proc/version"), &back_text)?)?;
    well(run(&format!("{name}:/sys/kernel/mm/transparent_hugepage/enabled"), &format!("{back_text}/thp"))?)?;
    let read = |file: &str| std::fs::read_to_string(back.join(file));
    ensure(read("version")?.starts_with("Linux version 6."), read("version")?)?;
    ensure(
        read("thp")? == format!("{}\n", inside("cat /sys/kernel/mm/transparent_hugepage/enabled")?),
        read("thp")?,
    )?;
    let archive = run(&format!("{name}:/proc/version"), "-")?;
    ensure(archive.code == 0 && archive.text().contains("Linux version 6."), format!("{archive:?}"))?;
    well(run("/proc/version", &format!("{name}:/tmp/hosts"))?)?;
    ensure(inside("cat /tmp/hosts")? == std::fs::read_to_string("/proc/version")?.trim(), "the host's own")?;

    for (from, to, words) in [
        ("shell-copied:/dev/zero", ".", "/dev/zero in shell-copied is a device, and only"),
        ("shell-copied:/dev/zero", "-", "is a device, and only"),
        ("/dev/zero", "shell-copied:/tmp", "/dev/zero is a device, and only"),
        ("out here/tree/large", "shell-copied:/dev/null", "is a device, and a copy replaces only files"),
        ("shell-copied:/proc/sys", ".", "is not copied as a folder"),
        ("nosuch", "shell-copied:/tmp", "does not exist"),
        ("shell-copied:/nosuch", ".", "does not exist in shell-copied"),
        ("out here/tree", "shell-copied:/etc/passwd", "is a file"),
        ("out here/tree/large", "shell-copied:/no/such/", "does not exist in shell-copied"),
        ("shell-copied:/etc", "out here/tree/large", "is a file"),
        ("shell-copied:/etc/passwd", "no/such/folder", "does not exist"),
        ("a", "b", "neither of the two"),
        ("shell-copied:/etc", "shell-copied:/tmp", "both are in sandboxes"),
        ("nosuch-sandbox:/etc", ".", "no sandbox is called"),
    ] {
        let said = run(from, to)?;
        let good = said.code == 125 && said.err.starts_with("error: ") && said.err.contains(words);
        ensure(good, format!("{from} {to}: {said:?}"))?;
    }
    let said = say(cp("-", &format!("{name}:/tmp")), b"no archive")?;
    ensure(said.code == 125 && said.err.contains("hint: - takes an archive"), format!("{said:?}"))?;
    world.run(&["rm", "-f", name]).map(|_| ())
}

/// What is in the way on the host, what is too large, what is mostly holes, an input that cannot be read, and Ctrl-C.
fn odd_copies(world: &World) -> Case {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let (folder, name) = (world.project("odd-copies"), "shell-odd-copies");
    world.shell_ok(
        &folder,
        "cd; echo whole > whole; truncate -s 10T endless; truncate -s 2G long; truncate -s 40M holes; echo x >> holes
        mkdir some; echo a > some/a; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"some/socket\")'",
    )?;
    let back = world.project("odd-copies-back");
    let cp = |from: &str, to: &Path| {
        let from = format!("{name}:/home/agent/{from}");
        say(world.viv(&folder, [std::ffi::OsStr::new("cp"), from.as_ref(), to.as_os_str()]), b"")
    };
    let pipe = back.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR)?;
    std::os::unix::fs::symlink("pipe", back.join("link"))?;
    for to in [&pipe, &back.join("link")] {
        let said = cp("whole", to)?;
        ensure(said.code == 125 && said.err.contains("a pipe is there"), format!("{said:?}"))?;
    }
    ensure(std::fs::symlink_metadata(&pipe)?.file_type().is_fifo(), "it is a pipe still")?;
    ensure(std::fs::read_link(back.join("link"))? == Path::new("pipe"), "it is a link still")?;

    let said = cp("endless", &back)?;
    ensure(said.code == 125 && said.err.contains("there is room for"), format!("{said:?}"))?;
    well(cp("holes", &back)?)?;
    // And in again, the holes as such.
    let source = back.join("holes");
    well(say(
        world.viv(&folder, ["cp".as_ref(), source.as_os_str(), format!("{name}:/tmp").as_ref()]),
        b"",
    )?)?;
    let there =
        world.shell_ok(&folder, "cmp /tmp/holes ~/holes && echo $(($(stat -c %b /tmp/holes) < 2000))")?;
    ensure(there == "1", format!("it came back whole and small: {there}"))?;
    let holes = std::fs::metadata(back.join("holes"))?;
    let taken = holes.blocks() * 512;
    ensure(holes.len() == (40 << 20) + 2 && taken < 1 << 20, format!("{} bytes take {taken}", holes.len()))?;
    let said = cp("some", &back)?;
    let told = said.code == 0 && said.err.contains("left out: some/socket is neither");
    ensure(told && back.join("some/a").exists(), format!("{said:?}"))?;

    let output =
        world.viv(&folder, ["cp", "-", &format!("{name}:/tmp")]).stdin(std::fs::File::open("/")?).output()?;
    let said = Said::from(output);
    ensure(said.code == 125 && said.err.contains("cannot read the standard input"), format!("{said:?}"))?;

    let begun = || {
        let names = std::fs::read_dir(&back).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".viv-cp-")).count()
    };
    let from = format!("{name}:/home/agent/long");
    let mut long = world.viv(&folder, ["cp".as_ref(), from.as_ref(), back.as_os_str()]).spawn()?;
    eventually("the file that is being copied", || begun() == 1)?;
    let pid = i32::try_from(long.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or(std::io::Error::other("no process"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    let status = long.wait()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    ensure(
        signal == Some(2) && begun() == 0 && !back.join("long").exists(),
        format!("{status}: {}", begun()),
    )?;
    world.run(&["rm", "-f", name]).map(|_| ())
}

/// A guest whose `tar` sends names and links that lead out of where they are to go. Each must end the copy and write nothing.
fn hostile_copy(world: &World) -> Case {
    let folder = world.project("hostile");
    let target = world.project("target").canonicalize()?;
    let outside = target.parent().unwrap_or(Path::new("/")).join("outside");
    std::fs::write(&outside, "untouched")?;
    world.shell_ok(&folder, "mkdir ~/x; touch ~/x/f")?;
    let absolute = outside.display();
    for entries in [
        "file('../outside')".to_owned(),
        "file('x/../../outside')".to_owned(),
        format!("file('{absolute}')"),
        "link('x', '..'); file('x/outside')".to_owned(),
        "folder('x'); link('x/out', '../..'); file('x/out/outside')".to_owned(),
        format!("link('x', '{absolute}'); file('x/f')"),
        "folder('x'); hard('x/f', '../outside')".to_owned(),
        "file('y')".to_owned(),
    ] {
        let evil = format!(
            r"#!/usr/bin/python3
import io, sys, tarfile
out = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.GNU_FORMAT)
def add(name, kind, link='', data=b''):
    one = tarfile.TarInfo(name); one.type = kind; one.linkname = link; one.size = len(data); one.mode = 0o644 if kind == tarfile.REGTYPE else 0o755
    out.addfile(one, io.BytesIO(data))
def file(name): add(name, tarfile.REGTYPE, data=b'harm')
def folder(name): add(name, tarfile.DIRTYPE)
def link(name, to): add(name, tarfile.SYMTYPE, to)
def hard(name, to): add(name, tarfile.LNKTYPE, to)
{entries}
out.close()
"
        );
        let put = world.shell(
            &folder,
            "sudo tee /usr/local/bin/tar >/dev/null && sudo chmod 755 /usr/local/bin/tar",
            evil.as_bytes(),
        )?;
        ensure(put.code == 0, format!("{put:?}"))?;
        let _ = std::fs::remove_dir_all(&target);
        std::fs::create_dir(&target)?;
        let said = world.run(&["cp", "shell-hostile:/home/agent/x", &format!("{}/", target.display())])?;
        ensure(said.code == 125 && said.err.starts_with("error: "), format!("{entries}: {said:?}"))?;
        ensure(std::fs::read(&outside)? == b"untouched", format!("{entries} wrote outside"))?;
        ensure(!target.join("outside").exists() && !target.join("y").exists(), entries)?;
    }
    // A link that the guest made in the workspace is not where a copy goes, nor what is copied into it.
    world.shell_ok(&folder, "sudo rm /usr/local/bin/tar; ln -sfn .. trap")?;
    for (from, to) in [("shell-hostile:/home/agent/x", "trap/"), ("trap/outside", "shell-hostile:/tmp")] {
        let said = say(world.viv(&folder, ["cp", from, to]), b"")?;
        ensure(said.code == 125 && said.err.contains("symbolic link"), format!("{from} {to}: {said:?}"))?;
    }
    world.run(&["rm", "-f", "shell-hostile"]).map(|_| ())
}

/// With a state and a cache of its own: it deletes what it finds.
fn prune(world: &World) -> Case {
    let folder = world.project("pruned");
    let own = tempfile::tempdir_in("/var/tmp")?;
    let state = own.path().join("state");
    let viv = |arguments: &[&str], cache: bool| {
        let mut command = world.viv(&folder, arguments);
        command.env("XDG_STATE_HOME", &state);
        if cache {
            command.env("XDG_CACHE_HOME", own.path().join("cache"));
        }
        say(command, b"")
    };
    well(viv(&["create", "shell", "."], false)?)?;
    let listed = well(viv(&["prune", "--dry-run"], true)?)?;
    ensure(listed.contains("the sandbox shell-pruned") && listed.contains("in all"), listed)?;
    let refused = viv(&["prune"], true)?;
    ensure(refused.code == 125 && refused.err.contains("--dry-run"), format!("{refused:?}"))?;
    let images = well(viv(&["prune", "-f", "--images"], true)?)?;
    ensure(images == "There is nothing to delete.", images)?;
    ensure(well(viv(&["ls", "-q"], true)?)? == "shell-pruned", "it is still there")?;
    // What killed ones left, which no other command sees.
    let sandboxes = state.join("vivarium/sandboxes");
    std::fs::create_dir_all(sandboxes.join(".gone-0123/disk"))?;
    std::fs::write(sandboxes.join(".gone-0123/disk/layer"), vec![1; 1 << 20])?;
    let listed = well(viv(&["prune", "--dry-run"], true)?)?;
    ensure(listed.contains("what is left of a sandbox") && listed.contains("MiB"), listed)?;
    ensure(well(viv(&["prune", "-f"], true)?)? == "shell-pruned", "it is deleted")?;
    ensure(!sandboxes.join(".gone-0123").exists(), "what was left is deleted")?;
    ensure(well(viv(&["ls", "-q"], true)?)?.is_empty(), "nothing is left")
}

fn any_bytes(world: &World) -> Case {
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"sp ace \xff\xe9");
    let folder = world.project("odd").join(odd);
    std::fs::create_dir_all(&folder)?;
    let said = world.shell(&folder, "touch made; pwd", b"")?;
    let path = folder.canonicalize()?;
    ensure(said.out == [path.as_os_str().as_bytes(), b"\n"].concat(), format!("{said:?}"))?;
    ensure(folder.join("made").exists(), "the file is on the host")?;
    let row: Vec<Value> = world
        .run(&["ls", "--json"])?
        .text()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|row: &Value| row["name"] == "shell-sp-ace")
        .collect();
    let row = row.first().ok_or(std::io::Error::other("ls does not list it"))?;
    let exact = row["workspace_b64"].as_str().unwrap_or_default();
    // Base64 of the path's last bytes: 0xff 0xe9 with what comes before depends on its length, so all of it is decoded.
    ensure(BASE64_STANDARD.decode(exact)? == path.as_os_str().as_bytes(), row.to_string())?;
    ensure(row["workspace"].as_str().is_some_and(|text| text.contains('\u{fffd}')), row.to_string())?;
    well(world.run(&["stop", "shell-sp-ace"])?)?;
    ensure(world.shell(&folder, "ls", b"")?.text() == "made", "it starts again, with the same folder")?;
    // Into it and out of it again, under names of any bytes.
    let inside = std::ffi::OsStr::from_bytes(b"shell-sp-ace:/tmp/in \xff");
    let (from, to) = (folder.join(std::ffi::OsStr::from_bytes(b"\xfe")), folder.join("back"));
    std::fs::write(&from, "of any name")?;
    let copy = |from: &std::ffi::OsStr, to: &std::ffi::OsStr| {
        say(world.viv(&folder, [std::ffi::OsStr::new("cp"), from, to]), b"")
    };
    well(copy(from.as_os_str(), inside)?)?;
    well(copy(inside, to.as_os_str())?)?;
    ensure(std::fs::read(&to)? == b"of any name", "cp changed it")?;
    world.run(&["rm", "-f", "shell-sp-ace"])?;
    let mut diagnose = world.viv(&folder, ["diagnose", "--json"]);
    diagnose.env("XDG_STATE_HOME", &folder);
    let found: Value = serde_json::from_str(&well(say(diagnose, b"")?)?)?;
    let state = BASE64_STANDARD.decode(found["state"]["path_b64"].as_str().unwrap_or_default())?;
    // `folder` is as the environment has it, with no link followed.
    ensure(state == folder.join("vivarium").as_os_str().as_bytes(), found.to_string())
}

fn killed_client(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    let start = |marker: &str| {
        world
            .viv(&folder, ["exec", "-i", "shell-main", "sleep", marker])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    };
    let (mut killed, other) = (start("4343")?, start("4344")?);
    let runs = |marker: &str| {
        let pattern = format!("[s]leep {marker}");
        world.run(&["exec", "shell-main", "pgrep", "-f", &pattern]).is_ok_and(|said| said.code == 0)
    };
    eventually("both commands", || runs("4343") && runs("4344"))?;
    let before = inspect(world, "shell-main")?;
    killed.kill()?;
    killed.wait()?;
    eventually("the end of the killed client's command", || !runs("4343"))?;
    let lives = runs("4344");
    let after = inspect(world, "shell-main")?;
    e2e::end(other);
    ensure(lives, "the other command was to go on")?;
    ensure(before["processes"] == after["processes"], "the sandbox was to go on")?;
    killed_starter(world)
}

/// The client that started the sandbox is no more to it than any other.
fn killed_starter(world: &World) -> Case {
    let folder = world.project("orphaned");
    let mut starter = world
        .viv(&folder, ["run", "shell", ".", "--", "-c", "echo up; exec sleep 4345"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut up = [0u8; 3];
    if let Some(out) = starter.stdout.as_mut() {
        std::io::Read::read_exact(out, &mut up)?;
    }
    let before = inspect(world, "shell-orphaned")?;
    starter.kill()?;
    starter.wait()?;
    eventually("the end of its command", || {
        let gone = ["exec", "shell-orphaned", "sh", "-c", "! pgrep -f '[s]leep 4345'"];
        world.run(&gone).is_ok_and(|said| said.code == 0)
    })?;
    let after = inspect(world, "shell-orphaned")?;
    ensure(before["processes"] == after["processes"], format!("{before} became {after}"))?;
    world.run(&["rm", "-f", "shell-orphaned"]).map(|_| ())
}

fn slow_reader(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    // Three that never read: what they are sent fills every buffer between.
    let flood = || {
        world
            .viv(&folder, ["exec", "shell-main", "sh", "-c", "yes"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    };
    let stuck = [flood()?, flood()?, flood()?];
    std::thread::sleep(Duration::from_secs(2));
    let mut outcome = Ok(());
    for round in 0..5 {
        let said = world.run(&["exec", "shell-main", "echo", "through"])?;
        outcome = outcome.and(ensure(said.text() == "through", format!("round {round}: {said:?}")));
    }
    for child in stuck {
        e2e::end(child);
    }
    outcome?;
    eventually("the end of what nobody read", || {
        world.run(&["exec", "shell-main", "sh", "-c", "! pgrep -x yes"]).is_ok_and(|said| said.code == 0)
    })
}
