//! `--ssh-agent` and `--ssh-sign`: the user's SSH agent for a sandbox, as long as the session goes on, as with `ssh -A`. In the guest listens a
//! process of ours; what comes to it is judged here, message by message ([`ssh_agent::Filter`]), and only what was granted gets
//! to the agent.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_proto::client::{Session, SessionEvent, SessionReader, SessionWriter};
use agent_proto::messages::Exec;
use agent_proto::pieces::{Pieces, READY, written};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway::record::{Decision, Kind, Record, What};
use sandbox::client::Held;
use sandbox::escape::{LONGEST, escaped};
use ssh_agent::{Answer, Event, Grants, HostGrant, Relay};

use crate::cli::SshOptions;
use crate::failure::Failure;

/// The program in the guest: its first process's.
const PROGRAM: &str = "/proc/1/exe";
/// The most hosts, and the most namespaces.
const MOST: usize = 64;
/// The longest namespace, in bytes.
const LONGEST_NAMESPACE: usize = 64;
/// How long equal records wait for one another.
const FOLD: Duration = Duration::from_millis(500);
/// Answers that wait for the guest to read.
const MOST_ANSWERS: usize = 256;
/// Different records that wait; more are counted as one.
const MOST_WAITING: usize = 32;

/// What the user granted, found to be possible before a sandbox is started.
#[derive(Debug)]
pub(crate) struct Granted {
    grants: Grants,
    agent: PathBuf,
}

/// Reads what the options grant; nothing without them.
pub(crate) fn granted(options: &SshOptions) -> Result<Option<Granted>, Failure> {
    if options.ssh_agent.is_empty() && options.ssh_sign.is_empty() {
        return Ok(None);
    }
    let no_agent = |why: String| Failure::new(why).hint("eval \"$(ssh-agent)\" && ssh-add, then try again");
    let agent = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
    let agent = agent.ok_or_else(|| no_agent("there is no SSH agent: SSH_AUTH_SOCK is not set".into()))?;
    if let Err(error) = UnixStream::connect(&agent) {
        return Err(no_agent(format!("there is no SSH agent: {}: {error}", agent.display())));
    }
    if options.ssh_agent.len() > MOST || options.ssh_sign.len() > MOST {
        return Err(Failure::new(format!("more than {MOST} hosts or namespaces are granted")));
    }
    let files = known_hosts_files();
    let hosts = options.ssh_agent.iter().map(|host| known(host, &files)).collect::<Result<_, _>>()?;
    for namespace in &options.ssh_sign {
        if namespace.is_empty()
            || namespace.len() > LONGEST_NAMESPACE
            || !namespace.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let shown = namespace.escape_debug();
            return Err(Failure::new(format!("\"{shown}\" is no namespace of signatures"))
                .hint("--ssh-sign git is for commits and tags"));
        }
    }
    let grants = Grants { keys: Vec::new(), hosts, namespaces: options.ssh_sign.clone() };
    Ok(Some(Granted { grants, agent }))
}

/// Where OpenSSH keeps the keys of hosts.
fn known_hosts_files() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let mut files = vec![home.join(".ssh/known_hosts"), home.join(".ssh/known_hosts2")];
    files.extend(["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"].map(PathBuf::from));
    files.retain(|file| file.is_file());
    files
}

/// A host's name as OpenSSH writes it in these files.
fn known_name(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None if text.parse::<IpAddr>().is_ok() => (text, None),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let host = match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => policy::Name::parse(host).ok()?.as_str().to_owned(),
    };
    match port.map(str::parse::<u16>) {
        None | Some(Ok(22)) => Some(host),
        Some(Ok(0) | Err(_)) => None,
        Some(Ok(port)) => Some(format!("[{host}]:{port}")),
    }
}

/// A host with its known keys. OpenSSH's own program looks for them: names may be hashed, or patterns.
fn known(text: &str, files: &[PathBuf]) -> Result<HostGrant, Failure> {
    let name = known_name(text).ok_or_else(|| {
        Failure::new(format!("\"{}\" is no host", text.escape_debug()))
            .hint("--ssh-agent github.com, or --ssh-agent git.example:2222 for another port")
    })?;
    let (mut keys, mut revoked) = (Vec::new(), Vec::new());
    for file in files {
        let found = found(&name, file)?;
        for line in found.lines().filter(|line| !line.starts_with('#')) {
            match key_of(line) {
                Some((false, key)) => keys.push(key),
                Some((true, key)) => revoked.push(key),
                None => {}
            }
        }
    }
    keys.retain(|key| !revoked.contains(key));
    if keys.is_empty() {
        let at = escaped(text.split(':').next().unwrap_or_default(), LONGEST);
        return Err(Failure::new(format!(
            "the key of {name} is not known here, so no login there can be granted"
        ))
        .hint(format!("ssh {at}  once, to see its key and agree to it; it is then in ~/.ssh/known_hosts")));
    }
    Ok(HostGrant { name, keys })
}

