//! Names to upstream addresses: the host's own table first, then its name servers, both handed over by the shim. No file is
//! read and the C library is not asked.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::Resolver as HickoryResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioRuntimeProvider};
use policy::Name;

use crate::control::{HostsEntry, ResolverSettings};

/// Answers that are kept.
const CACHE: u64 = 1024;
/// Addresses of one name that are looked at.
const MOST_ADDRESSES: usize = 32;

const NO_ADDRESS: &str = "the name has no address";

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is nobody to ask.
    #[error("the host has no name server")]
    NoServer,
    /// The answer says so, or there was none.
    #[error("{0}")]
    Failed(String),
}

/// Looks names up. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Resolver {
    hosts: std::sync::Arc<HashMap<Name, Vec<IpAddr>>>,
    servers: Option<HickoryResolver<Unbound>>,
}

impl Resolver {
    pub(crate) fn new(settings: &ResolverSettings, hosts: &[HostsEntry]) -> Result<Self, ResolveError> {
        let mut table: HashMap<Name, Vec<IpAddr>> = HashMap::new();
        for entry in hosts {
            // Names that are none in our sense are the host's own affair.
            for name in entry.names.iter().filter_map(|name| Name::parse(name).ok()) {
                table.entry(name).or_default().push(entry.address);
            }
        }
        Ok(Self { hosts: table.into(), servers: servers(settings)? })
    }

    /// Whether the host's own table has the name.
    pub(crate) fn is_in_table(&self, name: &Name) -> bool {
        self.hosts.contains_key(name)
    }

    /// The name's addresses, in the order of the answer; at least one.
    pub(crate) async fn resolve(&self, name: &Name) -> Result<Vec<IpAddr>, ResolveError> {
        if let Some(addresses) = self.hosts.get(name) {
            return Ok(addresses.clone());
        }
        let servers = self.servers.as_ref().ok_or(ResolveError::NoServer)?;
        // The dot at the end: as it stands, without search domains.
        let found = servers.lookup_ip(format!("{}.", name.as_str())).await;
        let found = found.map_err(|error| ResolveError::Failed(why(&error)))?;
        let addresses: Vec<_> = found.iter().take(MOST_ADDRESSES).collect();
        if addresses.is_empty() {
            return Err(ResolveError::Failed(NO_ADDRESS.into()));
        }
        Ok(addresses)
    }
}

/// In words, for a user.
fn why(error: &NetError) -> String {
    match error {
        NetError::Timeout => "the host's name servers do not answer".into(),
        error if error.is_nx_domain() => "the host's name servers know no such name".into(),
        error if error.is_no_records_found() => NO_ADDRESS.into(),
        error => error.to_string(),
    }
}

fn servers(settings: &ResolverSettings) -> Result<Option<HickoryResolver<Unbound>>, ResolveError> {
    if settings.servers.is_empty() {
        return Ok(None);
    }
    let server = |address: &SocketAddr| {
        let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
        udp.port = address.port();
        tcp.port = address.port();
        NameServerConfig::new(address.ip(), true, vec![udp, tcp])
    };
    let servers = settings.servers.iter().map(server).collect();
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let mut builder = HickoryResolver::builder_with_config(config, Unbound::default());
    let options = builder.options_mut();
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = CACHE;
    options.attempts = usize::from(settings.attempts.max(1));
    options.timeout = Duration::from_millis(u64::from(settings.timeout_ms.max(1)));
    let resolver = builder.build().map_err(|error| ResolveError::Failed(error.to_string()))?;
    Ok(Some(resolver))
}

/// The runtime's sockets, without `bind`, which the gateway's confinement does not let through: the kernel gives a UDP socket
/// its random port with the first datagram.
#[derive(Clone, Default)]
struct Unbound(TokioRuntimeProvider);

impl RuntimeProvider for Unbound {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = tokio::net::UdpSocket;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, None, patience)
    }

    fn bind_udp(
        &self,
        _local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        Box::pin(std::future::ready(crate::udp::socket(server)))
    }
}
