//! Any bytes as what a guest sends on an inspected flow: what reaches the host is whole requests for this host, in one reading, that the rules allow.

use std::cell::RefCell;
use std::rc::Rc;

use intercept::{
    Dial, Dialling, Flow, FlowHost, Intercept, Limits, RequestRecord, RootCa, Rules, Settings, Sink, Stream,
};
use policy::{Decision, Methods, Name, PathPattern, Policy, PolicySet, Preset, Resource, Rule};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const HOST: &str = "api.example.com";

/// What came on each connection.
type Seen = Rc<RefCell<Vec<Vec<u8>>>>;

struct Host(Seen);

impl Dial for Host {
    fn dial(&self) -> Dialling<'_> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::task::spawn_local(answer(far, Rc::clone(&self.0)));
        Box::pin(async move { Ok(Box::new(near) as Box<dyn Stream>) })
    }
}

/// Answers each head that it sees, and keeps all bytes.
async fn answer(mut stream: DuplexStream, seen: Seen) {
    let mut all = Vec::new();
    let mut answered = 0;
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        all.extend_from_slice(&buffer[..count]);
        let heads = all.windows(4).filter(|window| *window == b"\r\n\r\n").count();
        for _ in answered..heads {
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                break;
            }
        }
        answered = heads;
    }
    seen.borrow_mut().push(all);
}

/// One connection's bytes: requests, the last one perhaps cut off. How many heads there are.
fn check(mut bytes: &[u8]) -> usize {
    let mut heads = 0;
    // The guest spoke HTTP/2, so hyper does: its frames are read by `h2_suite` and `h2_host` of the crate's own tests.
    if bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM") {
        return heads;
    }
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(status) = request.parse(bytes) else { panic!("no request: {}", bytes.escape_ascii()) };
        let httparse::Status::Complete(length) = status else { return heads };
        heads += 1;
        assert_eq!(request.method, Some("GET"), "{}", bytes.escape_ascii());
        let path = request.path.expect("complete");
        let open =
            ["/public", "/%70ublic", "/p%75blic", "//", "/;"].iter().any(|begin| path.starts_with(begin))
                || path.contains('%');
        assert!(open && !path.contains("/../"), "{path}");
        let values = |name: &str| -> Vec<&[u8]> {
            request
                .headers
                .iter()
                .filter(|field| field.name.eq_ignore_ascii_case(name))
                .map(|field| field.value)
                .collect()
        };
        let hosts = values("host");
        assert!(hosts == [HOST.as_bytes()] || hosts == [format!("{HOST}:80").as_bytes()], "{hosts:?}");
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "{}", bytes.escape_ascii());
        for name in ["proxy-authorization", "proxy-connection", "keep-alive", "http2-settings"] {
            assert!(values(name).is_empty(), "{name}");
        }
        bytes = &bytes[length..];
        if let [length] = lengths.as_slice() {
            let length: usize = std::str::from_utf8(length).expect("text").parse().expect("a length");
            bytes = bytes.get(length..).unwrap_or_default();
        } else if let [coding] = codings.as_slice() {
            assert_eq!(*coding, b"chunked");
            let Some(rest) = behind_chunks(bytes) else { return heads };
            bytes = rest;
        }
    }
    heads
}

/// What stands behind a chunked body; `None` if it is cut off.
fn behind_chunks(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let httparse::Status::Complete((at, size)) =
            httparse::parse_chunk_size(bytes).expect("chunks as hyper writes them")
        else {
            return None;
        };
        bytes = &bytes[at..];
        if size == 0 {
            let end = bytes.windows(2).position(|window| window == b"\r\n")?;
            // No trailers are declared by what is allowed here, or they end with an empty line.
            let end =
                if end == 0 { 2 } else { bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4 };
            return bytes.get(end..);
        }
        bytes = bytes.get(usize::try_from(size).expect("small") + 2..)?;
    }
}

struct Fixed(Policy);

impl Rules for Fixed {
    fn policy(&self) -> Policy {
        self.0.clone()
    }
}

struct Nobody;

impl Sink for Nobody {
    fn request(&self, record: RequestRecord) {
        assert!(!record.path.contains('\n') && record.path.len() < 16_384);
    }

    fn grant(&self, _: &vault::oauth::Grant) {}
}

fn intercept() -> Intercept {
    let folder = tempfile::tempdir().expect("a folder");
    let root = RootCa::load_or_make(folder.path(), std::time::SystemTime::now()).expect("a root");
    let ca = root.issue("fuzz", std::time::SystemTime::now()).expect("an intermediate");
    let roots = vec![root.certificate_der().to_vec()];
    Intercept::new(&Settings { ca, roots, limits: Limits::default() }).expect("an interceptor")
}

thread_local! {
    static INTERCEPT: Intercept = intercept();
}

fn policy() -> Policy {
    let rule = |decision, path| {
        let rule = Rule::new(decision, Resource::parse(HOST).expect("a host"));
        rule.with_http(Methods::parse("GET").expect("methods"), PathPattern::parse(path).expect("a path"))
            .expect("a rule")
    };
    let local = vec![rule(Decision::Allow, "/public/**"), rule(Decision::Deny, "/public/closed/**")];
    Policy::compile(&PolicySet {
        sandbox: "fuzz".into(),
        preset: Preset::DenyAll,
        local,
        ..PolicySet::default()
    })
}

/// One input: the guest's bytes.
pub(crate) fn run(data: &[u8]) {
    heads(data);
}

/// The same, and how many requests reached the host.
pub(crate) fn heads(data: &[u8]) -> usize {
    // TLS would need a client: what is under it is the same.
    if data.first() == Some(&0x16) {
        return 0;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (mut guest, ours) = tokio::io::duplex(64 * 1024);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let flow = Flow { host: FlowHost::Name(Name::parse(HOST).expect("a name")), port: 80 };
        let (host, rules) = (Host(Rc::clone(&seen)), Rc::new(Fixed(policy())));
        let intercept = INTERCEPT.with(Clone::clone);
        let flow = tokio::task::spawn_local(async move {
            intercept.flow(flow, ours, host, rules, Rc::new(Nobody)).await
        });
        // More than the pipe takes is cut: what comes back is not read.
        let _ = guest.write_all(&data[..data.len().min(60 * 1024)]).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(guest);
        flow.await.expect("no panic");
        // The host's side ends with the flow's.
        while Rc::strong_count(&seen) > 1 {
            tokio::task::yield_now().await;
        }
        seen.borrow().iter().map(|bytes| check(bytes)).sum()
    })
}
