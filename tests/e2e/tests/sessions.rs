//! Point 1: set-up, one command, bytes and codes, an interactive shell.

use e2e::{Case, Terminal, Verdict, World, ensure, say};

use crate::Named;

/// It makes the base image, where there is none.
pub(crate) const FIRST: &[Named] = &[("a_first_run_gives_a_shell_as_agent_in_the_folder", first_run)];

pub(crate) const CASES: &[Named] = &[
    ("a_second_run_needs_no_network", no_network),
    ("bytes_pass_through_unchanged", bytes),
    ("output_and_errors_stay_apart", streams),
    ("exit_codes_are_the_commands_own", codes),
    ("input_ends_when_it_ends", input_end),
    ("an_interactive_shell_is_a_terminal", interactive),
    ("the_program_works_when_copied_elsewhere", copied),
];

fn first_run(world: &World) -> Case {
    let folder = world.project("main");
    let said = world.shell_ok(&folder, "id -un; id -u; pwd; sudo -n id -u; echo $0")?;
    let expected = format!("agent\n1000\n{}\n0\nbash", folder.display());
    ensure(said == expected, format!("{said:?} is not {expected:?}"))
}

/// A stopped sandbox starts, and a new one, with every way to the network closed: by a proxy that is not there, and by a
/// network namespace with nothing in it where the test may make one.
fn no_network(world: &World) -> Case {
    world.shell_ok(&world.project("main"), "true")?;
    world.run(&["stop", "shell-main"])?;
    for name in ["main", "offline"] {
        offline(world, name)?;
    }
    world.run(&["rm", "-f", "shell-offline"]).map(|_| ())
}

fn offline(world: &World, project: &str) -> Case {
    let folder = world.project(project);
    let may = std::process::Command::new("unshare").args(["--net", "true"]).status();
    let mut command = if may.is_ok_and(|status| status.success()) {
        let mut command = std::process::Command::new("unshare");
        world.environment(&mut command, &folder);
        command.arg("--net").arg(world.program()).args(world.interactive());
        command
    } else {
        world.viv(&folder, world.interactive())
    };
    command.args(["--", "-c", "echo here"]);
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(name, "http://127.0.0.1:1");
    }
    let said = say(command, b"")?;
    ensure(said.text() == "here" && said.err.is_empty(), format!("{said:?}"))
}

fn bytes(world: &World) -> Case {
    let folder = world.project("main");
    // Every byte value, in an order that repeats late, and no whole number of blocks.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let input: Vec<u8> = (0..6_000_011)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    let said = world.shell(&folder, "cat", &input)?;
    ensure(said.code == 0, format!("cat ended with {}: {}", said.code, said.err))?;
    ensure(said.out == input, format!("{} bytes went in, {} others came out", input.len(), said.out.len()))
}

fn streams(world: &World) -> Case {
    let folder = world.project("main");
    let said = world.shell(&folder, r"printf 'out\0'; printf 'err' >&2", b"")?;
    ensure(said.out == b"out\0" && said.err == "err", format!("{said:?}"))
}

