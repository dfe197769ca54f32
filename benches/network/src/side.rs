//! The processes that are compared, each with a guest of frames in front of it.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use agent_proto::abi::{GATEWAY_IPV4, GATEWAY_MAC, GUEST_IPV4, GUEST_MAC, LINK_PREFIX_V4};
use anyhow::{Context, Result, bail};
use doorbell::Doorbell;
use frame_ring::{Link, Pair, Side as LinkSide};
use gateway::control::{Configuration, FromGateway, HostsEntry, ToGateway};
use policy::{Decision, PolicySet, Preset, Resource, Rule};
use sandbox::network::keeper::{self, FromKeeper, ToKeeper};
use tempfile::TempDir;

use crate::costs;
use crate::peer::Peer;
use crate::segment::Ends;
use crate::wire::{Ring, Stream};

/// A guest, and the process that is its way out.
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) peer: Peer,
    /// What is measured.
    pub(crate) pid: u32,
    /// Beside it, without work of its own: the gateway's keeper.
    pub(crate) other: Option<u32>,
    /// Behind this are the host's loopback ports.
    pub(crate) host: Ipv4Addr,
    _network: Network,
}

pub(crate) const VIV: &str = "gateway";
pub(crate) const PASST: &str = "passt";
/// The name that stands for this host.
pub(crate) const NAME: &str = "bench.example.com";

impl Side {
    /// A gateway as a sandbox's shim starts it, which lets the guest reach these ports of the host.
    pub(crate) fn gateway(program: &Path, ports: &[u16]) -> Result<Self> {
        let mut side = Self::gateway_with(program, rules(ports)?, &[NAME], Vec::new())?;
        side.host = side.peer.resolve(GATEWAY_IPV4, NAME)?;
        Ok(side)
    }

    /// The same with rules, with names of this host and with roots beside the system's.
    pub(crate) fn gateway_with(
        program: &Path,
        rules: Vec<Rule>,
        names: &[&str],
        roots: Vec<Vec<u8>>,
    ) -> Result<Self> {
        let (network, pair) = Network::gateway(program, rules, names, roots)?;
        let (mine, theirs) = (Doorbell::from(pair.guest_bell), Doorbell::from(pair.network_bell));
        let link = Link::from_parts(pair.memory, LinkSide::Guest, mine, theirs)?;
        let ends = Ends { mac: GUEST_MAC, router: GATEWAY_MAC, address: GUEST_IPV4 };
        let peer = Peer::new(Box::new(Ring::new(link)), ends);
        let (pid, other) = (network.pid, Some(network.started()));
        Ok(Self { name: VIV, peer, pid, other, host: Ipv4Addr::UNSPECIFIED, _network: network })
    }

    /// passt as QEMU has it behind `-netdev stream`, with the same MTU.
    pub(crate) fn passt() -> Result<Self> {
        let (network, socket) = Network::passt()?;
        let stream = UnixStream::connect(&socket).context("cannot connect to passt")?;
        let ends = Ends { mac: GUEST_MAC, router: GATEWAY_MAC, address: GUEST_IPV4 };
        let peer = Peer::new(Box::new(Stream::new(stream)?), ends);
        Ok(Self { name: PASST, peer, pid: network.pid, other: None, host: GATEWAY_IPV4, _network: network })
    }

    /// Where the guest reaches a port of the host.
    pub(crate) fn to(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.host, port)
    }
}

/// A process that is a guest's way out. It ends with this value.
pub(crate) struct Network {
    /// What is measured.
    pub(crate) pid: u32,
    child: Child,
    /// Where its socket is.
    _folder: Option<TempDir>,
}

