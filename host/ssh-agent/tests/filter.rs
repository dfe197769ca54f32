//! Grants and refusals, with keys of every kind that host keys have, and with OpenSSH's own agent and tools.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ssh_agent::{Answer, Event, Filter, Frames, Grants, HostGrant, Refusal, Relay, Verdict};

/// OpenSSH's agent with keys that `ssh-keygen` made.
struct Agent {
    folder: tempfile::TempDir,
    process: Child,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("real");
        let process =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let agent = Self { folder, process: process.unwrap() };
        while UnixStream::connect(&socket).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new key, as it is encoded on the wire.
    fn key(&self, name: &str, kind: &str, bits: &str) -> Vec<u8> {
        let path = self.path(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-b", bits, "-N", "", "-C", name, "-f"])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let added =
            Command::new("ssh-add").arg("-q").arg(&path).env("SSH_AUTH_SOCK", self.path("real")).status();
        assert!(added.unwrap().success());
        let text = std::fs::read_to_string(path.with_extension("pub")).unwrap();
        from_base64(text.split(' ').nth(1).unwrap())
    }

    fn ed25519(&self, name: &str) -> Vec<u8> {
        self.key(name, "ed25519", "256")
    }

    /// The agent's signature, with SHA-512 where the key is RSA.
    fn sign(&self, key: &[u8], data: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.path("real")).unwrap();
        let request = [vec![13], string(key), string(data), vec![0, 0, 0, 4]].concat();
        stream.write_all(&string(&request)).unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], 14);
        answer[5..].to_vec()
    }

    fn bind(&self, key: &[u8], id: &[u8], signed: &[u8], forwarding: bool) -> Vec<u8> {
        bound(key, id, &self.sign(key, signed), forwarding)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn bound(key: &[u8], id: &[u8], signature: &[u8], forwarding: bool) -> Vec<u8> {
    [
        vec![27],
        string(b"session-bind@openssh.com"),
        string(key),
        string(id),
        string(signature),
        vec![u8::from(forwarding)],
    ]
    .concat()
}

fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        bits = bits << 6 | DIGITS.iter().position(|known| *known == digit).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}

fn string(value: &[u8]) -> Vec<u8> {
    Frames::framed(value)
}

fn login(key: &[u8], id: &[u8], method: &str, host_key: Option<&[u8]>) -> Vec<u8> {
    let mut data = [
        string(id),
        vec![50],
        string(b"git"),
        string(b"ssh-connection"),
        string(method.as_bytes()),
        vec![1],
        string(b"ssh-ed25519"),
        string(key),
    ]
    .concat();
    if let Some(host_key) = host_key {
        data.extend(string(host_key));
    }
    sign(key, &data)
}

fn sign(key: &[u8], data: &[u8]) -> Vec<u8> {
    [vec![13], string(key), string(data), vec![0; 4]].concat()
}

fn sshsig(namespace: &str) -> Vec<u8> {
    [b"SSHSIG".to_vec(), string(namespace.as_bytes()), string(b""), string(b"sha512"), string(&[7; 64])]
        .concat()
}

fn filter(host: &[u8], keys: &[&[u8]]) -> Filter {
    Filter::new(Grants {
        keys: keys.iter().map(|key| key.to_vec()).collect(),
        hosts: vec![HostGrant { name: "git.example".into(), keys: vec![host.to_vec()] }],
        namespaces: vec!["git".into()],
    })
}

