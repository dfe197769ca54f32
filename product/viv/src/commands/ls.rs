//! `viv ls`: all sandboxes, as a table or as JSON.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use agent_proto::messages::Metrics;
use sandbox::client;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Damaged, Sandbox, Sandboxes};
use sandbox::naming::{Known, goes_by};
use sandbox::places::Places;
use sandbox::spec::{State, from_rfc3339};
use sandbox::workspace::exact;
use serde::Serialize;

use crate::cli::LsOptions;
use crate::commands::run::preset_of;
use crate::commands::{say, size};
use crate::failure::Failure;

/// The table's width on a terminal.
const COLUMNS: usize = 100;

/// The most that a state takes with its reason, also elsewhere: one long reason pushes no other row's columns away.
const LONGEST_STATE: usize = 28;

/// The column of the states.
const STATE: usize = 2;

/// Time between the two looks that give the CPU's load.
const LOOK: Duration = Duration::from_millis(200);

/// One sandbox, as `--json` has it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    id: String,
    agent: String,
    state: State,
    /// Why it stopped or failed, when it has.
    reason: Option<String>,
    created: String,
    started: Option<String>,
    ended: Option<String>,
    engine: Option<String>,
    cpus: u32,
    /// Share of all its CPUs that is used, in percent.
    cpu_percent: Option<f64>,
    memory: u64,
    memory_used: Option<u64>,
    disk: u64,
    /// Bytes that it takes on the host.
    disk_used: u64,
    workspace: String,
    /// Its exact bytes where they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_b64: Option<String>,
    shares: Vec<sandbox::workspace::Share>,
    /// The preset that holds for it; `none` without a network.
    network: String,
    /// What it publishes.
    ports: Vec<sandbox::network::ports::Publish>,
}

/// One that cannot be read, as `--json` has it.
#[derive(Debug, Serialize)]
struct Broken {
    /// Its name, if that can be told.
    name: Option<String>,
    id: String,
    /// "damaged", "newer" or "unreadable".
    state: &'static str,
    running: bool,
    reason: String,
    mend: String,
    disk_used: u64,
}

