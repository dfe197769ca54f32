//! `viv inspect`: all that is known of sandboxes, as JSON: an object, or where several are named an array of them.

use std::collections::BTreeMap;
use std::path::Path;

use sandbox::client;
use sandbox::control::NetworkStatus;
use sandbox::folder::Sandbox;
use sandbox::network::policy_files;
use sandbox::network::ports::{self, Publish};
use sandbox::places::Places;
use sandbox::spec::{Networking, Runtime, State};
use sandbox::workspace::{Share, exact};
use serde::Serialize;

use crate::cli::InspectOptions;
use crate::commands::lifecycle::find_all;
use crate::commands::say;
use crate::failure::Failure;

/// One sandbox. Times are in RFC 3339, sizes in bytes.
#[derive(Debug, Serialize)]
struct Details {
    name: String,
    id: String,
    agent: String,
    state: State,
    /// Why it does not run, when it has run before.
    reason: Option<String>,
    created: String,
    started: Option<String>,
    ended: Option<String>,
    /// Whether it goes on without sessions until it is stopped.
    detached: bool,
    sessions: Option<u32>,
    arch: String,
    engine: Engine,
    /// Id of the base image below its disk.
    image: String,
    /// How its virtual machine is confined, while it runs.
    confinement: Vec<String>,
    limits: Limits,
    network: Network,
    disk_used: u64,
    memory_used: Option<u64>,
    workspace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_b64: Option<String>,
    shares: Vec<Share>,
    processes: Option<Processes>,
    paths: Paths,
}

/// The engine asked for, if any, and the one of the last run.
#[derive(Debug, Serialize)]
struct Engine {
    asked: Option<String>,
    used: Option<String>,
}

#[derive(Debug, Serialize)]
struct Limits {
    cpus: u32,
    memory: u64,
    disk: u64,
}

/// What it may reach, and how that goes.
#[derive(Debug, Serialize)]
struct Network {
    kind: Networking,
    /// The preset that holds; none where the policy cannot be read.
    preset: Option<String>,
    rules: Rules,
    ports: Vec<Publish>,
    /// Whether the gateway serves; only known while it runs.
    up: Option<bool>,
    /// Why there is no network, or why nothing is allowed.
    problem: Option<String>,
    confinement: Vec<String>,
    restarts: Option<u32>,
    observes: bool,
    counters: BTreeMap<String, u64>,
}

/// How many rules there are beside the preset's.
#[derive(Debug, Default, Serialize)]
struct Rules {
    /// For all sandboxes.
    all: usize,
    /// Of its kits.
    kits: usize,
    /// Its own.
    own: usize,
}

/// Process ids on the host, while it runs.
#[derive(Debug, Serialize)]
struct Processes {
    shim: u32,
    vmm: Option<u32>,
    /// The process that starts the gateway.
    keeper: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Paths {
    folder: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder_b64: Option<String>,
    disk: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_b64: Option<String>,
    logs: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs_b64: Option<String>,
}

/// The verb.
pub(crate) fn run(options: &InspectOptions) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let (sandboxes, code) = find_all(&options.names, &places)?;
    let details: Vec<Details> = sandboxes.iter().map(|sandbox| details(sandbox, &places)).collect();
    let text = match details.as_slice() {
        [one] if options.names.len() == 1 => serde_json::to_string_pretty(one),
        // Whoever named one wants no array, also not an empty one.
        [] if options.names.len() == 1 => return Ok(code),
        all => serde_json::to_string_pretty(all),
    };
    say(&format!("{}\n", text.map_err(Failure::new)?))?;
    Ok(code)
}

fn details(sandbox: &Sandbox, places: &Places) -> Details {
    let spec = sandbox.spec.clone();
    let state = sandbox.state();
    let lives = !state.is_over();
    let runtime = sandbox.runtime();
    // A sandbox that has just ended, or is of another version, is shown by its files alone.
    let status = if lives { client::status(sandbox).ok().flatten() } else { None };
    let network = if lives { client::network(sandbox).ok().flatten() } else { None };
    let keeper = network.as_ref().and_then(|network| network.keeper);
    let metrics = if state == State::Running { client::metrics(sandbox) } else { None };
    let noted = |pick: fn(&Runtime) -> Option<String>| runtime.as_ref().and_then(pick);
    Details {
        state,
        reason: sandbox.end(state),
        started: noted(|runtime| Some(runtime.started.clone())),
        ended: noted(|runtime| runtime.ended.clone()).filter(|_| !lives),
        detached: lives && runtime.as_ref().is_some_and(|runtime| runtime.detached),
        sessions: status.as_ref().map(|status| status.sessions),
        engine: Engine {
            asked: spec.engine,
            used: noted(|runtime| Some(runtime.engine.clone()).filter(|engine| !engine.is_empty())),
        },
        confinement: status.as_ref().map(|status| status.confinement.clone()).unwrap_or_default(),
        limits: Limits { cpus: spec.cpus, memory: spec.memory, disk: spec.disk },
        disk_used: sandbox.disk_use(),
        memory_used: metrics.map(|all| all.memory_used()),
        workspace: sandbox.spec.workspace().display().to_string(),
        workspace_b64: exact(sandbox.spec.workspace().as_os_str()),
        processes: runtime.filter(|_| lives).map(|runtime| Processes {
            shim: runtime.pid,
            vmm: status.map(|status| status.vmm),
            keeper,
        }),
        network: network_of(sandbox, places, network),
        paths: paths(sandbox.folder()),
        name: spec.name,
        id: spec.id,
        agent: spec.agent,
        created: spec.created,
        arch: spec.arch,
        image: spec.image,
        shares: spec.shares,
    }
}

fn network_of(sandbox: &Sandbox, places: &Places, status: Option<NetworkStatus>) -> Network {
    let set = policy_files::set(places, sandbox, &[]);
    let problem = set.as_ref().err().map(ToString::to_string);
    let set = set.ok();
    let kits = |set: &policy::PolicySet| set.kits.iter().map(|kit| kit.rules.len()).sum();
    let lives = status.is_some();
    let status = status.unwrap_or_default();
    Network {
        kind: sandbox.spec.network,
        preset: set.as_ref().map(|set| set.preset.to_string()),
        rules: set.as_ref().map_or_else(Rules::default, |set| Rules {
            all: set.global.len(),
            kits: kits(set),
            own: set.local.len(),
        }),
        ports: if lives { status.ports } else { ports::read(sandbox.folder()).unwrap_or_default() },
        up: lives.then_some(status.up),
        problem: status.problem.or(problem),
        confinement: status.confinement,
        restarts: lives.then_some(status.restarts),
        observes: status.observes,
        counters: status.counters.into_iter().collect(),
    }
}

fn paths(folder: &Path) -> Paths {
    let shown = |path: &Path| path.display().to_string();
    let (disk, logs) = (folder.join("disk"), folder.join("logs"));
    Paths {
        folder: shown(folder),
        folder_b64: exact(folder.as_os_str()),
        disk: shown(&disk),
        disk_b64: exact(disk.as_os_str()),
        logs: shown(&logs),
        logs_b64: exact(logs.as_os_str()),
    }
}