fn refused(verdict: Verdict) -> Refusal {
    match verdict {
        Verdict::Answer(answer, Event::Refused(refusal)) => {
            assert!(answer == [5] || answer == [28]);
            refusal
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_login_at_a_granted_host_passes() {
    let agent = Agent::start();
    let key = agent.ed25519("mine");
    for (kind, bits) in [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("rsa", "2048")] {
        let host = agent.key(&format!("{kind}{bits}"), kind, bits);
        let mut filter = filter(&host, &[&key]);
        // Numbers of an ECDSA signature are shorter now and then.
        for round in 0..20u8 {
            let id = [b's', round % 8];
            let bound = filter.request(&agent.bind(&host, &id, &id, false));
            assert_eq!(
                bound,
                Verdict::Answer(vec![6], Event::Bound { host: "git.example".into() }),
                "{kind}"
            );
        }
        let wanted = Event::Login { host: "git.example".into(), user: "git".into() };
        let mut login_to = |method: &str, host_key| filter.request(&login(&key, b"s\0", method, host_key));
        assert_eq!(login_to("publickey", None), Verdict::Pass(wanted.clone()));
        assert_eq!(login_to("publickey-hostbound-v00@openssh.com", Some(&host)), Verdict::Pass(wanted));
        // Its own signature under something else, and one of which a bit is another.
        let mut near = agent.sign(&host, b"another");
        assert_eq!(refused(filter.request(&bound_to(&host, &near))), Refusal::Binding, "{kind}");
        near = agent.sign(&host, b"another");
        *near.last_mut().unwrap() ^= 1;
        assert_eq!(refused(filter.request(&bound_to(&host, &near))), Refusal::Binding, "{kind}");
    }
    let host = agent.key("unknown-kind", "ecdsa", "521");
    let refusal = refused(filter(&host, &[&key]).request(&agent.bind(&host, b"s", b"s", false)));
    assert_eq!(refusal, Refusal::KeyKind);
}

fn bound_to(host: &[u8], signature: &[u8]) -> Vec<u8> {
    bound(host, b"new", signature, false)
}

#[test]
fn everything_around_it_is_refused() {
    let agent = Agent::start();
    let (host, other) = (agent.ed25519("host"), agent.ed25519("other"));
    let (key, foreign) = (agent.ed25519("mine"), other.clone());
    let bind = |key: &[u8], id: &[u8], signed: &[u8], forwarding| agent.bind(key, id, signed, forwarding);
    let mut filter = filter(&host, &[&key]);
    assert_eq!(refused(filter.request(&login(&key, b"s", "publickey", None))), Refusal::Unbound);
    assert_eq!(refused(filter.request(&bind(&other, b"s", b"s", false))), Refusal::Host);
    assert_eq!(refused(filter.request(&bind(&host, b"s", b"another", false))), Refusal::Binding);
    assert_eq!(refused(filter.request(&bind(&host, b"s", b"s", true))), Refusal::Forwarding);
    assert!(matches!(filter.request(&bind(&host, b"s", b"s", false)), Verdict::Answer(..)));
    assert_eq!(refused(filter.request(&login(&key, b"t", "publickey", None))), Refusal::Unbound);
    assert_eq!(refused(filter.request(&login(&foreign, b"s", "publickey", None))), Refusal::Key);
    assert_eq!(refused(filter.request(&login(&key, b"s", "password", None))), Refusal::Data);
    let wrong_host = login(&key, b"s", "publickey-hostbound-v00@openssh.com", Some(&foreign));
    assert_eq!(refused(filter.request(&wrong_host)), Refusal::Contradiction);
    let mut wrong_key = login(&foreign, b"s", "publickey", None);
    wrong_key.splice(1..1 + 4 + foreign.len(), string(&key));
    assert_eq!(refused(filter.request(&wrong_key)), Refusal::Contradiction);
    assert_eq!(refused(filter.request(&sign(&key, b"anything at all"))), Refusal::Data);
    assert_eq!(refused(filter.request(&sign(&key, b""))), Refusal::Data);
    assert_eq!(refused(filter.request(&sign(&key, &sshsig("file")))), Refusal::Namespace("file".into()));
    assert_eq!(
        filter.request(&sign(&key, &sshsig("git"))),
        Verdict::Pass(Event::Signed { namespace: "git".into() })
    );
    for kind in [0u8, 1, 7, 17, 18, 19, 20, 21, 22, 23, 25, 26, 255] {
        assert_eq!(refused(filter.request(&[kind])), Refusal::Request(kind));
    }
    assert_eq!(refused(filter.request(&[[27].as_slice(), &string(b"query")].concat())), Refusal::Extension);
    assert_eq!(refused(filter.request(&[])), Refusal::Malformed);
    assert_eq!(refused(filter.request(&[11, 0])), Refusal::Malformed);
    for number in 0u8..15 {
        assert!(
            matches!(filter.request(&bind(&host, &[number], &[number], false)), Verdict::Answer(answer, _) if answer == [6])
        );
    }
    assert_eq!(refused(filter.request(&bind(&host, b"more", b"more", false))), Refusal::Sessions);
}

#[test]
fn only_granted_keys_are_shown_and_no_comments() {
    let (mine, other) = (b"my key".to_vec(), b"another key".to_vec());
    let filter = filter(b"a host's key", &[&mine]);
    let answer = [
        vec![12, 0, 0, 0, 2],
        string(&other),
        string(b"work laptop"),
        string(&mine),
        string(b"/home/u/.ssh/id"),
    ]
    .concat();
    let shown = filter.answer(&Event::Listed, &answer);
    assert_eq!(shown, [vec![12, 0, 0, 0, 1], string(&mine), string(b"")].concat());
    for strange in [&b""[..], b"\x0c", b"\x0c\xff\xff\xff\xff", b"\x0e\0\0\0\0", b"\x1d"] {
        assert_eq!(filter.answer(&Event::Listed, strange), [5]);
    }
}

#[test]
fn every_prefix_and_changed_byte_is_judged() {
    let agent = Agent::start();
    let (host, key) = (agent.ed25519("host"), agent.ed25519("mine"));
    for message in [
        agent.bind(&host, b"s", b"s", false),
        login(&key, b"s", "publickey", None),
        sign(&key, &sshsig("git")),
    ] {
        for end in 0..message.len() {
            let mut filter = filter(&host, &[&key]);
            refused(filter.request(&message[..end]));
        }
        for at in 0..message.len() {
            let mut near = message.clone();
            near[at] ^= 0x80;
            let mut filter = filter(&host, &[&key]);
            if let Verdict::Pass(event) = filter.request(&near) {
                // Only what the agent does not judge by may change: the hash that is signed, and flags.
                assert_eq!(event, Event::Signed { namespace: "git".into() }, "{at}");
            }
        }
    }
}

#[test]
fn frames_are_cut_wherever_they_break() {
    let mut frames = Frames::default();
    let stream = [string(b"one"), string(b"two-two")].concat();
    let mut found = Vec::new();
    for byte in stream {
        frames.feed(&[byte]);
        while let Some(message) = frames.next_message().unwrap() {
            found.push(message);
        }
    }
    assert_eq!(found, [b"one".to_vec(), b"two-two".to_vec()]);
    for bad in [[0, 0, 0, 0], [0xff, 0xff, 0xff, 0xff]] {
        let mut frames = Frames::default();
        frames.feed(&bad);
        assert!(frames.next_message().is_err());
    }
}

/// Through OpenSSH's own agent: `ssh-keygen -Y sign` as git calls it, in a namespace that is granted and in one that is not.
#[test]
fn the_real_agent_signs_for_git_and_for_nothing_else() {
    let agent = Agent::start();
    let path = |name: &str| agent.path(name);
    let run = |command: &mut Command| command.stdin(Stdio::null()).output().unwrap();
    agent.ed25519("key");
    let listener = UnixListener::bind(path("filtered")).unwrap();
    let real = path("real");
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let grants = Grants { namespaces: vec!["git".into()], ..Grants::default() };
        let (mut relay, mut refused) = (Relay::new(grants, real), Vec::new());
        for (number, guest) in (1..).zip(listener.incoming()) {
            let (mut guest, mut bytes) = (guest.unwrap(), [0; 100]);
            loop {
                let count = guest.read(&mut bytes).unwrap();
                let mut told = |event: &Event| {
                    if let Event::Refused(refusal) = event {
                        refused.push(refusal.to_string());
                    }
                };
                match relay.take(number, &bytes[..count], &mut told) {
                    Answer::Bytes(answer) => guest.write_all(&answer).unwrap(),
                    Answer::Closed => break,
                }
            }
            let _ = said.send(refused.join("; "));
        }
    });
    std::fs::rename(path("key"), path("hidden")).unwrap();
    let mut signed = Vec::new();
    for namespace in ["git", "file"] {
        let data = path(namespace);
        std::fs::write(&data, "tree 0123").unwrap();
        let output = run(Command::new("ssh-keygen")
            .args(["-Y", "sign", "-n", namespace, "-f"])
            .arg(path("key.pub"))
            .arg(&data)
            .env("SSH_AUTH_SOCK", path("filtered")));
        signed.push(output.status.success() && data.with_extension("sig").exists());
    }
    let added =
        run(Command::new("ssh-add").arg("-q").arg(path("hidden")).env("SSH_AUTH_SOCK", path("filtered")))
            .status
            .success();
    let listed = run(Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", path("filtered")));
    assert_eq!(signed, [true, false]);
    assert!(!added);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("ED25519"));
    let refused = heard.try_iter().last().unwrap();
    assert!(
        refused.contains("the namespace \"file\" are not granted") && refused.contains("message 17"),
        "{refused}"
    );
}
