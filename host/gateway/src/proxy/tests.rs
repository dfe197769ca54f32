use policy::{HostKey, Protocol};
use tokio::net::TcpListener;

use super::*;

fn target(host: &str, port: u16) -> Target {
    Target { host: HostKey::parse(host).unwrap(), port, protocol: Protocol::Tcp }
}

fn table(https: &str, no_proxy: &[&str]) -> ProxyTable {
    let no_proxy = no_proxy.iter().map(|text| (*text).to_owned()).collect();
    ProxyTable::new(&Proxies { https: Some(https.into()), no_proxy, ..Proxies::default() }, &[])
}

#[test]
fn urls_are_read_and_malformed_ones_are_not() {
    let proxy = Proxy::parse("http://us%40er:p%3Aw@proxy.example:3128/").unwrap();
    assert_eq!((proxy.scheme, proxy.port), (Scheme::Http, 3128));
    assert_eq!(proxy.login, Some(("us@er".into(), "p:w".into())));
    assert_eq!(Proxy::parse("proxy.example").unwrap().port, 80);
    let sealed = Proxy::parse("https://proxy.example").unwrap();
    assert_eq!((sealed.scheme, sealed.port), (Scheme::Https, 443));
    let socks = Proxy::parse("socks5h://[2001:db8::1]").unwrap();
    assert_eq!(
        (socks.scheme, socks.port, socks.host),
        (Scheme::Socks5, 1080, ProxyHost::Address("2001:db8::1".parse().unwrap()))
    );
    for url in ["", "http://", "ftp://x", "http://a b", "http://x:99999", "http://[::1", "socks4://x"] {
        assert!(Proxy::parse(url).is_err(), "{url}");
    }
    assert!(!format!("{proxy:?}").contains("p:w"));
}

#[test]
fn the_list_of_direct_hosts_holds_as_curl_has_it() {
    let table = table(
        "http://p.example",
        &["internal.example", ".corp", "10.0.0.0/8", "192.0.2.1", "one.example:8443", "*.star.example"],
    );
    for (host, port, direct) in [
        ("internal.example", 443, true),
        ("deep.internal.example", 443, true),
        ("notinternal.example", 443, false),
        ("x.corp", 443, true),
        ("10.200.1.1", 443, true),
        ("11.0.0.1", 443, false),
        ("192.0.2.1", 22, true),
        ("one.example", 8443, true),
        ("one.example", 443, false),
        ("a.star.example", 443, true),
        ("localhost", 443, true),
        ("2001:db8::1", 443, false),
    ] {
        assert_eq!(table.choose(&target(host, port)).is_none(), direct, "{host}:{port}");
    }
    assert!(self::table("http://p.example", &["*"]).choose(&target("x.example", 443)).is_none());
    // Another proxy for port 80, or none.
    assert!(table.choose(&target("x.example", 80)).is_none());
    let all = ProxyTable::new(&Proxies { all: Some("socks5://p.example".into()), ..Proxies::default() }, &[]);
    assert!(all.choose(&target("x.example", 80)).is_some() && all.choose(&target("x.example", 22)).is_some());
}

#[test]
fn what_would_go_by_a_proxy_that_cannot_be_read_goes_nowhere() {
    let table = table("socks4://p.example", &["direct.example"]);
    assert!(table.check().is_err());
    assert!(matches!(table.choose(&target("x.example", 443)), Some(Err(_))));
    assert!(table.choose(&target("direct.example", 443)).is_none());
    assert!(table.choose(&target("x.example", 80)).is_none());
}

/// Runs `open` against a server that expects `says` and answers with the second part, in turn.
async fn against(proxy: &str, host: &str, turns: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Vec<u8>, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (expected, answer) in turns {
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
            stream.write_all(&answer).await.unwrap();
        }
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let opened = open(&Proxy::parse(proxy).unwrap(), None, stream, &target(host, 443)).await;
    server.await.unwrap();
    opened.map(|(_, early)| early)
}

#[tokio::test]
async fn connect_asks_by_name_with_the_login_and_keeps_what_came_early() {
    let head = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n";
    let yes = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n220 early".to_vec();
    let opened = against("http://user:pass@p.example", "a.example", vec![(head.into(), yes)]).await;
    assert_eq!(opened.unwrap(), b"220 early");
    let head = "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n";
    for no in [
        "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        "HTTP/1.1 2000 x\r\n\r\n",
        "SSH-2.0 200\r\n\r\n",
        "",
    ] {
        let opened = against("http://p.example", "2001:db8::1", vec![(head.into(), no.into())]).await;
        assert!(opened.is_err(), "{no}");
    }
    let endless = [b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'x'; LONGEST_ANSWER * 2]].concat();
    assert!(against("http://p.example", "2001:db8::1", vec![(head.into(), endless)]).await.is_err());
}

