//! What the gateway must know of this host: name servers, `/etc/hosts`, proxies, root certificates and the host's own addresses. The shim reads it
//! before it confines itself, and what changes again later. The gateway itself opens no file.

use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use gateway::control::{HostsEntry, Proxies, ResolverSettings};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::settings;
use crate::error::Result;
use crate::places::Places;

/// Where this host's name servers are written.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where names of this host's own are written.
pub(crate) const HOSTS: &str = "/etc/hosts";

/// The port of a name server.
const DNS: u16 = 53;
/// What is taken when the file names no server: `resolv.conf(5)` says the one of this host.
const OWN_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Most servers that are asked, as `resolv.conf(5)` has it.
const MOST_SERVERS: usize = 3;
/// Most lines of `/etc/hosts` that count, and most certificates.
const MOST_LINES: usize = 4096;

/// Where an administrator puts roots beside those of the system, on Debian, Fedora, Arch and SUSE.
const ANCHORS: [&str; 4] = [
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
    "/etc/pki/trust/anchors",
];

/// Where the bundle of all roots is, on Debian and Arch, on Fedora, on SUSE.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
];

/// Folders that hold roots and nothing else.
const OF_ROOTS: [&str; 4] = [
    "/etc/ssl/certs",
    "/etc/pki/ca-trust/extracted/pem",
    "/etc/ca-certificates/extracted",
    "/var/lib/ca-certificates",
];

/// Most such roots, as many as an agent takes beside ours, and the longest.
const MOST_ANCHORS: usize = 60;
const LONGEST_ANCHOR: usize = 16 << 10;
/// Bytes of all of them.
const MOST_ANCHOR_BYTES: usize = 100 << 10;

/// The name servers and how they are asked; `None` when that cannot be read.
pub(crate) fn resolver() -> Option<ResolverSettings> {
    fs::read(RESOLV_CONF).ok().map(|text| resolver_of(&text))
}

fn resolver_of(text: &[u8]) -> ResolverSettings {
    let parsed = resolv_conf::Config::parse(text).unwrap_or_default();
    let mut servers: Vec<SocketAddr> = parsed
        .nameservers
        .iter()
        .take(MOST_SERVERS)
        .map(|server| SocketAddr::new(server.into(), DNS))
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(OWN_SERVER, DNS));
    }
    let attempts = u8::try_from(parsed.attempts).unwrap_or(u8::MAX).clamp(1, 5);
    let timeout_ms = parsed.timeout.clamp(1, 30) * 1000;
    ResolverSettings { servers, attempts, timeout_ms }
}

/// What `/etc/hosts` says; `None` when that cannot be read.
pub(crate) fn hosts() -> Option<Vec<HostsEntry>> {
    fs::read_to_string(HOSTS).ok().map(|text| hosts_of(&text))
}

fn hosts_of(text: &str) -> Vec<HostsEntry> {
    let entry = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        Some(HostsEntry { address, names: words.map(str::to_owned).collect() })
    };
    text.lines().take(MOST_LINES).filter_map(entry).collect()
}

/// The proxies of a client. In this form they may hold a password: they travel over sockets only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientProxies {
    /// Those that its environment names, else those of the user's file.
    pub proxies: Proxies,
    /// Whether the servers are the file's.
    pub(super) servers_of_file: bool,
    /// Whether what needs none is the file's.
    pub(super) direct_of_file: bool,
}

impl ClientProxies {
    /// With what the file says now: the environment's stay.
    pub(crate) fn with(&self, file: Proxies) -> Proxies {
        let mut proxies = self.proxies.clone();
        if self.servers_of_file {
            (proxies.http, proxies.https, proxies.all) = (file.http, file.https, file.all);
        }
        if self.direct_of_file {
            proxies.no_proxy = file.no_proxy;
        }
        proxies
    }
}

/// The proxies of this process's environment, else those of the user's file.
pub fn proxies(places: &Places) -> Result<ClientProxies> {
    Ok(proxies_of(|name| env::var_os(name), settings::proxies(places)?.unwrap_or_default()))
}

