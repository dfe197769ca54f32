//! Upstream connections: resolve, ask the policy about each address, try all that it allows (RFC 8305), or go by a proxy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use netstack::FlowId;
use policy::{Host, HostKey, Policy, Reason, Verdict, canonical_address};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::core::{Course, Shared, Target};
use crate::proxy::{self, Proxy, ProxyHost, ProxyTable};
use crate::record::UNRESOLVED;
use crate::resolve::ResolveError;
use crate::wire::Wire;

/// How long one address is given before the next is tried beside it (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);
/// How long everything may take, resolving included.
const PATIENCE: Duration = Duration::from_secs(20);
/// Upstream connections that are being made at one time. More are refused.
pub const MOST_DIALS: usize = 256;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The policy allows none of the addresses.
    #[error("{}", .0.1.text)]
    Guarded(Box<(IpAddr, Reason)>),
    /// The rules changed while the connection was made.
    #[error("{}", .0.text)]
    Changed(Box<Reason>),
    /// The name has no address.
    #[error("{UNRESOLVED}: {0}")]
    Resolve(#[from] ResolveError),
    /// No address took the connection.
    #[error("{0}")]
    Connect(#[from] io::Error),
    /// The upstream proxy did not take it.
    #[error("the upstream proxy: {0}")]
    Proxy(String),
    /// [`MOST_DIALS`].
    #[error("more than {MOST_DIALS} connections are being made at once")]
    Crowded,
}

/// A connection to a server.
#[derive(Debug)]
pub struct Upstream {
    pub(crate) stream: Wire,
    /// What came before it was handed over (behind a proxy's answer).
    pub(crate) early: Vec<u8>,
    /// Where it goes; `None` behind a proxy.
    pub(crate) address: Option<IpAddr>,
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let count = self.early.len().min(into.remaining());
            let rest = self.early.split_off(count);
            into.put_slice(&self.early);
            self.early = rest;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Makes connections to one target. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
    target: Arc<Target>,
    /// For whom: it is told where it goes.
    flow: Option<FlowId>,
    /// Made before the guest's SYN was answered.
    first: Arc<Mutex<Option<Upstream>>>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Dialer").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Dialer {
    pub(crate) fn new(shared: Arc<Shared>, target: Target) -> Self {
        Self { shared, target: Arc::new(target), flow: None, first: Arc::default() }
    }

    /// For this flow.
    pub(crate) fn of(self, flow: FlowId) -> Self {
        Self { flow: Some(flow), ..self }
    }

    pub(crate) fn with_first(self, first: Upstream) -> Self {
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
        self
    }

    /// A connection to the target. Names are resolved, and addresses judged, anew each time, and once more when it is there.
    ///
    /// # Errors
    /// When no address is allowed or none takes the connection.
    pub async fn dial(&self) -> Result<Upstream, DialError> {
        if let Some(first) = self.first.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(first);
        }
        let _place = Place::take(&self.shared).ok_or(DialError::Crowded)?;
        match timeout(PATIENCE, self.attempt()).await {
            Ok(done) => done,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }

    async fn attempt(&self) -> Result<Upstream, DialError> {
        let proxies = Arc::clone(&self.shared.lock().proxies);
        match proxies.choose(&self.target) {
            Some(proxy) => self.by_proxy(&proxy.map_err(DialError::Proxy)?, &proxies).await,
            None => {
                let addresses = self.addresses().await?;
                let stream = connect(addresses, self.target.port).await?;
                let address = stream.peer_addr().ok().map(|peer| canonical_address(peer.ip()));
                self.reached(address.as_slice())?;
                Ok(Upstream { stream: Wire::Plain(stream), early: Vec::new(), address })
            }
        }
    }

    /// The addresses that policy allows, in the order in which they are tried.
    pub(crate) async fn addresses(&self) -> Result<Vec<IpAddr>, DialError> {
        let found = self.found().await?;
        // No rule but the one that names it lets a guest come to the host's own service.
        if self.target.host == HostKey::HostService { Ok(found) } else { self.allowed(found) }
    }

    /// All addresses of the target.
    async fn found(&self) -> Result<Vec<IpAddr>, DialError> {
        Ok(match self.target.host.as_host() {
            Host::HostService => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Host::Address(address) => vec![address],
            Host::Name(name) => {
                let resolver = self.shared.lock().rules.resolver.clone();
                resolver.resolve(name).await?
            }
        })
    }

    /// A connection was made: whether the rules, which may have changed meanwhile, still let it be. Notes where it goes.
    fn reached(&self, addresses: &[IpAddr]) -> Result<(), DialError> {
        let mut core = self.shared.lock();
        let judgement = core.rules.judge(&self.target);
        if judgement.course == Course::Refuse {
            return Err(DialError::Changed(Box::new(judgement.verdict.reason)));
        }
        if self.target.host != HostKey::HostService {
            every(&core.rules.policy, &self.target, addresses)?;
        }
        if let Some(slot) = self.flow.and_then(|flow| core.flows.get_mut(&flow)) {
            slot.reached(addresses);
        }
        Ok(())
    }

    fn allowed(&self, found: Vec<IpAddr>) -> Result<Vec<IpAddr>, DialError> {
        let policy = self.shared.lock().rules.policy.clone();
        let mut refused: Option<(IpAddr, Verdict)> = None;
        let mut allowed = Vec::new();
        for address in found.into_iter().map(canonical_address) {
            let verdict = policy.upstream(self.target.view(), address);
            if verdict.outcome.is_open() {
                allowed.push(address);
            } else {
                refused.get_or_insert((address, verdict));
            }
        }
        match refused {
            Some((address, verdict)) if allowed.is_empty() => {
                Err(DialError::Guarded(Box::new((address, verdict.reason))))
            }
            _ => Ok(interleaved(allowed)),
        }
    }

    /// By an upstream proxy. It may take any address of the name, so that all which the host's resolver gives must be allowed; one
    /// that does not resolve here is the proxy's to resolve.
    async fn by_proxy(&self, proxy: &Proxy, proxies: &ProxyTable) -> Result<Upstream, DialError> {
        let found = match self.found().await {
            Ok(found) => found.into_iter().map(canonical_address).collect(),
            Err(DialError::Resolve(_)) => Vec::new(),
            Err(refused) => return Err(refused),
        };
        self.reached(&found)?;
        let addresses = match &proxy.host {
            ProxyHost::Address(address) => vec![*address],
            ProxyHost::Name(name) => {
                let resolver = self.shared.lock().rules.resolver.clone();
                let found = resolver.resolve(name).await;
                interleaved(found.map_err(|error| DialError::Proxy(format!("{UNRESOLVED}: {error}")))?)
            }
        };
        let stream =
            connect(addresses, proxy.port).await.map_err(|error| DialError::Proxy(error.to_string()))?;
        let opened = proxy::open(proxy, proxies.tls(), stream, &self.target).await;
        let (stream, early) = opened.map_err(DialError::Proxy)?;
        self.reached(&found)?;
        Ok(Upstream { stream, early, address: None })
    }
}

/// Whether policy allows each of the addresses.
fn every(policy: &Policy, target: &Target, addresses: &[IpAddr]) -> Result<(), DialError> {
    for address in addresses {
        let verdict = policy.upstream(target.view(), *address);
        if !verdict.outcome.is_open() {
            return Err(DialError::Guarded(Box::new((*address, verdict.reason))));
        }
    }
    Ok(())
}

/// One of [`MOST_DIALS`].
struct Place<'a>(&'a Shared);

