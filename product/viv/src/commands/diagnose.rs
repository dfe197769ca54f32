//! `viv diagnose`: which engine, why, what is missing and would mend it, how sandboxes are confined, and what went unusual.
//!
//! It answers soon whatever the state of the machine: each question has a thread of its own, and one that is not answered in
//! time (a dead network file system, a stopped process) is named as such.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use sandbox::client;
use sandbox::engine::{self, Choice};
use sandbox::escape::escaped;
use sandbox::folder::{Damaged, Sandboxes};
use sandbox::images::Images;
use sandbox::needs::{self, Missing};
use sandbox::places::Places;
use sandbox::workspace::exact;
use serde::Serialize;

use crate::cli::DiagnoseOptions;
use crate::failure::{Failure, LONGEST};
use crate::setup::AGENT;

/// What all questions together may take.
const PATIENCE: Duration = Duration::from_millis(1500);
/// What a server gets to answer in.
const SERVER: Duration = Duration::from_millis(1000);

/// All that is found, as `--json` has it.
#[derive(Debug, Serialize)]
struct Findings {
    viv: &'static str,
    arch: &'static str,
    kernel: String,
    /// None where no engine can be used; `missing` says why.
    engine: Option<Choice>,
    missing: Vec<Missing>,
    cache: Folder,
    state: Folder,
    images: Vec<String>,
    /// What holds for the network of all sandboxes.
    network: String,
    /// Where values of secrets are kept, and where a new one would be.
    secrets: Secrets,
    sandboxes: Vec<Running>,
    /// Sandboxes that cannot be read, and why.
    damaged: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct Folder {
    path: String,
    /// Its exact bytes where they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    free: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Running {
    name: String,
    engine: String,
    confinement: Vec<String>,
    sessions: u32,
    counters: Vec<(String, u64)>,
}

#[derive(Debug, Default, Serialize)]
struct Secrets {
    kept: String,
    new: String,
}

/// The verb. What the engines counted is for who asks: with `--json`, or -v.
pub(crate) fn run(options: &DiagnoseOptions, verbose: bool) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let findings = find(&places);
    if options.json {
        super::say(&format!("{}\n", serde_json::to_string(&findings).map_err(Failure::new)?))?;
    } else {
        super::say(&text(&findings, &places, verbose))?;
    }
    Ok(0)
}

/// A question that was asked in a thread of its own.
struct Asked<T>(Receiver<T>);

fn ask<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Asked<T> {
    let (answer, asked) = mpsc::channel();
    // Without a thread there is no answer, as without time.
    let _ = std::thread::Builder::new().spawn(move || answer.send(question()));
    Asked(asked)
}

impl<T> Asked<T> {
    fn by(self, deadline: Instant) -> Option<T> {
        self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }
}

/// What the state folder holds.
#[derive(Default)]
struct State {
    running: Vec<Running>,
    damaged: Vec<Missing>,
    missing: Vec<Missing>,
}

/// How it stands with the base image.
#[derive(Default)]
struct Stock {
    images: Vec<String>,
    missing: Vec<Missing>,
}

