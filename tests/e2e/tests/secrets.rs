//! What the user keeps for sandboxes and lends to them: secrets, the SSH agent. And settings of the network, that they are read.

pub(crate) mod keychain;
pub(crate) mod program;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::{Case, Said, Verdict, World, end, ensure, eventually, say};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("the_ssh_agent_signs_in_granted_namespaces_and_nothing_else", namespaces),
    ("the_ssh_agent_logs_in_at_granted_hosts_and_nowhere_else", logins),
    ("what_of_the_ssh_agent_cannot_be_granted_is_one_sentence", bad_grants),
    ("values_are_in_no_core_dump_of_who_reads_them", dumps),
    ("a_mistake_in_the_networks_settings_is_said_with_its_place", settings),
];

const NAME: &str = "shell-secrets";

/// The user's agent on the host, with one key.
struct Agent {
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Agent {
    fn start() -> Result<Self, Verdict> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("agent");
        let process =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let process = match process {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Verdict::Skipped("there is no ssh-agent on this machine".into()));
            }
            other => other?,
        };
        let agent = Self { folder, process: Some(process) };
        eventually("the agent listens", || std::os::unix::net::UnixStream::connect(agent.socket()).is_ok())?;
        let key = agent.folder.path().join("key");
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-t", "ed25519", "-N", "", "-C", "a name that stays here", "-f"]).arg(&key);
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg(&key).env("SSH_AUTH_SOCK", agent.socket());
        for command in [make, add] {
            let said = say(command, b"")?;
            ensure(said.code == 0, format!("{said:?}"))?;
        }
        Ok(agent)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// `viv run` with these options and this script in the shared sandbox.
    fn run(&self, world: &World, options: &[&str], script: &str) -> Result<Said, Verdict> {
        let flags = std::env::var("VIV_E2E_FLAGS").unwrap_or_default();
        let mut arguments = vec!["run", "shell", "."];
        arguments.extend(flags.split_ascii_whitespace());
        arguments.extend(options);
        arguments.extend(["--", "-c", script]);
        let mut command = world.viv(&world.project("secrets"), arguments);
        command.env("SSH_AUTH_SOCK", self.socket());
        say(command, b"")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            end(process);
        }
    }
}

/// The texts of the log about the agent.
fn logged(world: &World) -> Result<Vec<String>, Verdict> {
    let said = world.run(&["policy", "log", NAME, "--json", "--type", "ssh-agent"])?;
    ensure(said.code == 0, format!("{said:?}"))?;
    let text = said.text();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(records.filter_map(|record| Some(record["text"].as_str()?.to_owned())).collect())
}

fn namespaces(world: &World) -> Case {
    let agent = Agent::start()?;
    let script = r#"cd /tmp; rm -rf d d.sig r k k.pub
stat -c '%U %a' "$SSH_AUTH_SOCK"
ssh-add -L > k.pub; cut -d' ' -f1,3- k.pub; echo data > d
ssh-keygen -q -Y sign -n git -f k.pub d 2>/dev/null && echo signed; rm -f d.sig
ssh-keygen -q -Y sign -n file -f k.pub d 2>/dev/null || echo refused
ssh-keygen -q -t ed25519 -N '' -f k2; ssh-add -q k2 2>/dev/null || echo not added; ssh-add -D 2>/dev/null || echo not removed
git init -q r; cd r; git config user.name a; git config user.email a@b; git config gpg.format ssh; git config user.signingkey /tmp/k.pub
git commit -q --allow-empty -S -m x && git cat-file commit HEAD | grep -c 'BEGIN SSH SIGNATURE'
sleep 1"#;
    let said = agent.run(world, &["--ssh-sign", "git"], script)?;
    let expected = "agent 600\nssh-ed25519\nsigned\nrefused\nnot added\nnot removed\n1";
    ensure(
        said.code == 0 && said.text().replace("ssh-ed25519 \n", "ssh-ed25519\n") == expected,
        format!("{said:?}"),
    )?;
    ensure(said.err.contains("signatures in the namespace \"file\" are not granted"), format!("{said:?}"))?;
    let logged = logged(world)?;
    for text in ["a signature in the namespace git", "signatures in the namespace \"file\" are not granted"] {
        ensure(logged.iter().any(|known| known == text), format!("{text}: {logged:?}"))?;
    }
    // Without the option there is none, and nobody listens any more where there was one.
    let said = agent.run(
        world,
        &[],
        "echo \"${SSH_AUTH_SOCK-none}\"; grep -c /run/vivarium/ssh-agent /proc/net/unix",
    )?;
    ensure(said.text() == "none\n0", format!("{said:?}"))
}

