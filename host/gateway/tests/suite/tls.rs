//! TLS on both sides of the gateway: a server on this host with an authority of its own, a client in the guest.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use crate::guest::Guest;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use smoltcp::iface::SocketHandle;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a server of this name shows, and in DER the authority that it is signed by.
pub(crate) fn certified(name: &str) -> (Arc<rustls::ServerConfig>, Vec<u8>) {
    let (key, root_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let der = root.self_signed(&root_key).unwrap().der().to_vec();
    let leaf = CertificateParams::new(vec![name.into()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(root, &root_key)).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    (Arc::new(config), der)
}

/// A server of HTTPS that answers the first bytes of every connection with 200; its port, and its authority in DER.
pub(crate) fn https(name: &str) -> (u16, Vec<u8>) {
    let (config, root) = certified(name);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            std::thread::spawn(move || {
                let mut stream = rustls::StreamOwned::new(tls, stream);
                // An error: the client does not trust it.
                if let Ok(1..) = stream.read(&mut [0; 4096]) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            });
        }
    });
    (port, root)
}

/// What a guest that trusts this authority is answered by the server on a connection, to its end.
pub(crate) fn exchange(
    guest: &mut Guest,
    handle: SocketHandle,
    (server, root): (&str, &[u8]),
    request: &str,
) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.to_vec().into()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider());
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(server.to_owned()).unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    // It waits in there until the handshake is done.
    tls.writer().write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    guest.until("the answer", |guest| {
        let socket = guest.tcp(handle);
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out).unwrap();
        }
        if socket.may_send() {
            assert_eq!(socket.send_slice(&out).unwrap(), out.len());
        }
        while socket.can_recv() {
            socket
                .recv(|part| {
                    let mut rest: &[u8] = part;
                    (tls.read_tls(&mut rest).unwrap(), ())
                })
                .unwrap();
            tls.process_new_packets().unwrap();
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = tls.reader().read(&mut piece) {
                answer.extend_from_slice(&piece[..count]);
            }
        }
        (!socket.may_recv()).then_some(())
    });
    String::from_utf8(answer).unwrap()
}
