//! What the cases about the network share: a private network namespace with real servers in it, and the real `viv` with a real guest.
//!
//! A case gets a [`Net`]. It makes servers with [`Net::site`], tells the name server about names, sets rules with the program's own
//! commands, runs scripts in the guest, and looks at what came out at either end. Names end in `.example`, so that no preset is about
//! them; each case takes names of its own.

mod attacks;
mod certificates;
mod fetched;
mod git;
mod names;
mod namespace;
mod proxies;
mod raw;
pub mod search;
mod web;
mod wire;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;

use e2e::{Case, Groups, Said, Verdict, World, ensure};
use serde_json::Value;
use tokio::runtime::Handle;

pub use attacks::{Gateway, Spoken};
pub use certificates::{Authority, Certificate};
pub use fetched::{aws_library, grpc_library, registry_program};
pub use git::Repositories;
pub use names::{Answer, NameServer};
pub use namespace::{NAME_SERVER, OWN_ADDRESS, SILENT};
pub use proxies::{LOGIN, Proxy, Speaks};
pub use raw::{Answers, Raw, datagrams, listens, repeats, to_heads};
pub use web::{Answering, Body, Broken, Handler, Seen, Site, answer, body, echo, handler, listen};
pub use wire::{Frames, Wire};

/// A case and its name.
pub type Named = (&'static str, fn(&Net) -> Case);

/// The project folder of the sandbox that most cases share, and its name. A case leaves no rule behind that another one could mistake.
pub const SHARED: &str = "lab";
/// The shared sandbox.
pub const NAME: &str = "shell-lab";

/// The namespace's servers and the program under test.
pub struct Net {
    /// The program and its folders.
    pub world: World,
    /// The name server.
    pub names: NameServer,
    /// The authority that host and guest trust.
    pub authority: Authority,
    runtime: Handle,
    hosts: AtomicU16,
    // Files that stand in for the host's; gone at the end.
    folder: tempfile::TempDir,
}

/// How a server is made.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// The port; 443 with TLS, 80 without, unless it says another one.
    pub port: Option<u16>,
    /// The protocols that it offers in TLS, the preferred one first; plain HTTP/1.1 without any.
    pub alpn: &'a [&'a str],
    /// Whether it is at an IPv6 address.
    pub six: bool,
}

impl Default for How<'_> {
    fn default() -> Self {
        Self { port: None, alpn: &["h2", "http/1.1"], six: false }
    }
}

/// The whole main function of a test program: enters the namespace, then runs the cases.
pub fn run(groups: &Groups<'_, Net>) -> ExitCode {
    e2e::run_in(groups, Net::new, |net| net.world.clean_up())
}

/// Passed on to the program inside.
const PROGRAM: &str = "VIV_BIN";
const ROOTS: &str = "SSL_CERT_FILE";
/// The bundle of roots by which gateways check hosts, in a folder that is the namespace's own.
pub const BUNDLE: &str = "/etc/ssl/certs/network-test.pem";

impl Net {
    fn new(target: &Path) -> Result<Self, Verdict> {
        if !namespace::inside() {
            std::process::exit(go_inside(target)?);
        }
        let world = World::new(target).map_err(Verdict::Wrong)?;
        let folder = tempfile::tempdir_in("/var/tmp")?;
        let authority = Authority::new("the network test's root").map_err(|error| wrong(&error))?;
        let names = NameServer::default();
        let runtime = runtime(folder.path().to_owned(), authority.pem().to_owned(), names.clone())?;
        namespace::be_ordinary()?;
        Ok(Self { world, names, authority, runtime, hosts: AtomicU16::new(100), folder })
    }