/// Servers in the guest itself: which host it is, only its key says.
fn logins(world: &World) -> Case {
    let agent = Agent::start()?;
    let install = r#"set -e
[ -x /usr/sbin/sshd ] || { sudo apt-get update -q >/dev/null; sudo apt-get install -y -q openssh-server >/dev/null 2>&1; }
mkdir -p ~/servers; cd ~/servers; for n in 2222 2223; do [ -e h$n ] || ssh-keygen -q -t ed25519 -N '' -f h$n; done; cat h2222.pub"#;
    let said = agent.run(world, &[], install)?;
    ensure(said.code == 0, format!("{said:?}"))?;
    known_hosts(world, &format!("[localhost]:2222 {}\n", said.text()))?;
    let script = r#"cd ~/servers; mkdir -p ~/.ssh; ssh-add -L > ~/.ssh/authorized_keys; sudo mkdir -p /run/sshd; sudo usermod -p '*' agent
for n in 2222 2223; do sudo /usr/sbin/sshd -p $n -h ~/servers/h$n -o UsePAM=no -o StrictModes=no -o PidFile=$HOME/servers/p$n; done
for n in 2222 2223; do for i in $(seq 300); do [ -s p$n ] && break; sleep 0.1; done; done
for n in 2222 2223; do ssh -p $n -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null localhost echo in at $n 2>/dev/null || echo not in at $n; done
for n in 2222 2223; do sudo kill $(cat p$n); done; sleep 3"#;
    let said = agent.run(world, &["--ssh-agent", "localhost:2222"], script)?;
    ensure(said.text() == "in at 2222\nnot in at 2223", format!("{said:?}"))?;
    let logged = logged(world)?;
    for text in ["a login as agent by the SSH agent", "the host that was connected to is not granted"] {
        ensure(logged.iter().any(|known| known.starts_with(text)), format!("{text}: {logged:?}"))?;
    }
    Ok(())
}

fn known_hosts(world: &World, text: &str) -> Case {
    let home = world.state().join("../..");
    std::fs::create_dir_all(home.join(".ssh"))?;
    Ok(std::fs::write(home.join(".ssh/known_hosts"), text)?)
}

fn bad_grants(world: &World) -> Case {
    let agent = Agent::start()?;
    for (options, said_of_it) in [
        (&["--ssh-agent", "nobody.example"][..], "the key of nobody.example is not known here"),
        (&["--ssh-agent=-oProxyCommand=x"], "is no host"),
        (&["--ssh-agent", "a b"], "\"a b\" is no host"),
        (&["--ssh-agent="], "\"\" is no host"),
        (&["--ssh-sign", "a\u{7}"], "is no namespace"),
        (&["-d", "--ssh-sign", "git"], "with -d no session is there"),
    ] {
        let mut arguments = vec!["run", "shell", "."];
        arguments.extend(options);
        let mut command = world.viv(&world.project("nothing"), arguments);
        command.env("SSH_AUTH_SOCK", agent.socket());
        let said = say(command, b"")?;
        ensure(said.code == 125 && said.err.contains(said_of_it), format!("{options:?}: {said:?}"))?;
    }
    let command = world.viv(&world.project("nothing"), ["run", "shell", ".", "--ssh-sign", "git"]);
    let said = say(command, b"")?;
    ensure(said.err.contains("SSH_AUTH_SOCK is not set"), format!("{said:?}"))?;
    let listed = world.run(&["ls", "--json"])?.text();
    ensure(!listed.contains("shell-nothing"), listed)
}