#[tokio::test]
async fn socks_asks_by_name_with_the_login() {
    let request = [&[5, 1, 0, 3, 9][..], b"a.example", &[1, 187]].concat();
    let answer = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0].to_vec();
    let plain = vec![(vec![5, 1, 0], vec![5, 0]), (request.clone(), answer.clone())];
    against("socks5://p.example", "a.example", plain).await.unwrap();
    let login = [&[1, 4][..], b"user", &[4], b"pass"].concat();
    let named = [5, 0, 0, 3, 3, b'x', b'y', b'z', 0, 0].to_vec();
    let with_login =
        vec![(vec![5, 2, 0, 2], vec![5, 2]), (login.clone(), vec![1, 0]), (request.clone(), named)];
    against("socks5://user:pass@p.example", "a.example", with_login).await.unwrap();
    let refused = vec![(vec![5, 2, 0, 2], vec![5, 2]), (login, vec![1, 1])];
    assert!(against("socks5://user:pass@p.example", "a.example", refused).await.is_err());
    let no = vec![(vec![5, 1, 0], vec![5, 0]), (request, vec![5, 2, 0, 1])];
    assert!(against("socks5://p.example", "a.example", no).await.unwrap_err().contains("code 2"));
    assert!(against("socks5://p.example", "a.example", vec![(vec![5, 1, 0], vec![5, 255])]).await.is_err());
}

/// A proxy over TLS with this certificate: says what it was asked, then all that comes, backwards.
async fn sealed_proxy(
    certified: &rcgen::CertifiedKey<rcgen::KeyPair>,
) -> (TcpStream, tokio::task::JoinHandle<String>) {
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_no_client_auth();
    let config = config.with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let Ok(mut stream) = acceptor.accept(stream).await else { return String::new() };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nearly").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest.reverse();
        stream.write_all(&rest).await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8(head).unwrap()
    });
    (TcpStream::connect(address).await.unwrap(), server)
}

#[tokio::test]
async fn a_proxy_over_tls_is_checked_and_carries_both_ways() {
    let certified = rcgen::generate_simple_self_signed(vec!["p.example".into()]).unwrap();
    let roots = [certified.cert.der().to_vec()];
    let https = |url: &str, roots: &[Vec<u8>]| {
        let table = ProxyTable::new(&Proxies { https: Some(url.into()), ..Proxies::default() }, roots);
        let proxy = table.choose(&target("a.example", 443)).unwrap().unwrap();
        (table, proxy)
    };
    let (table, proxy) = https("https://u:p@p.example", &roots);
    let (stream, server) = sealed_proxy(&certified).await;
    let (mut wire, mut early) = open(&proxy, table.tls(), stream, &target("a.example", 443)).await.unwrap();
    // More than the buffers of TLS and socket hold, by tries, as the relay does it.
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    let mut left = &sent[..];
    std::future::poll_fn(|cx| {
        while !left.is_empty() {
            std::task::ready!(wire.poll_write_ready(cx)).unwrap();
            match wire.try_write(left) {
                Ok(count) => left = &left[count..],
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        std::task::Poll::Ready(())
    })
    .await;
    wire.shutdown().await.unwrap();
    let mut room = [0; 7_000];
    std::future::poll_fn(|cx| {
        loop {
            std::task::ready!(wire.poll_read_ready(cx)).unwrap();
            match wire.try_read(&mut room) {
                Ok(0) => return std::task::Poll::Ready(()),
                Ok(count) => early.extend_from_slice(&room[..count]),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    })
    .await;
    assert!(server.await.unwrap().contains("Proxy-Authorization: Basic dTpw"));
    let expected: Vec<u8> = b"early".iter().chain(sent.iter().rev()).copied().collect();
    assert!(early == expected, "{} bytes", early.len());

    // Another name, or nobody whom the host trusts: nothing is asked.
    let other = rcgen::generate_simple_self_signed(vec!["other.example".into()]).unwrap();
    for (url, roots) in [
        ("https://elsewhere.example", &roots[..]),
        ("https://p.example", &[other.cert.der().to_vec()]),
        ("https://p.example", &[]),
    ] {
        let (table, proxy) = https(url, roots);
        let (stream, server) = sealed_proxy(&certified).await;
        assert!(open(&proxy, table.tls(), stream, &target("a.example", 443)).await.is_err(), "{url}");
        assert_eq!(server.await.unwrap(), "");
    }
}
