//! Point 4: several sandboxes, other terminals, names, stopping, starting and deleting.

use std::path::Path;

use e2e::{Case, Terminal, World, ensure, eventually, within};

use crate::Named;
use crate::crowd::GONE;

pub(crate) const CASES: &[Named] = &[
    ("others_see_and_use_a_running_sandbox", others),
    ("exec_has_its_own_user_folder_variables_and_input", exec),
    ("exec_can_have_a_terminal", exec_terminal),
    ("the_window_may_change_and_keys_mean_what_they_mean", keys),
    ("jobs_stop_and_go_on", jobs),
    ("a_terminated_client_leaves_the_terminal_as_it_was", terminated),
    ("names_by_default_second_ones_and_taken_ones", names),
    ("a_stopped_sandbox_keeps_its_disk", disk),
    ("stop_from_another_terminal_ends_open_sessions", stop_open),
    ("a_killed_shim_leaves_a_sandbox_that_starts_again", killed),
    ("rm_leaves_nothing", remove),
    ("outputs_that_cannot_be_written_and_names_of_nothing", outputs),
    ("mistakes_have_one_sentence_and_one_hint", mistakes),
    ("the_nearest_name_is_named_and_the_home_needs_force", nearest),
    ("kvm_without_permission_is_refused_with_its_mend", no_permission),
    ("diagnose_names_the_engine_and_why", diagnose),
    ("an_unknown_instruction_is_the_guests_fault_and_named", unknown_instruction),
];

fn others(world: &World) -> Case {
    let folder = world.project("other");
    let mut terminal = Terminal::start(&world.viv(&folder, world.interactive()), 24, 80)?;
    terminal.wait_for("$ ")?;
    let listed = || -> Result<serde_json::Value, e2e::Verdict> {
        let listed = world.run(&["ls", "--json"])?.text();
        let mut rows = listed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let row = rows.find(|row| row["name"] == "shell-other");
        row.ok_or_else(|| e2e::Verdict::Wrong(format!("ls does not list it: {listed}")))
    };
    let row = listed()?;
    ensure(
        row["state"] == "running" && row["workspace"] == folder.to_str().unwrap_or_default(),
        row.to_string(),
    )?;
    // A guest that has just begun may have no time to say what it uses.
    eventually("what the guest uses", || {
        listed().is_ok_and(|row| row["memory_used"].as_u64().is_some_and(|bytes| bytes > 10 << 20))
    })?;
    let table = world.run(&["ls"])?.text();
    ensure(table.lines().next().is_some_and(|head| head.starts_with("NAME")), table.clone())?;
    // The same machine: a file in its memory is seen by both.
    terminal.keys("echo shared > /tmp/seen; echo wri''tten\r")?;
    terminal.wait_for("written")?;
    let said = world.run(&["exec", "shell-other", "cat", "/tmp/seen"])?;
    ensure(said.text() == "shared", format!("{said:?}"))?;
    ensure(world.shell_ok(&folder, "cat /tmp/seen")? == "shared", "a second run attaches")?;
    terminal.keys("exit\r")?;
    ensure(terminal.end()? == 0, "the shell's end")
}

fn exec(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    let said = world.run(&[
        "exec",
        "-u",
        "root",
        "-w",
        "/usr/bin",
        "-e",
        "A=b c",
        "shell-main",
        "sh",
        "-c",
        "id -u; pwd; echo $A; cat",
    ])?;
    ensure(said.text() == "0\n/usr/bin\nb c", format!("{said:?}"))?;
    let said = e2e::say(world.viv(&folder, ["exec", "-i", "shell-main", "cat"]), b"from outside")?;
    ensure(said.out == b"from outside", format!("{said:?}"))?;
    let said = world.run(&["exec", "shell-main", "pwd"])?;
    ensure(said.text() == folder.to_str().unwrap_or_default(), format!("{said:?}"))?;
    let said = world.run(&["exec", "-u", "nobodyatall", "shell-main", "true"])?;
    ensure(said.code == 125, format!("{said:?}"))
}

