//! The network: registries under the default policy, what is refused and how that is seen, rules that hold at once, the record of it
//! all, ports in both directions, and a gateway that dies.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use e2e::{Case, LONG, Said, Verdict, World, end, ensure, eventually, long_cases};
use serde_json::Value;

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("apt_works_in_a_fresh_sandbox", apt),
    ("pip_and_npm_install_from_their_registries", pip_and_npm),
    ("cargo_builds_with_a_dependency", cargo),
    ("a_container_and_a_build_reach_the_registries", containers),
    ("cargo_builds_in_a_container_and_in_a_build", cargo_in_containers),
    ("a_refused_name_is_not_there_and_the_way_to_allow_it_is_said", refused_name),
    ("an_address_without_a_rule_is_refused_at_once", refused_address),
    ("check_says_what_enforcement_does", check_agrees),
    ("a_rule_holds_at_once_and_for_what_is_open_too", changed_rule),
    ("the_log_goes_on_over_restarts_and_adds_up", log),
    ("observe_prints_the_rules_that_the_work_needs", observe),
    ("a_policy_that_cannot_be_read_opens_nothing", unreadable),
    ("a_port_is_published_now_and_after_a_restart", ports),
    ("without_a_network_there_is_no_card", no_network),
    ("a_gateway_that_dies_comes_back", killed_gateway),
    ("what_is_written_wrongly_is_one_sentence", bad_input),
];

/// A sandbox that most cases share; none of them leaves rules behind.
const SHARED: &str = "network";
const NAME: &str = "shell-network";

fn apt(world: &World) -> Case {
    world.run(&["rm", "-f", NAME])?;
    let folder = world.project(SHARED);
    let script =
        "set -e; sudo apt-get update -q >/dev/null; sudo apt-get install -y -q hello >/dev/null; hello";
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "Hello, world!", said)
}

fn pip_and_npm(world: &World) -> Case {
    let folder = world.project(SHARED);
    let script = "set -e; cd /tmp; rm -rf v n; python3 -m venv v; v/bin/pip install -q --disable-pip-version-check six; \
                  v/bin/python -c 'import six; print(six.__name__)'; \
                  mkdir n; cd n; npm install --silent --no-fund --no-audit is-number >/dev/null; \
                  node -e 'console.log(require(\"is-number\")(7))'";
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "six\ntrue", said)
}

fn cargo(world: &World) -> Case {
    if !long_cases() {
        return Err(Verdict::Skipped(LONG.into()));
    }
    let folder = world.project(SHARED);
    let script = "set -e; sudo apt-get update -q >/dev/null; sudo apt-get install -y -q cargo >/dev/null; cd /tmp; rm -rf c; \
                  cargo -q new c; cd c; cargo -q add itoa; \
                  echo 'fn main() { println!(\"{}\", itoa::Buffer::new().format(7u32)); }' > src/main.rs; cargo -q run";
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "7", said)
}

/// What is done first in a container and in a build step: the image has no empty folders.
const PREPARE: &str = r"mkdir -p /tmp /var/cache/apt/archives/partial /var/cache/debconf /var/lib/apt/lists/partial /var/log/apt
chmod 1777 /tmp
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
";

/// What is done then, as root: the image has no user of npm's. Of what the guest has the image has files already.
const WORK: &str = r#"apt-get install -y -q --no-install-recommends --reinstall hello >/dev/null
hello
pip install -q --disable-pip-version-check --root-user-action ignore --target /s six
PYTHONPATH=/s python3 -c 'import six; print(six.__name__)'
cd /s
npm install --silent --no-fund --no-audit is-number >/dev/null
node -e 'console.log(require("is-number")(7))'
"#;

fn containers(world: &World) -> Case {
    in_both(world, WORK, "Hello, world!\nsix\ntrue")
}

/// The linker is the package's own: what a compiler's other names lead to may not be in the image.
const CARGO_WORK: &str = r#"apt-get install -y -q --reinstall cargo >/dev/null
export HOME=/built RUSTFLAGS=-Clinker=gcc
mkdir /built
cd /built
cargo -q new --vcs none c
cd c
cargo -q add itoa
echo 'fn main() { println!("{}", itoa::Buffer::new().format(7u32)); }' > src/main.rs
cargo -q build
target/debug/c
"#;

