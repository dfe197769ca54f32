//! `viv diagnose`: which engine, why, what would help, how sandboxes are confined, and what went unusual.

use sandbox::client;
use sandbox::engine::{self, Choice};
use sandbox::escape::escaped;
use sandbox::folder::Sandboxes;
use sandbox::images::Images;
use sandbox::places::Places;
use serde::Serialize;

use crate::cli::DiagnoseOptions;
use crate::failure::{Failure, LONGEST};
use crate::setup::AGENT;

/// All that is found, as `--json` has it.
#[derive(Debug, Serialize)]
struct Findings {
    viv: &'static str,
    arch: &'static str,
    kernel: String,
    engine: Choice,
    cache: Folder,
    state: Folder,
    images: Vec<String>,
    sandboxes: Vec<Running>,
    /// Sandboxes that cannot be read, and why.
    damaged: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Folder {
    path: String,
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

/// The verb.
pub(crate) fn run(options: &DiagnoseOptions) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let findings = find(&places)?;
    if options.json {
        super::say(&format!("{}\n", serde_json::to_string(&findings).map_err(Failure::new)?))?;
    } else {
        super::say(&text(&findings, &places))?;
    }
    Ok(0)
}

fn find(places: &Places) -> Result<Findings, Failure> {
    let (sandboxes, wrong) = Sandboxes::open(places)?.list()?;
    let running = sandboxes
        .iter()
        .filter_map(|sandbox| {
            let status = client::status(sandbox).ok()??;
            Some(Running {
                name: sandbox.spec.name.clone(),
                engine: status.engine,
                confinement: status.confinement,
                sessions: status.sessions,
                counters: status.counters,
            })
        })
        .collect();
    let uname = rustix::system::uname();
    Ok(Findings {
        viv: env!("CARGO_PKG_VERSION"),
        arch: std::env::consts::ARCH,
        kernel: uname.release().to_string_lossy().into_owned(),
        engine: engine::choose(None, places)?,
        cache: folder(&places.cache),
        state: folder(&places.state),
        images: images(places),
        sandboxes: running,
        damaged: wrong.iter().map(ToString::to_string).collect(),
    })
}

/// The current base image, if there is one.
fn images(places: &Places) -> Vec<String> {
    let images = Images::open(places, AGENT);
    images.ok().and_then(|images| images.current().ok().flatten()).into_iter().collect()
}

fn folder(path: &std::path::Path) -> Folder {
    let there = path.ancestors().find(|path| path.exists());
    let free = there
        .and_then(|path| rustix::fs::statvfs(path).ok())
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    Folder { path: path.display().to_string(), free }
}

fn text(findings: &Findings, places: &Places) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(out, "{key:<13} {}", escaped(value, LONGEST));
    };
    line("engine", &format!("{:<10} {}", findings.engine.engine.name(), findings.engine.why));
    line(
        "would help",
        findings.engine.would_help.as_deref().unwrap_or("nothing: this is as fast as it gets"),
    );
    let seen = findings.sandboxes.first().map(|sandbox| sandbox.confinement.join(", "));
    line("confinement", seen.as_deref().unwrap_or("on for every sandbox; a running one says by which means"));
    line("viv", &format!("{} {}, on Linux {}", findings.viv, findings.arch, findings.kernel));
    for (key, folder) in [("cache", &findings.cache), ("state", &findings.state)] {
        let free = folder.free.map_or_else(String::new, |free| format!("   {} free", super::size(free)));
        line(key, &format!("{}{free}", places.short(std::path::Path::new(&folder.path))));
    }
    line(
        "images",
        &if findings.images.is_empty() {
            "none yet: viv run shell makes one".into()
        } else {
            findings.images.join(", ")
        },
    );
    for sandbox in &findings.sandboxes {
        let sessions =
            if sandbox.sessions == 1 { "1 session".into() } else { format!("{} sessions", sandbox.sessions) };
        line("sandbox", &format!("{}   {}, {sessions}", sandbox.name, sandbox.engine));
        for (name, count) in &sandbox.counters {
            line("", &format!("{name}: {count}"));
        }
    }
    for damaged in &findings.damaged {
        line("damaged", damaged);
    }
    out
}
