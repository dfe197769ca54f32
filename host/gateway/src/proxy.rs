//! Upstream proxies: HTTP CONNECT, over TLS where the URL says https, and SOCKS5 (RFC 1928, RFC 1929), by setting.
//!
//! The proxy is the host user's choice and trusted as the host's router is; its own address is not judged.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use policy::{Host, Name};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::control::Proxies;
use crate::core::Target;
use crate::wire::Wire;

/// Bytes of the answer to a CONNECT, headers included.
const LONGEST_ANSWER: usize = 16 << 10;

/// Where a proxy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProxyHost {
    Name(Name),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    Socks5,
}

/// An upstream proxy.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    scheme: Scheme,
    pub(crate) host: ProxyHost,
    pub(crate) port: u16,
    login: Option<(String, String)>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Proxy").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Proxy {
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let (scheme, usual) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            "socks5" | "socks5h" | "socks" => (Scheme::Socks5, 1080),
            other => {
                return Err(format!(
                    "a proxy's URL begins with http://, https:// or socks5://, not {other}://"
                ));
            }
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, authority),
        };
        let (host, port) = host_and_port(place).ok_or("a proxy's URL names no host")?;
        let host = match host.parse::<IpAddr>() {
            Ok(address) => ProxyHost::Address(address),
            Err(_) => ProxyHost::Name(Name::parse(host).map_err(|error| error.to_string())?),
        };
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (decoded(user), decoded(password))
        });
        Ok(Self { scheme, host, port: port.unwrap_or(usual), login })
    }
}

/// Splits `host`, `host:port`, `[address]:port` and a bare address.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => after.is_empty().then_some((host, None)),
        };
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some((host, Some(port.parse().ok()?))),
        _ => (!text.is_empty()).then_some((text, None)),
    }
}

/// Percent-decoding; what is no escape stays.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Hosts that are reached without a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Direct {
    All,
    /// The name and all below it.
    Name(String, Option<u16>),
    Network(IpAddr, u8, Option<u16>),
}

/// A proxy, or why its URL says none.
type Read = Result<Proxy, String>;

/// What TLS to a proxy is checked against, or why it cannot be.
pub(crate) type Tls = Result<Arc<ClientConfig>, String>;

/// Which flow goes by which proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProxyTable {
    http: Option<Read>,
    https: Option<Read>,
    direct: Vec<Direct>,
    /// For proxies that are asked over TLS, if one is set.
    tls: Option<Tls>,
}

impl ProxyTable {
    /// `roots`, in DER, are what proxies over TLS are checked against.
    pub(crate) fn new(proxies: &Proxies, roots: &[Vec<u8>]) -> Self {
        let parse = |url: &Option<String>| {
            let url = url.as_deref().or(proxies.all.as_deref());
            url.filter(|url| !url.is_empty()).map(Proxy::parse)
        };
        let direct = proxies.no_proxy.iter().filter_map(|text| direct(text.trim())).collect();
        let mut table = Self { http: parse(&proxies.http), https: parse(&proxies.https), direct, tls: None };
        table.set_roots(roots);
        table
    }

    /// Other certificates to check proxies against.
    pub(crate) fn set_roots(&mut self, roots: &[Vec<u8>]) {
        let sealed = |read: &Option<Read>| matches!(read, Some(Ok(proxy)) if proxy.scheme == Scheme::Https);
        let needed = sealed(&self.http) || sealed(&self.https);
        self.tls = needed.then(|| tls(roots));
    }

    /// How proxies over TLS are checked.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// What is wrong with its URLs, if something is.
    pub(crate) fn check(&self) -> Result<(), String> {
        [&self.http, &self.https].into_iter().flatten().try_for_each(|read| match read {
            Ok(_) => Ok(()),
            Err(why) => Err(why.clone()),
        })
    }

    /// The proxy of a target. An error: it would go by one that cannot be read, and goes nowhere, least of all past it.
    pub(crate) fn choose(&self, target: &Target) -> Option<Read> {
        let proxy = if target.port == 80 { &self.http } else { &self.https };
        let host = target.host.as_host();
        if matches!(host, Host::HostService)
            || self.direct.iter().any(|direct| covers(direct, host, target.port))
        {
            return None;
        }
        proxy.clone()
    }
}

pub(crate) fn direct(text: &str) -> Option<Direct> {
    if text == "*" {
        return Some(Direct::All);
    }
    if let Some((address, bits)) = text.split_once('/') {
        return Some(Direct::Network(address.parse().ok()?, bits.parse().ok()?, None));
    }
    let (host, port) = host_and_port(text)?;
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(Direct::Network(address, if address.is_ipv4() { 32 } else { 128 }, port));
    }
    let name = host.trim_start_matches("*.").trim_matches('.').to_ascii_lowercase();
    (!name.is_empty()).then_some(Direct::Name(name, port))
}

fn covers(direct: &Direct, host: Host<'_>, port: u16) -> bool {
    let on = |only: &Option<u16>| only.is_none_or(|only| only == port);
    match (direct, host) {
        (Direct::All, _) => true,
        (Direct::Name(zone, only), Host::Name(name)) => {
            let above = name.as_str().strip_suffix(zone.as_str());
            on(only) && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        }
        (Direct::Network(network, bits, only), Host::Address(address)) => {
            on(only) && within(*network, *bits, address)
        }
        _ => false,
    }
}

fn within(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let (width, a, b) = match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (32u32, u128::from(u32::from(a)), u128::from(u32::from(b))),
        (IpAddr::V6(a), IpAddr::V6(b)) => (128, u128::from(a), u128::from(b)),
        _ => return false,
    };
    let rest = width.saturating_sub(u32::from(bits));
    a.checked_shr(rest).unwrap_or(0) == b.checked_shr(rest).unwrap_or(0)
}

