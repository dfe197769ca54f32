//! Published ports: what a user writes, the file that keeps them, and the sockets.
//!
//! A socket is bound by who has the right to: the client that publishes, or the shim before it is confined. The gateway gets the bound
//! socket and can bind none.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::spec::SCHEMA;

/// The file's name in the sandbox's folder.
pub const FILE: &str = "ports.json";

/// Most ports of a sandbox.
pub const MOST: usize = 256;

/// How a port is written.
pub const FORM: &str =
    "[IP:]HOST:GUEST[/udp], such as 8080:80, 127.0.0.1:5353:53/udp, or 80 for any free port of the host";

/// What a port carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address that it listens on.
    pub host_ip: IpAddr,
    /// The host's port; 0 means any free one, until it is bound.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
    /// What it carries.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether the host chose its port: it may be another one after the next start, if that is taken then.
    #[serde(default)]
    pub ephemeral: bool,
}

impl Publish {
    /// Whether both listen at the same place.
    pub fn is_at(&self, other: &Self) -> bool {
        (self.host_ip, self.host_port, self.protocol) == (other.host_ip, other.host_port, other.protocol)
    }

    /// Whether this, as a user wrote it, means `other`, which is published.
    pub fn means(&self, other: &Self) -> bool {
        let host = if self.host_port == 0 { other.host_port } else { self.host_port };
        Self { host_port: host, ephemeral: other.ephemeral, ..*self } == *other
    }

    /// Binds its socket, which listens if it is TCP, and does not wait. Gives what it is bound to.
    pub fn bind(mut self) -> io::Result<(Self, OwnedFd)> {
        let address = SocketAddr::new(self.host_ip, self.host_port);
        let (bound, socket): (SocketAddr, OwnedFd) = match self.protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind(address)?;
                socket.set_nonblocking(true)?;
                (socket.local_addr()?, socket.into())
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                (socket.local_addr()?, socket.into())
            }
        };
        self.ephemeral |= self.host_port == 0;
        self.host_port = bound.port();
        Ok((self, socket))
    }

    /// [`Self::bind`] at a start: a port that the host chose before may be another one now.
    pub fn bind_again(self) -> io::Result<(Self, OwnedFd)> {
        match self.bind() {
            Err(error) if self.ephemeral && error.kind() == io::ErrorKind::AddrInUse => {
                Self { host_port: 0, ..self }.bind()
            }
            other => other,
        }
    }

    /// Why it could not be bound, as one sentence with the next step.
    pub fn refusal(&self, error: &io::Error) -> Error {
        let (why, hint) = match error.kind() {
            io::ErrorKind::AddrInUse => (
                format!("port {} of {} is in use on this host", self.host_port, self.host_ip),
                format!("choose another, or let the host choose:  --publish {}", self.guest_port),
            ),
            io::ErrorKind::AddrNotAvailable => (
                format!("{} is no address of this host", self.host_ip),
                "leave it out for 127.0.0.1; 0.0.0.0 is every address of this host".into(),
            ),
            io::ErrorKind::PermissionDenied => (
                format!("port {} may be bound by root only", self.host_port),
                format!("choose one above 1023:  --publish 8080:{}", self.guest_port),
            ),
            _ => (
                format!("port {} cannot be published: {}", self.host_port, crate::error::in_words(error)),
                FORM.into(),
            ),
        };
        Error::Mistake { why, hint }
    }
}

impl fmt::Display for Publish {
    /// As `viv ports` shows it: `127.0.0.1:8080 -> 80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{} -> {}/{protocol}", SocketAddr::new(self.host_ip, self.host_port), self.guest_port)
    }
}

impl std::str::FromStr for Publish {
    type Err = Error;

    /// `[[IP:]HOST:]GUEST[/tcp|/udp]`; an IPv6 address in brackets. Errors name the column.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |column: usize, problem: &str| Error::Mistake {
            why: format!(
                "\"{}\" is no port to publish: {problem} (column {column})",
                crate::escape::escaped(text, 80)
            ),
            hint: FORM.into(),
        };
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((ports, _)) => return Err(wrong(ports.chars().count() + 2, "after / comes tcp or udp")),
        };
        // From the end: an address may have colons of its own.
        let (rest, guest) = ports.rsplit_once(':').map_or((None, ports), |(rest, guest)| (Some(rest), guest));
        let column = |rest: Option<&str>| rest.map_or(1, |rest| rest.chars().count() + 2);
        let guest_port = port(guest).filter(|port| *port != 0);
        let guest_port = guest_port
            .ok_or_else(|| wrong(column(rest), "a port of the guest is a number from 1 to 65535"))?;
        let (ip, host) = match rest {
            None => (None, None),
            Some(rest) if rest.ends_with(']') => {
                return Err(wrong(column(Some(rest)) - 1, "a port of the host is missing"));
            }
            Some(rest) => {
                rest.rsplit_once(':').map_or((None, Some(rest)), |(ip, host)| (Some(ip), Some(host)))
            }
        };
        let host_port = match host {
            // As with Docker: `127.0.0.1::80`.
            None => 0,
            Some("") if ip.is_some() => 0,
            Some(host) => {
                port(host).ok_or_else(|| wrong(column(ip), "a port of the host is a number up to 65535"))?
            }
        };
        let host_ip = match ip {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(ip) => {
                let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
                let parsed = match bare {
                    Some(bare) => bare.parse().ok().map(IpAddr::V6),
                    None => ip.parse().ok().map(IpAddr::V4),
                };
                parsed.ok_or_else(|| {
                    wrong(1, "before the ports comes an address of this host, IPv6 in brackets")
                })?
            }
        };
        Ok(Self { host_ip, host_port, guest_port, protocol, ephemeral: host_port == 0 })
    }
}