fn codes(world: &World) -> Case {
    let folder = world.project("main");
    for (script, code) in [
        ("true", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("exit 255", 255),
        ("nosuch", 127),
    ] {
        let said = world.shell(&folder, script, b"")?;
        ensure(said.code == code, format!("`{script}` gave {} instead of {code}: {}", said.code, said.err))?;
    }
    let name = "shell-main";
    for (command, code) in [("nosuchprogram", 127), ("/etc/passwd", 126), ("true", 0)] {
        let said = world.run(&["exec", name, command])?;
        ensure(
            said.code == code,
            format!("exec {command} gave {} instead of {code}: {}", said.code, said.err),
        )?;
    }
    for (arguments, code, cause, hint) in [
        (&["nosuchsandbox", "true"][..], 125, "no sandbox", "viv ls"),
        (&["-u", "bob", name, "true"][..], 125, "there is no user \"bob\"", "/etc/passwd"),
        (&["-u", "root:nogrp", name, "true"][..], 125, "there is no group \"nogrp\"", "/etc/group"),
        (&[name, "docker ps"][..], 127, "no program called \"docker ps\"", "viv exec NAME docker ps"),
        (&[name, "/etc/passwd"][..], 126, "cannot be executed: permission denied", "chmod +x"),
        (&["-w", "/nope", name, "true"][..], 125, "no such file or directory", "-w FOLDER"),
    ] {
        let said = world.run(&[&["exec"][..], arguments].concat())?;
        let (error, next) = said.err.split_once("\n  hint: ").unwrap_or_default();
        let good = said.code == code && error.starts_with("error: ") && error.contains(cause);
        ensure(good && next.contains(hint) && next.lines().count() == 1, format!("{arguments:?}: {said:?}"))?;
    }
    Ok(())
}

fn input_end(world: &World) -> Case {
    let folder = world.project("main");
    let said = world.shell(&folder, "wc -l", b"a\nb\nc\n")?;
    ensure(said.text() == "3", format!("{said:?}"))?;
    // A command that does not read its input is not kept by it.
    let said = world.shell(&folder, "exec 0<&-; echo done", &vec![b'x'; 3 << 20])?;
    ensure(said.text() == "done" && said.code == 0, format!("{} {:?}", said.code, said.text()))
}

fn interactive(world: &World) -> Case {
    let folder = world.project("main");
    let mut terminal = Terminal::start(&world.viv(&folder, world.interactive()), 31, 97)?;
    terminal.wait_for("$ ")?;
    terminal.keys("tty; stty size; echo $TERM; id -un\r")?;
    terminal.wait_for("/dev/pts/")?;
    terminal.wait_for("31 97")?;
    terminal.wait_for("xterm-256color")?;
    terminal.wait_for("agent")?;
    ensure(!terminal.is_cooked()?, "the terminal is not raw during a session")?;
    terminal.keys("exit 5\r")?;
    let code = terminal.end()?;
    ensure(code == 5, format!("the shell's code 5 became {code}"))?;
    ensure(terminal.is_cooked()?, "the terminal is left raw")
}

/// As an ordinary user, from that user's home, with nothing else of the build. Shares the downloads, not the state.
fn copied(world: &World) -> Case {
    if !rustix::process::geteuid().is_root() {
        return Err(Verdict::Skipped("needs root, to become another user".into()));
    }
    let home = tempfile::Builder::new().prefix("viv-user-").tempdir_in("/var/tmp")?;
    let path = home.path();
    std::fs::copy(world.program(), path.join("viv"))?;
    let own = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(path).status()?;
    ensure(own.success(), "chown failed")?;
    let user = |arguments: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
        command.arg(path.join("viv")).args(arguments);
        command.env_clear().env("HOME", path).env("PATH", "/usr/bin:/bin").current_dir(path.join("p"));
        command
    };
    // What another user's viv fetched is as good, being verified again. With the built image this takes seconds; a long run
    // leaves it out, so that this user's viv builds it and boots it for the first time. What tests keep there is not copied.
    let shared: &[&str] =
        if e2e::long_cases() { &["downloads"] } else { &["downloads", "images", "initramfs"] };
    let given = path.join(".cache/vivarium");
    std::fs::create_dir_all(&given)?;
    std::fs::create_dir(path.join("p"))?;
    let copy = std::process::Command::new("cp")
        .arg("-a")
        .arg("--sparse=always")
        .args(shared.iter().map(|name| world.cache().join(name)))
        .arg(&given)
        .status()?;
    ensure(copy.success(), "cp failed")?;
    let own = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(path).status()?;
    ensure(own.success(), "chown failed")?;
    let said = say(user(&["run", "shell", ".", "--", "-c", "id -un; touch made; ls"]), b"")?;
    let used = say(user(&["exec", "shell-p", "docker", "version", "--format", "{{.Server.Os}}"]), b"")?;
    let inspected = say(user(&["inspect", "shell-p"]), b"")?;
    let stopped = say(user(&["stop", "shell-p"]), b"")?;
    let again = say(user(&["run", "shell", ".", "--", "-c", "ls"]), b"")?;
    let removed = say(user(&["rm", "-f", "shell-p"]), b"")?;
    ensure(used.text() == "linux" && stopped.text() == "shell-p", format!("{used:?} {stopped:?}"))?;
    ensure(again.text() == "made", format!("{again:?}"))?;
    // Without a /dev/kvm that this user may open, the software CPU is used, without a word.
    let inspected: serde_json::Value = serde_json::from_str(&inspected.text())?;
    let own = user(&["--version"]);
    let may = std::process::Command::new("setpriv")
        .args(own.get_args().take(4))
        .args(["test", "-r", "/dev/kvm", "-a", "-w", "/dev/kvm"])
        .status()?;
    ensure(may.success() || inspected["engine"]["used"] == "soft", inspected.to_string())?;
    ensure(said.code == 0 && said.text() == "agent\nmade", format!("{said:?}"))?;
    ensure(removed.code == 0, format!("{removed:?}"))?;
    use std::os::unix::fs::MetadataExt;
    let made = std::fs::metadata(path.join("p/made"))?;
    ensure(made.uid() == 65534, format!("the file belongs to {}", made.uid()))
}