    /// The next address of the namespace's "Internet" that nobody has yet.
    pub fn address(&self, six: bool) -> IpAddr {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed);
        if six {
            return Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into();
        }
        // One network, then the next.
        let [_, host] = number.to_be_bytes();
        let (a, b, c) = if number < 256 { (198, 51, 100) } else { (192, 0, 2) };
        Ipv4Addr::new(a, b, c, host).into()
    }

    /// Another name server, at an address of its own; it knows nothing.
    pub fn name_server(&self) -> Result<(NameServer, IpAddr), Verdict> {
        let (names, address) = (NameServer::default(), self.address(false));
        self.runtime.block_on(names.clone().serve(SocketAddr::new(address, 53)))?;
        Ok((names, address))
    }

    /// A web server of this name, at an address of its own, which the name server knows from then on.
    pub fn site(&self, name: &str, how: How<'_>, serve: Handler) -> Result<Site, Verdict> {
        let address = self.address(how.six);
        self.names.addresses(name, &[address]);
        self.site_at(name, address, how, serve)
    }

    /// A web server of this name with a certificate of the case's choice.
    pub fn site_with(&self, name: &str, certificate: &Certificate, serve: Handler) -> Result<Site, Verdict> {
        let _inside = self.runtime.enter();
        let address = self.address(false);
        self.names.addresses(name, &[address]);
        let tls = certificate.server(How::default().alpn)?;
        let address = SocketAddr::new(address, 443);
        Ok(Site::start(name, address, certificate.der.clone(), Some(tls), serve)?)
    }

    /// A web server of this name at an address that the name server is not told of.
    pub fn site_at(
        &self,
        name: &str,
        address: IpAddr,
        how: How<'_>,
        serve: Handler,
    ) -> Result<Site, Verdict> {
        let _inside = self.runtime.enter();
        let port = how.port.unwrap_or(if how.alpn.is_empty() { 80 } else { 443 });
        let address = SocketAddr::new(address, port);
        if how.alpn.is_empty() {
            return Ok(Site::start(name, address, Vec::new(), None, serve)?);
        }
        let certificate = self.authority.certify(&[name]).map_err(|error| wrong(&error))?;
        let tls = certificate.server(how.alpn)?;
        Ok(Site::start(name, address, certificate.der, Some(tls), serve)?)
    }

    /// An upstream proxy at an address of its own that connects to these names, as `host:port`.
    pub fn proxy(&self, speaks: Speaks, routes: HashMap<String, SocketAddr>) -> Result<Proxy, Verdict> {
        let _inside = self.runtime.enter();
        let address = SocketAddr::new(self.address(false), 3128);
        let tls = match speaks {
            Speaks::ConnectOverTls => {
                let certificate = self.authority.certify(&[&address.ip().to_string()]);
                Some(certificate.map_err(|error| wrong(&error))?.server(&["http/1.1"])?)
            }
            Speaks::Connect | Speaks::Socks5 => None,
        };
        Ok(Proxy::start(address, speaks, routes, tls)?)
    }

    /// The runtime that servers run on.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// A folder for what belongs to no sandbox; gone at the end.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The project folder of the shared sandbox.
    pub fn shared(&self) -> PathBuf {
        self.world.project(SHARED)
    }

    /// Runs a script in the shared sandbox.
    pub fn guest(&self, script: &str) -> Result<Said, Verdict> {
        self.world.shell(&self.shared(), script, b"")
    }

    /// [`Self::guest`] that must end with 0; gives its output.
    pub fn guest_ok(&self, script: &str) -> Result<String, Verdict> {
        self.world.shell_ok(&self.shared(), script)
    }

    /// Does this in the shared sandbox again and again, until its session is told that `what` is blocked; gives the line. Of many
    /// refusals at once some are not told.
    pub fn told(&self, script: &str, what: &str) -> Result<String, Verdict> {
        let folder = self.shared();
        let enough = folder.join("told");
        let _ = std::fs::remove_file(&enough);
        let script = format!(
            "end=$(($(date +%s) + 100)); until [ -e told ] || [ $(date +%s) -gt $end ]; do {script}; sleep 1; done >/dev/null 2>&1"
        );
        let mut arguments = self.world.interactive();
        arguments.extend(["--", "-c", &script].map(str::to_owned));
        let mut command = self.world.viv(&folder, arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut session = command.spawn()?;
        let (mut found, mut all) = (None, String::new());
        // To its end, which is the file's or the clock's.
        let lines = session.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines());
        for line in lines.map_while(Result::ok) {
            if found.is_none() && line.starts_with(&format!("viv: blocked  {what}")) {
                std::fs::write(&enough, "")?;
                found = Some(line.clone());
            }
            all.push_str(&line);
            all.push('\n');
        }
        session.wait()?;
        found.ok_or_else(|| Verdict::Wrong(format!("nobody was told that {what:?} is blocked: {all}")))
    }

    /// A command of the program that must end with 0; gives its output.
    pub fn viv_ok(&self, arguments: &[&str]) -> Result<String, Verdict> {
        let said = self.world.run(arguments)?;
        ensure(said.code == 0, format!("viv {arguments:?}: {said:?}"))?;
        Ok(said.text())
    }

    /// Adds a rule for the shared sandbox: the words after `viv policy allow --sandbox NAME`.
    pub fn allow(&self, words: &[&str]) -> Result<(), Verdict> {
        self.ready()?;
        self.viv_ok(&[&["policy", "allow", "--sandbox", NAME], words].concat()).map(|_| ())
    }

    /// Adds a denial for the shared sandbox.
    pub fn deny(&self, words: &[&str]) -> Result<(), Verdict> {
        self.ready()?;
        self.viv_ok(&[&["policy", "deny", "--sandbox", NAME], words].concat()).map(|_| ())
    }

    /// Takes all rules about a resource from the shared sandbox.
    pub fn forget(&self, resource: &str) -> Result<(), Verdict> {
        self.viv_ok(&["policy", "rm", "--sandbox", NAME, "--resource", resource]).map(|_| ())
    }

    /// Makes the shared sandbox if it is not there.
    fn ready(&self) -> Result<(), Verdict> {
        if self.world.folder(NAME).is_err() {
            self.guest_ok("true")?;
        }
        Ok(())
    }

    /// The whole log of the shared sandbox.
    pub fn log(&self) -> Result<Vec<Value>, Verdict> {
        let all = self.viv_ok(&["policy", "log", "--json", NAME])?;
        Ok(all.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// What it says of a host.
    pub fn records(&self, host: &str) -> Result<Vec<Value>, Verdict> {
        Ok(self.log()?.into_iter().filter(|record| record["host"] == host).collect())
    }

    /// Waits until the log of the shared sandbox has a record of a host that is so.
    pub fn recorded(&self, host: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value, Verdict> {
        let mut found = None;
        let waited = e2e::eventually(what, || {
            found = self.records(host).ok().and_then(|all| all.into_iter().find(&is_so));
            found.is_some()
        });
        waited.map_err(|_| Verdict::Wrong(format!("no record of {what}: {:?}", self.records(host))))?;
        found.ok_or_else(|| Verdict::Wrong(what.to_owned()))
    }
}

/// A case that went wrong by this error.
pub fn wrong(error: &dyn std::error::Error) -> Verdict {
    Verdict::Wrong(error.to_string())
}

/// Does what needs the real network (the program is built, the base image made), then runs the cases inside. Gives their exit code.
fn go_inside(target: &Path) -> Result<i32, Verdict> {
    let world = World::new(target).map_err(Verdict::Wrong)?;
    let said = e2e::say(world.viv(&world.project("image"), ["create", "shell", "."]), b"")?;
    world.clean_up();
    ensure(said.code == 0, format!("no base image: {}", said.err))?;
    // What cannot be had now is skipped inside, with the reason.
    let _ = (registry_program(), grpc_library(), aws_library());
    namespace::enter(&[(PROGRAM, world.program()), (ROOTS, Path::new(BUNDLE))])
}

/// A thread for the servers, once the namespace is furnished and the name server answers.
fn runtime(folder: PathBuf, root: String, names: NameServer) -> Result<Handle, Verdict> {
    let (ready, is_ready) = mpsc::channel();
    let serve = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return ready.send(Err(error.into())),
        };
        runtime.block_on(async {
            let furnished = async {
                namespace::furnish(&folder, &root).await?;
                names.serve((NAME_SERVER, 53).into()).await?;
                Ok(Handle::current())
            };
            let _ = ready.send(furnished.await);
            std::future::pending().await
        })
    };
    std::thread::Builder::new().name("servers".into()).spawn(serve)?;
    is_ready.recv().map_err(|error| wrong(&error))?
}
