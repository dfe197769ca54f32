//! The Autobahn TestSuite (its case files, run by PyPI's `kosoku`) through the terminating path: TLS with the guest, TLS with the host, the
//! WebSocket between them. Fetched from its registry by digest and kept; without it, or without Python 3.10, the cases are skipped and say so.

#[path = "../flows/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use intercept::{Flow, FlowHost};
use libtest_mimic::{Arguments, Failed, Trial};
use policy::{Decision, Policy, PolicySet, Preset, Resource, Rule};
use serde::Deserialize;
use support::{Tcp, World};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tungstenite::{Message, WebSocket};

/// What is fetched, by digest. Both are for the test alone.
const PACKAGES: &str = "\
kosoku==0.1.0 --hash=sha256:a9b34e593defe29d931e346c88947b58a015495f09dd13643e4cc952c75602ac
websockets==17.4 --hash=sha256:c6bd2c9781915592b209160d0f017d4c7c82ad53075e6b0c24d2a89299e7f9e9
";

/// Where all of it listens.
const ADDRESS: &str = "127.0.0.1";

/// The driver.
const DRIVE: &str = include_str!("drive.py");

/// All but compression, which the server here (tungstenite) has not.
const PLAIN: [&str; 8] = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"];

/// Limits (9): one size of each kind. The others differ in size alone.
const LIMITS: [&str; 8] = ["9.1.3", "9.2.3", "9.3.5", "9.4.5", "9.5.5", "9.6.5", "9.7.4", "9.8.4"];

/// Compression (12, 13): each kind of data and each offer once.
const COMPRESSED: [&str; 12] = [
    "12.1.1", "12.2.3", "12.3.1", "12.4.3", "12.5.1", "13.1.1", "13.2.3", "13.3.1", "13.4.3", "13.5.1",
    "13.6.3", "13.7.1",
];

#[derive(Debug, Deserialize)]
struct Verdict {
    case: String,
    behavior: String,
    close: String,
    passed: bool,
    why: String,
}

/// One case: what it is called and what it does with the suite in its folder.
type Case = (&'static str, fn(&Path) -> Result<(), Failed>);

fn main() {
    let arguments = Arguments::from_args();
    let cases: [Case; 3] = [
        ("autobahn_drives_a_server_behind_us", server_behind_us),
        ("autobahn_drives_a_client_behind_us", client_behind_us),
        ("autobahn_agrees_on_no_compression_through_us", compressed),
    ];
    // Names are asked for without running anything.
    let suite = if arguments.list { Err("not looked for".to_owned()) } else { suite() };
    let trials = cases.map(|(name, case)| match &suite {
        Ok(folder) => {
            let folder = folder.clone();
            Trial::test(name, move || case(&folder))
        }
        Err(why) => {
            let why = why.clone();
            Trial::ignorable_test(name, move || Ok(libtest_mimic::Completion::ignored_with(why)))
        }
    });
    libtest_mimic::run(&arguments, trials.into()).exit();
}

/// The folder with the packages, fetched if they are not there; the error says what is missing.
fn suite() -> Result<PathBuf, String> {
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cache = home.ok_or("there is no home folder")?.join("vivarium/suites");
    let folder = cache.join("autobahn-kosoku-0.1.0");
    if folder.join("kosoku").is_dir() {
        return Ok(folder);
    }
    let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
    std::fs::create_dir_all(&cache).map_err(|error| failed("the cache cannot be made", error))?;
    let new = tempfile::tempdir_in(&cache).map_err(|error| failed("the cache cannot be written", error))?;
    let list = new.path().join("packages.txt");
    std::fs::write(&list, PACKAGES).map_err(|error| failed("the cache cannot be written", error))?;
    let target = new.path().join("target");
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"])
        .arg("--target")
        .arg(&target)
        .arg("--requirement")
        .arg(&list)
        .output()
        .map_err(|error| failed("python3 cannot be run", error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("pip: {}", said.lines().last().unwrap_or("no word")));
    }
    // Another process may have been faster: its folder is the same.
    if std::fs::rename(&target, &folder).is_err() && !folder.is_dir() {
        return Err("the packages cannot be kept".into());
    }
    Ok(folder)
}

/// A driver that runs; killed when dropped.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drive(folder: &Path, arguments: &[&str]) -> (Driver, impl BufRead + use<>) {
    let mut child = Command::new("python3")
        .args(["-c", DRIVE])
        .args(arguments)
        .env("PYTHONPATH", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 ran before");
    let out = child.stdout.take().expect("it is piped");
    (Driver(child), BufReader::new(out))
}

fn verdicts(out: impl BufRead) -> Vec<Verdict> {
    let lines = out.lines().map_while(Result::ok);
    lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn port(out: &mut impl BufRead) -> u16 {
    let mut line = String::new();
    out.read_line(&mut line).expect("the driver speaks");
    line.trim().parse().expect("a port")
}

/// Each message comes back, as each of Autobahn's servers and clients under test has it.
fn echo(mut socket: WebSocket<StdStream>) {
    while let Ok(message) = socket.read() {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).is_err() {
            break;
        }
    }
}

/// A server that echoes, in threads.
fn echo_server() -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || tungstenite::accept(stream).map(echo).ok());
        }
    });
    address
}