/// An environment that names proxies, if only by an empty variable, beats the file whole; so does one with `no_proxy`.
fn proxies_of(lookup: impl Fn(&str) -> Option<OsString>, file: Proxies) -> ClientProxies {
    // The small letters first, as curl has it; HTTP_PROXY in capitals can be set by who sends a request to a CGI script, and is not used.
    let text = |name: &str| lookup(name).and_then(|value| value.into_string().ok());
    let some = |name: &str| text(name).filter(|text| !text.is_empty());
    let capitals = |name: &str| name.to_ascii_uppercase();
    let is_set = |name: &str| text(name).or_else(|| text(&capitals(name))).is_some();
    let either = |name: &str| some(name).or_else(|| some(&capitals(name)));
    let mut proxies = file;
    let servers = text("http_proxy").is_some() || is_set("https_proxy") || is_set("all_proxy");
    let direct = is_set("no_proxy");
    if servers {
        proxies.http = some("http_proxy");
        proxies.https = either("https_proxy");
        proxies.all = either("all_proxy");
    }
    if direct {
        let all = either("no_proxy").unwrap_or_default();
        proxies.no_proxy = all.split([',', ' ']).filter(|host| !host.is_empty()).map(str::to_owned).collect();
    }
    ClientProxies { proxies, servers_of_file: !servers, direct_of_file: !direct }
}

/// Where the roots are by which the gateway checks servers. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others than the system's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roots {
    /// The file that most of them are in.
    bundle: Option<PathBuf>,
    /// Those that are elsewhere; they are read once.
    beside: Vec<Vec<u8>>,
}

impl Roots {
    /// With all of them, in DER.
    pub(crate) fn read() -> (Self, Vec<Vec<u8>>) {
        let all = certificates_of(rustls_native_certs::load_native_certs());
        (Self::of(&all, bundle()), all)
    }

    fn of(all: &[Vec<u8>], bundle: Option<PathBuf>) -> Self {
        let bundled: HashSet<Vec<u8>> = bundle.iter().flat_map(|file| in_bundle(file)).collect();
        let (within, beside): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|root| bundled.contains(root));
        // One of which nothing was in force would bring trust that nobody asked for.
        Self { bundle: bundle.filter(|_| !within.is_empty()), beside }
    }

    /// Reads the bundle again when it is among the files that have changed; all roots, when they are others than those known. One that is
    /// empty is about to be written.
    pub(crate) fn read_again(&self, changed: &[OsString], known: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
        let bundle = self.bundle.as_deref()?;
        if !changed.iter().any(|changed| Some(changed.as_os_str()) == bundle.file_name()) {
            return None;
        }
        let mut all = in_bundle(bundle);
        if all.is_empty() {
            return None;
        }
        all.extend(self.beside.iter().cloned());
        (all.iter().collect::<HashSet<_>>() != known.iter().collect()).then_some(all)
    }
}

fn in_bundle(file: &Path) -> Vec<Vec<u8>> {
    certificates_of(rustls_native_certs::load_certs_from_paths(Some(file), None))
}

fn certificates_of(found: rustls_native_certs::CertificateResult) -> Vec<Vec<u8>> {
    for error in &found.errors {
        tracing::warn!(%error, "Some of the host's root certificates cannot be read");
    }
    found.certs.into_iter().take(MOST_LINES).map(|root| root.to_vec()).collect()
}

/// The file with all roots that this host's programs trust; where it really lies, as changes are heard there. Who names folders alone has none.
fn bundle() -> Option<PathBuf> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let file = match (named("SSL_CERT_FILE"), named("SSL_CERT_DIR")) {
        (Some(file), _) => PathBuf::from(file),
        (None, Some(_)) => return None,
        (None, None) => BUNDLES.iter().map(PathBuf::from).find(|file| file.exists())?,
    };
    Some(fs::canonicalize(&file).unwrap_or(file))
}

/// The roots that this host has beside those that come with every system: a proxy that signs again needs them in the guest, too.
pub(crate) fn extra_roots() -> Vec<Vec<u8>> {
    let mut roots: Vec<Vec<u8>> = Vec::new();
    for folder in ANCHORS {
        collect(Path::new(folder), &mut roots, 0);
    }
    within_bounds(roots)
}

/// As many as an agent takes.
fn within_bounds(roots: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut bytes = 0;
    let fits = |root: &Vec<u8>| {
        bytes += root.len();
        bytes <= MOST_ANCHOR_BYTES
    };
    roots.into_iter().take(MOST_ANCHORS).take_while(fits).collect()
}