/// A program that may write core files of any size.
fn unlimited(world: &World, words: &[&OsStr]) -> Command {
    let mut command = Command::new("sh");
    world.environment(&mut command, &world.project("secrets"));
    command.args(["-c", "ulimit -c unlimited && exec \"$@\"", "sh"]).args(words);
    command
}

/// Whether the kernel dumps such a program, ended by a signal when it has read half a value.
fn is_dumped(world: &World, words: &[&OsStr]) -> Result<bool, Verdict> {
    let mut command = unlimited(world, words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let outcome = (|| -> Case {
        let stdin = child.stdin.as_mut().ok_or_else(|| Verdict::Wrong("no input".into()))?;
        stdin.write_all(b"ghp_half-of-a-value")?;
        eventually("it is read", || rustix::io::ioctl_fionread(&*stdin).is_ok_and(|left| left == 0))?;
        Ok(kill_process(Pid::from_child(&child), Signal::ABORT)?)
    })();
    if outcome.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    outcome?;
    ensure(status.signal() == Some(Signal::ABORT.as_raw()), format!("{words:?}: {status}"))?;
    Ok(status.core_dumped())
}

fn dumps(world: &World) -> Case {
    if !is_dumped(world, &["cat"].map(OsStr::new))? {
        return Err(Verdict::Skipped("this machine's kernel writes no core dumps".into()));
    }
    let set = ["secret", "set", "github", "--store", "key-file"].map(OsStr::new);
    let run = [world.interactive(), ["--", "-c", "cat"].map(str::to_owned).into()].concat();
    let run: Vec<&OsStr> = run.iter().map(OsStr::new).collect();
    for words in [&set[..], &run] {
        ensure(!is_dumped(world, &[&[world.program().as_os_str()], words].concat())?, format!("{words:?}"))?;
    }
    // Programs that it starts are as they were.
    let program = "ulimit -c > limit; echo ghp_a-whole-value";
    let words = ["secret", "set", "github", "--command", program].map(OsStr::new);
    let said = say(unlimited(world, &[&[world.program().as_os_str()], &words[..]].concat()), b"")?;
    ensure(said.code == 0, format!("{said:?}"))?;
    let limit = std::fs::read_to_string(world.project("secrets").join("limit"))?;
    ensure(limit == "unlimited\n", limit)?;
    let said = world.run(&["secret", "rm", "-f", "github"])?;
    ensure(said.code == 0, format!("{said:?}"))
}

fn settings(world: &World) -> Case {
    let path = world.state().join("../../.config/vivarium/network.json");
    let write = |text: &str| -> Case {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        Ok(std::fs::write(&path, text)?)
    };
    let folder = world.project("secrets");
    world.run(&["stop", NAME])?;
    write("{\"schema\": 1,\n \"proxies\": {\"https\": \"gopher://u:hunter2@p\"}}")?;
    // With nothing of it in the environment, the file counts.
    let run = |proxy: Option<&str>| {
        let mut arguments = world.interactive();
        arguments.extend(
            ["--", "-c", "curl -sS -o /dev/null -w '%{http_code}' https://deb.debian.org/; true"]
                .map(str::to_owned),
        );
        let mut command = world.viv(&folder, arguments);
        command.env_remove("http_proxy").env_remove("https_proxy");
        if let Some(proxy) = proxy {
            command.env("https_proxy", proxy);
        }
        say(command, b"")
    };
    let said = run(None)?;
    let fits = said.code == 125 && said.err.contains("network.json") && said.err.contains("line 2 column");
    ensure(fits && !said.err.contains("hunter2"), format!("{said:?}"))?;
    // One that nobody listens at: nothing is reached, until the environment says that there is none.
    write("{\"schema\": 1, \"proxies\": {\"all\": \"http://127.0.0.1:9\"}}")?;
    let said = run(None)?;
    ensure(said.text() == "000", format!("{said:?}"))?;
    world.run(&["stop", NAME])?;
    let proxy = std::env::var("https_proxy").unwrap_or_default();
    let said = run(Some(&proxy));
    std::fs::remove_file(&path)?;
    let said = said?;
    ensure(said.text() != "000", format!("{said:?}"))
}
