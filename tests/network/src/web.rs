//! Web servers of the namespace: HTTP/1.1 and HTTP/2 by hyper, in TLS or without, which keep what they were asked.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

/// The body of an answer.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Broken>;
/// Why a body broke off.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;
/// An answer under way.
pub type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
/// What a server does with a request.
pub type Handler = Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync>;

/// A handler of an asynchronous function.
pub fn handler<F, A>(serve: F) -> Handler
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    Arc::new(move |request| Box::pin(serve(request)))
}

/// A body of any kind.
pub fn body<B>(of: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Broken>,
{
    of.map_err(Into::into).boxed_unsync()
}

/// An answer of these bytes at once.
pub fn answer(status: StatusCode, data: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body(Full::new(data.into())));
    *response.status_mut() = status;
    response
}

/// A server that answers `METHOD PATH VERSION` and the bytes that the body had.
pub fn echo() -> Handler {
    handler(|request: Request<Incoming>| async move {
        let line = format!("{} {} {:?}\n", request.method(), request.uri().path(), request.version());
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        answer(StatusCode::OK, [line.as_bytes(), &body].concat())
    })
}

/// A request that came in, as far as its head goes.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// The target, as it was written.
    pub target: Uri,
    /// The protocol's version.
    pub version: Version,
    /// The header fields.
    pub headers: HeaderMap,
}

/// A server that runs until the end; a handle of it.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: SocketAddr,
    /// Its certificate, DER; empty without TLS.
    pub certificate: Vec<u8>,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<Mutex<usize>>,
}

impl Site {
    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections it had so far.
    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server at `address`, in TLS if there is a certificate. Needs the runtime of the cases.
    pub(crate) fn start(
        name: &str,
        address: SocketAddr,
        certificate: Vec<u8>,
        tls: Option<Arc<ServerConfig>>,
        serve: Handler,
    ) -> std::io::Result<Self> {
        let listener = listen(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let site = Self {
            name: name.to_owned(),
            address,
            certificate,
            seen: Arc::default(),
            connections: Arc::default(),
        };
        let acceptor = tls.map(TlsAcceptor::from);
        let (seen, connections) = (site.seen.clone(), site.connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *connections.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                let (acceptor, seen, serve) = (acceptor.clone(), seen.clone(), serve.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => converse(stream, false, seen, serve).await,
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                            converse(stream, h2, seen, serve).await;
                        }
                    }
                });
            }
        });
        Ok(site)
    }
}

async fn converse<S>(stream: S, h2: bool, seen: Arc<Mutex<Vec<Seen>>>, serve: Handler)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let entry = Seen {
            method: request.method().clone(),
            target: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        };
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        let answering = serve(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let stream = TokioIo::new(stream);
    // How a connection ends is the case's to judge, from the other side.
    let _ = if h2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(stream, service).with_upgrades().await
    };
}

/// A socket that listens at any address of the namespace, also where no network card has it.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let (family, wide) = match address.ip() {
        IpAddr::V4(_) => (AddressFamily::INET, false),
        IpAddr::V6(_) => (AddressFamily::INET6, true),
    };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if wide {
        sockopt::set_ipv6_freebind(&socket, true)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1024)?;
    Ok(TcpListener::from(socket))
}