fn cargo_in_containers(world: &World) -> Case {
    if !long_cases() {
        return Err(Verdict::Skipped(LONG.into()));
    }
    in_both(world, CARGO_WORK, "7")
}

/// This work prints that in a container and in a build step. From an image made here, so that no registry of images is needed.
fn in_both(world: &World, work: &str, expected: &str) -> Case {
    let folder = world.project(SHARED);
    std::fs::write(folder.join("work.sh"), format!("{PREPARE}{work}"))?;
    std::fs::write(folder.join("Dockerfile"), "FROM e2e-net\nCOPY work.sh /\nRUN sh -e /work.sh > /said\n")?;
    let script = r#"set -e
(cd / && sudo tar c --one-file-system --exclude='*docker*' --exclude='*containerd*' --exclude=ctr bin sbin lib lib64 usr/bin usr/sbin usr/lib usr/lib64 usr/libexec usr/local usr/share/keyrings usr/share/dpkg usr/share/debconf usr/share/perl usr/share/perl5 etc/alternatives etc/debconf.conf etc/ld.so.conf etc/ld.so.conf.d etc/apt etc/ssl etc/passwd etc/group etc/nsswitch.conf var/lib/dpkg 2>/dev/null) | docker import - e2e-net >/dev/null
docker run --rm -v "$PWD/work.sh:/work.sh:ro" e2e-net sh -e /work.sh
docker build -q -t e2e-net-built . >/dev/null
docker run --rm e2e-net-built cat /said"#;
    let said = world.shell_ok(&folder, script)?;
    ensure(said == format!("{expected}\n{expected}"), said)
}

/// Host names that no rule of a preset is about.
const NOBODYS: &str = "viv-e2e.example.com";

fn refused_name(world: &World) -> Case {
    let folder = world.project(SHARED);
    let said = world.shell(&folder, &format!("getent hosts {NOBODYS}; echo $?"), b"")?;
    ensure(said.code == 0 && said.text() == "2", format!("{said:?}"))?;
    // The hint may come a moment after the command has ended; the record stays.
    let script = format!("getent hosts again.{NOBODYS}; sleep 3");
    let said = world.shell(&folder, &script, b"")?;
    let hint = said.err.lines().find(|line| line.contains(&format!("again.{NOBODYS}")));
    let hint = hint.ok_or_else(|| Verdict::Wrong(format!("no hint: {said:?}")))?;
    ensure(hint.starts_with("viv: blocked  ") && hint.contains("allow: viv policy allow"), hint)?;
    let records = records(world, NAME, &["--type", "refused"])?;
    let of_it = |record: &&Value| record["host"] == NOBODYS;
    ensure(records.iter().any(|record| of_it(&record)), format!("{records:?}"))
}

fn refused_address(world: &World) -> Case {
    let folder = world.project(SHARED);
    // A reset at once, and no long wait.
    for address in
        ["http://198.51.100.7/", "http://169.254.169.254/latest/meta-data/", "http://[2001:db8::7]/"]
    {
        let script = format!("curl -sS -g -m 20 '{address}'; echo code $?");
        let said = world.shell(&folder, &script, b"")?;
        ensure(said.text() == "code 7", format!("{address}: {said:?}"))?;
    }
    Ok(())
}

fn check_agrees(world: &World) -> Case {
    let folder = world.project(SHARED);
    for (target, code) in [("pypi.org", 0), (NOBODYS, 1), ("169.254.169.254:80", 1)] {
        let said = world.run(&["policy", "check", "--sandbox", NAME, target])?;
        ensure(said.code == code, format!("{target}: {said:?}"))?;
    }
    // The preset lets the index be read, and no more.
    let url = "https://pypi.org/simple/six/";
    for (method, allowed, status) in [("GET", true, "200"), ("POST", false, "403")] {
        let said = world.run(&["policy", "check", "network", "--json", "--sandbox", NAME, method, url])?;
        let verdict: Value = serde_json::from_str(&said.text())?;
        let script = format!("curl -sS -m 60 -o /dev/null -w '%{{http_code}}' -X {method} {url}");
        let happened = world.shell(&folder, &script, b"")?.text();
        ensure(
            verdict["allowed"] == allowed && happened == status,
            format!("{method}: {verdict}: {happened}"),
        )?;
    }
    Ok(())
}

