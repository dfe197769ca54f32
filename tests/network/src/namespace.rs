//! The private network namespace: this test program started once more by `unshare`, with a loopback interface of its own as its whole
//! network and files of its own for name servers, hosts and extra roots. What gets past the gateway there reaches no real address.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::Verdict;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use rustix::mount::mount_bind;

/// Set for the program inside of the namespace.
const INSIDE: &str = "VIV_TEST_NETWORK_INSIDE";

/// The one name server, as the host's `resolv.conf` has it.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);

/// The host's own address, on its network card: nothing is served there but by cases about just that.
pub const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// What reaches this host without being an address of a network card of its: the "Internet" of this namespace. Programs can be servers
/// there, and connections to an address without one are reset.
const ELSEWHERE: [(IpAddr, u8); 7] = [
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 24),
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), 24),
    // What no guest may reach by a name, with somebody there: a hole would be seen.
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 32),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0)), 32),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0)), 32),
    (IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)), 96),
];

/// Addresses from which nothing ever comes back, not even a reset.
pub const SILENT: (Ipv4Addr, u8) = (Ipv4Addr::new(192, 88, 99, 0), 24);

/// Files of the host that are others inside: what they are, and what is said when there is none to be replaced.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
/// Where an administrator's roots lie: Debian's, Fedora's, Arch's, SUSE's folder.
const ANCHORS: [&str; 4] = [
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
    "/etc/pki/trust/anchors",
];

/// Whether this program runs inside already.
pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The words with which `unshare` makes the namespaces: an ordinary user becomes root of a user namespace only.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    command.args(["--net", "--mount"]);
    command
}

/// Runs this program again inside, with the same arguments and more of environment. Gives its exit code, or why that cannot be done.
pub(crate) fn enter(environment: &[(&str, &Path)]) -> Result<i32, Verdict> {
    let probe = unshare().arg("true").stdin(Stdio::null()).output();
    let why = match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    };
    if let Some(why) = why {
        return Err(Verdict::Skipped(format!("no network namespace can be made here: {why}")));
    }
    let mut command = unshare();
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    command.envs(environment.iter().copied());
    Ok(command.status()?.code().unwrap_or(101))
}

/// Brings up the network of the namespace and puts the files in place, whose contents lie in `folder`.
pub(crate) async fn furnish(folder: &Path, root: &str) -> Result<(), Verdict> {
    links().await.map_err(|error| Verdict::Wrong(format!("the namespace's network: {error}")))?;
    let files = [
        ("resolv.conf", RESOLV_CONF, format!("nameserver {NAME_SERVER}\noptions timeout:10 attempts:2\n")),
        ("hosts", HOSTS, "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
    ];
    for (name, place, text) in files {
        let own = folder.join(name);
        std::fs::write(&own, text)?;
        replace(&own, Path::new(place))?;
    }
    let bundle = Path::new(crate::BUNDLE);
    let folder_of = |name: &str, file: &OsStr| {
        let own = folder.join(name);
        std::fs::create_dir(&own)?;
        std::fs::write(own.join(file), root)?;
        Ok::<_, Verdict>(own)
    };
    if let (Some(place), Some(file)) = (bundle.parent(), bundle.file_name()) {
        replace(&folder_of("bundles", file)?, place)?;
    }
    let Some(place) = ANCHORS.iter().map(Path::new).find(|place| place.is_dir()) else {
        return Err(Verdict::Skipped("this host has no folder for extra roots".into()));
    };
    replace(&folder_of("anchors", OsStr::new("network-test.crt"))?, place)?;
    be_ordinary()
}

/// What this thread starts from here on is an ordinary user again, when it was one outside.
pub(crate) fn be_ordinary() -> Result<(), Verdict> {
    Ok(rustix::thread::clear_ambient_capability_set()?)
}

fn replace(own: &Path, place: &Path) -> Result<(), Verdict> {
    if !place.exists() {
        return Err(Verdict::Skipped(format!("this host has no {}", place.display())));
    }
    mount_bind(own, place).map_err(|error| Verdict::Wrong(format!("{}: {error}", place.display())))
}

async fn links() -> Result<(), rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|error| rtnetlink::Error::NamespaceError(format!("rtnetlink: {error}")))?;
    tokio::spawn(connection);
    // The loopback interface is always the first.
    let lo = 1;
    handle.link().change(LinkUnspec::new_with_index(lo).up().build()).execute().await?;
    handle.address().add(lo, OWN_ADDRESS.into(), 32).execute().await?;
    for (network, prefix) in ELSEWHERE {
        let local = match network {
            IpAddr::V4(network) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(network, prefix)
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .output_interface(lo)
                .table_id(LOCAL)
                .build(),
            IpAddr::V6(network) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(network, prefix)
                .kind(RouteType::Local)
                .output_interface(lo)
                .table_id(LOCAL)
                .build(),
        };
        handle.route().add(local).execute().await?;
    }
    // Packets that come in by the loopback interface for nobody are dropped without a word.
    let (network, prefix) = SILENT;
    let silent = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network, prefix)
        .scope(RouteScope::Link)
        .output_interface(lo)
        .pref_source(OWN_ADDRESS)
        .build();
    handle.route().add(silent).execute().await
}

/// `RT_TABLE_LOCAL` of rtnetlink(7).
const LOCAL: u32 = 255;
