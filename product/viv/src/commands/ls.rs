//! `viv ls`: all sandboxes, as a table or as JSON.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use agent_proto::messages::Metrics;
use sandbox::client;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::places::Places;
use sandbox::spec::{State, from_rfc3339};
use sandbox::workspace::exact;
use serde::Serialize;

use crate::cli::LsOptions;
use crate::commands::{say, size};
use crate::failure::Failure;

/// The table's width on a terminal.
const COLUMNS: usize = 100;

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
}

/// The verb.
pub(crate) fn run(options: &LsOptions) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let (sandboxes, wrong) = Sandboxes::open(&places)?.list()?;
    if options.quiet {
        for sandbox in &sandboxes {
            say(&format!("{}\n", sandbox.spec.name))?;
        }
        return Ok(0);
    }
    let rows: Vec<Row> = std::thread::scope(|scope| {
        let asked: Vec<_> = sandboxes.iter().map(|sandbox| scope.spawn(move || row(sandbox))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    if options.json {
        for row in &rows {
            let line = serde_json::to_string(row).map_err(Failure::new)?;
            say(&format!("{line}\n"))?;
        }
    } else {
        let columns = if std::io::stdout().is_terminal() { COLUMNS } else { usize::MAX };
        say(&table(&rows, &places, columns))?;
    }
    for error in wrong {
        eprintln!("viv: {error}");
    }
    Ok(0)
}

fn row(sandbox: &Sandbox) -> Row {
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

fn table(rows: &[Row], places: &Places, columns: usize) -> String {
    const HEAD: [&str; 8] = ["NAME", "AGENT", "STATE", "UP", "CPU", "MEMORY", "DISK", "WORKSPACE"];
    let mut lines: Vec<[String; 8]> = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| cells(row, places).map(|cell| escaped(&cell, LONGEST))));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let mut widths: [usize; 8] = std::array::from_fn(width);
    if columns < usize::MAX {
        // The name and the state may be long; the workspace takes what is left.
        widths[0] = widths[0].min(30);
        widths[2] = widths[2].min(28);
        let before: usize = widths[..7].iter().map(|width| width + 2).sum();
        widths[7] = widths[7].min(columns.saturating_sub(before).max(16));
    }
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (cell, width) in line.iter().zip(widths) {
            let cell = shorten(cell, width);
            out.push_str(&cell);
            out.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

fn cells(row: &Row, places: &Places) -> [String; 8] {
    let dash = || "-".to_owned();
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
        row.name.clone(),
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
        }
    }

    #[test]
    fn the_table_fits_and_paths_lose_their_middle() {
        let places = Places { state: "/s".into(), cache: "/c".into(), home: "/home/u".into() };
        let long = format!("/home/u/{}/end", "deep/".repeat(30));
        let text = table(&[row("shell-x", "/home/u/src/x"), row(&"n".repeat(63), &long)], &places, COLUMNS);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(text.contains("~/src/x") && text.contains("…") && text.contains("/end"), "{text}");
        assert!(text.contains("0.9 / 8 GiB") && text.contains("3 %"), "{text}");
    }

    #[test]
    fn a_reason_and_a_folder_of_a_guests_making_draw_nothing() {
        let places = Places { state: "/s".into(), cache: "/c".into(), home: "/home/u".into() };
        let mut row = row("shell-x", "/home/u/\x1b[2J");
        row.state = State::Stopped;
        row.reason = Some("\x1b]0;x\x07\nfake".into());
        let text = table(&[row], &places, COLUMNS);
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn load_is_a_share_of_all_cpus() {
        let at = |uptime_ms, cpu_ms| Metrics { uptime_ms, cpu_ms, cpus: 2, ..Metrics::default() };
        assert!((percent(&at(1000, 100), &at(1200, 300)) - 50.0).abs() < 0.01);
        assert!(percent(&at(1000, 100), &at(1000, 100)).abs() < 0.01);
    }
}
