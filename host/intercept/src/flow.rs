//! One flow from its first byte to its last.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::crypto::CryptoProvider;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use vault::Credentials;

use crate::judge::UnderWay;
use crate::leaf::{Alpn, Leaves};
use crate::record::{Decision, RequestRecord, Rules, Sink};
use crate::service::Service;
use crate::sniff::{Activity, Kind, Watched, sniff};
use crate::tasks::Tasks;
use crate::tls::{self, Offer, UpstreamTls};
use crate::upstream::{Dial, SEND_BUFFER, Stream, TlsTo, Upstream, buffer, describe};
use crate::{IntermediateCa, Limits};

/// Where a flow goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FlowHost {
    /// To a name that was asked for.
    Name(policy::Name),
    /// To an address.
    Address(IpAddr),
}

impl fmt::Display for FlowHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What the gateway knows of a flow before its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The host.
    pub host: FlowHost,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            FlowHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// How a flow ended. What a guest or host did wrong was recorded; this says whether to close or to reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowEnd {
    /// One side was done.
    Closed,
    /// Nothing moved for too long, or nothing ever came.
    Idle,
    /// The ClientHello was for another name, or for no protocol that can be looked into: reset.
    Refused(String),
    /// The guest's TLS or HTTP broke off or could not be understood: reset.
    Broken(String),
}

/// Why the interceptor cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterceptError {
    /// The sandbox's authority cannot be used, or a leaf not be made.
    #[error("cannot make certificates: {0}")]
    Certificate(String),
    /// No host can be verified.
    #[error("cannot verify hosts: {0}")]
    Roots(String),
}

/// What an [`Intercept`] is made of.
#[derive(Debug)]
pub struct Settings {
    /// The sandbox's authority.
    pub ca: IntermediateCa,
    /// The host's roots, DER.
    pub roots: Vec<Vec<u8>>,
    /// The bounds of each flow.
    pub limits: Limits,
}

/// What all flows share.
pub(crate) struct Shared {
    provider: Arc<CryptoProvider>,
    leaves: RefCell<Leaves>,
    upstream: RefCell<UpstreamTls>,
    credentials: RefCell<Credentials>,
    /// Counts how often they changed, for those who follow them.
    changes: Cell<u64>,
    pub(crate) under_way: RefCell<UnderWay>,
    /// Bytes of bodies that may still be held.
    pub(crate) room: Arc<Semaphore>,
    /// Flows there are.
    flows: Cell<usize>,
    pub(crate) limits: Limits,
}

impl Shared {
    pub(crate) fn upstream_tls(&self, offer: Offer) -> Arc<rustls::ClientConfig> {
        self.upstream.borrow().config(offer)
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials.borrow().clone()
    }

    pub(crate) fn grant(&self, grant: &vault::oauth::Grant) {
        let with = self.credentials.borrow().with_grant(grant);
        self.replace(&with);
    }

    /// What answers may still hold of the credentials of before stays masked.
    fn replace(&self, credentials: &Credentials) {
        let with = credentials.remembering(&self.credentials.borrow());
        *self.credentials.borrow_mut() = with;
        self.changes.set(self.changes.get().wrapping_add(1));
    }

    /// Another number whenever the credentials changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.get()
    }
}

/// The interceptor of one sandbox. A clone is the same one.
#[derive(Clone)]
pub struct Intercept(pub(crate) Rc<Shared>);

impl fmt::Debug for Intercept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intercept").finish_non_exhaustive()
    }
}