fn find(places: &Places) -> Findings {
    let deadline = Instant::now() + PATIENCE;
    let with = || places.clone();
    let (a, b, c, d, e) = (with(), with(), with(), with(), with());
    let engine = ask(move || engine::choose(None, &a));
    let state = ask(move || state(&b, deadline));
    let stock = ask(move || stock(&c, deadline));
    let f = with();
    let network = ask(move || network(&f));
    let secrets = ask(secrets);
    let folders = [("cache", "XDG_CACHE_HOME", d.cache), ("state", "XDG_STATE_HOME", e.state)]
        .map(|(what, variable, path)| (what, path.clone(), ask(move || folder(&path, variable))));
    let mut missing = Vec::new();
    let engine = match engine.by(deadline) {
        Some(Ok(choice)) => Some(choice),
        Some(Err(error)) => {
            missing.push(Missing::from_error(&error, "use another host"));
            None
        }
        None => {
            missing.push(silent("the probe of the engines", "try again when the host is less busy"));
            None
        }
    };
    missing.extend(needs::memory().into_iter().chain(needs::landlock()));
    let [cache, kept] = folders.map(|(what, path, asked)| {
        let (free, wrong) = asked.by(deadline).unwrap_or_else(|| {
            let mend = "its file system does not answer: mount it again, or point XDG_CACHE_HOME or XDG_STATE_HOME elsewhere";
            (None, Some(silent(&format!("the {what} folder, {}", path.display()), mend)))
        });
        missing.extend(wrong);
        Folder { path: path.display().to_string(), path_b64: exact(path.as_os_str()), free }
    });
    let stock = stock.by(deadline).unwrap_or_else(|| Stock {
        images: Vec::new(),
        missing: vec![silent(
            "the store of images",
            "viv run shell . reads an image that was copied or changed once, or makes it again",
        )],
    });
    let state = state.by(deadline + Duration::from_millis(100)).unwrap_or_default();
    missing.extend(stock.missing.into_iter().chain(state.missing));
    Findings {
        viv: env!("CARGO_PKG_VERSION"),
        arch: std::env::consts::ARCH,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        engine,
        missing,
        cache,
        state: kept,
        images: stock.images,
        network: network.by(deadline).unwrap_or_else(|| "the policy's folder does not answer".into()),
        secrets: secrets.by(deadline).unwrap_or_else(|| Secrets {
            kept: "unknown: the keychain or the folder does not answer".into(),
            new: "unknown".into(),
        }),
        sandboxes: state.running,
        damaged: state.damaged,
    }
}

fn secrets() -> Secrets {
    use vault::store::{Folders, Vault, best_place};
    match Folders::from_env().and_then(|folders| Ok((Vault::open(&folders)?, folders))) {
        Ok((vault, folders)) => Secrets { kept: vault.storage().to_string(), new: best_place(&folders) },
        Err(error) => Secrets { kept: error.to_string(), new: "nowhere before that is mended".into() },
    }
}

/// What holds where no sandbox has rules of its own, and by which proxies.
fn network(places: &Places) -> String {
    use sandbox::network::{policy_files, proxies};
    let policy = match policy_files::global(places) {
        Ok(global) => match global.rules.len() {
            0 => global.preset.to_string(),
            1 => format!("{} and one rule", global.preset),
            count => format!("{} and {count} rules", global.preset),
        },
        Err(error) => return format!("nothing is allowed: {error}"),
    };
    // Their addresses may hold passwords.
    let proxied = match proxies(places) {
        Ok(sandbox::network::ClientProxies { proxies, .. }) => {
            proxies.http.is_some() || proxies.https.is_some() || proxies.all.is_some()
        }
        Err(error) => return format!("no sandbox starts: {error}"),
    };
    let how =
        if proxied { "through the proxies of the environment or network.json" } else { "without a proxy" };
    format!("{policy}, {how}")
}

fn silent(what: &str, mend: &str) -> Missing {
    Missing { what: format!("No answer came from {what}"), mend: mend.to_owned() }
}

/// Sandboxes that run, are damaged or do not answer.
fn state(places: &Places, deadline: Instant) -> State {
    let mut found = State::default();
    let listed = Sandboxes::open(places).and_then(|all| all.list());
    let (sandboxes, damaged) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            found.missing.push(Missing::from_error(&error, "make the state folder readable for you"));
            return found;
        }
    };
    found.damaged = damaged.iter().map(broken).collect();
    let asked: Vec<_> = sandboxes
        .into_iter()
        .filter(|sandbox| sandbox.is_running())
        .map(|sandbox| (sandbox.spec.name.clone(), ask(move || client::status(&sandbox))))
        .collect();
    for (name, status) in asked {
        match status.by(deadline) {
            Some(Ok(Some(status))) => found.running.push(Running {
                name,
                engine: status.engine,
                confinement: status.confinement,
                sessions: status.sessions,
                counters: status.counters,
            }),
            // It has ended meanwhile.
            Some(Ok(None)) => {}
            Some(Err(error)) => found.missing.push(Missing {
                what: format!("The sandbox {name} does not say how it fares: {error}"),
                mend: format!("viv logs {name} may say more"),
            }),
            None => found.missing.push(silent(
                &format!("the sandbox {name}"),
                &format!("viv rm -f {name} ends and deletes it; viv logs {name} may say more"),
            )),
        }
    }
    found
}