fn collect(folder: &Path, roots: &mut Vec<Vec<u8>>, depth: usize) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && depth < 2 {
            collect(&path, roots, depth + 1);
        } else if let Ok(bytes) = fs::read(&path) {
            for root in certificates(&bytes) {
                if root.len() <= LONGEST_ANCHOR && !roots.contains(&root) {
                    roots.push(root);
                }
            }
        }
    }
}

/// The certificates of a file, PEM or one in DER.
fn certificates(bytes: &[u8]) -> Vec<Vec<u8>> {
    // The tag of a sequence: DER.
    if bytes.first() == Some(&0x30) {
        return vec![bytes.to_vec()];
    }
    CertificateDer::pem_slice_iter(bytes).flatten().map(|root| root.to_vec()).collect()
}

/// The addresses of this host's own network cards, which a guest reaches by no rule for others.
pub fn own_addresses() -> Vec<IpAddr> {
    match if_addrs::get_if_addrs() {
        Ok(all) => all.into_iter().map(|interface| interface.ip()).collect(),
        Err(error) => {
            tracing::warn!(%error, "The host's own addresses are not known");
            Vec::new()
        }
    }
}

/// The files and folders from which changes are heard, and may be read once the shim is confined. A folder that holds much else is
/// not among those that may be read: there only the file is, as long as it is not replaced.
pub(crate) fn readable() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in [RESOLV_CONF, HOSTS] {
        found.push(PathBuf::from(path));
        if let Ok(real) = fs::canonicalize(path)
            && let Some(folder) = real.parent().filter(|folder| *folder != Path::new("/etc"))
        {
            found.push(folder.to_owned());
        }
    }
    if let Some(bundle) = bundle() {
        found.extend(
            bundle.parent().filter(|folder| OF_ROOTS.map(Path::new).contains(folder)).map(Path::to_owned),
        );
        found.push(bundle);
    }
    found.retain(|path| path.exists());
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_those_of_the_file() {
        let of = |text: &str| resolver_of(text.as_bytes());
        let all = of(
            "# x\nnameserver 192.0.2.1\nnameserver fe80::1%2\nnameserver 2001:db8::1\nnameserver 192.0.2.4\noptions timeout:2 attempts:3\n",
        );
        let servers: Vec<String> = all.servers.iter().map(|server| server.ip().to_string()).collect();
        assert_eq!(servers, ["192.0.2.1", "fe80::1", "2001:db8::1"]);
        assert_eq!((all.attempts, all.timeout_ms), (3, 2000));
        // Without any: the host's own.
        for text in ["", "search example.com\n", "\0\u{1}nonsense"] {
            assert_eq!(of(text).servers, ["127.0.0.1:53".parse().unwrap()], "{text:?}");
        }
    }

    #[test]
    fn hosts_have_several_names_and_comments() {
        let all = hosts_of(
            "127.0.0.1 localhost\n# no\n10.1.2.3\tbuild build.example # our own\nnonsense x\n::1 six\n",
        );
        let shown: Vec<(String, String)> =
            all.iter().map(|entry| (entry.address.to_string(), entry.names.join(" "))).collect();
        let expected = [("127.0.0.1", "localhost"), ("10.1.2.3", "build build.example"), ("::1", "six")];
        assert_eq!(shown, expected.map(|(address, names)| (address.to_owned(), names.to_owned())));
    }

    #[test]
    fn proxies_are_those_of_the_environment() {
        let of = |all: &'static [(&str, &str)]| {
            let lookup =
                |name: &str| all.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            proxies_of(lookup, Proxies::default()).proxies
        };
        let some =
            of(&[("https_proxy", "http://p:1"), ("HTTPS_PROXY", "http://q:2"), ("NO_PROXY", "a, .b,*")]);
        assert_eq!(some.https.as_deref(), Some("http://p:1"));
        assert_eq!(some.no_proxy, ["a", ".b", "*"]);
        // What a web server passes on of a request.
        assert_eq!(of(&[("HTTP_PROXY", "http://evil")]).http, None);
        assert_eq!(
            of(&[("ALL_PROXY", "socks5h://p:1080"), ("all_proxy", "")]).all.as_deref(),
            Some("socks5h://p:1080")
        );
    }

    #[test]
    fn the_environment_beats_the_file() {
        let text = |text: &str| Some(text.to_owned());
        let file = Proxies {
            http: text("http://f:1"),
            https: text("http://f:2"),
            all: None,
            no_proxy: vec!["from.file".into()],
        };
        let of = |all: &'static [(&str, &str)]| {
            let lookup =
                |name: &str| all.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            let found = proxies_of(lookup, file.clone());
            // The file's change: what it says counts where the environment says nothing.
            let later =
                Proxies { all: text("http://later:1"), no_proxy: vec!["later".into()], ..Proxies::default() };
            let later = found.with(later);
            let is_servers = |name: &str| !name.eq_ignore_ascii_case("no_proxy") && name != "HTTP_PROXY";
            let servers = all.iter().any(|(name, _)| is_servers(name));
            assert_eq!(later.all.as_deref() == Some("http://later:1"), !servers, "{all:?}");
            let direct = all.iter().any(|(name, _)| *name == "no_proxy");
            assert_eq!(later.no_proxy == ["later"], !direct, "{all:?}");
            found.proxies
        };
        assert_eq!(of(&[]), file);
        let all = of(&[("ALL_PROXY", "socks5://e:1")]);
        assert_eq!((all.http, all.https, all.all.as_deref()), (None, None, Some("socks5://e:1")));
        assert_eq!(all.no_proxy, ["from.file"]);
        // By an empty one there is none.
        assert_eq!(of(&[("https_proxy", "")]).http, None);
        assert!(of(&[("no_proxy", "")]).no_proxy.is_empty());
        assert_eq!(of(&[("HTTP_PROXY", "http://evil")]), file);
    }

    #[test]
    fn a_guest_gets_no_more_roots_than_it_takes() {
        assert_eq!(within_bounds(vec![vec![0; 10]; 100]).len(), MOST_ANCHORS);
        assert_eq!(within_bounds(vec![vec![0; 16 << 10]; 100]).len(), 6);
    }

    #[test]
    fn roots_are_read_again_when_their_bundle_changes() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle.crt");
        let pem = |names: &[&str]| {
            let made = names.iter().map(|name| {
                let made = rcgen::generate_simple_self_signed(vec![(*name).to_owned()]).unwrap();
                (made.cert.der().to_vec(), made.cert.pem())
            });
            let (der, pem): (Vec<_>, Vec<_>) = made.unzip();
            fs::write(&bundle, pem.concat()).unwrap();
            der
        };
        let first = pem(&["a", "b"]);
        let elsewhere = vec![0x30, 0x00];
        let known = [first.clone(), vec![elsewhere.clone()]].concat();
        let roots = Roots::of(&known, Some(bundle.clone()));
        let changed = [OsString::from("bundle.crt")];
        assert_eq!((roots.read_again(&[], &known), roots.read_again(&changed, &known)), (None, None));
        let second = pem(&["c"]);
        assert_eq!(roots.read_again(&["other.crt".into()], &known), None, "only when it is the one");
        assert_eq!(roots.read_again(&changed, &known), Some([second, vec![elsewhere]].concat()));
        // None of which anything was in force at the start.
        let strange = Roots::of(&[vec![0x30, 0x00]], Some(bundle.clone()));
        pem(&["d"]);
        assert_eq!(strange.read_again(&changed, &known), None);
        // About to be written, or lost: what was known holds.
        fs::write(&bundle, "").unwrap();
        assert_eq!(roots.read_again(&changed, &known), None);
        fs::remove_file(&bundle).unwrap();
        assert_eq!(roots.read_again(&changed, &known), None);
    }

    #[test]
    fn certificates_are_found_in_files_of_either_form() {
        let der = vec![0x30, 0x03, 0x02, 0x01, 0x05];
        assert_eq!(certificates(&der), std::slice::from_ref(&der));
        let pem = "text\n-----BEGIN CERTIFICATE-----\nMAMCAQU=\n-----END CERTIFICATE-----\n".repeat(2);
        assert_eq!(certificates(pem.as_bytes()), [der.clone(), der]);
        assert!(certificates(b"nothing").is_empty() && certificates(b"").is_empty());
    }
}