fn exec_terminal(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    let command = world.viv(&folder, ["exec", "-it", "shell-main", "sh", "-c", "tty; stty size; exit 4"]);
    let mut terminal = Terminal::start(&command, 27, 91)?;
    terminal.wait_for("/dev/pts/")?;
    terminal.wait_for("27 91")?;
    ensure(terminal.end()? == 4, "the command's code")?;
    let said = world.run(&["exec", "shell-main", "tty"])?;
    ensure(said.code == 1 && said.text() == "not a tty", format!("without -t: {said:?}"))
}

fn keys(world: &World) -> Case {
    let folder = world.project("main");
    let mut terminal = Terminal::start(&world.viv(&folder, world.interactive()), 24, 80)?;
    terminal.wait_for("$ ")?;
    terminal.keys("trap 'stty size' WINCH; echo re''ady\r")?;
    terminal.wait_for("ready")?;
    terminal.resize(50, 132)?;
    // The size and the keys travel apart, as in ssh, and bash runs a trap after the next line.
    terminal.type_until("\r", "50 132")?;
    // A child says that it is there, in a whole line: a key before that is for the shell, which has the terminal in its
    // own mode, or is echoed within the line.
    terminal.keys("sh -c 'echo be\"\"gin; exec sleep 1000'; echo af''ter $?\r")?;
    terminal.wait_for("begin\r\n")?;
    terminal.keys("\x03")?;
    terminal.keys("echo still he''re\r")?;
    terminal.wait_for("still here")?;
    terminal.keys("sh -c 'echo be\"\"gin; exec cat'\r")?;
    terminal.wait_for("begin\r\n")?;
    terminal.keys("a line\r")?;
    terminal.wait_for("a line\r\na line")?;
    terminal.keys("\x04echo code $?\r")?;
    terminal.wait_for("code 0")?;
    // With its prompt the shell has the terminal in its own mode again; before, the key is no end of input for it.
    terminal.wait_for("$ ")?;
    terminal.keys("\x04")?;
    terminal.end().map(|_| ())
}

fn jobs(world: &World) -> Case {
    let folder = world.project("main");
    let mut terminal = Terminal::start(&world.viv(&folder, world.interactive()), 24, 80)?;
    terminal.wait_for("$ ")?;
    terminal.keys("sh -c 'echo be\"\"gin; exec sleep 1000'\r")?;
    terminal.wait_for("begin\r\n")?;
    terminal.keys("\x1a")?;
    terminal.wait_for("Stopped")?;
    terminal.keys("bg; jobs\r")?;
    terminal.wait_for("Running")?;
    terminal.keys("kill %1; wait; echo go''ne\r")?;
    terminal.wait_for("gone")?;
    terminal.keys("exit 0\r")?;
    ensure(terminal.end()? == 0, "the shell's end")
}

fn terminated(world: &World) -> Case {
    let folder = world.project("main");
    let mut terminal = Terminal::start(&world.viv(&folder, world.interactive()), 24, 80)?;
    terminal.wait_for("$ ")?;
    terminal.keys("exec sleep 4242\r")?;
    let viv = eventually_pid(world, &folder)?;
    let pid = rustix::process::Pid::from_raw(viv).ok_or(std::io::Error::other("no process"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    ensure(terminal.end()? == 143, "its code says that it was terminated")?;
    ensure(terminal.is_cooked()?, "the terminal is left raw")?;
    // The session's process is hung up on.
    eventually("the end of the session's process", || {
        world
            .run(&["exec", "shell-main", "sh", "-c", "! pgrep -f '[s]leep 4242'"])
            .is_ok_and(|said| said.code == 0)
    })
}

/// The client that runs the session: the one `viv run` of this test's program in this folder.
fn eventually_pid(world: &World, folder: &Path) -> Result<i32, e2e::Verdict> {
    let mut found = None;
    let (program, folder) = (world.program().canonicalize()?, folder.canonicalize()?);
    eventually("the client's process", || {
        let Ok(processes) = std::fs::read_dir("/proc") else { return false };
        found = processes.flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            (std::fs::read_link(entry.path().join("exe")).ok()? == program).then_some(())?;
            (std::fs::read_link(entry.path().join("cwd")).ok()? == folder).then_some(())?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            line.split(|byte| *byte == 0).nth(1).is_some_and(|verb| verb == b"run").then_some(pid)
        });
        found.is_some()
    })?;
    found.ok_or_else(|| e2e::Verdict::Wrong("no client".into()))
}

