//! What changes on the host while a sandbox runs: it holds for the next connection.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use e2e::{Case, Verdict, ensure, eventually};
use network::{Authority, How, Named, Net, Site, Speaks, echo};

pub(crate) const CASES: &[Named] = &[
    ("another_table_of_hosts_holds", hosts),
    ("another_name_server_holds", resolver),
    ("other_proxies_in_the_settings_hold", proxies),
    ("other_roots_of_the_host_hold", roots),
];

/// A file with other contents, and its own again at the end.
struct Instead {
    path: PathBuf,
    before: Option<String>,
    write: Write,
}

/// How a file gets its contents.
type Write = fn(&Path, &str) -> io::Result<()>;

impl Instead {
    /// Written in place: the namespace has most of its files bound where they are.
    fn of(path: PathBuf, contents: impl FnOnce(&str) -> String) -> Result<Self, Verdict> {
        Self::by(in_place, path, contents)
    }

    fn by(write: Write, path: PathBuf, contents: impl FnOnce(&str) -> String) -> Result<Self, Verdict> {
        let before = fs::read_to_string(&path).ok();
        write(&path, &contents(before.as_deref().unwrap_or_default()))?;
        Ok(Self { path, before, write })
    }
}

fn in_place(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

/// As `update-ca-certificates` does: a new file takes the place of the old one.
fn renamed(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}

impl Drop for Instead {
    fn drop(&mut self) {
        let _ = match &self.before {
            Some(text) => (self.write)(&self.path, text),
            None => fs::remove_file(&self.path),
        };
    }
}

/// Has the shared sandbox ask until it is so.
fn asks_until(net: &Net, what: &str, site: &Site, mut is_so: impl FnMut(&str) -> bool) -> Case {
    let ask = format!("curl -sS -m 60 -o /dev/null -w '%{{http_code}}' https://{}/ 2>/dev/null", site.name);
    let mut said = String::new();
    eventually(what, || {
        said = net.guest(&ask).map_or_else(|error| format!("{error:?}"), |said| said.text());
        is_so(&said)
    })
    .map_err(|_| Verdict::Wrong(format!("{what}: at the end {said:?}")))
}

/// Two servers of this name, of which no name server knows.
fn two(net: &Net, name: &str) -> Result<(Site, Site), Verdict> {
    let site = || net.site_at(name, net.address(false), How::default(), echo());
    Ok((site()?, site()?))
}

fn hosts(net: &Net) -> Case {
    let name = "listed.changes.example";
    let (first, second) = two(net, name)?;
    net.allow(&["listed.changes.example:443"])?;
    let line = |site: &Site| format!("{} {name}\n", site.address.ip());
    let file = || PathBuf::from("/etc/hosts");
    let _first = Instead::of(file(), |text| text.to_owned() + &line(&first))?;
    asks_until(net, "the first address", &first, |code| code == "200" && first.connections() > 0)?;
    ensure(second.connections() == 0, "the second address was known")?;
    let _second = Instead::of(file(), |text| text.replace(&line(&first), &line(&second)))?;
    asks_until(net, "the second address", &second, |code| code == "200" && second.connections() > 0)
}

fn resolver(net: &Net) -> Case {
    let name = "moved.changes.example";
    let (first, second) = two(net, name)?;
    net.names.addresses(name, &[first.address.ip()]);
    let (names, server) = net.name_server()?;
    names.addresses(name, &[second.address.ip()]);
    net.allow(&["moved.changes.example:443"])?;
    asks_until(net, "the first address", &first, |code| code == "200" && first.connections() > 0)?;
    ensure(names.asked(name) == 0 && second.connections() == 0, "the second server was asked")?;
    let file = PathBuf::from("/etc/resolv.conf");
    let _instead = Instead::of(file, |_| format!("nameserver {server}\noptions timeout:10 attempts:2\n"))?;
    asks_until(net, "the second address", &second, |code| code == "200" && second.connections() > 0)
}

fn proxies(net: &Net) -> Case {
    let site = net.site("plain.changes.example", How::default(), echo())?;
    let target = format!("{}:443", site.name);
    let proxy = net.proxy(Speaks::Connect, [(target.clone(), site.address)].into())?;
    net.allow(&[&target])?;
    asks_until(net, "an answer without a proxy", &site, |code| code == "200")?;
    ensure(proxy.asked().is_empty(), format!("{:?}", proxy.asked()))?;
    let file = net.world.state().join("../../.config/vivarium/network.json");
    let settings = format!(r#"{{"schema": 1, "proxies": {{"https": "{}"}}}}"#, proxy.url());
    let instead = Instead::of(file.clone(), |_| settings)?;
    asks_until(net, "an answer by the proxy", &site, |code| code == "200" && !proxy.asked().is_empty())?;
    // Away for a moment, as an editor has it, it is not gone.
    let seen = || (site.connections(), proxy.asked().len());
    let ask =
        format!("for _ in $(seq 20); do curl -sS -m 60 -o /dev/null https://{}/ || exit 1; done", site.name);
    // Half a second away is gone: where this machine stands still for that long nothing can be said.
    let mut longest = Duration::MAX;
    for _ in 0..3 {
        let before = seen();
        longest = asked_while_away(net, &file, &ask)?;
        if longest < Duration::from_millis(250) {
            // curl may try both families at once.
            eventually("each by the proxy", || {
                let (all, proxied) = seen();
                all - before.0 >= 20 && all - before.0 == proxied - before.1
            })
            .map_err(|_| Verdict::Wrong(format!("{before:?} {:?}", seen())))?;
            break;
        }
    }
    drop(instead);
    let mut before = proxy.asked().len();
    asks_until(net, "an answer without the proxy again", &site, |code| {
        let now = proxy.asked().len();
        code == "200" && std::mem::replace(&mut before, now) == now
    })?;
    if longest < Duration::from_millis(250) {
        return Ok(());
    }
    Err(Verdict::Skipped(format!(
        "a busy machine: the settings were away for {longest:?}, which counts as gone"
    )))
}

/// Runs a script in the guest while a file of the host is away now and then; gives how long it was so at most.
fn asked_while_away(net: &Net, file: &Path, script: &str) -> Result<Duration, Verdict> {
    thread::scope(|scope| {
        let asks = scope.spawn(|| net.guest_ok(script));
        let aside = file.with_file_name("aside");
        let mut longest = Duration::ZERO;
        while !asks.is_finished() {
            let away = Instant::now();
            fs::rename(file, &aside)?;
            thread::sleep(Duration::from_millis(50));
            fs::rename(&aside, file)?;
            longest = longest.max(away.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
        asks.join().map_err(|_| Verdict::Wrong("who asks panicked".into()))??;
        Ok(longest)
    })
}

/// Where requests are looked into the gateway is who checks the host's certificate.
fn roots(net: &Net) -> Case {
    let name = "new.changes.example";
    let authority = Authority::new("a root that comes later").map_err(|error| network::wrong(&error))?;
    let certificate = authority.certify(&[name]).map_err(|error| network::wrong(&error))?;
    let site = net.site_with(name, &certificate, echo())?;
    net.allow(&["--method", "GET", "--path", "/**", "new.changes.example:443"])?;
    asks_until(net, "a refusal", &site, |code| code == "502")?;
    ensure(site.seen().is_empty(), "it was asked all the same")?;
    let more = |text: &str| text.to_owned() + authority.pem();
    for write in [in_place as Write, renamed] {
        let instead = Instead::by(write, network::BUNDLE.into(), more)?;
        asks_until(net, "an answer by the new root", &site, |code| code == "200")?;
        drop(instead);
        asks_until(net, "a refusal again", &site, |code| code == "502")?;
    }
    Ok(())
}
