//! A guest, a host and the interceptor between them, all on one thread.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod wire;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use intercept::{
    Dial, Dialling, Flow, FlowEnd, FlowHost, Intercept, Limits, RequestRecord, RootCa, Rules, Settings, Sink,
    Stream, Undecided,
};
use policy::{Decision, Methods, Name, PathPattern, Policy, PolicySet, Preset, Resource, Rule};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

/// The host that everything is about.
pub(crate) const HOST: &str = "api.example.com";

pub(crate) type AnyBody = Pin<Box<dyn Body<Data = Bytes, Error = io::Error>>>;
pub(crate) type Served = Pin<Box<dyn Future<Output = Response<AnyBody>>>>;

pub(crate) fn bytes(data: impl Into<Bytes>) -> AnyBody {
    Box::pin(Full::new(data.into()).map_err(|never| match never {}))
}

/// A body whose pieces come from a channel.
pub(crate) fn channel() -> (mpsc::UnboundedSender<Frame<Bytes>>, AnyBody) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|frame| frame.map(Ok)));
    (sender, Box::pin(StreamBody::new(stream)))
}

pub(crate) fn ok(data: impl Into<Bytes>) -> Response<AnyBody> {
    Response::new(bytes(data))
}

/// Runs a test on one thread with tasks that need not be `Send`.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A certificate authority of the world outside.
pub(crate) struct Authority {
    key: KeyPair,
    params: CertificateParams,
    pub(crate) der: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "the world's root");
        let der = params.self_signed(&key).expect("a root").der().to_vec();
        Self { key, params, der }
    }

    /// A server's configuration for `names`.
    pub(crate) fn server(&self, names: &[&str], alpn: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let issuer = Issuer::new(self.params.clone(), &self.key);
        let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &issuer).expect("a leaf");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("a certificate");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A guest's configuration that trusts `root` alone.
pub(crate) fn client_config(root: &[u8], alpn: &[&str]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from(root.to_vec())).expect("a root");
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// The log.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) records: RefCell<Vec<RequestRecord>>,
    pub(crate) grants: RefCell<Vec<String>>,
}

impl Sink for Log {
    fn request(&self, record: RequestRecord) {
        self.records.borrow_mut().push(record);
    }

    fn grant(&self, grant: &vault::oauth::Grant) {
        self.grants.borrow_mut().push(grant.name().to_owned());
    }
}

pub(crate) struct Current(pub(crate) RefCell<Policy>, pub(crate) Cell<Undecided>);

impl Rules for Current {
    fn policy(&self) -> Policy {
        self.0.borrow().clone()
    }

    fn undecided(&self) -> Undecided {
        self.1.get()
    }
}

/// `("allow", "GET,HEAD", "/a/**")` for the host; methods "" for a rule without HTTP.
pub(crate) type RuleText<'a> = (&'a str, &'a str, &'a str);

