//! Flows that are no HTTP: TCP both ways, UDP, and what a refusal looks like at once.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use e2e::{Case, Verdict, ensure};
use network::{NAME, Named, Net, listen};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const CASES: &[Named] = &[
    ("each_half_of_a_tcp_connection_ends_for_itself", halves),
    ("many_connections_at_once_keep_their_bytes", many),
    ("udp_goes_by_its_own_rule_and_a_refusal_is_heard_at_once", udp),
    ("an_address_goes_by_a_rule_with_its_network_alone", literal),
    ("a_rule_that_goes_resets_what_is_open", changed),
];

/// A server that says `ready`, reads to the end, and only then gives back what it read.
fn afterwards(net: &Net, name: &str, port: u16) -> Result<SocketAddr, Verdict> {
    let address = SocketAddr::new(net.address(false), port);
    net.names.addresses(name, &[address.ip()]);
    afterwards_at(net, address)
}

fn afterwards_at(net: &Net, address: SocketAddr) -> Result<SocketAddr, Verdict> {
    let listener = listen(address)?;
    listener.set_nonblocking(true)?;
    let _inside = net.runtime().enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.write_all(b"ready\n").await?;
                stream.read_to_end(&mut all).await?;
                stream.write_all(&all).await?;
                stream.shutdown().await
            });
        }
    });
    Ok(address)
}

/// Sends to the end, then reads to the end; `COUNT` connections of `BYTES` each are open at the same time.
const CLIENT: &str = r#"
import hashlib, os, socket, sys
host, port, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def rest(s):
    pieces = []
    while piece := s.recv(65536):
        pieces.append(piece)
    return b''.join(pieces)
def line(s):
    word = b''
    while not word.endswith(b'\n'):
        word += s.recv(1)
    return word
sockets = [socket.create_connection((host, port), 60) for _ in range(count)]
assert all(line(s) == b'ready\n' for s in sockets)
sent = [os.urandom(size) for _ in sockets]
for s, data in zip(sockets, sent):
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
print(sum(rest(s) == data for s, data in zip(sockets, sent)))
"#;

fn client(net: &Net, host: &str, port: u16, count: u32, size: u32) -> Result<String, Verdict> {
    std::fs::write(net.shared().join("halves.py"), CLIENT)?;
    net.guest_ok(&format!("timeout 200 python3 halves.py {host} {port} {count} {size}"))
}

fn halves(net: &Net) -> Case {
    afterwards(net, "halves.example", 7)?;
    net.allow(&["halves.example:7"])?;
    let said = client(net, "halves.example", 7, 1, 10_000_000)?;
    ensure(said == "1", said)
}

fn many(net: &Net) -> Case {
    afterwards(net, "crowd.example", 7)?;
    net.allow(&["crowd.example:7"])?;
    let said = client(net, "crowd.example", 7, 150, 20_000)?;
    ensure(said == "150", said)
}

/// Sends datagrams and says what came back, in order.
const DATAGRAMS: &str = r#"
import socket, sys
for host, port in (('datagrams.example', 9000), ('datagrams.example', 9001), ('stream.example', 9000)):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(60)
    try:
        s.connect((socket.getaddrinfo(host, port, socket.AF_INET)[0][4]))
        for size in (0, 1, 1200, 9000):
            s.send(bytes(size))
            print(len(s.recv(65535)), end=' ')
        print()
    except OSError as error:
        print(type(error).__name__)
"#;

fn udp(net: &Net) -> Case {
    let name = "datagrams.example";
    let address = net.address(false);
    let open = |port| -> Result<(), Verdict> {
        let socket = UdpSocket::bind((address, port))?;
        std::thread::spawn(move || {
            let mut datagram = vec![0; 65536];
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                if let Some(datagram) = datagram.get(..length) {
                    let _ = socket.send_to(datagram, from);
                }
            }
        });
        Ok(())
    };
    open(9000)?;
    open(9001)?;
    net.names.addresses(name, &[address]);
    net.names.addresses("stream.example", &[address]);
    net.allow(&["--protocol", "udp", "datagrams.example:9000"])?;
    // A rule about TCP is none about UDP.
    net.allow(&["stream.example:9000"])?;
    std::fs::write(net.shared().join("datagrams.py"), DATAGRAMS)?;
    let said = net.guest_ok("python3 datagrams.py")?;
    ensure(said == "0 1 1200 9000 \nConnectionRefusedError\nConnectionRefusedError", said)?;
    // A port that was not tried yet: the same is told once.
    let hint =
        net.told("bash -c 'echo > /dev/udp/datagrams.example/9002'", "datagrams.example:9002/udp  (")?;
    let remedy = format!("allow: viv policy allow --sandbox {NAME} datagrams.example:9002 --protocol udp");
    ensure(hint.contains(&remedy), hint)
}