/// A port in plain digits.
fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: u32,
    ports: Vec<Publish>,
}

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// What a sandbox publishes; its folder is given.
pub fn read(folder: &Path) -> Result<Vec<Publish>> {
    match files::read_json::<File>(&path(folder), SCHEMA) {
        Ok(mut file) => {
            file.ports.truncate(MOST);
            Ok(file.ports)
        }
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Keeps what a sandbox publishes.
pub(crate) fn write(folder: &Path, ports: &[Publish]) -> Result<()> {
    files::write_json(&path(folder), &File { schema: SCHEMA, ports: ports.to_vec() })
}

/// Adds a port to others.
///
/// # Errors
/// One of them listens there already, or there are too many.
pub(crate) fn add(ports: &mut Vec<Publish>, publish: Publish) -> Result<()> {
    if let Some(other) = ports.iter().find(|other| publish.host_port != 0 && other.is_at(&publish)) {
        return Err(Error::Mistake {
            why: format!("port {} is published already: {other}", publish.host_port),
            hint: format!("--unpublish {}:{} first", other.host_port, other.guest_port),
        });
    }
    if ports.len() >= MOST {
        return Err(Error::Mistake {
            why: format!("a sandbox publishes {MOST} ports at most"),
            hint: "--unpublish one first".into(),
        });
    }
    ports.push(publish);
    Ok(())
}

/// Takes the one that is meant out of others.
///
/// # Errors
/// There is none.
pub(crate) fn remove(ports: &mut Vec<Publish>, publish: &Publish) -> Result<Publish> {
    let meant = || ports.iter().enumerate().filter(|(_, other)| publish.means(other));
    // Without a port of the host's the one that was published so goes first.
    match meant().find(|(_, other)| other.ephemeral).or_else(|| meant().next()).map(|(index, _)| index) {
        Some(index) => Ok(ports.remove(index)),
        None => Err(Error::Mistake {
            why: format!("no port is published as {publish}"),
            hint: "viv ports NAME lists them".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        text.parse::<Publish>().map_or_else(|error| error.to_string(), |publish| publish.to_string())
    }

    #[test]
    fn ports_as_users_write_them() {
        for (text, shown) in [
            ("80", "127.0.0.1:0 -> 80/tcp"),
            ("8080:80", "127.0.0.1:8080 -> 80/tcp"),
            ("8080:80/tcp", "127.0.0.1:8080 -> 80/tcp"),
            ("0.0.0.0:5353:53/udp", "0.0.0.0:5353 -> 53/udp"),
            ("[::1]:8080:80", "[::1]:8080 -> 80/tcp"),
            ("127.0.0.1::80", "127.0.0.1:0 -> 80/tcp"),
            ("localhost:1:2", "127.0.0.1:1 -> 2/tcp"),
        ] {
            assert_eq!(parsed(text), shown, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_column() {
        for (text, column) in [
            ("", 1),
            ("x", 1),
            ("0", 1),
            ("80:", 4),
            ("80:70000", 4),
            ("99999:80", 1),
            ("80:80/sctp", 7),
            ("1.2.3:80:80", 1),
            ("1.2.3.4:x:80", 9),
            ("::1:80:80", 1),
            ("[::1]:80", 6),
            ("+80", 1),
            ("8080:\u{1b}[2J", 6),
        ] {
            let said = parsed(text);
            assert!(said.ends_with(&format!("(column {column})")), "{text:?}: {said}");
            assert!(!said.contains('\u{1b}'), "{said:?}");
        }
    }

    #[test]
    fn a_port_in_use_is_refused_and_one_that_the_host_chose_moves() {
        let (first, held) = "0:80".parse::<Publish>().unwrap().bind().unwrap();
        assert!(first.ephemeral && first.host_port != 0);
        let fixed = Publish { ephemeral: false, ..first };
        let error = fixed.bind_again().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(fixed.refusal(&error).to_string().contains("in use"));
        let (moved, _held) = first.bind_again().unwrap();
        assert_ne!(moved.host_port, first.host_port);
        drop(held);
    }

    #[test]
    fn what_is_published_is_kept_and_taken_away_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap().is_empty());
        let mut ports = Vec::new();
        for text in ["8080:80", "8080:80/udp", "9090:80"] {
            add(&mut ports, text.parse().unwrap()).unwrap();
        }
        assert!(add(&mut ports, "8080:81".parse().unwrap()).is_err());
        write(folder.path(), &ports).unwrap();
        let mut read_again = read(folder.path()).unwrap();
        assert_eq!(read_again, ports);
        assert_eq!(remove(&mut read_again, &"8080:80/udp".parse().unwrap()).unwrap().protocol, Protocol::Udp);
        // Without a port of the host, the first with that of the guest.
        assert_eq!(remove(&mut read_again, &"80".parse().unwrap()).unwrap().host_port, 8080);
        assert!(remove(&mut read_again, &"8080:80".parse().unwrap()).is_err());
        // One that was published without goes first.
        let given = Publish { host_port: 40471, ..("80".parse().unwrap()) };
        read_again.push(given);
        assert_eq!(remove(&mut read_again, &"80".parse().unwrap()).unwrap(), given);
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(matches!(read(folder.path()), Err(Error::Damaged { .. })));
    }
}
