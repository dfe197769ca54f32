//! Connections to the flow's host: dialled when needed, verified, kept for the flow and never shared beyond it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::{Authority, Parts as UriParts, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::Limits;
use crate::body::Payload;
use crate::tasks::Tasks;

/// A byte stream. `Send` is what hyper asks of what may be upgraded.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// What [`Dial::dial`] gives back.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + 'a>>;

/// Opens byte streams to the flow's own host and port, and to nothing else.
pub trait Dial {
    /// One stream, without TLS. The first call may give a connection that is there already. Called again when upstream
    /// has closed one, or to have several at once.
    fn dial(&self) -> Dialling<'_>;
}

/// Why a request did not reach the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("the host cannot be reached: {0}")]
    Dial(io::Error),
    #[error("the host's certificate is not trusted: {0}")]
    Untrusted(String),
    #[error("TLS with the host failed: {0}")]
    Tls(String),
    #[error("the host did not answer in time")]
    Timeout,
    #[error("the host's HTTP cannot be understood: {0}")]
    Http(String),
    /// The connection ended before an answer; it had served requests before, so the client may just ask again.
    #[error("the host closed the connection")]
    Stale,
}

/// Where TLS towards the host is made.
pub(crate) struct TlsTo {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

/// A connection that is up.
enum Connection {
    Http1(http1::SendRequest<Payload>),
    Http2(http2::SendRequest<Payload>),
}

/// What one request gets.
enum Lease {
    Http1 { sender: http1::SendRequest<Payload>, used: bool, permit: OwnedSemaphorePermit },
    Http2(http2::SendRequest<Payload>),
}

/// The flow's connections to its host.
pub(crate) struct Upstream {
    dial: Box<dyn Dial>,
    tls: Option<TlsTo>,
    /// Without TLS: the guest spoke HTTP/2, so we do.
    prior_knowledge: bool,
    authority: Authority,
    limits: Limits,
    tasks: Tasks,
    idle: Rc<RefCell<Vec<http1::SendRequest<Payload>>>>,
    shared: RefCell<Option<http2::SendRequest<Payload>>>,
    room: Arc<Semaphore>,
    /// One dials at a time, so that requests that come together share an HTTP/2 connection.
    dialling: tokio::sync::Mutex<()>,
    /// An HTTP/1 connection ended while nothing was on it.
    pub(crate) closed: Rc<Notify>,
    negotiated: Cell<Option<bool>>,
}

impl Upstream {
    pub(crate) fn new(
        dial: Box<dyn Dial>,
        tls: Option<TlsTo>,
        prior_knowledge: bool,
        authority: Authority,
        limits: Limits,
        tasks: Tasks,
    ) -> Self {
        Self {
            dial,
            tls,
            prior_knowledge,
            authority,
            limits,
            tasks,
            idle: Rc::default(),
            shared: RefCell::new(None),
            room: Arc::new(Semaphore::new(limits.connections)),
            dialling: tokio::sync::Mutex::new(()),
            closed: Rc::new(Notify::new()),
            negotiated: Cell::new(None),
        }
    }

    /// Whether the last connection speaks HTTP/2; `None` before there was one.
    pub(crate) fn speaks_http2(&self) -> Option<bool> {
        self.negotiated.get()
    }

    /// Connects now, so that the guest can be told what upstream speaks.
    pub(crate) async fn prepare(&self) -> Result<(), UpstreamError> {
        match self.connect().await? {
            Connection::Http1(sender) => self.idle.borrow_mut().push(sender),
            Connection::Http2(sender) => *self.shared.borrow_mut() = Some(sender),
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, UpstreamError> {
        tokio::time::timeout(self.limits.handshake, self.connect_in_time())
            .await
            .map_err(|_| UpstreamError::Timeout)?
    }

    async fn connect_in_time(&self) -> Result<Connection, UpstreamError> {
        let stream = self.dial.dial().await.map_err(UpstreamError::Dial)?;
        let (stream, http2): (Box<dyn Stream>, bool) = match &self.tls {
            None => (stream, self.prior_knowledge),
            Some(tls) => {
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
                let stream = connector.connect(tls.name.clone(), stream).await.map_err(tls_error)?;
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                (Box::new(stream), http2)
            }
        };
        self.negotiated.set(Some(http2));
        if http2 { self.start_http2(stream).await } else { self.start_http1(stream).await }
    }

    async fn start_http1(&self, stream: Box<dyn Stream>) -> Result<Connection, UpstreamError> {
        let mut builder = http1::Builder::new();
        builder
            .preserve_header_case(true)
            .max_headers(self.limits.headers)
            .max_buf_size(buffer(self.limits.head_bytes));
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(http_error)?;
        let closed = Rc::clone(&self.closed);
        self.tasks.start(async move {
            // Its error reaches the request that was on it.
            let _ = connection.with_upgrades().await;
            closed.notify_one();
        });
        Ok(Connection::Http1(sender))
    }

    async fn start_http2(&self, stream: Box<dyn Stream>) -> Result<Connection, UpstreamError> {
        let mut builder = http2::Builder::new(self.tasks.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(self.limits.stream_window)
            .initial_connection_window_size(self.limits.connection_window)
            .max_header_list_size(self.limits.head_bytes)
            .max_send_buf_size(SEND_BUFFER);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(http_error)?;
        self.tasks.start(async move {
            let _ = connection.await;
        });
        Ok(Connection::Http2(sender))
    }

    /// A connection that can take a request, waiting for room on HTTP/1.
    async fn lease(&self) -> Result<Lease, UpstreamError> {
        if let Some(lease) = self.shared_http2() {
            return Ok(lease);
        }
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| UpstreamError::Timeout)?;
        if let Some(sender) = self.idle_http1().await {
            return Ok(Lease::Http1 { sender, used: true, permit });
        }
        let _one = self.dialling.lock().await;
        if let Some(lease) = self.shared_http2() {
            return Ok(lease);
        }
        Ok(match self.connect().await? {
            Connection::Http1(sender) => Lease::Http1 { sender, used: false, permit },
            Connection::Http2(sender) => {
                *self.shared.borrow_mut() = Some(sender.clone());
                Lease::Http2(sender)
            }
        })
    }

    fn shared_http2(&self) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        if shared.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *shared = None;
        }
        shared.clone().map(Lease::Http2)
    }