fn names(world: &World) -> Case {
    let (one, two) = (world.project("a/twin"), world.project("b/twin"));
    world.shell_ok(&one, "true")?;
    world.shell_ok(&two, "true")?;
    let listed = world.run(&["ls", "-q"])?.text();
    ensure(
        listed.lines().any(|name| name == "shell-twin") && listed.lines().any(|name| name == "shell-twin-2"),
        listed,
    )?;
    let json = |arguments: &[&str]| -> Result<serde_json::Value, e2e::Verdict> {
        let said = world.run(arguments)?;
        serde_json::from_slice(&said.out).map_err(|_| e2e::Verdict::Wrong(format!("{arguments:?}: {said:?}")))
    };
    let names = json(&["ls", "-q", "--json"])?;
    ensure(names.as_array().is_some_and(|all| all.contains(&"shell-twin".into())), names.to_string())?;
    let both = json(&["inspect", "--json", "shell-twin-2", "shell-twin"])?;
    ensure(
        both[0]["name"] == "shell-twin-2" && both[1]["name"] == "shell-twin" && both[2].is_null(),
        both.to_string(),
    )?;
    ensure(json(&["inspect", "shell-twin"])?["name"] == "shell-twin", "one is an object")?;
    // With one that is not there: the others, and a failure.
    let said = world.run(&["inspect", "shell-twin", "nosuch"])?;
    ensure(said.code == 125 && said.out.starts_with(b"["), format!("{said:?}"))?;
    let said =
        e2e::say(world.viv(&two, ["run", "shell", ".", "--name", "shell-twin", "--", "-c", "true"]), b"")?;
    ensure(said.code == 125 && said.err.contains("taken"), format!("{said:?}"))?;
    world.run(&["rm", "-f", "shell-twin-2"])?;
    world.run(&["rm", "-f", "shell-twin"]).map(|_| ())
}

fn disk(world: &World) -> Case {
    let folder = world.project("kept");
    let script = "echo kept | sudo tee /etc/kept /root/kept >/dev/null; echo mine > ~/mine; \
                  tar -c -C /etc hostname | docker import - kept:1 >/dev/null; docker create --name box kept:1 /x >/dev/null; sync; echo done";
    ensure(world.shell_ok(&folder, script)? == "done", "it was written")?;
    let stopped = world.run(&["stop", "shell-kept"])?;
    ensure(stopped.code == 0, format!("{stopped:?}"))?;
    let table = world.run(&["ls"])?.text();
    ensure(table.lines().any(|line| line.starts_with("shell-kept") && line.contains("stopped")), table)?;
    let script = "cat /etc/kept ~/mine; sudo cat /root/kept; docker images -q kept:1 | wc -l; docker ps -aq --filter name=box | wc -l";
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "kept\nmine\nkept\n1\n1", said)?;
    world.run(&["rm", "-f", "shell-kept"]).map(|_| ())
}

fn stop_open(world: &World) -> Case {
    let folder = world.project("open");
    let mut terminal = Terminal::start(&world.viv(&folder, world.interactive()), 24, 80)?;
    terminal.wait_for("$ ")?;
    let stopped = world.run(&["stop", "shell-open"])?;
    ensure(stopped.code == 0, format!("{stopped:?}"))?;
    terminal.wait_for("shell-open is stopped")?;
    let code = terminal.end()?;
    ensure(code == 129, format!("the session was hung up on, and its client ended with {code}"))?;
    ensure(terminal.is_cooked()?, "the terminal is left raw")?;
    world.run(&["rm", "-f", "shell-open"]).map(|_| ())
}