impl<'a> Place<'a> {
    fn take(shared: &'a Shared) -> Option<Self> {
        let mut core = shared.lock();
        core.dials = core.dials.checked_add(1).filter(|dials| *dials <= MOST_DIALS)?;
        Some(Self(shared))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut core = self.0.lock();
        core.dials = core.dials.saturating_sub(1);
    }
}

/// IPv6 and IPv4 in turn (RFC 8305 §4), each once.
fn interleaved(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [v6.next(), v4.next()];
        if pair.iter().all(Option::is_none) {
            return all;
        }
        for address in pair.into_iter().flatten() {
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
}

/// The first connection that an address takes; each is given a head start over the next, a failure ends it.
async fn connect(addresses: Vec<IpAddr>, port: u16) -> io::Result<TcpStream> {
    let mut next = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::HostUnreachable);
    loop {
        match next.next() {
            Some(address) => running.push(connect_one(SocketAddr::new(address, port))),
            None if running.is_empty() => return Err(last),
            None => {}
        }
        let more = next.len() > 0;
        tokio::select! {
            Some(done) = running.next() => match done {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = sleep(HEAD_START), if more => {}
        }
    }
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let mixed = parse(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.1", "192.0.2.3"]);
        let turns = parse(&["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(interleaved(mixed), turns);
        assert!(interleaved(Vec::new()).is_empty());
    }
}