pub(crate) fn policy(rules: &[RuleText<'_>]) -> Policy {
    let local = rules
        .iter()
        .map(|(decision, methods, path)| {
            let decision = if *decision == "allow" { Decision::Allow } else { Decision::Deny };
            let rule = Rule::new(decision, Resource::parse(HOST).expect("a host"));
            if methods.is_empty() {
                return rule;
            }
            rule.with_http(
                Methods::parse(methods).expect("methods"),
                PathPattern::parse(path).expect("a path"),
            )
            .expect("an HTTP rule")
        })
        .collect();
    Policy::compile(&PolicySet {
        sandbox: "box".into(),
        preset: Preset::DenyAll,
        local,
        ..PolicySet::default()
    })
}

/// Everything that one test has.
pub(crate) struct World {
    pub(crate) intercept: Intercept,
    pub(crate) root: RootCa,
    pub(crate) authority: Authority,
    pub(crate) log: Rc<Log>,
    pub(crate) rules: Rc<Current>,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = RootCa::load_or_make(folder.path(), SystemTime::now()).expect("a root");
        let authority = Authority::new();
        let ca = root.issue("box", SystemTime::now()).expect("an intermediate");
        let settings = Settings { ca, roots: vec![authority.der.clone()], limits };
        Self {
            intercept: Intercept::new(&settings).expect("an interceptor"),
            root,
            authority,
            log: Rc::default(),
            rules: Rc::new(Current(policy(&[("allow", "", "")]).into(), Undecided::Refuse.into())),
            _folder: folder,
        }
    }

    /// Other rules, from now on and for what is under way.
    pub(crate) fn rule(&self, rules: &[RuleText<'_>]) {
        *self.rules.0.borrow_mut() = policy(rules);
        self.intercept.judge_again();
    }

    /// The same for what no rule speaks of.
    pub(crate) fn undecided(&self, undecided: Undecided) {
        self.rules.1.set(undecided);
        self.intercept.judge_again();
    }

    /// Starts a flow to the host's port; the guest's end, and how it ends.
    pub(crate) fn open(
        &self,
        port: u16,
        dial: impl Dial + 'static,
    ) -> (DuplexStream, tokio::task::JoinHandle<FlowEnd>) {
        self.open_to(Flow { host: FlowHost::Name(Name::parse(HOST).expect("a name")), port }, dial)
    }

    pub(crate) fn open_to(
        &self,
        flow: Flow,
        dial: impl Dial + 'static,
    ) -> (DuplexStream, tokio::task::JoinHandle<FlowEnd>) {
        let (guest, ours) = tokio::io::duplex(64 * 1024);
        let (intercept, rules, log) = (self.intercept.clone(), Rc::clone(&self.rules), Rc::clone(&self.log));
        let flow = async move { intercept.flow(flow, ours, dial, rules, log).await };
        (guest, tokio::task::spawn_local(flow))
    }

    /// The guest's TLS over a flow.
    pub(crate) async fn tls(
        &self,
        guest: DuplexStream,
        name: &str,
        alpn: &[&str],
    ) -> io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
        let config = client_config(self.root.certificate_der(), alpn);
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        tokio_rustls::TlsConnector::from(config).connect(name, guest).await
    }

    /// A guest that speaks HTTP over TLS with the host behind `dial`.
    pub(crate) async fn client(&self, alpn: &[&str], dial: impl Dial + 'static) -> Client {
        let (guest, _) = self.open(443, dial);
        let stream = self.tls(guest, HOST, alpn).await.expect("TLS with the guest");
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Client::over(stream, http2).await
    }

    /// The records, once `count` are there: the last parts of an exchange end after its answer.
    pub(crate) async fn records(&self, count: usize) -> Vec<RequestRecord> {
        while self.log.records.borrow().len() < count {
            tokio::task::yield_now().await;
        }
        std::mem::take(&mut self.log.records.borrow_mut())
    }
}

/// A hyper client.
pub(crate) enum Client {
    Http1(hyper::client::conn::http1::SendRequest<AnyBody>),
    Http2(hyper::client::conn::http2::SendRequest<AnyBody>),
}

#[derive(Clone)]
pub(crate) struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