/// What `ssh-keygen` finds in a file.
fn found(name: &str, file: &Path) -> Result<String, Failure> {
    let output = Command::new("ssh-keygen")
        .args(["-F", name, "-f"])
        .arg(file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| {
            Failure::new(format!("ssh-keygen, which reads {}, cannot be run: {error}", file.display()))
                .hint("it comes with OpenSSH's client")
        })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A line's key, and whether it is revoked; nothing of an authority, whose hosts' keys cannot be known.
fn key_of(line: &str) -> Option<(bool, Vec<u8>)> {
    let mut words = line.split_ascii_whitespace().peekable();
    let marker = words.next_if(|word| word.starts_with('@'));
    if marker.is_some_and(|marker| marker != "@revoked") {
        return None;
    }
    let key = words.nth(2)?;
    Some((marker.is_some(), STANDARD.decode(key).ok()?))
}

/// Has the guest's end listen. Gives the variable by which programs in the guest find it.
pub(crate) fn forward(held: &Arc<Held>, granted: Granted) -> Result<Vec<u8>, Failure> {
    let failed = |why: String| Failure::new(format!("the SSH agent cannot be had in the sandbox: {why}"));
    // Another one than those of other sessions: no more than that.
    let number = RandomState::new().build_hasher().finish();
    let socket = format!("/run/vivarium/ssh-agent-{number:016x}.sock");
    let exec = Exec {
        argv: [PROGRAM, "ssh-agent", &socket].map(|word| word.as_bytes().to_vec()).into(),
        cwd: b"/".to_vec(),
        user: "root".into(),
        stdin: true,
        ..Exec::default()
    };
    let stream = held.agent()?;
    let back = stream.try_clone().map_err(|error| failed(error.to_string()))?;
    let (mut reader, writer) = match Session::open(back, stream, &exec)? {
        Session::Running { reader, writer, .. } => (reader, writer),
        Session::NotStarted(refusal) => return Err(failed(refusal.message)),
    };
    let mut pieces = Pieces::default();
    loop {
        match reader.next_event()? {
            SessionEvent::Stdout { data, .. } => pieces.feed(data),
            SessionEvent::Stderr { data, .. } => {
                return Err(failed(escaped(String::from_utf8_lossy(data).trim(), LONGEST)));
            }
            SessionEvent::StdinClosed => {}
            SessionEvent::Exit(_) => return Err(failed("the guest is of an older version".into())),
        }
        match pieces.next_piece() {
            Ok(Some((READY, _))) => break,
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return Err(failed("the guest's end says nothing that fits".into())),
        }
    }
    let (records, heard) = channel();
    let held = held.clone();
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    let told = thread("ssh-agent-log").spawn(move || tell(&held, &heard));
    let relay = Relay::new(granted.grants, granted.agent);
    let served = thread("ssh-agent").spawn(move || serve(reader, writer, pieces, relay, &records));
    told.and(served).map_err(|error| failed(error.to_string()))?;
    Ok(format!("SSH_AUTH_SOCK={socket}").into_bytes())
}

/// Judges and answers until the sandbox, or this process, is gone.
fn serve(
    mut reader: SessionReader<UnixStream>,
    mut writer: SessionWriter<UnixStream>,
    mut pieces: Pieces,
    mut relay: Relay,
    records: &Sender<What>,
) {
    // Answers wait for room in the guest, of which only the reader hears.
    let (answers, to_write) = sync_channel::<Vec<u8>>(MOST_ANSWERS);
    let write = move || {
        for answer in to_write {
            if !matches!(writer.stdin(&answer), Ok(true)) {
                return;
            }
        }
    };
    if std::thread::Builder::new().name("ssh-agent-out".into()).spawn(write).is_err() {
        return;
    }
    let mut told = |event: &Event| {
        if let Some(what) = what(event) {
            let _ = records.send(what);
        }
    };
    loop {
        match reader.next_event() {
            Ok(SessionEvent::Stdout { data, .. }) => pieces.feed(data),
            Ok(SessionEvent::Stderr { .. } | SessionEvent::StdinClosed) => {}
            Ok(SessionEvent::Exit(_)) | Err(_) => return,
        }
        loop {
            let (number, bytes) = match pieces.next_piece() {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(_) => return,
            };
            let answer = match relay.take(number, &bytes, &mut told) {
                Answer::Bytes(bytes) if bytes.is_empty() => continue,
                Answer::Bytes(bytes) => written(number, &bytes),
                Answer::Closed => written(number, b""),
            };
            // A guest that asks on and on and reads nothing has no agent any more.
            if answers.try_send(answer).is_err() {
                return;
            }
        }
    }
}

/// How an event stands in the log; listing keys and binding sessions does not.
fn what(event: &Event) -> Option<What> {
    let what = |decision, host: &str, text: String| What::new(Kind::SshAgent, decision, host, 0).text(text);
    Some(match event {
        Event::Listed | Event::Bound { .. } => return None,
        Event::Login { host, user } => {
            what(Decision::Allowed, host, format!("a login as {} by the SSH agent", user.escape_debug()))
        }
        Event::Signed { namespace } => {
            what(Decision::Allowed, "SSH agent", format!("a signature in the namespace {namespace}"))
        }
        Event::Refused(refusal) => what(Decision::Refused, "SSH agent", refusal.to_string()),
    })
}

/// Hands records on, equal ones of half a second as one.
fn tell(held: &Held, heard: &Receiver<What>) {
    while let Ok(first) = heard.recv() {
        let mut folded = Vec::new();
        let end = Instant::now() + FOLD;
        let mut next = Ok(first);
        while let Ok(what) = next {
            fold(&mut folded, what);
            next = heard.recv_timeout(end.saturating_duration_since(Instant::now()));
        }
        if held.ssh_agent(folded).is_err() {
            return;
        }
    }
}

/// In the order of their first: what came first is told first. They are few.
fn fold(folded: &mut Vec<Record>, mut what: What) {
    let at = |folded: &[Record], what: &What| folded.iter().position(|record| record.what == *what);
    if folded.len() >= MOST_WAITING && at(folded, &what).is_none() {
        what = What {
            text: "requests of many kinds".into(),
            ..What::new(what.kind, what.decision, "SSH agent", 0)
        };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    match at(folded, &what) {
        Some(at) => {
            let record = &mut folded[at];
            record.last = now;
            record.count = record.count.saturating_add(1);
        }
        None => {
            folded.push(Record { time: now, last: now, count: 1, bytes_up: 0, bytes_down: 0, what });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_as_in_known_hosts() {
        for (given, name) in [
            ("github.com", Some("github.com")),
            ("GitHub.com:22", Some("github.com")),
            ("git.example:2222", Some("[git.example]:2222")),
            ("192.0.2.1:2222", Some("[192.0.2.1]:2222")),
            ("[2001:db8::1]:22", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("-oProxyCommand=x", None),
            ("a b", None),
            ("", None),
            ("host:0", None),
            ("host:x", None),
            ("[::1", None),
        ] {
            assert_eq!(known_name(given).as_deref(), name, "{given}");
        }
    }

    /// With OpenSSH's own program: hashed names, other ports, patterns, revoked keys and authorities.
    #[test]
    fn keys_of_hosts_are_found_as_ssh_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        let key = |name: &str| {
            let path = folder.path().join(name);
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
            assert!(made.unwrap().success());
            let text = std::fs::read_to_string(path.with_extension("pub")).unwrap();
            text.split(' ').nth(1).unwrap().to_owned()
        };
        let [plain, port, bad, authority] = ["plain", "port", "bad", "authority"].map(key);
        let file = folder.path().join("known_hosts");
        let text = format!(
            "git.example,192.0.2.1 ssh-ed25519 {plain}\n[git.example]:2222 ssh-ed25519 {port}\n\
             git.example ssh-ed25519 {bad}\n@revoked git.example ssh-ed25519 {bad}\n\
             @cert-authority *.example ssh-ed25519 {authority}\n"
        );
        std::fs::write(&file, text).unwrap();
        let keys = |host: &str| known(host, std::slice::from_ref(&file)).map(|host| host.keys);
        let bytes = |text: &String| STANDARD.decode(text).unwrap();
        for hashed in [false, true] {
            if hashed {
                let done = Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&file).output().unwrap();
                assert!(done.status.success());
                assert!(!std::fs::read_to_string(&file).unwrap().contains("192.0.2.1"));
            }
            assert_eq!(keys("git.example").unwrap(), [bytes(&plain)]);
            assert_eq!(keys("192.0.2.1").unwrap(), [bytes(&plain)]);
            assert_eq!(keys("git.example:2222").unwrap(), [bytes(&port)]);
            let error = format!("{:?}", keys("other.example").unwrap_err());
            assert!(error.contains("other.example is not known"), "{error}");
        }
    }

    #[test]
    fn a_flood_of_requests_is_few_records_with_an_exact_count() {
        let mut folded = Vec::new();
        for number in 0..1000 {
            let kind = number % 50;
            fold(&mut folded, what(&Event::Refused(ssh_agent::Refusal::Request(kind as u8))).unwrap());
        }
        assert_eq!(folded.len(), MOST_WAITING + 1);
        assert_eq!(folded.iter().map(|record| record.count).sum::<u64>(), 1000);
        // The first one first.
        let texts: Vec<_> = folded.iter().map(|record| record.what.text.as_str()).collect();
        let first = ssh_agent::Refusal::Request(0).to_string();
        assert_eq!((texts[0], texts[MOST_WAITING]), (first.as_str(), "requests of many kinds"));
        assert!(what(&Event::Listed).is_none());
    }
}