/// Has the proxy connect to the target. Also what the server said already.
pub(crate) async fn open(
    proxy: &Proxy,
    tls: Option<&Tls>,
    stream: TcpStream,
    target: &Target,
) -> Result<(Wire, Vec<u8>), String> {
    let mut stream = match proxy.scheme {
        Scheme::Https => sealed(proxy, tls, stream).await?,
        Scheme::Http | Scheme::Socks5 => Wire::Plain(stream),
    };
    let early = match proxy.scheme {
        Scheme::Http | Scheme::Https => by_connect(proxy, &mut stream, target).await?,
        Scheme::Socks5 => {
            by_socks(proxy, &mut stream, target).await?;
            Vec::new()
        }
    };
    Ok((stream, early))
}

/// TLS to a proxy: its certificate has to have the name or address of its URL.
async fn sealed(proxy: &Proxy, tls: Option<&Tls>, stream: TcpStream) -> Result<Wire, String> {
    let config = match tls {
        Some(Ok(config)) => Arc::clone(config),
        Some(Err(why)) => return Err(why.clone()),
        None => return Err("there is nothing to check its certificate against".into()),
    };
    let name = match &proxy.host {
        ProxyHost::Name(name) => {
            ServerName::try_from(name.as_str().to_owned()).map_err(|error| error.to_string())?
        }
        ProxyHost::Address(address) => ServerName::from(*address),
    };
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| error.to_string())?;
    Ok(Wire::Sealed(Box::new(stream)))
}

/// Trusts these roots (DER) and nothing else.
fn tls(roots: &[Vec<u8>]) -> Tls {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().map(|root| CertificateDer::from(root.as_slice())));
    if store.is_empty() {
        return Err("none of the host's roots can be used".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        config.map_err(|error| error.to_string())?.with_root_certificates(store).with_no_client_auth();
    // What a CONNECT is written in.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// HTTP CONNECT (RFC 9110 §9.3.6).
async fn by_connect(proxy: &Proxy, stream: &mut Wire, target: &Target) -> Result<Vec<u8>, String> {
    let host = match target.host.as_host() {
        Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
        Host::Address(address) => address.to_string(),
        Host::Name(name) => name.as_str().to_owned(),
        Host::HostService => return Err("the host's own services are not reached by a proxy".into()),
    };
    let authority = format!("{host}:{}", target.port);
    let login = proxy.login.as_ref().map(|(user, password)| {
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
    });
    let head =
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{}\r\n", login.unwrap_or_default());
    stream.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
    stream.flush().await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    loop {
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            let early = answer.split_off(end.saturating_add(4));
            return checked(&answer).map(|()| early);
        }
        if answer.len() > LONGEST_ANSWER {
            return Err("its answer does not end".into());
        }
        let got = stream.read_buf(&mut answer).await.map_err(|error| error.to_string())?;
        if got == 0 {
            return Err("it closed the connection".into());
        }
    }
}

/// Whether the status line says yes.
fn checked(answer: &[u8]) -> Result<(), String> {
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    match words.next() {
        Some(code) if http && code.len() == 3 && code.starts_with('2') => Ok(()),
        _ => Err(format!(
            "it answered {}",
            line.chars().filter(|c| !c.is_control()).take(80).collect::<String>()
        )),
    }
}

/// SOCKS5: the greeting, the login if there is one, the request by name.
async fn by_socks(proxy: &Proxy, stream: &mut Wire, target: &Target) -> Result<(), String> {
    let broken = |error: std::io::Error| error.to_string();
    let greeting: &[u8] = if proxy.login.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
    stream.write_all(greeting).await.map_err(broken)?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice).await.map_err(broken)?;
    match (choice, &proxy.login) {
        ([5, 0], _) => {}
        ([5, 2], Some((user, password))) => {
            let mut login = vec![1];
            for text in [user, password] {
                login.push(u8::try_from(text.len()).map_err(|_| "its login is too long")?);
                login.extend_from_slice(text.as_bytes());
            }
            stream.write_all(&login).await.map_err(broken)?;
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).await.map_err(broken)?;
            if answer[1] != 0 {
                return Err("it refuses the login".into());
            }
        }
        _ => return Err("it wants a login that is not set, or is no SOCKS5 proxy".into()),
    }
    let mut request = vec![5, 1, 0];
    match target.host.as_host() {
        Host::Address(IpAddr::V4(address)) => {
            request.push(1);
            request.extend_from_slice(&address.octets());
        }
        Host::Address(IpAddr::V6(address)) => {
            request.push(4);
            request.extend_from_slice(&address.octets());
        }
        Host::Name(name) => {
            request.push(3);
            request.push(u8::try_from(name.as_str().len()).map_err(|_| "the name is too long")?);
            request.extend_from_slice(name.as_str().as_bytes());
        }
        Host::HostService => return Err("the host's own services are not reached by a proxy".into()),
    }
    request.extend_from_slice(&target.port.to_be_bytes());
    stream.write_all(&request).await.map_err(broken)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let [version, code, _, kind] = head;
    if version != 5 || code != 0 {
        return Err(format!("it refuses the connection (SOCKS5 code {code})"));
    }
    let rest = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await.map_err(broken)?),
        _ => return Err("its answer is no SOCKS5".into()),
    };
    let mut bound = vec![0; rest.saturating_add(2)];
    stream.read_exact(&mut bound).await.map_err(broken)?;
    Ok(())
}

#[cfg(test)]
mod tests;
