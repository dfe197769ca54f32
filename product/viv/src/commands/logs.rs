//! `viv logs`: what the parts of a sandbox had to say, by time.

use std::time::{Duration, SystemTime};

use sandbox::escape::escaped;
use sandbox::folder::Sandboxes;
use sandbox::logs::{LONGEST_LINE, Line, Reader, Source};
use sandbox::places::Places;
use serde::Serialize;

use crate::cli::LogsOptions;
use crate::commands::say;
use crate::failure::Failure;

/// Between two looks for new lines.
const LOOK: Duration = Duration::from_millis(200);

/// A line as `--json` has it.
#[derive(Serialize)]
struct Object<'l> {
    time: String,
    log: &'static str,
    text: &'l str,
}

/// The verb.
pub(crate) fn run(options: &LogsOptions) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let sandbox = Sandboxes::open(&places)?.find_folder(&options.name)?;
    let sources = sources(&options.sources)?;
    let since = options.since.as_deref().map(|text| since(text, SystemTime::now())).transpose()?;
    let named = !options.sources.is_empty();
    let mut reader = Reader::open(&sandbox, &sources);
    let mut read = || {
        let mut lines = reader.read();
        lines.retain(|line| named || !is_routine(line));
        lines
    };
    let mut lines = read();
    lines.retain(|line| since.is_none_or(|since| line.time >= since));
    let skipped = options.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
    show(lines.get(skipped..).unwrap_or_default(), options.json)?;
    let mut lives = options.follow;
    while lives {
        // In this order: what was written before the end is still shown.
        lives = sandbox.is_running();
        show(&read(), options.json)?;
        std::thread::sleep(if lives { LOOK } else { Duration::ZERO });
    }
    Ok(0)
}

/// Whether it is one of the hundred things that dockerd says whenever it starts, between which all else would be hard to find. Who asks
/// for its log gets them. `time="…" level=info msg=…` is the form of its logger.
fn is_routine(line: &Line) -> bool {
    let mut fields = line.text.split(' ');
    line.source == Source::Dockerd
        && fields.next().is_some_and(|field| field.starts_with("time="))
        && matches!(fields.next(), Some("level=info" | "level=debug" | "level=trace"))
}

fn sources(named: &[String]) -> Result<Vec<Source>, Failure> {
    if named.is_empty() {
        return Ok(Source::ALL.into());
    }
    let source = |name: &String| {
        Source::from_name(name).ok_or_else(|| {
            Failure::new(format!("there is no log called \"{name}\"")).hint(
                "there are console, agent, dockerd, vmm, gateway and shim; without a name all are shown",
            )
        })
    };
    named.iter().map(source).collect()
}

/// A moment: RFC 3339, or how long ago.
fn since(text: &str, now: SystemTime) -> Result<SystemTime, Failure> {
    let ago = || now.checked_sub(humantime::parse_duration(text).ok()?);
    humantime::parse_rfc3339_weak(text).ok().or_else(ago).ok_or_else(|| {
        Failure::new(format!("\"{text}\" is no time")).hint("--since 10m, or --since 2026-01-31T12:00:00Z")
    })
}

fn show(lines: &[Line], json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&if json { object(line) } else { plain(line) });
        text.push('\n');
    }
    if text.is_empty() { Ok(()) } else { say(&text) }
}

/// A guest chose most of the words: they move no cursor and forge no line.
fn plain(line: &Line) -> String {
    let time = humantime::format_rfc3339_millis(line.time);
    format!("{time}  {:<7}  {}", line.source.name(), escaped(&line.text.replace('\t', "    "), LONGEST_LINE))
}

fn object(line: &Line) -> String {
    let time = humantime::format_rfc3339_millis(line.time).to_string();
    serde_json::to_string(&Object { time, log: line.source.name(), text: &line.text }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_guests_draws_nothing() {
        let line =
            Line { time: SystemTime::UNIX_EPOCH, source: Source::Agent, text: "a\tb \x1b[2J\rfake".into() };
        assert_eq!(plain(&line), "1970-01-01T00:00:00.000Z  agent    a    b \\u{1b}[2J\\rfake");
        let read: serde_json::Value = serde_json::from_str(&object(&line)).unwrap();
        assert_eq!((read["log"].as_str(), read["text"].as_str()), (Some("agent"), Some(line.text.as_str())));
    }

    #[test]
    fn what_dockerd_says_at_every_start_is_for_who_asks() {
        let line = |source, text: &str| Line { time: SystemTime::UNIX_EPOCH, source, text: text.into() };
        let said = |text| is_routine(&line(Source::Dockerd, text));
        assert!(said("time=\"2026-11-22T06:02:44Z\" level=info msg=\"API listen on /run/docker.sock\""));
        assert!(said("time=\"2026-11-22T06:02:44Z\" level=debug msg=x"));
        for text in [
            "time=\"2026-11-22T06:02:44Z\" level=warning msg=\"no cgroup\"",
            "time=\"2026-11-22T06:02:44Z\" level=error msg=\"of level=info\"",
            "failed to start daemon: level=info",
            "panic: level=info",
            "",
        ] {
            assert!(!said(text), "{text}");
        }
        assert!(!is_routine(&line(Source::Agent, "time=\"x\" level=info msg=x")));
    }

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert_eq!(since("10m", now).unwrap(), now - Duration::from_secs(600));
        assert_eq!(since("2001-09-09T01:46:40Z", now).unwrap(), now);
        assert!(since("yesterday", now).is_err() && sources(&["x".into()]).is_err());
    }
}