impl Client {
    pub(crate) async fn over(stream: impl Stream, http2: bool) -> Self {
        if http2 {
            let (sender, connection) = hyper::client::conn::http2::Builder::new(Local)
                .handshake(TokioIo::new(stream))
                .await
                .expect("HTTP/2");
            tokio::task::spawn_local(async move { drop(connection.await) });
            Self::Http2(sender)
        } else {
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1");
            tokio::task::spawn_local(async move { drop(connection.with_upgrades().await) });
            Self::Http1(sender)
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Sends a request for a path; HTTP/2 needs the whole URL.
    pub(crate) async fn send(&mut self, mut request: Request<AnyBody>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", http::HeaderValue::from_static(HOST));
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                if request.uri().authority().is_none() {
                    *request.uri_mut() = format!("https://{HOST}{}", request.uri()).parse().expect("a URL");
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> (http::response::Parts, Bytes) {
        let request = Request::get(path).body(bytes("")).expect("a request");
        whole(self.send(request).await.expect("an answer")).await
    }
}

pub(crate) async fn whole(response: Response<Incoming>) -> (http::response::Parts, Bytes) {
    let (head, body) = response.into_parts();
    (head, body.collect().await.expect("a body").to_bytes())
}

/// The host: what is done with each connection to it.
#[derive(Clone)]
pub(crate) struct Server {
    connect: Rc<dyn Fn(DuplexStream)>,
    pub(crate) dialled: Rc<Cell<usize>>,
}

impl Dial for Server {
    fn dial(&self) -> Dialling<'_> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        self.dialled.set(self.dialled.get() + 1);
        (self.connect)(far);
        Box::pin(async move { Ok(Box::new(near) as Box<dyn Stream>) })
    }
}

impl Server {
    pub(crate) fn new(connect: impl Fn(DuplexStream) + 'static) -> Self {
        Self { connect: Rc::new(connect), dialled: Rc::default() }
    }

    /// A hyper server, with TLS if there is a configuration; HTTP/2 when that was agreed on.
    pub(crate) fn hyper(
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(Request<Incoming>) -> Served + 'static,
    ) -> Self {
        let handler = Rc::new(handler);
        Self::new(move |stream| {
            let (tls, handler) = (tls.clone(), Rc::clone(&handler));
            tokio::task::spawn_local(async move {
                let Some(tls) = tls else { return serve(stream, false, handler).await };
                let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else { return };
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                serve(stream, http2, handler).await;
            });
        })
    }

    /// A server that answers each whole request that it sees with `answer`, and keeps all bytes.
    pub(crate) fn raw(answer: &'static [u8]) -> (Self, Rc<RefCell<Vec<u8>>>) {
        let seen: Rc<RefCell<Vec<u8>>> = Rc::default();
        let all = Rc::clone(&seen);
        let server = Self::new(move |mut stream| {
            let seen = Rc::clone(&all);
            tokio::task::spawn_local(async move {
                let mut ours = Vec::new();
                let mut answered = 0;
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    seen.borrow_mut().extend_from_slice(&buffer[..count]);
                    ours.extend_from_slice(&buffer[..count]);
                    let whole = request_lines(&ours).len();
                    for _ in answered..whole {
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                    answered = whole;
                }
            });
        });
        (server, seen)
    }
}

/// A host on a socket of this machine.
pub(crate) struct Tcp(pub(crate) std::net::SocketAddr);

impl Dial for Tcp {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(
            async move { Ok(Box::new(tokio::net::TcpStream::connect(self.0).await?) as Box<dyn Stream>) },
        )
    }
}

async fn serve(stream: impl Stream, http2: bool, handler: Rc<dyn Fn(Request<Incoming>) -> Served>) {
    let service = service_fn(move |request| {
        let served = handler(request);
        async move { Ok::<_, std::convert::Infallible>(served.await) }
    });
    if http2 {
        let _ = hyper::server::conn::http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }
}

/// What one case of many says, or that it waits for ever: a minute is enough for any.
pub(crate) async fn in_time(case: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let minute = std::time::Duration::from_secs(60);
    tokio::time::timeout(minute, case).await.unwrap_or_else(|_| Err("it does not end".into()))
}

/// Sends bytes to a flow and reads all that comes back until it ends.
pub(crate) async fn raw_exchange(mut guest: impl Stream, sent: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let (mut read, mut write) = tokio::io::split(&mut guest);
    let write = async {
        // Refused in the middle is fine.
        let _ = write.write_all(sent).await;
        let _ = write.flush().await;
    };
    let read = async {
        let _ = read.read_to_end(&mut answer).await;
    };
    tokio::join!(write, read);
    answer
}

/// The status of each answer in a stream of HTTP/1 answers.
pub(crate) fn statuses(answers: &[u8]) -> Vec<u16> {
    String::from_utf8_lossy(answers)
        .lines()
        .filter_map(|line| line.split("HTTP/1.1 ").nth(1))
        .filter_map(|rest| rest.split(' ').next()?.parse().ok())
        .collect()
}

/// The request lines in a stream of HTTP/1 requests, each with its body complete, read by the letter of RFC 9112.
pub(crate) fn request_lines(mut requests: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = request.parse(requests) else { return lines };
        let value = |name: &str| {
            let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(field.value).into_owned())
        };
        let hosts: Vec<_> = request
            .headers
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case("host"))
            .map(|field| field.value)
            .collect();
        let with_port = format!("{HOST}:80");
        assert!(
            hosts == [HOST.as_bytes()] || hosts == [with_port.as_bytes()],
            "one Host, and ours: {hosts:?}"
        );
        let rest = &requests[length..];
        let rest = match (value("transfer-encoding"), value("content-length")) {
            (Some(_), _) => behind_chunks(rest),
            (None, Some(length)) => rest.get(length.parse().expect("a length")..),
            (None, None) => Some(rest),
        };
        let Some(rest) = rest else { return lines };
        lines.push(format!("{} {}", request.method.expect("complete"), request.path.expect("complete")));
        requests = rest;
    }
}

/// What stands behind a chunked body; `None` if it is cut off.
fn behind_chunks(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(bytes) else {
            return None;
        };
        bytes = &bytes[at..];
        if size == 0 {
            if let Some(rest) = bytes.strip_prefix(b"\r\n") {
                return Some(rest);
            }
            let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
            return bytes.get(end + 4..);
        }
        bytes = bytes.get(usize::try_from(size).expect("small") + 2..)?;
    }
}
