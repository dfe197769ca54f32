//! Servers that keep every byte that came to them, connection by connection, whatever it is.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use e2e::Verdict;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::{How, Net, listen, wrong};

/// What a server says: it is given what came since it last said something, and answers when that is enough.
pub type Answers = Arc<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync>;

/// A server; a handle of it.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Where it is.
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Says back what it hears.
pub fn repeats() -> Answers {
    Arc::new(|heard| Some(heard.to_vec()))
}

/// Says nothing.
pub fn listens() -> Answers {
    Arc::new(|_| None)
}

/// Answers as this function says, whenever a head of a request is whole. It knows nothing of bodies.
pub fn to_heads(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Answers {
    Arc::new(move |heard| {
        let text = String::from_utf8_lossy(heard);
        let head = text.find("HTTP/1.1\r\n").and_then(|_| text.split_once("\r\n\r\n"))?.0;
        Some(answer(head))
    })
}

impl Raw {
    /// The bytes that each connection brought, in order.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of them as text, one after the other.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.heard().concat()).into_owned()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.heard().len()
    }
}

async fn serve<S>(mut stream: S, heard: Arc<Mutex<Vec<Vec<u8>>>>, number: usize, answers: Answers)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut fresh = Vec::new();
    let mut piece = vec![0; 65536];
    // How it ends is the case's to judge, from the other side.
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        let piece = piece.get(..count).unwrap_or_default();
        if let Some(all) = heard.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number) {
            all.extend_from_slice(piece);
        }
        fresh.extend_from_slice(piece);
        if let Some(answer) = answers(&fresh) {
            fresh.clear();
            if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
    let _ = stream.shutdown().await;
}

impl Net {
    /// A server of this name, at an address of its own, which the name server knows from then on.
    pub fn raw(&self, name: &str, how: How<'_>, answers: Answers) -> Result<Raw, Verdict> {
        let port = how.port.unwrap_or(if how.alpn.is_empty() { 80 } else { 443 });
        let address = SocketAddr::new(self.address(how.six), port);
        self.names.addresses(name, &[address.ip()]);
        let acceptor = if how.alpn.is_empty() {
            None
        } else {
            let certificate = self.authority.certify(&[name]).map_err(|error| wrong(&error))?;
            Some(TlsAcceptor::from(certificate.server(how.alpn)?))
        };
        let raw = Raw { address, heard: Arc::default() };
        let heard = raw.heard.clone();
        let listener = listen(address)?;
        listener.set_nonblocking(true)?;
        let _inside = self.runtime().enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut all = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (heard, answers, acceptor) = (heard.clone(), answers.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, heard, number, answers).await,
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            serve(stream, heard, number, answers).await;
                        }
                    }
                });
            }
        });
        Ok(raw)
    }
}

/// Echoes the datagrams that come to an address, until the end.
pub fn datagrams(address: SocketAddr) -> Result<(), Verdict> {
    let socket = UdpSocket::bind(address)?;
    std::thread::spawn(move || {
        let mut datagram = vec![0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(datagram.get(..length).unwrap_or_default(), from);
        }
    });
    Ok(())
}