fn killed(world: &World) -> Case {
    let folder = world.project("killed");
    world.shell_ok(&folder, "echo before > ~/before; sync")?;
    let runtime = find_state(world, "shell-killed")?.join("runtime.json");
    let text = std::fs::read(&runtime)?;
    let pid = serde_json::from_slice::<serde_json::Value>(&text)?["pid"].as_i64().unwrap_or(0);
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or(std::io::Error::other("no pid"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    eventually("the sandbox to be listed as killed", || {
        world.run(&["ls"]).is_ok_and(|said| {
            said.text()
                .lines()
                .any(|line| line.starts_with("shell-killed") && line.contains("failed (shim killed)"))
        })
    })?;
    ensure(world.shell_ok(&folder, "cat ~/before")? == "before", "the disk")?;
    world.run(&["rm", "-f", "shell-killed"]).map(|_| ())
}

/// The sandbox's folder.
fn find_state(world: &World, name: &str) -> Result<std::path::PathBuf, e2e::Verdict> {
    for entry in std::fs::read_dir(world.state().join("sandboxes"))? {
        let path = entry?.path();
        let Ok(text) = std::fs::read(path.join("spec.json")) else { continue };
        if serde_json::from_slice::<serde_json::Value>(&text)?["name"] == name {
            return Ok(path);
        }
    }
    Err(e2e::Verdict::Wrong(format!("{name} has no folder")))
}

fn remove(world: &World) -> Case {
    let folder = world.project("removed");
    world.shell_ok(&folder, "touch stays; dd if=/dev/zero of=~/big bs=1M count=5 status=none")?;
    let state = find_state(world, "shell-removed")?;
    let refused = world.run(&["rm", "shell-removed"])?;
    ensure(
        refused.code == 125 && state.exists(),
        format!("without -f and a terminal it must refuse: {refused:?}"),
    )?;
    let said = world.run(&["rm", "-f", "shell-removed"])?;
    ensure(said.code == 0, format!("{said:?}"))?;
    ensure(!state.exists(), "its folder is still there")?;
    let left: Vec<_> = std::fs::read_dir(world.state().join("sandboxes"))?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure(!left.iter().any(|name| name.to_string_lossy().starts_with(".gone")), format!("{left:?}"))?;
    ensure(folder.join("stays").exists(), "the workspace must stay")?;
    // No process of it either.
    let id = state.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lives = || {
        std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&id))
        })
    };
    within(GONE, "the end of its processes", || !lives())
}

/// What cannot be written is said, and one wrong name does not keep the others.
fn outputs(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    for verb in ["ls", "diagnose"] {
        let full = std::fs::File::options().write(true).open("/dev/full")?;
        let output = world.viv(&folder, [verb]).stdout(full).stderr(std::process::Stdio::piped()).output()?;
        let said = e2e::Said::from(output);
        ensure(said.code == 125 && said.err.contains("the disk is full"), format!("{verb}: {said:?}"))?;
    }
    let said = world.run(&["stop", "nosuch", "shell-main"])?;
    ensure(said.code == 125 && said.text() == "shell-main", format!("{said:?}"))
}