    async fn idle_http1(&self) -> Option<http1::SendRequest<Payload>> {
        loop {
            let mut sender = self.idle.borrow_mut().pop()?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    /// Sends one request; `chunked`: its body's length is not known. The request's target is its path, its Host field is set.
    pub(crate) async fn send(
        &self,
        request: Request<Payload>,
        chunked: bool,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut request = request;
        // What could not even be begun may be tried again, on a connection of its own.
        for _ in 0..3 {
            match self.lease().await? {
                Lease::Http2(mut sender) => {
                    fit_http2(&mut request, &self.authority, self.tls.is_some());
                    if sender.ready().await.is_err() {
                        self.forget_http2();
                        continue;
                    }
                    match sender.try_send_request(request).await {
                        Ok(response) => return Ok(response),
                        Err(mut error) => match error.take_message() {
                            Some(again) => {
                                self.forget_http2();
                                request = again;
                            }
                            None => return Err(http_error(error.into_error())),
                        },
                    }
                }
                Lease::Http1 { mut sender, used, permit } => {
                    fit_http1(&mut request, &self.authority, chunked);
                    match sender.try_send_request(request).await {
                        Ok(response) => {
                            self.keep(sender, permit);
                            return Ok(response);
                        }
                        Err(mut error) => match error.take_message() {
                            Some(again) => request = again,
                            None if used && is_lost(error.error()) => return Err(UpstreamError::Stale),
                            None => return Err(http_error(error.into_error())),
                        },
                    }
                }
            }
        }
        Err(UpstreamError::Stale)
    }

    fn forget_http2(&self) {
        *self.shared.borrow_mut() = None;
    }

    /// Takes a connection back once its answer has been read to the end.
    fn keep(&self, mut sender: http1::SendRequest<Payload>, permit: OwnedSemaphorePermit) {
        let idle = Rc::clone(&self.idle);
        self.tasks.start(async move {
            if sender.ready().await.is_ok() {
                idle.borrow_mut().push(sender);
            }
            drop(permit);
        });
    }
}

/// Bytes that wait for one HTTP/2 stream's window.
pub(crate) const SEND_BUFFER: usize = 128 * 1024;

/// hyper's read buffer for heads: it takes no less than 8 KiB.
pub(crate) fn buffer(head_bytes: u32) -> usize {
    (head_bytes as usize).max(8192)
}

fn http_error(error: hyper::Error) -> UpstreamError {
    if error.is_timeout() { UpstreamError::Timeout } else { UpstreamError::Http(describe(&error)) }
}

/// Did the connection just end?
fn is_lost(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed()
}

/// An error with its causes.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

fn tls_error(error: io::Error) -> UpstreamError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => UpstreamError::Untrusted(why.to_string()),
        Some(other) => UpstreamError::Tls(other.to_string()),
        None => UpstreamError::Tls(error.to_string()),
    }
}

/// HTTP/1: the target is the path, the host is a field, an unknown length is said as such (without it hyper sends a GET's
/// body not at all).
fn fit_http1(request: &mut Request<Payload>, authority: &Authority, chunked: bool) {
    *request.version_mut() = Version::HTTP_11;
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(path);
    }
    if !request.headers().contains_key(header::HOST)
        && let Ok(host) = HeaderValue::try_from(authority.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    if chunked && !request.body().is_end_stream() {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // `TE` is a field of the connection (RFC 9110 §10.1.4).
    if request.headers().contains_key(header::TE) {
        request.headers_mut().append(header::CONNECTION, HeaderValue::from_static("TE"));
    }
}

/// HTTP/2: the target is a whole URL, and there are no fields of a connection (RFC 9113 §8.2.2).
fn fit_http2(request: &mut Request<Payload>, authority: &Authority, secure: bool) {
    *request.version_mut() = Version::HTTP_2;
    // What was signed as the host is what is sent as the host.
    let host =
        request.headers_mut().remove(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        request.headers_mut().remove(name);
    }
    let mut parts = UriParts::default();
    parts.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(host.unwrap_or_else(|| authority.clone()));
    parts.path_and_query = request.uri().path_and_query().cloned();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}