/// The verb.
pub(crate) fn run(options: &LsOptions) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let (sandboxes, damaged) = Sandboxes::open(&places)?.list()?;
    let labels = labels(&sandboxes);
    if options.quiet {
        let names: Vec<String> = labels.into_iter().chain(damaged.iter().map(|one| one.id())).collect();
        if options.json {
            let all = serde_json::to_string(&names).map_err(Failure::new)?;
            say(&format!("{all}\n"))?;
            return Ok(0);
        }
        for name in names {
            say(&format!("{name}\n"))?;
        }
        return Ok(0);
    }
    let rows: Vec<Row> = std::thread::scope(|scope| {
        let places = &places;
        let asked: Vec<_> =
            sandboxes.iter().map(|sandbox| scope.spawn(move || row(sandbox, places))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let broken: Vec<Broken> = damaged.iter().map(broken).collect();
    if options.json {
        let rows = rows.iter().map(serde_json::to_string);
        for line in rows.chain(broken.iter().map(serde_json::to_string)) {
            say(&format!("{}\n", line.map_err(Failure::new)?))?;
        }
        return Ok(0);
    }
    let columns = if std::io::stdout().is_terminal() { COLUMNS } else { usize::MAX };
    let lines = rows.iter().zip(&labels).map(|(row, label)| cells(row, label, &places));
    say(&table(lines.chain(broken.iter().map(broken_cells)), columns))?;
    super::say_damaged(&damaged);
    for (row, label) in rows.iter().zip(&labels).filter(|(row, label)| row.name != **label) {
        eprintln!("viv: {label} is one of several that are called {}, and goes by its id", row.name);
    }
    Ok(0)
}

/// What each goes by.
fn labels(sandboxes: &[Sandbox]) -> Vec<String> {
    let known: Vec<Known<'_>> = sandboxes
        .iter()
        .map(|sandbox| Known { id: &sandbox.spec.id, name: Some(&sandbox.spec.name) })
        .collect();
    known.iter().map(|one| goes_by(one, &known).to_owned()).collect()
}

fn broken(one: &Damaged) -> Broken {
    Broken {
        name: one.told_name().map(str::to_owned),
        id: one.id(),
        state: one.word(),
        running: one.is_running(),
        reason: one.cause().to_string(),
        mend: one.mend(),
        disk_used: one.disk_use(),
    }
}

fn row(sandbox: &Sandbox, places: &Places) -> Row {
    let spec = &sandbox.spec;
    let state = sandbox.state();
    let runtime = sandbox.runtime();
    let (cpu_percent, memory_used) = if state == State::Running { load(sandbox) } else { (None, None) };
    let lives = !state.is_over();
    Row {
        name: spec.name.clone(),
        id: spec.id.clone(),
        agent: spec.agent.clone(),
        state,
        reason: sandbox.end(state),
        created: spec.created.clone(),
        started: runtime.as_ref().map(|runtime| runtime.started.clone()),
        ended: runtime.as_ref().filter(|_| !lives).and_then(|runtime| runtime.ended.clone()),
        engine: runtime.map(|runtime| runtime.engine).filter(|engine| !engine.is_empty()),
        cpus: spec.cpus,
        cpu_percent,
        memory: spec.memory,
        memory_used,
        disk: spec.disk,
        disk_used: sandbox.disk_use(),
        workspace: spec.workspace().display().to_string(),
        workspace_b64: exact(spec.workspace().as_os_str()),
        shares: spec.shares.clone(),
        network: preset_of(sandbox, places),
        ports: sandbox::network::ports::read(sandbox.folder()).unwrap_or_default(),
    }
}

fn load(sandbox: &Sandbox) -> (Option<f64>, Option<u64>) {
    let Some(first) = client::metrics(sandbox) else { return (None, None) };
    std::thread::sleep(LOOK);
    let Some(second) = client::metrics(sandbox) else { return (None, None) };
    (Some(percent(&first, &second)), Some(second.memory_used()))
}

fn percent(first: &Metrics, second: &Metrics) -> f64 {
    let wall = second.uptime_ms.saturating_sub(first.uptime_ms).max(1) as f64 * f64::from(second.cpus.max(1));
    let used = second.cpu_ms.saturating_sub(first.cpu_ms) as f64;
    (used / wall * 1000.0).round().min(1000.0) / 10.0
}

fn table(rows: impl Iterator<Item = [String; 8]>, columns: usize) -> String {
    const HEAD: [&str; 8] = ["NAME", "AGENT", "STATE", "UP", "CPU", "MEMORY", "DISK", "WORKSPACE"];
    let mut lines: Vec<[String; 8]> = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.map(|cells| cells.map(|cell| escaped(&cell, LONGEST))));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let mut widths: [usize; 8] = std::array::from_fn(width);
    widths[STATE] = widths[STATE].min(LONGEST_STATE);
    if columns < usize::MAX {
        // The name may be long; the workspace takes what is left.
        widths[0] = widths[0].min(30);
        let before: usize = widths[..7].iter().map(|width| width + 2).sum();
        widths[7] = widths[7].min(columns.saturating_sub(before).max(16));
    }
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let cell = if column == STATE { cut(cell, width) } else { shorten(cell, width) };
            out.push_str(&cell);
            out.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

fn dash() -> String {
    "-".to_owned()
}

fn broken_cells(one: &Broken) -> [String; 8] {
    let state = if one.running { format!("{}, running", one.state) } else { one.state.into() };
    [one.id.clone(), dash(), state, dash(), dash(), dash(), size(one.disk_used), dash()]
}

fn cells(row: &Row, label: &str, places: &Places) -> [String; 8] {
    let state = match &row.reason {
        Some(reason) => format!("{} ({reason})", row.state.word()),
        None => row.state.word().to_owned(),
    };
    let up = row
        .started
        .as_deref()
        .filter(|_| row.state == State::Running)
        .and_then(from_rfc3339)
        .map_or_else(dash, since);
    let memory = row
        .memory_used
        .map_or_else(dash, |used| format!("{:.1} / {}", used as f64 / (1u64 << 30) as f64, size(row.memory)));
    [
        label.to_owned(),
        row.agent.clone(),
        state,
        up,
        row.cpu_percent.map_or_else(dash, |percent| format!("{percent:.0} %")),
        memory,
        size(row.disk_used),
        places.short(std::path::Path::new(&row.workspace)),
    ]
}

fn since(start: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(start).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A text that fits, without its middle if need be: the ends of a path say most.
fn shorten(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let head = (width.saturating_sub(1)) / 2;
    let tail = width.saturating_sub(1) - head;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

/// A text that fits, without its end if need be: the beginning of a sentence says most.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, workspace: &str) -> Row {
        Row {
            name: name.into(),
            id: "0".into(),
            agent: "shell".into(),
            state: State::Running,
            reason: None,
            created: String::new(),
            started: None,
            ended: None,
            engine: Some("soft".into()),
            cpus: 4,
            cpu_percent: Some(3.2),
            memory: 8 << 30,
            memory_used: Some(966_367_641),
            disk: 64 << 30,
            disk_used: 1 << 30,
            workspace: workspace.into(),
            workspace_b64: None,
            shares: Vec::new(),
            network: "balanced".into(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn the_table_fits_and_paths_lose_their_middle() {
        let places =
            Places { state: "/s".into(), cache: "/c".into(), config: "/e".into(), home: "/home/u".into() };
        let long = format!("/home/u/{}/end", "deep/".repeat(30));
        let rows = [row("shell-x", "/home/u/src/x"), row(&"n".repeat(63), &long)];
        let text = table(rows.iter().map(|row| cells(row, &row.name, &places)), COLUMNS);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(text.contains("~/src/x") && text.contains("…") && text.contains("/end"), "{text}");
        assert!(text.contains("0.9 / 8 GiB") && text.contains("3 %"), "{text}");
    }

    #[test]
    fn a_reason_and_a_folder_of_a_guests_making_draw_nothing() {
        let places =
            Places { state: "/s".into(), cache: "/c".into(), config: "/e".into(), home: "/home/u".into() };
        let mut row = row("shell-x", "/home/u/\x1b[2J");
        row.state = State::Stopped;
        row.reason = Some("\x1b]0;x\x07\nfake".into());
        let text = table([cells(&row, &row.name, &places)].into_iter(), COLUMNS);
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn a_long_reason_widens_no_column_and_a_damaged_one_has_a_row() {
        let places =
            Places { state: "/s".into(), cache: "/c".into(), config: "/e".into(), home: "/home/u".into() };
        let mut failed = row("shell-x", "/home/u/x");
        failed.state = State::Failed;
        failed.reason = Some("the kernel of the host is too old ".repeat(4));
        let damaged = |running| Broken {
            name: None,
            id: "0123456789abcdef".into(),
            state: "damaged",
            running,
            reason: "x".into(),
            mend: "x".into(),
            disk_used: 0,
        };
        let rows = [
            cells(&row("shell-y", "/home/u/y"), "shell-y", &places),
            cells(&failed, "shell-x", &places),
            broken_cells(&damaged(true)),
            broken_cells(&damaged(false)),
        ];
        let text = table(rows.into_iter(), usize::MAX);
        let is_short = |line: &str| line.chars().count() < 100;
        assert!(text.lines().all(is_short), "{text}");
        assert!(text.contains("failed (the kernel of the h…  -"), "{text}");
        assert!(text.contains("0123456789abcdef  -      damaged, running "), "{text}");
        assert!(text.contains("0123456789abcdef  -      damaged  "), "{text}");
    }

    #[test]
    fn load_is_a_share_of_all_cpus() {
        let at = |uptime_ms, cpu_ms| Metrics { uptime_ms, cpu_ms, cpus: 2, ..Metrics::default() };
        assert!((percent(&at(1000, 100), &at(1200, 300)) - 50.0).abs() < 0.01);
        assert!(percent(&at(1000, 100), &at(1000, 100)).abs() < 0.01);
    }
}
