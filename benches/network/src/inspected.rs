//! What looking into HTTPS adds to a request.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_proto::abi::GATEWAY_IPV4;
use anyhow::{Context, Result, bail};
use policy::{Decision, Methods, PathPattern, Resource, Rule};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream};

use crate::alone::latency;
use crate::peer::Id;
use crate::server::serve;
use crate::side::Side;
use crate::table::{Rows, Unit};

pub(crate) const COLUMNS: [&str; 2] = ["inspected", "passed through"];
/// Both are the same server; rules say what becomes of each.
const NAMES: [&str; 2] = ["inspected.example.com", "passed.example.com"];
const REQUESTS: usize = 2_000;
const CONNECTIONS: usize = 50;
/// Bytes of an answer.
const ANSWER: usize = 1024;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Requests to both names in turn, each on a connection of its own, and first requests of new connections.
pub(crate) fn measure(program: &Path, times: usize, rows: &mut Rows) -> Result<()> {
    let (server, root) = certificates()?;
    let port = https(server)?;
    let rule = |host: &str| -> Result<Rule> {
        Ok(Rule::new(Decision::Allow, Resource::parse(&format!("{host}:{port}"))?))
    };
    let http = rule(NAMES[0])?.with_http(Methods::parse("GET")?, PathPattern::parse("/**")?)?;
    let rules = vec![http, rule(NAMES[1])?, rule("127.0.0.1")?];
    let mut side = Side::gateway_with(program, rules, &NAMES, vec![root])?;
    let client = client();
    let mut clients = Vec::new();
    for name in NAMES {
        side.host = side.peer.resolve(GATEWAY_IPV4, name)?;
        clients.push((name, side.host));
    }
    for _ in 0..times {
        for (column, (name, address)) in COLUMNS.into_iter().zip(&clients) {
            side.host = *address;
            let mut took = Vec::new();
            for _ in 0..CONNECTIONS {
                let begun = Instant::now();
                let mut tls = Tls::open(&mut side, &client, name, port)?;
                tls.request(&mut side)?;
                took.push(begun.elapsed());
                side.peer.abort(tls.id)?;
            }
            latency(rows, "a new connection and its first request", column, &mut took);
            let mut tls = Tls::open(&mut side, &client, name, port)?;
            for _ in 0..50 {
                tls.request(&mut side)?;
            }
            let mut took = Vec::with_capacity(REQUESTS);
            for _ in 0..REQUESTS {
                let begun = Instant::now();
                tls.request(&mut side)?;
                took.push(begun.elapsed());
            }
            latency(rows, "a request on an open connection", column, &mut took);
            side.peer.abort(tls.id)?;
        }
    }
    let all = crate::costs::resident(side.pid)?;
    rows.add("resident memory after all that", Unit::Bytes, COLUMNS[0], all as f64);
    Ok(())
}

/// A server's certificate for both names, and the root that it stands on.
fn certificates() -> Result<(Arc<ServerConfig>, Vec<u8>)> {
    let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key)?.der().to_vec();
    let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    let leaf = CertificateParams::new(names)?.signed_by(&key, &Issuer::new(params, &root_key))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    Ok((Arc::new(config), root))
}

/// HTTP/1.1 over TLS: every request has the same answer.
fn https(config: Arc<ServerConfig>) -> Result<u16> {
    serve(move |mut tcp| {
        let _ = tcp.set_nodelay(true);
        let Ok(mut tls) = ServerConnection::new(Arc::clone(&config)) else { return };
        let mut stream = Stream::new(&mut tls, &mut tcp);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {ANSWER}\r\n\r\n");
        let mut answer = head.into_bytes();
        answer.resize(answer.len() + ANSWER, b'a');
        let (mut request, mut buffer) = (Vec::new(), vec![0; 4096]);
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            request.extend_from_slice(&buffer[..read]);
            while let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
                request.drain(..end + 4);
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        }
    })
}

/// The guest believes whatever it is shown: who signed it is not what is measured.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn client() -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map(|builder| builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider()))));
    let mut config = config.map_or_else(
        |_| unreachable!("ring has the default versions"),
        |builder| builder.with_no_client_auth(),
    );
    // Each connection makes a whole handshake.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// A guest's TLS connection.
struct Tls {
    id: Id,
    tls: ClientConnection,
    request: Vec<u8>,
}

impl Tls {
    fn open(side: &mut Side, client: &Arc<ClientConfig>, name: &'static str, port: u16) -> Result<Self> {
        let id = side.peer.connect(side.to(port), false);
        let tls = ClientConnection::new(Arc::clone(client), ServerName::try_from(name)?)?;
        let request =
            format!("GET /thing HTTP/1.1\r\nHost: {name}:{port}\r\nAccept: */*\r\n\r\n").into_bytes();
        Ok(Self { id, tls, request })
    }

    /// One request; the whole answer has come.
    fn request(&mut self, side: &mut Side) -> Result<()> {
        self.tls.writer().write_all(&self.request)?;
        let (mut answer, begun) = (Vec::new(), Instant::now());
        loop {
            let mut out = Vec::new();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut out)?;
            }
            if !out.is_empty() {
                side.peer.send(self.id, &out);
            }
            let head = answer.windows(4).position(|four: &[u8]| four == b"\r\n\r\n");
            if head.is_some_and(|head| answer.len() == head + 4 + ANSWER) {
                let begins_well = answer.starts_with(b"HTTP/1.1 200 ");
                return if begins_well { Ok(()) } else { bail!("it is answered otherwise") };
            }
            side.peer.turn(Duration::from_millis(100))?;
            if begun.elapsed() > Duration::from_secs(10) || side.peer.is_over(self.id) {
                bail!("no answer: {}", String::from_utf8_lossy(&answer));
            }
            let came = side.peer.take(self.id);
            let mut came = came.as_slice();
            while !came.is_empty() {
                self.tls.read_tls(&mut came)?;
                let state = self.tls.process_new_packets().context("TLS with the gateway")?;
                let old = answer.len();
                answer.resize(old + state.plaintext_bytes_to_read(), 0);
                self.tls.reader().read_exact(&mut answer[old..])?;
            }
        }
    }
}