/// A server of the host that answers each connection, or keeps it open when it says nothing.
fn server() -> Result<SocketAddr, Verdict> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || serve(connection));
        }
    });
    Ok(address)
}

fn serve(mut connection: TcpStream) {
    let mut request = [0u8; 4096];
    while let Ok(count @ 1..) = connection.read(&mut request) {
        let held = request.get(..count).is_some_and(|text| text.starts_with(b"GET /held"));
        let answer: &[u8] = if held {
            b"HTTP/1.1 200 OK\r\n\r\nheld\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
        };
        if connection.write_all(answer).is_err() {
            return;
        }
    }
}

fn changed_rule(world: &World) -> Case {
    let folder = world.project(SHARED);
    let port = server()?.port();
    let rule = format!("localhost:{port}");
    let url = format!("http://host.viv.internal:{port}");
    let get = || world.shell(&folder, &format!("curl -sS -m 20 {url}/"), b"");
    ensure(get()?.code != 0, "it is not allowed yet")?;
    let allowed = world.run(&["policy", "allow", "--sandbox", NAME, &rule])?;
    ensure(allowed.code == 0, format!("{allowed:?}"))?;
    ensure(get()?.text() == "yes", "the rule holds at once")?;
    let docker = world.shell(&folder, &format!("curl -sS -m 20 http://host.docker.internal:{port}/"), b"")?;
    ensure(docker.text() == "yes", format!("{docker:?}"))?;
    // One that is open when the rule goes is reset.
    let script = format!("curl -sS -N -m 100 {url}/held; echo code $?");
    let mut held = world
        .viv(&folder, ["exec", NAME, "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut out = held.stdout.take().ok_or_else(|| Verdict::Wrong("no output".into()))?;
    let mut first = [0u8; 5];
    out.read_exact(&mut first)?;
    let removed = world.run(&["policy", "rm", "--sandbox", NAME, "--resource", &rule])?;
    ensure(removed.code == 0, format!("{removed:?}"))?;
    let mut rest = String::new();
    let read = out.read_to_string(&mut rest);
    end(held);
    read?;
    ensure(
        first == *b"held\n"
            && rest.starts_with("code ")
            && !rest.starts_with("code 0")
            && !rest.starts_with("code 28"),
        rest,
    )?;
    ensure(get()?.code != 0, "it is not allowed any more")
}

fn records(world: &World, name: &str, more: &[&str]) -> Result<Vec<Value>, Verdict> {
    let said = world.run(&[&["policy", "log", "--json", name], more].concat())?;
    ensure(said.code == 0, format!("{said:?}"))?;
    Ok(said.text().lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn log(world: &World) -> Case {
    let folder = world.project(SHARED);
    let ask = |host: &str| world.shell(&folder, &format!("getent hosts {host}"), b"");
    ask(&format!("before.{NOBODYS}"))?;
    let has = |host: String| move |record: &Value| record["host"] == host.as_str();
    let seen = |host: &str| {
        let has = has(format!("{host}.{NOBODYS}"));
        records(world, NAME, &[]).is_ok_and(|all| all.iter().any(&has))
    };
    eventually("the record of a refusal", || seen("before"))?;
    world.run(&["stop", NAME])?;
    ask(&format!("after.{NOBODYS}"))?;
    eventually("the record of the next run", || seen("after"))?;
    let all = records(world, NAME, &[])?;
    let numbers: Vec<u64> = all.iter().filter_map(|record| record["seq"].as_u64()).collect();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    sorted.dedup();
    ensure(
        sorted.len() == all.len() && sorted.last().copied() >= Some(all.len() as u64),
        format!("{numbers:?}"),
    )?;
    ensure(sorted.windows(2).all(|pair| pair[1] == pair[0] + 1), format!("a number is missing: {sorted:?}"))?;
    let totals = world.run(&["policy", "log", "--totals", NAME])?;
    ensure(totals.text().contains(&format!("after.{NOBODYS}")), format!("{totals:?}"))
}

/// Records come in batches; a session's end waits for the last one only as long as a user would want to.
const WRITTEN: &str = "sleep 2";

fn observe(world: &World) -> Case {
    let (folder, name) = (world.project("observed"), "shell-observed");
    let observed = |script: &str| say_run(world, &folder, &["--observe"], script);
    // What the rules let through leaves nothing to say, and a name that is asked for and no more neither.
    let get = "curl -sS -m 60 -o /dev/null -w '%{http_code}' https://pypi.org/simple/six/";
    let said = observed(&format!("{get}; getent hosts {NOBODYS} >/dev/null; {WRITTEN}"))?;
    let is_told = |said: &Said, what: &str| said.err.lines().any(|line| line == what);
    let nothing = is_told(&said, "viv: the rules that there are allow all that it reached");
    ensure(said.text() == "200" && nothing, format!("{said:?}"))?;
    let denied = world.run(&[
        "policy",
        "deny",
        "--sandbox",
        name,
        "--method",
        "DELETE",
        "--path",
        "/**",
        "pypi.org",
    ])?;
    ensure(denied.code == 0, format!("{denied:?}"))?;
    // A method that no rule speaks of goes on to the host, which has an answer of its own; a denial stays one.
    let methods = "for method in POST DELETE; do curl -sS -m 60 -o /dev/null -w '%{http_code} ' -X $method https://pypi.org/simple/six/; done";
    let said = observed(&format!("{methods}; {WRITTEN}"))?;
    let codes = said.text();
    let (posted, deleted) = codes.split_once(' ').unwrap_or_default();
    ensure(posted != "403" && posted != "000" && deleted == "403", format!("{said:?}"))?;
    let rule = format!("viv policy allow --sandbox {name} pypi.org:443 --method POST --path /simple/six");
    let after = |title: &'static str| {
        let lines = said.err.lines().skip_while(move |line| *line != title).skip(1);
        lines.take_while(|line| line.starts_with("  ")).collect::<Vec<_>>()
    };
    ensure(after("viv: what it did needs these rules:") == [format!("  {rule}")], format!("{said:?}"))?;
    let refused = after("viv: refused, which observing does not change:");
    let remedy = format!("allow: viv policy rm --sandbox {name} --id 'deny:pypi.org:DELETE:/**'");
    let is_it =
        matches!(refused[..], [line] if line.starts_with("  DELETE pypi.org/") && line.ends_with(&remedy));
    ensure(is_it, format!("{said:?}"))?;
    // What it is told when it reaches nothing.
    let said = observed("true")?;
    ensure(is_told(&said, "viv: it reached nothing"), format!("{said:?}"))?;
    let of_it = |record: &Value| record["method"] == "POST" && record["decision"] == "Observed";
    let records = records(world, name, &["--type", "observed"])?;
    ensure(records.iter().any(of_it), format!("{records:?}"))?;
    world.run(&["rm", "-f", name]).map(|_| ())
}

/// `viv run shell . FLAGS -- -c SCRIPT`.
fn say_run(world: &World, folder: &Path, flags: &[&str], script: &str) -> Result<Said, Verdict> {
    let mut arguments = world.interactive();
    arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    arguments.extend(["--", "-c", script].map(str::to_owned));
    e2e::say(world.viv(folder, arguments), b"")
}

fn unreadable(world: &World) -> Case {
    let folder = world.project(SHARED);
    let file = world.folder(NAME)?.join("policy.json");
    std::fs::write(&file, "{\"schema\": 1,\n  \"rules\": [")?;
    // A sandbox that starts with it has nothing; one that runs keeps what it had.
    world.run(&["stop", NAME])?;
    let refused = world.shell(&folder, "getent hosts pypi.org; echo $?; sleep 1", b"")?;
    let listed = world.run(&["policy", "ls", NAME])?;
    let changed = world.run(&["policy", "allow", "--sandbox", NAME, "example.com"])?;
    let kept = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    ensure(refused.text() == "2" && refused.err.contains("nothing is allowed"), format!("{refused:?}"))?;
    for said in [listed, changed] {
        ensure(said.code == 125 && said.err.contains("line 2 column"), format!("{said:?}"))?;
    }
    ensure(kept.ends_with("\"rules\": ["), "it is left as it is")?;
    let again = world.shell(&folder, "getent hosts pypi.org >/dev/null; echo $?; sleep 1", b"")?;
    ensure(again.text() == "0", format!("{again:?}"))?;
    std::fs::write(
        &file,
        "{\"schema\": 1,\n  \"rules\": [{\"decision\": \"deny\", \"resource\": \"pypi.org\"}]}",
    )?;
    let denied = world.shell(&folder, "sleep 1; getent hosts pypi.org; echo $?", b"")?;
    ensure(denied.text() == "2", format!("{denied:?}"))?;
    std::fs::remove_file(&file)?;
    let gone = world.shell(&folder, "sleep 2; getent hosts pypi.org; echo $?", b"")?;
    ensure(gone.text() == "2" && gone.err.contains("hold on"), format!("{gone:?}"))?;
    std::fs::write(&file, "{\"schema\": 1}")?;
    let back = world.shell(&folder, "sleep 1; getent hosts pypi.org >/dev/null; echo $?", b"")?;
    ensure(back.text() == "0", format!("{back:?}"))
}

/// Servers in the guest: one that answers each connection with the same word, and one that turns datagrams round.
const GUEST_SERVER: &str = "setsid python3 -c \"
import http.server as h, socket, threading
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(('', 9000))
def turn():
    while True:
        data, peer = u.recvfrom(65535)
        u.sendto(data[::-1], peer)
threading.Thread(target=turn, daemon=True).start()
class H(h.BaseHTTPRequestHandler):
    def do_GET(s):
        s.send_response(200); s.end_headers(); s.wfile.write(b'from the guest')
    def log_message(*a): pass
h.HTTPServer(('', 8000), H).serve_forever()\" >/dev/null 2>&1 &
for _ in $(seq 600); do curl -s http://127.0.0.1:8000/ >/dev/null && break; sleep 0.1; done";

fn ports(world: &World) -> Case {
    let name = "shell-ports";
    let folder = world.project("ports");
    let mut arguments = vec!["run", "-d", "shell", ".", "-p", "127.0.0.2::8000", "-p", "9000/udp"];
    let flags = world.interactive().split_off(3);
    arguments.extend(flags.iter().map(String::as_str));
    let said = e2e::say(world.viv(&folder, arguments), b"")?;
    ensure(said.code == 0, format!("{said:?}"))?;
    world.shell_ok(&folder, GUEST_SERVER)?;
    let said = world.run(&["ports", name, "--publish", "8000", "--json"])?;
    let ports: Vec<Value> = said.text().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let at = |host_ip: &str, guest_port: u16, protocol: &str| -> Result<SocketAddr, Verdict> {
        let is_it = |port: &&Value| {
            port["host_ip"] == host_ip && port["guest_port"] == guest_port && port["protocol"] == protocol
        };
        let number = ports.iter().find(is_it).and_then(|port| port["host_port"].as_u64());
        let number = number.and_then(|number| u16::try_from(number).ok());
        let number = number.ok_or_else(|| Verdict::Wrong(format!("{host_ip} {guest_port}: {ports:?}")))?;
        Ok(SocketAddr::new(host_ip.parse()?, number))
    };
    let all = [at("127.0.0.1", 8000, "tcp")?, at("127.0.0.2", 8000, "tcp")?, at("127.0.0.1", 9000, "udp")?];
    let [local, other, datagrams] = all;
    ensure(ports.len() == all.len(), format!("{ports:?}"))?;
    let answers = || -> Case {
        for address in [local, other] {
            ensure(get(address)?.ends_with("from the guest"), format!("the guest answers at {address}"))?;
        }
        let said = turned_round(datagrams)?;
        ensure(said == b"sdrawkcab", format!("{said:?}"))
    };
    answers()?;
    fixed(world, name)?;
    let number = local.port();
    let taken = world.run(&["ports", name, "--publish", &format!("{number}:8001")])?;
    ensure(taken.code == 125 && taken.err.contains("in use"), format!("{taken:?}"))?;
    world.run(&["stop", name])?;
    let nobody = |what: &str| {
        let none = get(local).is_err() && get(other).is_err() && turned_round(datagrams).is_err();
        ensure(none, format!("nobody listens {what}"))
    };
    nobody("while it is stopped")?;
    world.shell_ok(&folder, GUEST_SERVER)?;
    answers()?;
    let written =
        [format!("{number}:8000"), format!("127.0.0.2:{}:8000", other.port()), "9000/udp".to_owned()];
    let [first, second, third] = written.each_ref().map(String::as_str);
    let said =
        world.run(&["ports", name, "--unpublish", first, "--unpublish", second, "--unpublish", third])?;
    ensure(said.code == 0 && said.text().is_empty(), format!("{said:?}"))?;
    nobody("once it is unpublished")?;
    world.run(&["rm", "-f", name])?;
    made_with_a_port(world)
}

/// A port that nobody has just now. Somebody may take it until it is used: who uses it tries again.
fn free_port() -> Result<u16, Verdict> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// How often a port is chosen that somebody else may take.
const TRIES: usize = 5;

/// A port of the user's choice is published and reached, by either family.
fn fixed(world: &World, name: &str) -> Case {
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        // Not each host has IPv6.
        if TcpListener::bind((address, 0)).is_ok() {
            fixed_at(world, name, address)?;
        }
    }
    Ok(())
}

fn fixed_at(world: &World, name: &str, address: IpAddr) -> Case {
    let mut said = None;
    for _ in 0..TRIES {
        let at = SocketAddr::new(address, free_port()?);
        let ports = format!("{at}:8000");
        let published = world.run(&["ports", name, "--publish", &ports])?;
        if published.code == 0 {
            let answer = get(at)?;
            ensure(answer.ends_with("from the guest"), format!("at {at}: {answer}"))?;
            let taken_back = world.run(&["ports", name, "--unpublish", &ports])?;
            return ensure(taken_back.code == 0, format!("{taken_back:?}"));
        }
        said = Some(published);
    }
    Err(Verdict::Wrong(format!("no port can be published: {said:?}")))
}

/// A sandbox that was made with a port has it when it starts.
fn made_with_a_port(world: &World) -> Case {
    let (folder, name) = (world.project("made"), "shell-made");
    let flags = world.interactive().split_off(3);
    let mut said = None;
    for _ in 0..TRIES {
        let port = free_port()?;
        let ports = format!("{port}:8000");
        let mut arguments = vec!["create", "shell", ".", "-p", &ports];
        arguments.extend(flags.iter().map(String::as_str));
        let created = e2e::say(world.viv(&folder, arguments), b"")?;
        ensure(created.code == 0, format!("{created:?}"))?;
        let started = world.shell(&folder, GUEST_SERVER, b"")?;
        ensure(started.code == 0, format!("{started:?}"))?;
        let is_taken = started.err.contains("in use");
        let answer = if is_taken { String::new() } else { get((Ipv4Addr::LOCALHOST, port).into())? };
        world.run(&["rm", "-f", name])?;
        if !is_taken {
            return ensure(answer.ends_with("from the guest"), format!("at {port}: {answer}"));
        }
        said = Some(started);
    }
    Err(Verdict::Wrong(format!("the port is never free: {said:?}")))
}

/// What comes back for a datagram. One may be lost; that nobody listens is heard at once.
fn turned_round(address: SocketAddr) -> Result<Vec<u8>, std::io::Error> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = [0; 64];
    let mut last = None;
    for _ in 0..30 {
        socket.send(b"backwards")?;
        match socket.recv(&mut answer) {
            Ok(length) => return Ok(answer.get(..length).unwrap_or_default().to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::TimedOut.into()))
}

fn get(address: SocketAddr) -> Result<String, std::io::Error> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

fn no_network(world: &World) -> Case {
    let folder = world.project("alone");
    let said = say_run(
        world,
        &folder,
        &["--network", "none"],
        "ls /sys/class/net | grep -v -e docker -e br- -e veth",
    )?;
    ensure(said.code == 0 && said.text() == "lo", format!("{said:?}"))?;
    let refused = world.run(&["ports", "shell-alone", "--publish", "8000"])?;
    ensure(refused.code == 125 && refused.err.contains("no network"), format!("{refused:?}"))?;
    world.run(&["rm", "-f", "shell-alone"]).map(|_| ())
}

fn killed_gateway(world: &World) -> Case {
    let folder = world.project(SHARED);
    let inspected = || -> Result<Value, Verdict> {
        let said = world.run(&["inspect", NAME])?;
        Ok(serde_json::from_str(&said.text())?)
    };
    let mut session = world
        .viv(&folder, ["exec", NAME, "sh", "-c", "echo here; exec sleep 300"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Only a session that has begun is told.
    let mut here = [0; 5];
    session.stdout.as_mut().map_or(Ok(()), |out| out.read_exact(&mut here))?;
    eventually("the network is up", || inspected().is_ok_and(|all| all["network"]["up"] == true))?;
    let keeper = inspected()?["processes"]["keeper"].to_string();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
    let gateway: i32 =
        children.trim().parse().map_err(|_| Verdict::Wrong(format!("children {children:?}")))?;
    let gateway =
        rustix::process::Pid::from_raw(gateway).ok_or_else(|| Verdict::Wrong("no gateway".into()))?;
    rustix::process::kill_process(gateway, rustix::process::Signal::KILL)?;
    eventually("another gateway", || {
        inspected().is_ok_and(|all| all["network"]["up"] == true && all["network"]["restarts"] == 1)
    })?;
    let again = world.shell(
        &folder,
        "for _ in $(seq 100); do getent hosts pypi.org >/dev/null && echo yes && break; sleep 0.2; done",
        b"",
    )?;
    let _ = session.kill();
    let said = Said::from(session.wait_with_output()?);
    ensure(again.text() == "yes", format!("{again:?}"))?;
    ensure(
        said.err.contains("has no network just now") && said.err.contains("has its network again"),
        said.err,
    )
}

fn bad_input(world: &World) -> Case {
    for (arguments, part) in [
        (&["policy", "allow", "exa mple.com"][..], "column"),
        (&["policy", "allow", "10.0.0.0/33"], "column"),
        (&["policy", "allow", "example.com:99999"], "column"),
        (&["policy", "allow", "--method", "FETCH", "example.com"], "column"),
        (&["policy", "allow", "--method", "GET", "10.0.0.0/8"], "10.0.0.0/8"),
        (&["policy", "allow", "--protocol", "icmp", "example.com"], "column"),
        (&["policy", "deny", "--sandbox", "no-such-box", "example.com"], "no sandbox is called"),
        (&["policy", "init", "balance"], "no preset"),
        (&["policy", "rm", "nobody.example.com"], "no rule"),
        (&["policy", "check", "http://"], "column"),
        (&["policy", "log", "--type", "nonsense"], "no type"),
        (&["ports", NAME, "--publish", "99999:80"], "column 1"),
        (&["ports", NAME, "--publish", "80:x"], "column 4"),
        (&["ports", NAME, "--unpublish", "1:2"], "no port is published"),
    ] {
        let said = world.run(arguments)?;
        let lines = said.err.lines().count();
        let well =
            said.code == 125 && said.err.contains(part) && said.err.starts_with("error: ") && lines <= 2;
        ensure(well, format!("{arguments:?}: {said:?}"))?;
    }
    Ok(())
}