impl Intercept {
    /// An interceptor without credentials.
    ///
    /// # Errors
    /// When the authority or the roots cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, InterceptError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let leaves = Leaves::new(&settings.ca, Arc::clone(&provider))?;
        let (upstream, _) = UpstreamTls::new(&settings.roots, &provider)?;
        Ok(Self(Rc::new(Shared {
            provider,
            leaves: leaves.into(),
            upstream: upstream.into(),
            credentials: RefCell::default(),
            changes: Cell::default(),
            under_way: RefCell::default(),
            room: Arc::new(Semaphore::new(settings.limits.held_in_all)),
            flows: Cell::default(),
            limits: settings.limits,
        })))
    }

    /// Trusts these roots from the next connection on. Returns how many can be used.
    ///
    /// # Errors
    /// When none can; what was trusted before stays so.
    pub fn set_roots(&self, roots: &[Vec<u8>]) -> Result<usize, InterceptError> {
        let (upstream, usable) = UpstreamTls::new(roots, &self.0.provider)?;
        *self.0.upstream.borrow_mut() = upstream;
        Ok(usable)
    }

    /// Mints with this authority from the next connection on.
    ///
    /// # Errors
    /// When it cannot be used; the old one stays.
    pub fn set_ca(&self, ca: &IntermediateCa) -> Result<(), InterceptError> {
        let leaves = Leaves::new(ca, Arc::clone(&self.0.provider))?;
        *self.0.leaves.borrow_mut() = leaves;
        Ok(())
    }

    /// Places these credentials from the next request on, on established flows too. Answers under way are masked with them as well.
    pub fn set_credentials(&self, credentials: Credentials) {
        self.0.replace(&credentials);
    }

    /// The credentials in force, with what token endpoints have granted since.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.0.credentials()
    }

    /// The rules have changed: requests under way that they refuse now end, with a record. One that has no answer yet is answered 403,
    /// of another the stream is reset (HTTP/2) or the connection ends (HTTP/1, WebSocket).
    pub fn judge_again(&self) {
        let under_way = self.0.under_way.borrow().all();
        under_way.iter().for_each(|exchange| exchange.judge_again());
    }

    /// Must a flow to this host be looked into although the policy lets it pass?
    #[must_use]
    pub fn wants(&self, host: &FlowHost, port: u16) -> bool {
        self.0.credentials.borrow().is_bound(&host.to_string(), port)
    }

    /// Drives one flow to its end: `guest` has its bytes from the first on, `dial` reaches its host.
    pub async fn flow(
        &self,
        flow: Flow,
        guest: impl Stream,
        dial: impl Dial + 'static,
        rules: Rc<dyn Rules>,
        sink: Rc<dyn Sink>,
    ) -> FlowEnd {
        let activity = Activity::new();
        let guest = Watched { inner: guest, activity: activity.clone() };
        let tasks = Tasks::default();
        let one = OneMore::new(&self.0);
        let limits = self.0.limits.beside(one.others);
        let run = Run { shared: Rc::clone(&self.0), limits, flow, rules, sink, tasks: tasks.clone() };
        tasks
            .drive(async move {
                tokio::select! {
                    end = run.run(guest, Box::new(dial)) => end,
                    () = activity.idle(limits.idle) => FlowEnd::Idle,
                }
            })
            .await
    }
}

/// One flow that there is.
struct OneMore<'a> {
    shared: &'a Shared,
    /// How many there were.
    others: usize,
}

impl<'a> OneMore<'a> {
    fn new(shared: &'a Shared) -> Self {
        let others = shared.flows.get();
        shared.flows.set(others.saturating_add(1));
        Self { shared, others }
    }
}

impl Drop for OneMore<'_> {
    fn drop(&mut self) {
        self.shared.flows.set(self.shared.flows.get().saturating_sub(1));
    }
}

/// One flow on its way.
struct Run {
    shared: Rc<Shared>,
    limits: Limits,
    flow: Flow,
    rules: Rc<dyn Rules>,
    sink: Rc<dyn Sink>,
    tasks: Tasks,
}

impl Run {
    async fn run(self, guest: impl Stream, dial: Box<dyn Dial>) -> FlowEnd {
        let limits = self.limits;
        let (kind, guest) = match tokio::time::timeout(limits.head, sniff(guest)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return FlowEnd::Broken(error.to_string()),
            Err(_) => return FlowEnd::Idle,
        };
        match kind {
            Kind::Nothing => FlowEnd::Closed,
            Kind::Tls => self.secure(guest, dial).await,
            Kind::Http1 | Kind::Http2 => {
                let http2 = kind == Kind::Http2;
                match self.upstream(dial, None, http2) {
                    Some(upstream) => self.serve(Box::new(guest), upstream, false, http2).await,
                    None => FlowEnd::Refused("the host cannot be named".into()),
                }
            }
        }
    }

    fn upstream(&self, dial: Box<dyn Dial>, tls: Option<TlsTo>, http2: bool) -> Option<Upstream> {
        let authority = crate::head::authority(&self.flow, tls.is_some())?;
        Some(Upstream::new(dial, tls, http2, authority, self.limits, self.tasks.clone()))
    }