fn mistakes(world: &World) -> Case {
    for (arguments, word) in [
        (&["exec", "nosuch", "true"][..], "no sandbox is called"),
        (&["run", "shell", "/does/not/exist"][..], "does not exist"),
        (&["run", "shell", "/usr"][..], "belongs to the system"),
        (&["run", "nosuchagent"][..], "no agent"),
        (&["run", "shel"][..], "did you mean shell?"),
        (&["create", "shell", "/etc/passwd"][..], "is not a folder"),
        (&["run", "shell", "/"][..], "--force"),
        (&["run", "shell", "/proc/self"][..], "belongs to the system"),
        (&["run", "shell", "/sys/kernel", "--force"][..], "belongs to the system"),
        (&["run", "shell", "/dev"][..], "belongs to the system"),
        (&["run", "shell", "/run"][..], "belongs to the system"),
        (&["run", "shell", "/etc/apt"][..], "belongs to the system"),
        (&["run", "shell", ".", "--memory", "1T"][..], "cannot be had"),
        (&["run", "shell", ".", "--memory", "1m"][..], "256 MiB of memory or more"),
        (&["run", "shell", ".", "--cpus", "99"][..], "cannot be had"),
        (&["run", "shell", ".", "--cpus", "0"][..], "cannot be had"),
        (&["run", "shell", ".", "--disk", "1m"][..], "1 GiB or more"),
        (&["run", "shell", ".", "--disk", "100t"][..], "too large"),
        (&["run", "-d", "shell", ".", "--", "-c", "true"][..], "no session"),
        (&["create", "shell", ".", "--name", "x/y"][..], "cannot be a sandbox's name"),
        (&["attach", "nosuch"][..], "no sandbox is called"),
        (&["inspect", "nosuch"][..], "no sandbox is called"),
        (&["logs", "nosuch"][..], "no sandbox is called"),
        (&["cp", "nosuch:/etc", "."][..], "no sandbox is called"),
        (&["cp", "a", "b"][..], "neither of the two"),
        (&["prune"][..], "nobody to ask"),
        (&["run", "shell", ".", "--memory", "lots"][..], "not a size"),
        (&["run", "shell", ".", "--engine", "steam"][..], "no engine"),
        (&["run", "shell", ".", "--memory", "100t"][..], "cannot be had"),
        (&["run", "shell", ".", "--cpus", "1000"][..], "cannot be had"),
        (&["run", "shell", ".", "-e", "=x"][..], "sets no variable"),
        (&["stop", "nosuch"][..], "no sandbox is called"),
        (&["ps"][..], "viv ls lists"),
        (&["run", "--rm", "shell"][..], "viv rm NAME"),
        (&["run", "--cpus", "abc", "shell"][..], "a whole number"),
        (&["logs", "-n", "-1", "nosuch"][..], "-n 20"),
        (&["exec", "nosuch"][..], "needs COMMAND"),
    ] {
        let said = world.run(arguments)?;
        let lines: Vec<&str> = said.err.lines().collect();
        let good = said.code == 125
            && said.out.is_empty()
            && lines.len() == 2
            && lines[0].starts_with("error: ")
            && lines[1].starts_with("  hint: ");
        ensure(
            good && said.err.contains(word) && !said.err.contains("os error"),
            format!("{arguments:?}: {said:?}"),
        )?;
    }
    Ok(())
}

fn nearest(world: &World) -> Case {
    let folder = world.project("nearest");
    let made = e2e::say(world.viv(&folder, ["create", "shell", "."]), b"")?;
    ensure(made.code == 0, format!("{made:?}"))?;
    let said = world.run(&["exec", "shel-nearest", "true"])?;
    ensure(said.code == 125 && said.err.contains("did you mean shell-nearest?"), format!("{said:?}"))?;
    world.run(&["rm", "-f", "shell-nearest"])?;
    let home = folder.join("home of somebody");
    std::fs::create_dir(&home)?;
    let create = |arguments: &[&str]| {
        let mut command = world.viv(&home, arguments);
        command.env("HOME", &home);
        e2e::say(command, b"")
    };
    let refused = create(&["create", "shell", "."])?;
    ensure(refused.code == 125 && refused.err.contains("--force"), format!("{refused:?}"))?;
    std::fs::write(home.join("of mine"), "mine")?;
    let forced = create(&["run", "shell", ".", "--force", "--name", "forced", "--", "-c", "cat 'of mine'"])?;
    ensure(forced.code == 0 && forced.text() == "mine", format!("{forced:?}"))?;
    world.run(&["rm", "-f", "forced"])?;
    // The whole host, which is not at `/` in the guest. Read-only: it is somebody's machine.
    let file = home.join("of mine");
    let whole = format!("cat '/host{}'; touch '/host{}' || pwd", file.display(), file.display());
    let forced = create(&["run", "shell", "/:ro", "--force", "--name", "forced", "--", "-c", &whole])?;
    ensure(forced.text() == "mine/host", format!("{forced:?}"))?;
    world.run(&["rm", "-f", "forced"]).map(|_| ())
}