/// Where the guest connects, without TLS: what stands behind speaks TLS with the interceptor for it, and the interceptor with the host,
/// whose TLS is ended before `server`.
async fn path_to(world: Rc<World>, server: SocketAddr) -> SocketAddr {
    let front = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let behind = front.local_addr().expect("an address");
    let tls = world.authority.server(&[ADDRESS], &["http/1.1"]);
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = front.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls));
            tokio::task::spawn_local(async move {
                let (Ok(mut stream), Ok(mut server)) =
                    (acceptor.accept(stream).await, TcpStream::connect(server).await)
                else {
                    return;
                };
                let _ = copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
    let guests = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = guests.local_addr().expect("an address");
    // The suite's Host field has the address that it connects to, so the flow is one to that address.
    let resource = Resource::parse(&address.to_string()).expect("an address");
    *world.rules.0.borrow_mut() = Policy::compile(&PolicySet {
        sandbox: "box".into(),
        preset: Preset::DenyAll,
        local: vec![Rule::new(Decision::Allow, resource)],
        ..PolicySet::default()
    });
    let flow = Flow { host: FlowHost::Address(address.ip()), port: address.port() };
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = guests.accept().await {
            let (world, flow) = (Rc::clone(&world), flow.clone());
            tokio::task::spawn_local(async move {
                let (guest, _flow) = world.open_to(flow, Tcp(behind));
                let mut guest = world.tls(guest, ADDRESS, &["http/1.1"]).await.expect("TLS with the guest");
                let _ = copy_bidirectional(&mut stream, &mut guest).await;
            });
        }
    });
    address
}

/// Runs what blocks beside the path.
fn through<T: Send + 'static>(
    server: SocketAddr,
    test: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> (T, Vec<intercept::RequestRecord>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let world = Rc::new(World::new());
        let address = path_to(Rc::clone(&world), server).await;
        let result = tokio::task::spawn_blocking(move || test(address)).await.expect("no panic");
        (result, world.log.records.take())
    })
}

/// The verdicts of the suite's client on `server`, through the path.
fn client_through(folder: &Path, server: SocketAddr, cases: &[&str]) -> Vec<Verdict> {
    let (folder, cases) =
        (folder.to_owned(), cases.iter().map(|case| (*case).to_owned()).collect::<Vec<_>>());
    let (verdicts, records) = through(server, move |address| {
        let url = format!("ws://{address}/");
        let arguments: Vec<&str> =
            ["client", &url].into_iter().chain(cases.iter().map(String::as_str)).collect();
        let (_driver, out) = drive(&folder, &arguments);
        verdicts(out)
    });
    assert!(records.iter().all(|record| record.status == 101), "{records:?}");
    verdicts
}