fn literal(net: &Net) -> Case {
    let four = afterwards(net, "literal.example", 7)?.ip();
    let six = afterwards_at(net, SocketAddr::new(net.address(true), 7))?.ip();
    net.names.addresses("literal.example", &[four, six]);
    // By its name it is allowed, by its addresses it is not.
    net.allow(&["literal.example:7"])?;
    for (address, host, network) in [
        (four, four.to_string(), format!("{four}/32:7")),
        (six, format!("[{six}]"), format!("[{six}/128]:7")),
    ] {
        let connect = |port: u16| {
            format!("timeout 60 bash -c 'read -r word < /dev/tcp/{address}/{port}; echo $word' 2>&1")
        };
        let said = net.guest(&connect(7))?;
        ensure(said.text().contains("Connection refused"), format!("{said:?}"))?;
        // Another port: the same is told once.
        let hint = net.told(&connect(8), &format!("{host}:8  ("))?;
        let remedy = format!("allow: viv policy allow --sandbox {NAME} ");
        // Brackets are quoted for a shell.
        let is_it = |rest: &str| rest.trim_start_matches('\'').starts_with(&format!("{host}:8"));
        ensure(hint.split_once(&remedy).is_some_and(|(_, rest)| is_it(rest)), &hint)?;
        net.allow(&[&network])?;
        let said = net.guest(&connect(7))?;
        net.forget(&network)?;
        ensure(said.text() == "ready", format!("{said:?}"))?;
    }
    Ok(())
}

/// Holds a connection open until it is reset, and says so in a file at once.
const HELD: &str = "timeout 200 python3 -c \"import socket
s = socket.create_connection(('changed.example', 7))
print(s.recv(6).decode(), end='', flush=True)
open('held', 'w')
try: print('said', s.recv(1))
except ConnectionResetError:
    open('reset', 'w')
    print('reset')\"";

/// A changed rule holds within a second; a machine has other things to do, too.
const SOON: Duration = Duration::from_secs(10);

fn changed(net: &Net) -> Case {
    afterwards(net, "changed.example", 7)?;
    resets(net, "viv policy rm", || net.forget("changed.example:7"))?;
    resets(net, "the file edited by hand", || edited(net, "changed.example:7"))
}

/// What is open is reset soon after a change that takes its rule away.
fn resets(net: &Net, what: &str, change: impl Fn() -> Case) -> Case {
    net.allow(&["changed.example:7"])?;
    let folder = net.shared();
    let [held, reset] = ["held", "reset"].map(|name| folder.join(name));
    for file in [&held, &reset] {
        let _ = std::fs::remove_file(file);
    }
    let (took, said) = std::thread::scope(|scope| -> Result<_, Verdict> {
        let session = scope.spawn(|| net.guest(HELD));
        let took = (|| {
            e2e::eventually("the connection is open", || held.exists())?;
            change()?;
            let begun = Instant::now();
            e2e::eventually("the reset", || reset.exists())?;
            Ok::<_, Verdict>(begun.elapsed())
        })();
        let said = session.join().map_err(|_| Verdict::Wrong("the session panicked".into()))?;
        Ok((took?, said?))
    })?;
    ensure(said.text() == "ready\nreset", format!("{what}: {said:?}"))?;
    println!("{what}: held {} ms later", took.as_millis());
    ensure(took < SOON, format!("{what}: the reset came after {took:?}"))
}

/// Takes the rules about a resource from the shared sandbox's file, as an editor does: the new file in the place of the old one.
fn edited(net: &Net, resource: &str) -> Case {
    let path = net.world.folder(NAME)?.join("policy.json");
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    let rules = file["rules"].as_array_mut().ok_or_else(|| Verdict::Wrong("no rules".into()))?;
    let before = rules.len();
    rules.retain(|rule| rule["resource"] != resource);
    ensure(rules.len() + 1 == before, format!("{resource} is not there once"))?;
    let fresh = path.with_extension("json.fresh");
    std::fs::write(&fresh, serde_json::to_string_pretty(&file)?)?;
    Ok(std::fs::rename(&fresh, &path)?)
}
