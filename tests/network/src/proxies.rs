//! Upstream proxies: HTTP's CONNECT (RFC 9110 §9.3.6), in clear and over TLS, and SOCKS5 (RFC 1928, RFC 1929). They keep what they were asked, know the
//! addresses that they are told, and refuse the rest.

use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::web::listen;

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// CONNECT, with Basic authentication.
    Connect,
    /// The same, over TLS.
    ConnectOverTls,
    /// SOCKS5, with a user's name and password.
    Socks5,
}

/// A proxy's user and password.
pub const LOGIN: (&str, &str) = ("proxy-user", "p@ss word");

/// A proxy that runs until the end; a handle of it.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where it is.
    pub address: SocketAddr,
    speaks: Speaks,
    routes: Arc<HashMap<String, SocketAddr>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// One that connects to these names, as `host:port`. Needs the runtime of the cases.
    pub(crate) fn start(
        address: SocketAddr,
        speaks: Speaks,
        routes: HashMap<String, SocketAddr>,
        tls: Option<Arc<ServerConfig>>,
    ) -> std::io::Result<Self> {
        let listener = listen(address)?;
        listener.set_nonblocking(true)?;
        let proxy = Self { address, speaks, routes: Arc::new(routes), asked: Arc::default() };
        let listener = TcpListener::from_std(listener)?;
        let each = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (each, tls) = (each.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(config) => each.serve(TlsAcceptor::from(config).accept(stream).await?).await,
                        None => each.serve(stream).await,
                    }
                });
            }
        });
        Ok(proxy)
    }

    /// What it was asked for, as `host:port`, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its URL, with the login.
    pub fn url(&self) -> String {
        let scheme = match self.speaks {
            Speaks::Connect => "http",
            Speaks::ConnectOverTls => "https",
            Speaks::Socks5 => "socks5",
        };
        format!("{scheme}://proxy-user:p%40ss%20word@{}", self.address)
    }

    async fn serve(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let target = match self.speaks {
            Speaks::Connect | Speaks::ConnectOverTls => connect(&mut stream).await?,
            Speaks::Socks5 => socks5(&mut stream).await?,
        };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(target.clone());
        let upstream = match self.routes.get(&target) {
            Some(address) => TcpStream::connect(address).await.ok(),
            None => None,
        };
        let answer: &[u8] = match (self.speaks == Speaks::Socks5, upstream.is_some()) {
            (false, true) => b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n",
            (false, false) => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            (true, true) => &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            // "connection not allowed by ruleset"
            (true, false) => &[5, 2, 0, 1, 0, 0, 0, 0, 0, 0],
        };
        stream.write_all(answer).await?;
        stream.flush().await?;
        if let Some(mut upstream) = upstream {
            copy_bidirectional(&mut stream, &mut upstream).await?;
        }
        Ok(())
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

async fn connect(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).map_err(|_| invalid("a head that is no text"))?;
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| line.strip_prefix("CONNECT ")?.strip_suffix(" HTTP/1.1"));
    let target = target.ok_or_else(|| invalid("no CONNECT"))?.to_owned();
    let login = STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    let shown = lines.filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("proxy-authorization") && value.trim() == format!("Basic {login}")
    });
    if shown {
        return Ok(target);
    }
    stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n").await?;
    Err(invalid("no login"))
}

async fn socks5(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<String> {
    const PASSWORD: u8 = 2;
    let (version, methods) = (stream.read_u8().await?, counted(stream).await?);
    if version != 5 || !methods.contains(&PASSWORD) {
        return Err(invalid("no SOCKS5 with a password"));
    }
    stream.write_all(&[5, PASSWORD]).await?;
    let (version, user, password) = (stream.read_u8().await?, counted(stream).await?, counted(stream).await?);
    if version != 1 || user != LOGIN.0.as_bytes() || password != LOGIN.1.as_bytes() {
        stream.write_all(&[1, 1]).await?;
        return Err(invalid("a wrong login"));
    }
    stream.write_all(&[1, 0]).await?;
    let mut request = [0; 4];
    stream.read_exact(&mut request).await?;
    let host = match request {
        // CONNECT, to a name.
        [5, 1, 0, 3] => {
            String::from_utf8(counted(stream).await?).map_err(|_| invalid("a name that is no text"))?
        }
        _ => return Err(invalid("no CONNECT to a name")),
    };
    Ok(format!("{host}:{}", stream.read_u16().await?))
}

/// Bytes behind their count.
async fn counted(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