    /// Ends the guest's TLS, after upstream's is up.
    async fn secure(self, guest: impl Stream, dial: Box<dyn Dial>) -> FlowEnd {
        let limits = self.limits;
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), guest);
        let start = match tokio::time::timeout(limits.handshake, acceptor).await {
            Ok(Ok(start)) => start,
            Ok(Err(error)) => return self.refuse(Decision::Malformed, format!("no ClientHello: {error}")),
            Err(_) => return FlowEnd::Idle,
        };
        let hello = start.client_hello();
        if !tls::sni_agrees(&self.flow, hello.server_name()) {
            let asked = hello.server_name().unwrap_or_default().to_owned();
            return self.refuse(
                Decision::Mismatch,
                format!("the TLS handshake is for {asked}, the connection is to {}", self.flow),
            );
        }
        let Some((offer, said)) = tls::offer(hello.alpn()) else {
            return self
                .refuse(Decision::Malformed, "no HTTP among the protocols of the TLS handshake".into());
        };
        let config = self.shared.upstream_tls(offer);
        let Some(name) = tls::server_name(&self.flow.host, hello.server_name()) else {
            return self.refuse(Decision::Malformed, "the host's name can be in no certificate".into());
        };
        let Some(upstream) = self.upstream(dial, Some(TlsTo { config, name }), offer == Offer::Http2) else {
            return self.refuse(Decision::Malformed, "the host cannot be named".into());
        };
        // When it fails the requests will try again, and tell the guest why in words.
        let _ = upstream.prepare().await;
        let alpn = tls::answer(offer, said, upstream.speaks_http2());
        let config = self.shared.leaves.borrow_mut().config(&self.flow.host, alpn, SystemTime::now());
        let config = match config {
            Ok(config) => config,
            Err(error) => return self.refuse(Decision::UpstreamFailed, error.to_string()),
        };
        match tokio::time::timeout(limits.handshake, start.into_stream(config)).await {
            Ok(Ok(stream)) => self.serve(Box::new(stream), upstream, true, alpn == Alpn::H2).await,
            Ok(Err(error)) => FlowEnd::Broken(format!("the guest broke off the TLS handshake: {error}")),
            Err(_) => FlowEnd::Idle,
        }
    }

    /// Records what ended the flow before there was a request.
    fn refuse(&self, decision: Decision, why: String) -> FlowEnd {
        self.sink.request(RequestRecord {
            method: String::new(),
            host: self.flow.host.to_string(),
            port: self.flow.port,
            path: String::new(),
            status: 0,
            sent: 0,
            received: 0,
            rule: None,
            layer: None,
            decision,
            secrets: Vec::new(),
            detail: Some(why.clone()),
            remedy: None,
        });
        FlowEnd::Refused(why)
    }

    async fn serve(self, guest: Box<dyn Stream>, upstream: Upstream, secure: bool, http2: bool) -> FlowEnd {
        let tasks = self.tasks.clone();
        let service = Rc::new(Service {
            limits: self.limits,
            flow: self.flow,
            secure,
            rules: self.rules,
            sink: self.sink,
            upstream,
            shared: self.shared,
            waiting: Cell::new(0),
            answered: tokio::sync::Notify::new(),
            unclaimed: RefCell::new(None),
            tunnel: RefCell::new(None),
        });
        let result = if http2 {
            serve_http2(guest, &service, tasks).await
        } else {
            serve_http1(guest, &service).await
        };
        let tunnel = service.tunnel.borrow_mut().take();
        let unclaimed = service.unclaimed.borrow_mut().take();
        if let Some(tunnel) = tunnel {
            tunnel.await;
        } else if let Some(Ok(connection)) = maybe(unclaimed).await {
            // hyper leaves the goodbye to whom it hands the connection over; without one the last answer could be lost.
            let _ = TokioIo::new(connection).shutdown().await;
        }
        match result {
            Ok(()) => FlowEnd::Closed,
            Err(error) if error.is_timeout() => FlowEnd::Idle,
            Err(error) if error.is_user() => FlowEnd::Closed,
            Err(error) => FlowEnd::Broken(describe(&error)),
        }
    }
}

/// What comes of it, if it is there.
async fn maybe<F: Future>(future: Option<F>) -> Option<F::Output> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}

async fn serve_http1(guest: Box<dyn Stream>, service: &Rc<Service>) -> hyper::Result<()> {
    let limits = service.limits;
    let answer = Rc::clone(service);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .preserve_header_case(true)
        .max_headers(limits.headers)
        .max_buf_size(buffer(limits.head_bytes))
        .auto_date_header(false)
        .serve_connection(
            TokioIo::new(guest),
            service_fn(move |request: Request<Incoming>| {
                let service = Rc::clone(&answer);
                async move { service.serve(request).await }
            }),
        )
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        // The host is done with its connection: so are we with the guest's, once the answer under way is over.
        () = service.closed() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

async fn serve_http2(guest: Box<dyn Stream>, service: &Rc<Service>, tasks: Tasks) -> hyper::Result<()> {
    let limits = service.limits;
    let answer = Rc::clone(service);
    http2::Builder::new(tasks)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(limits.error_resets)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_header_list_size(limits.head_bytes)
        .max_send_buf_size(SEND_BUFFER)
        .auto_date_header(false)
        .serve_connection(
            TokioIo::new(guest),
            service_fn(move |request: Request<Incoming>| {
                let service = Rc::clone(&answer);
                async move { service.serve(request).await }
            }),
        )
        .await
}