impl Network {
    /// A gateway as a sandbox's shim starts it, and the link in front of it.
    pub(crate) fn gateway(
        program: &Path,
        rules: Vec<Rule>,
        names: &[&str],
        mut roots: Vec<Vec<u8>>,
    ) -> Result<(Self, Pair)> {
        roots.extend(rustls_native_certs::load_native_certs().certs.iter().map(|root| root.to_vec()));
        let folder = tempfile::tempdir()?;
        let now = std::time::SystemTime::now();
        let ca = intercept::RootCa::load_or_make(folder.path(), now)?.issue("bench", now)?;
        let hosts = HostsEntry {
            address: Ipv4Addr::LOCALHOST.into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let configuration = Configuration {
            policy: PolicySet {
                sandbox: "bench".into(),
                preset: Preset::Balanced,
                local: rules,
                ..PolicySet::default()
            },
            hosts: vec![hosts],
            roots,
            ca: Some(gateway::control::SecretText::new(serde_json::to_string(&ca)?.into())),
            ..Configuration::default()
        };
        let (line, far) = packet::pair()?;
        let child = keeper::command(program, far).spawn().context("cannot start the gateway")?;
        match packet::receive::<FromKeeper>(&line)? {
            Some((FromKeeper::Confined { .. }, _)) => {}
            other => bail!("the gateway's keeper is not confined: {other:?}"),
        }
        let (control, far) = packet::pair()?;
        packet::send(&line, &ToKeeper::Start, &[far.as_fd()])?;
        drop(far);
        let pair = frame_ring::pair()?;
        let parts = [pair.memory.as_fd(), pair.network_bell.as_fd(), pair.guest_bell.as_fd()];
        packet::send_large(&control, &ToGateway::Configure(Box::new(configuration)), &parts)?;
        match packet::receive_large::<FromGateway>(&control)? {
            Some((FromGateway::Ready, _)) => {}
            other => bail!("the gateway is not ready: {other:?}"),
        }
        listen(line, control);
        Ok((Self { pid: costs::child(child.id())?, child, _folder: None }, pair))
    }

    /// passt with the addresses that a guest of ours has, and the socket where it waits for one guest.
    pub(crate) fn passt() -> Result<(Self, PathBuf)> {
        // Without this name its own loader would not find the faster one of its two builds.
        let program = if std::arch::is_x86_feature_detected!("avx2") { "passt.avx2" } else { "passt" };
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("socket");
        let mut command = nested::tool("passt", program)?;
        // It runs as nobody.
        rustix::fs::chmod(folder.path(), rustix::fs::Mode::from(0o777))?;
        let mut child = command
            .args(["--foreground", "--one-off", "--ipv4-only", "--quiet", "--socket"])
            .arg(&socket)
            .args(["--address", &GUEST_IPV4.to_string(), "--netmask", &LINK_PREFIX_V4.to_string()])
            .args(["--gateway", &GATEWAY_IPV4.to_string(), "--map-host-loopback", &GATEWAY_IPV4.to_string()])
            .args(["--mac-addr", &mac(GATEWAY_MAC)])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start passt")?;
        let begun = Instant::now();
        while !is_listening(&socket)? {
            if child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(10) {
                let _ = child.kill();
                let mut said = String::new();
                child.stderr.take().context("passt's errors are read")?.read_to_string(&mut said)?;
                bail!("passt does not start: {}", said.trim().replace('\n', "; "));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok((Self { pid: child.id(), child, _folder: Some(folder) }, socket))
    }
}

impl Network {
    /// The process that this one started: of a gateway, its keeper.
    pub(crate) fn started(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process waits for connections at this path.
fn is_listening(socket: &Path) -> Result<bool> {
    // "number: references protocol flags type state inode path"; the flag is __SO_ACCEPTCON.
    let all = std::fs::read_to_string("/proc/net/unix")?;
    let path = socket.to_string_lossy();
    Ok(all.lines().any(|line| line.ends_with(&*path) && line.split_whitespace().nth(3) == Some("00010000")))
}

/// What lets a guest reach these ports of the host.
pub(crate) fn rules(ports: &[u16]) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for port in ports {
        for host in [NAME, "127.0.0.1"] {
            rules.push(Rule::new(Decision::Allow, Resource::parse(&format!("{host}:{port}"))?));
        }
    }
    Ok(rules)
}

/// As command lines have it.
pub(crate) fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// Hears what a gateway says as its shim does; records take no room then.
fn listen(line: OwnedFd, control: OwnedFd) {
    std::thread::spawn(move || {
        // Held: without it the keeper ends.
        let _line = line;
        while let Ok(Some((word, _))) = packet::receive_large::<FromGateway>(&control) {
            if let FromGateway::Failed { why } = word {
                eprintln!("the gateway: {why}");
            }
        }
    });
}
