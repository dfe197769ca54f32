//! The processes that are compared, each with a guest of frames in front of it.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use agent_proto::abi::{GATEWAY_IPV4, GATEWAY_MAC, GUEST_IPV4, GUEST_MAC};
use anyhow::{Context, Result, bail};
use doorbell::Doorbell;
use frame_ring::{Link, Side as LinkSide};
use gateway::control::{Configuration, FromGateway, HostsEntry, ToGateway};
use policy::{Decision, PolicySet, Preset, Resource, Rule};
use sandbox::network::keeper::{self, FromKeeper, ToKeeper};

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
    child: Child,
}

pub(crate) const VIV: &str = "gateway";
pub(crate) const PASST: &str = "passt";
/// The name that stands for this host.
const NAME: &str = "bench.example.com";

impl Side {
    /// A gateway as a sandbox's shim starts it, which lets the guest reach these ports of the host.
    pub(crate) fn gateway(program: &Path, ports: &[u16]) -> Result<Self> {
        let mut rules = Vec::new();
        for port in ports {
            for host in [NAME, "127.0.0.1"] {
                rules.push(Rule::new(Decision::Allow, Resource::parse(&format!("{host}:{port}"))?));
            }
        }
        let mut side = Self::gateway_with(program, rules, &[NAME], Vec::new())?;
        side.host = side.peer.resolve(GATEWAY_IPV4, NAME)?;
        Ok(side)
    }

    /// The same with rules, with names of this host and with roots beside the system's.
    pub(crate) fn gateway_with(
        program: &Path,
        rules: Vec<Rule>,
        names: &[&str],
        mut roots: Vec<Vec<u8>>,
    ) -> Result<Self> {
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
        let pid = costs::child(child.id())?;
        let (mine, theirs) = (Doorbell::from(pair.guest_bell), Doorbell::from(pair.network_bell));
        let link = Link::from_parts(pair.memory, LinkSide::Guest, mine, theirs)?;
        listen(line, control);
        let ends = Ends { mac: GUEST_MAC, router: GATEWAY_MAC, address: GUEST_IPV4 };
        let peer = Peer::new(Box::new(Ring::new(link)), ends);
        Ok(Self { name: VIV, peer, pid, other: Some(child.id()), host: Ipv4Addr::UNSPECIFIED, child })
    }

    /// passt as QEMU has it behind `-netdev stream`, with the same MTU.
    pub(crate) fn passt() -> Result<Self> {
        const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
        const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
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
            .args(["--address", &GUEST.to_string(), "--netmask", "24", "--gateway", &ROUTER.to_string()])
            .args(["--map-host-loopback", &ROUTER.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start passt")?;
        let begun = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(10) {
                let _ = child.kill();
                let mut said = String::new();
                child.stderr.take().context("passt's errors are read")?.read_to_string(&mut said)?;
                bail!("passt does not start: {}", said.trim().replace('\n', "; "));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // Its own address for frames, fixed in passt.
        let ends = Ends { mac: GUEST_MAC, router: [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55], address: GUEST };
        let peer = Peer::new(Box::new(Stream::new(stream)?), ends);
        Ok(Self { name: PASST, peer, pid: child.id(), other: None, host: ROUTER, child })
    }

    /// Where the guest reaches a port of the host.
    pub(crate) fn to(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.host, port)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