/// As an ordinary user of a machine whose `/dev/kvm` is root's.
fn no_permission(world: &World) -> Case {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return Err(e2e::Verdict::Skipped("needs root, to become another user".into()));
    }
    match std::fs::metadata("/dev/kvm") {
        Ok(meta) if meta.mode() & 0o006 == 0 => {}
        _ => return Err(e2e::Verdict::Skipped("there is no /dev/kvm that others may not open".into())),
    }
    let home = tempfile::Builder::new().prefix("viv-user-").tempdir_in("/var/tmp")?;
    std::fs::copy(world.program(), home.path().join("viv"))?;
    std::fs::create_dir(home.path().join("p"))?;
    let own = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(home.path()).status()?;
    ensure(own.success(), "chown failed")?;
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    command.arg(home.path().join("viv")).args(["run", "shell", ".", "--engine", "kvm"]);
    command
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", "/usr/bin:/bin")
        .current_dir(home.path().join("p"));
    let said = e2e::say(command, b"")?;
    let good = said.code == 125
        && said.err.lines().count() == 2
        && said.err.contains("the kvm engine cannot be used here")
        && said.err.contains("/dev/kvm");
    ensure(good && !said.err.contains("os error"), format!("{said:?}"))
}

fn diagnose(world: &World) -> Case {
    let said = world.run(&["diagnose"])?;
    let text = said.text();
    ensure(
        said.code == 0
            && text.starts_with("engine ")
            && text.contains("would help")
            && text.contains("confinement"),
        text,
    )?;
    // What the engines count is for who asks.
    world.shell_ok(&world.project("main"), "true")?;
    let (plain, more) = (world.run(&["diagnose"])?.text(), world.run(&["-v", "diagnose"])?.text());
    ensure(!plain.contains("translated blocks"), plain.clone())?;
    ensure(more.contains("translated blocks") || plain.starts_with("engine        kvm"), more)?;
    let json: serde_json::Value = serde_json::from_str(&world.run(&["diagnose", "--json"])?.text())?;
    ensure(matches!(json["engine"]["engine"].as_str(), Some("kvm" | "soft")), json.to_string())
}

/// AVX-512 is in no CPUID of the software CPU. The program that uses it all the same gets its signal, and nobody else notices.
fn unknown_instruction(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    let found = || -> Result<serde_json::Value, e2e::Verdict> {
        let json: serde_json::Value = serde_json::from_str(&world.run(&["diagnose", "--json"])?.text())?;
        let all = json["sandboxes"].as_array().cloned().unwrap_or_default();
        let row = all.into_iter().find(|row| row["name"] == "shell-main");
        row.ok_or_else(|| e2e::Verdict::Wrong(json.to_string()))
    };
    if found()?["engine"] != "soft" {
        return Err(e2e::Verdict::Skipped("the engine is the processor itself, which may know it".into()));
    }
    let script = r#"printf 'int main(void) { __asm__ volatile (".byte 0x62,0xf1,0x7d,0x48,0x6f,0xc0"); }' > /tmp/e.c
gcc -o /tmp/e /tmp/e.c && exec /tmp/e"#;
    let said = world.shell(&folder, script, b"")?;
    ensure(said.code == 128 + 4, format!("SIGILL was expected: {said:?}"))?;
    // Counters of before are shown where those of now are late.
    let is_it = |entry: &serde_json::Value| {
        entry[0] == "instruction Vmovdqa32" && entry[1].as_u64().is_some_and(|count| count > 0)
    };
    let named = |row: serde_json::Value| row["counters"].as_array().is_some_and(|all| all.iter().any(is_it));
    eventually("diagnose names the instruction", || found().is_ok_and(named))
}
