//! The network card: its driver, and a link whose every number is fixed by the guest's ABI.
//!
//! Nothing is asked of the link: no DHCP, no router advertisements, no duplicate address detection, no address resolution. The gateway is the only
//! neighbour, and where it is and what it is called is known. A machine without a card has no network, and is as good otherwise.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::thread::JoinHandle;

use agent_proto::abi;
use rustix::fs::{Mode, OFlags};

use crate::console::log;
use crate::devices::Modules;
use crate::fail::{Doing, Failure, Outcome};
use crate::rtnetlink::Routing;
use crate::sys;

/// virtio-net (virtio 1.3 §5.1).
pub(crate) const VIRTIO_NET: u32 = 1;
/// The only interface; the kernel names it so.
const INTERFACE: &str = "eth0";

/// A link that is being set up beside everything else.
#[derive(Debug)]
pub(crate) struct Coming(Option<JoinHandle<Outcome>>);

/// Begins to load the card's driver and to set the link up. The modules are those of the card; none where there is no card.
pub(crate) fn begin(modules: Modules) -> Coming {
    if modules.is_empty() {
        return Coming(None);
    }
    // Opened here: while the thread works, `/proc` moves to the new root.
    let settings = File::open("/proc/sys/net/ipv6/conf");
    let work = move || {
        modules.load();
        bring_up(settings.ok().as_ref())
    };
    match std::thread::Builder::new().name("network".into()).spawn(work) {
        Ok(thread) => Coming(Some(thread)),
        Err(e) => {
            log(format_args!("no network: no thread for it: {e}"));
            Coming(None)
        }
    }
}

impl Coming {
    /// Waits for the link. Returns whether there is one; why not is logged.
    pub(crate) fn wait(self) -> bool {
        let Some(thread) = self.0 else { return false };
        match thread.join() {
            Ok(Ok(())) => {
                log("the network's link is up");
                true
            }
            Ok(Err(e)) => {
                log(format_args!("no network: {e}"));
                false
            }
            // The panic has said why.
            Err(_) => false,
        }
    }
}

/// The MTU of the interface, if there is one.
pub(crate) fn mtu() -> Option<u32> {
    fs::read_to_string(format!("/sys/class/net/{INTERFACE}/mtu")).ok()?.trim().parse().ok()
}

/// `settings`: the folder of the kernel's IPv6 settings by interface.
fn bring_up(settings: Option<&File>) -> Outcome {
    // Before it is up: what is sent and believed on a link begins with that.
    for (name, value) in [
        ("accept_ra", b"0"),
        ("autoconf", b"0"),
        ("accept_dad", b"0"),
        ("accept_redirects", b"0"),
        ("router_solicitations", b"0"),
        ("use_tempaddr", b"0"),
        // No link-local address: nobody on the link would ask for it.
        ("addr_gen_mode", b"1"),
    ] {
        if let Some(Err(e)) = settings.map(|folder| set(folder, name, value)) {
            log(format_args!("{INTERFACE}/{name}: {e}"));
        }
    }
    sys::interface_up(INTERFACE).doing("Cannot bring the network's link up")?;
    let mut routing = Routing::open().doing("Cannot open a routing socket")?;
    let index = routing.index_of(INTERFACE).doing("The network card has no interface")?;
    let links: [(IpAddr, u8, IpAddr); 2] = [
        (abi::GUEST_IPV4.into(), abi::LINK_PREFIX_V4, abi::GATEWAY_IPV4.into()),
        (abi::GUEST_IPV6.into(), abi::LINK_PREFIX_V6, abi::GATEWAY_IPV6.into()),
    ];
    for (own, prefix, gateway) in links {
        routing.add_address(index, own, prefix).doing(format_args!("Cannot set the address {own}"))?;
        routing
            .set_neighbour(index, gateway, &abi::GATEWAY_MAC)
            .doing(format_args!("Cannot set the neighbour {gateway}"))?;
        routing
            .set_default_route(index, gateway, own)
            .doing(format_args!("Cannot set the route to {gateway}"))?;
    }
    Ok(())
}

fn set(folder: &File, name: &str, value: &[u8]) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, format!("{INTERFACE}/{name}"), flags, Mode::empty())?;
    File::from(file).write_all(value)
}

/// Names the gateway as the server for names, where no other is named. A file that cannot be written is logged.
pub(crate) fn name_servers() {
    if let Err(e) = name_servers_in(Path::new("/etc")) {
        log(format_args!("{e}"));
    }
}

/// The user's own choice stays: the gateway answers for every server.
fn name_servers_in(etc: &Path) -> Outcome {
    let path = etc.join("resolv.conf");
    let old = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Failure::new(format!("Cannot read /etc/resolv.conf: {e}"))),
    };
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let servers: Vec<_> =
        old.lines().map(words).filter(|w| w.first().is_some_and(|w| w == "nameserver")).collect();
    let gateway = abi::GATEWAY_IPV4.to_string();
    let base_only = matches!(&servers[..], [only] if only.get(1) == Some(&gateway));
    if !servers.is_empty() && !base_only {
        return Ok(());
    }
    let kept = old.lines().filter(|line| words(line).first().is_none_or(|w| w != "nameserver"));
    let mut text: String = kept.flat_map(|line| [line, "\n"]).collect();
    text.push_str(&format!("nameserver {gateway}\nnameserver {}\n", abi::GATEWAY_IPV6));
    fs::write(path, text).doing("Cannot write /etc/resolv.conf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_asked_of_the_gateway_unless_someone_chose_otherwise() {
        let ours = "nameserver 198.18.0.1\nnameserver fd76:6976::1\n";
        let cases = [
            (None, ours.to_owned()),
            (Some(""), ours.to_owned()),
            // What the base image has.
            (Some("nameserver 198.18.0.1\n"), ours.to_owned()),
            (Some("search example.com\noptions edns0"), format!("search example.com\noptions edns0\n{ours}")),
            (Some("nameserver 9.9.9.9\n"), "nameserver 9.9.9.9\n".to_owned()),
            (Some(ours), ours.to_owned()),
        ];
        for (before, after) in cases {
            let etc = tempfile::tempdir().expect("a folder");
            let file = etc.path().join("resolv.conf");
            if let Some(text) = before {
                fs::write(&file, text).expect("written");
            }
            name_servers_in(etc.path()).expect("done");
            assert_eq!(fs::read_to_string(&file).expect("there"), after);
        }
    }
}