/// A sandbox that cannot be read, and what can be done with it.
fn broken(one: &Damaged) -> Missing {
    let name = one.told_name().map_or_else(String::new, |name| format!(" ({name})"));
    let runs = if one.is_running() { ", which is running" } else { "" };
    Missing { what: format!("{}{name}{runs}: {}", one.id(), one.cause()), mend: one.mend() }
}

/// The current base image, if there is one; else what keeps a set-up from making it.
fn stock(places: &Places, deadline: Instant) -> Stock {
    let images = match Images::open(places, AGENT) {
        Ok(images) => images,
        // The cache's folder says so itself.
        Err(_) => return Stock::default(),
    };
    match images.current() {
        Ok(Some(image)) => Stock { images: vec![image], missing: Vec::new() },
        Ok(None) => {
            let places = places.clone();
            let servers = ask(move || {
                Images::open(&places, AGENT).ok().and_then(|images| needs::servers(&images, SERVER))
            });
            let room = needs::room(&images);
            let mend = "check the network";
            let servers =
                servers.by(deadline).unwrap_or_else(|| Some(silent("the servers of packages", mend)));
            Stock { images: Vec::new(), missing: room.into_iter().chain(servers).collect() }
        }
        Err(error) => {
            Stock { images: Vec::new(), missing: vec![Missing::from_error(&error, "run the same again")] }
        }
    }
}

/// The free bytes of a folder's file system, and what is wrong with the folder.
fn folder(path: &Path, variable: &str) -> (Option<u64>, Option<Missing>) {
    let there = path.ancestors().find(|path| path.exists());
    let free = there
        .and_then(|path| rustix::fs::statvfs(path).ok())
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    (free, needs::folder(path, variable))
}

fn text(findings: &Findings, places: &Places, verbose: bool) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(out, "{key:<13} {}", escaped(value, LONGEST));
    };
    match &findings.engine {
        Some(choice) => {
            line("engine", &format!("{:<10} {}", choice.engine.name(), choice.why));
            let otherwise = "nothing: this is as fast as it gets";
            line("would help", choice.would_help.as_deref().unwrap_or(otherwise));
        }
        None => line("engine", "none can be used, so no sandbox can run here"),
    }
    for Missing { what, mend } in &findings.missing {
        line("missing", what);
        line("  mend", mend);
    }
    let seen = findings.sandboxes.first().map(|sandbox| sandbox.confinement.join(", "));
    line("confinement", seen.as_deref().unwrap_or("on for every sandbox; a running one says by which means"));
    line("viv", &format!("{} {}, on Linux {}", findings.viv, findings.arch, findings.kernel));
    for (key, folder) in [("cache", &findings.cache), ("state", &findings.state)] {
        let free = folder.free.map_or_else(String::new, |free| format!("   {} free", super::size(free)));
        line(key, &format!("{}{free}", places.short(Path::new(&folder.path))));
    }
    line(
        "images",
        &if findings.images.is_empty() {
            "none yet: viv run shell makes one".into()
        } else {
            findings.images.join(", ")
        },
    );
    line("network", &findings.network);
    line("secrets", &findings.secrets.kept);
    line("", &format!("a new one goes into {}", findings.secrets.new));
    for sandbox in &findings.sandboxes {
        let sessions =
            if sandbox.sessions == 1 { "1 session".into() } else { format!("{} sessions", sandbox.sessions) };
        line("sandbox", &format!("{}   {}, {sessions}", sandbox.name, sandbox.engine));
        for (name, count) in sandbox.counters.iter().filter(|_| verbose) {
            line("", &format!("{name}: {count}"));
        }
    }
    for Missing { what, mend } in &findings.damaged {
        line("damaged", what);
        line("  mend", mend);
    }
    out
}