fn judged(verdicts: &[Verdict], least: usize) -> Result<(), Failed> {
    println!("{} cases of Autobahn", verdicts.len());
    if verdicts.len() < least {
        return Err(format!("{} cases ran, at least {least} are there", verdicts.len()).into());
    }
    let failed: Vec<String> = verdicts
        .iter()
        .filter(|verdict| !verdict.passed)
        .map(|verdict| format!("{}: {}, {}: {}", verdict.case, verdict.behavior, verdict.close, verdict.why))
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("{}\n{}", failed.len(), failed.join("\n")).into()) }
}

/// All cases, and once more those that failed, if they are few: the suite ends most of them a second after they have begun, which a
/// busy machine may not have for them.
fn tried_again(mut run: impl FnMut(&[&str]) -> Vec<Verdict>) -> Vec<Verdict> {
    let (mut all, failed): (Vec<_>, Vec<_>) =
        run(&[&PLAIN[..], &LIMITS].concat()).into_iter().partition(|verdict| verdict.passed);
    let mut again = Vec::new();
    if (1..=8).contains(&failed.len()) {
        let names: Vec<&str> = failed.iter().map(|verdict| verdict.case.as_str()).collect();
        println!("once more: {names:?}");
        again = run(&names);
    }
    // What says nothing of one of them says nothing.
    all.extend(if again.len() == failed.len() { again } else { failed });
    all
}

fn server_behind_us(folder: &Path) -> Result<(), Failed> {
    let server = echo_server();
    judged(&tried_again(|cases| client_through(folder, server, cases)), 240)
}

/// A server that could compress is not offered it: what is compressed cannot be watched for placeholders.
fn compressed(folder: &Path) -> Result<(), Failed> {
    let (_server, mut out) = drive(folder, &["echo"]);
    let address = SocketAddr::from(([127, 0, 0, 1], port(&mut out)));
    let verdicts = client_through(folder, address, &COMPRESSED);
    if verdicts.len() != COMPRESSED.len() {
        return Err(format!("{} cases ran", verdicts.len()).into());
    }
    match verdicts.iter().find(|verdict| verdict.behavior != "UNIMPLEMENTED") {
        Some(verdict) => Err(format!("{}: compressed messages went through us unseen", verdict.case).into()),
        None => Ok(()),
    }
}

/// The suite is the hostile server, a client of tungstenite's the guest.
fn client_behind_us(folder: &Path) -> Result<(), Failed> {
    judged(&tried_again(|cases| server_through(folder, cases)), 240)
}

/// The verdicts of the suite's server on a client behind the path.
fn server_through(folder: &Path, cases: &[&str]) -> Vec<Verdict> {
    let arguments: Vec<&str> = ["server"].into_iter().chain(cases.iter().copied()).collect();
    let (_driver, mut out) = drive(folder, &arguments);
    let server = SocketAddr::from(([127, 0, 0, 1], port(&mut out)));
    through(server, |address| {
        let connect = |path: &str| {
            let stream = StdStream::connect(address).expect("the path is there");
            let request = tungstenite::http::Request::get(format!("ws://{address}{path}"))
                .header("Host", address.to_string())
                .header("Connection", "Upgrade")
                .header("Upgrade", "websocket")
                .header("Sec-WebSocket-Version", "13")
                .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key());
            tungstenite::client(request.body(()).expect("a request"), stream).map(|(socket, _)| socket).ok()
        };
        let mut count = connect("/getCaseCount").expect("a handshake");
        let count: usize = match count.read().expect("a message") {
            Message::Text(text) => text.parse().expect("a number"),
            other => panic!("{other:?}"),
        };
        for case in 1..=count {
            if let Some(socket) = connect(&format!("/runCase?case={case}&agent=viv")) {
                echo(socket);
            }
        }
        let mut done = connect("/updateReports?agent=viv").expect("a handshake");
        while done.read().is_ok() {}
    });
    verdicts(out)
}
