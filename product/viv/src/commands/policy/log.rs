//! `viv policy log`: what was decided on the networks of sandboxes, line by line or summed up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway::record::{Decision, Kind, Record, What};
use policy::{HostKey, Observed, Policy, Rule};
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::network::hints;
use sandbox::network::log::{Entry, LogReader};
use sandbox::places::Places;
use serde::Serialize;

use super::set;
use crate::cli::PolicyLogOptions;
use crate::commands::{say, size};
use crate::failure::Failure;
use crate::notices::decided;

/// How many lines are shown unless another number is asked for.
const LIMIT: usize = 100;
/// Between two looks for new lines.
const LOOK: Duration = Duration::from_millis(200);

/// A record as `--json` has it.
#[derive(Debug, Serialize)]
struct Object<'r> {
    sandbox: &'r str,
    seq: u64,
    time: String,
    last: String,
    count: u64,
    bytes_up: u64,
    bytes_down: u64,
    #[serde(flatten)]
    what: &'r What,
}

/// The verb.
pub(super) fn run(places: &Places, options: &PolicyLogOptions) -> Result<u8, Failure> {
    let filter = Filter::new(&options.kind)?;
    let all = Sandboxes::open(places)?;
    let sandboxes: Vec<Sandbox> = if options.sandboxes.is_empty() {
        all.list()?.0
    } else {
        options.sandboxes.iter().map(|name| all.find(name)).collect::<Result<_, _>>()?
    };
    let mut logs: Vec<(Sandbox, LogReader)> = sandboxes
        .into_iter()
        .map(|sandbox| {
            let reader = LogReader::open(sandbox.folder());
            (sandbox, reader)
        })
        .collect();
    let mut entries = read(&mut logs, &filter);
    if options.totals {
        return totals(&entries, options.json).map(|()| 0);
    }
    let limit = options.limit.unwrap_or(if options.json { 0 } else { LIMIT });
    if limit > 0 {
        entries.drain(..entries.len().saturating_sub(limit));
    }
    show(&entries, options.json)?;
    // Those that were named are waited for also while they are stopped; they are gone when they are deleted.
    while options.follow && !logs.is_empty() {
        std::thread::sleep(LOOK);
        show(&read(&mut logs, &filter), options.json)?;
        logs.retain(|(sandbox, _)| sandbox.folder().exists());
    }
    Ok(0)
}

fn read(logs: &mut [(Sandbox, LogReader)], filter: &Filter) -> Vec<(String, Entry)> {
    let mut all: Vec<(String, Entry)> = Vec::new();
    for (sandbox, reader) in logs {
        let entries = reader.read().into_iter().filter(|entry| filter.lets(&entry.record));
        all.extend(entries.map(|entry| (sandbox.spec.name.clone(), entry)));
    }
    all.sort_by_key(|(_, entry)| entry.record.time);
    all
}

/// Which records are shown.
#[derive(Debug, Default)]
struct Filter {
    decisions: Vec<Decision>,
    kinds: Vec<Kind>,
}

impl Filter {
    fn new(words: &[String]) -> Result<Self, Failure> {
        let mut filter = Self::default();
        for word in words.iter().flat_map(|list| list.split(',')) {
            match word {
                "all" => {}
                "allowed" => filter.decisions.push(Decision::Allowed),
                "refused" | "blocked" | "denied" => filter.decisions.push(Decision::Refused),
                "failed" => filter.decisions.push(Decision::Failed),
                "observed" => filter.decisions.push(Decision::Observed),
                "asked" => filter.decisions.push(Decision::Asked),
                "dns" => filter.kinds.push(Kind::Dns),
                "connection" | "network" => {
                    filter.kinds.extend([
                        Kind::Connect,
                        Kind::Datagram,
                        Kind::Tls,
                        Kind::Publish,
                        Kind::Ended,
                    ]);
                }
                "request" | "http" => filter.kinds.push(Kind::Request),
                "exfiltration" => filter.kinds.push(Kind::Exfiltration),
                "limit" => filter.kinds.push(Kind::Limit),
                "ssh-agent" => filter.kinds.push(Kind::SshAgent),
                _ => {
                    return Err(Failure::new(format!("there is no type called \"{}\"", escaped(word, 80))).hint(
                        "allowed, refused, failed, observed, asked, dns, connection, request, exfiltration, limit, ssh-agent",
                    ));
                }
            }
        }
        Ok(filter)
    }

    fn lets(&self, record: &Record) -> bool {
        (self.decisions.is_empty() || self.decisions.contains(&record.what.decision))
            && (self.kinds.is_empty() || self.kinds.contains(&record.what.kind))
    }
}

fn time(milliseconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds)).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(time).to_string()
}

fn show(entries: &[(String, Entry)], json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for (sandbox, entry) in entries {
        if json {
            let record = &entry.record;
            let object = Object {
                sandbox,
                seq: entry.seq,
                time: time(record.time),
                last: time(record.last),
                count: record.count,
                bytes_up: record.bytes_up,
                bytes_down: record.bytes_down,
                what: &record.what,
            };
            text.push_str(&serde_json::to_string(&object).map_err(Failure::new)?);
        } else {
            text.push_str(&line(sandbox, entry));
        }
        text.push('\n');
    }
    if text.is_empty() { Ok(()) } else { say(&text) }
}

/// One line; a guest chose the names in it.
fn line(sandbox: &str, entry: &Entry) -> String {
    let (record, what) = (&entry.record, &entry.record.what);
    let mut line =
        format!("{}  {sandbox}  {}  {}", time(record.time), word(what.decision), hints::what(what));
    if let Some(status) = what.status {
        line.push_str(&format!("  {status}"));
    }
    if record.count > 1 {
        line.push_str(&format!("  {} times", record.count));
    }
    if record.bytes_up > 0 || record.bytes_down > 0 {
        line.push_str(&format!("  {} out, {} in", size(record.bytes_up), size(record.bytes_down)));
    }
    let why: Vec<&str> = [what.rule.as_deref(), Some(what.text.as_str())]
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .collect();
    if !why.is_empty() {
        line.push_str(&format!("  ({})", why.join(": ")));
    }
    escaped(&line, LONGEST)
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Allowed => "allowed ",
        Decision::Refused => "refused ",
        Decision::Failed => "failed  ",
        Decision::Observed => "observed",
        Decision::Asked => "asked   ",
    }
}

/// The sums for one host and port.
#[derive(Debug, Default, Serialize)]
struct Total {
    sandbox: String,
    host: String,
    port: u16,
    decision: &'static str,
    count: u64,
    bytes_up: u64,
    bytes_down: u64,
    last: u64,
}

fn totals(entries: &[(String, Entry)], json: bool) -> Result<(), Failure> {
    let mut all: BTreeMap<(&'static str, &str, &str, u16), Total> = BTreeMap::new();
    for (sandbox, entry) in entries {
        let (record, what) = (&entry.record, &entry.record.what);
        let decision = word(what.decision).trim_end();
        let total = all.entry((decision, sandbox, &what.host, what.port)).or_insert_with(|| Total {
            sandbox: sandbox.clone(),
            host: what.host.clone(),
            port: what.port,
            decision,
            ..Total::default()
        });
        // A flow's end is no further decision; it has the bytes.
        if what.kind != Kind::Ended {
            total.count = total.count.saturating_add(record.count);
        }
        total.bytes_up = total.bytes_up.saturating_add(record.bytes_up);
        total.bytes_down = total.bytes_down.saturating_add(record.bytes_down);
        total.last = total.last.max(record.last);
    }
    let mut totals: Vec<Total> = all.into_values().collect();
    // What was refused first, and of that what was most.
    totals.sort_by(|a, b| (a.decision != "refused", b.count).cmp(&(b.decision != "refused", a.count)));
    let mut text = String::new();
    for total in &totals {
        if json {
            let mut value = serde_json::to_value(total).map_err(Failure::new)?;
            value["last"] = time(total.last).into();
            text.push_str(&value.to_string());
        } else {
            let port = if total.port == 0 { String::new() } else { format!(":{}", total.port) };
            let line = format!(
                "{:<8}  {:>7}  {:>9} out  {:>9} in  {}  {}  {}{port}",
                total.decision,
                total.count,
                size(total.bytes_up),
                size(total.bytes_down),
                time(total.last),
                total.sandbox,
                total.host
            );
            text.push_str(&escaped(&line, LONGEST));
        }
        text.push('\n');
    }
    if text.is_empty() { Ok(()) } else { say(&text) }
}

/// Lines of what was refused, and of what could not be reached, at the end of a session that observed.
const MOST_LINES: usize = 10;

/// What the work of a session that observed was, as the log has it.
#[derive(Debug, Default)]
struct Work {
    /// The rules that it would have needed beside those that hold.
    rules: Vec<Rule>,
    /// Whether it reached anything.
    reached: bool,
    /// What was refused although it was observed.
    refused: Vec<String>,
    /// What was let through and could not be reached.
    failed: Vec<String>,
    /// Records that the log has no room for any more.
    missing: u64,
}

/// What a session that observed is told at its end of what was recorded since `reader` was made.
pub(crate) fn observed_since(
    places: &Places,
    sandbox: &Sandbox,
    reader: &mut LogReader,
) -> Result<Vec<String>, Failure> {
    let base = Policy::compile(&set(places, Some(sandbox))?);
    let before = reader.last();
    let entries = reader.read();
    Ok(Work::new(&entries, before, &base).words(&sandbox.spec.name))
}

impl Work {
    /// `before`: the number of the last record before these.
    fn new(entries: &[Entry], before: u64, base: &Policy) -> Self {
        let flows = || {
            let is_flow = |what: &&What| {
                matches!(what.kind, Kind::Connect | Kind::Datagram | Kind::Tls | Kind::Request)
            };
            entries.iter().map(|entry| &entry.record.what).filter(is_flow)
        };
        let passed = |what: &&What| matches!(what.decision, Decision::Allowed | Decision::Observed);
        let reached: BTreeSet<String> = flows().filter(passed).map(hints::what).collect();
        // Each is told once.
        let mut known = BTreeSet::new();
        let mut line = |what: &What, remedy: Option<&String>| {
            let (what, why, is_agent) = (hints::what(what), hints::why(what), what.kind == Kind::SshAgent);
            let line = decided(&what, &why, remedy.map(String::as_str));
            known.insert(if is_agent { why } else { what }).then_some(line)
        };
        let all = entries.iter().map(|entry| &entry.record.what);
        let refused = all
            .filter(|what| what.decision == Decision::Refused)
            .filter(|what| !hints::is_service_question(what))
            .filter_map(|what| line(what, what.remedy.as_ref()))
            .collect();
        // Of several attempts at once one is enough, and the others are given up.
        let failed = flows()
            .filter(|what| what.decision == Decision::Failed && !reached.contains(&hints::what(what)))
            .filter_map(|what| line(what, None))
            .collect();
        let observed: Vec<Observed> = entries.iter().filter_map(|entry| observed(&entry.record)).collect();
        let rules = policy::minimal_rules(&observed, Some(base));
        let numbers = entries.last().map_or(0, |last| last.seq.saturating_sub(before));
        let missing =
            entries.iter().fold(numbers, |left, entry| left.saturating_sub(entry.entries.unwrap_or(1)));
        Self { rules, reached: !reached.is_empty(), refused, failed, missing }
    }

    fn words(&self, name: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if self.missing > 0 {
            lines.push(format!(
                "viv: {} records are no longer in the log, so that this may not be all:",
                self.missing
            ));
        }
        match (self.reached, self.rules.is_empty()) {
            (false, true) if self.missing > 0 => {}
            (_, false) => lines.push("viv: what it did needs these rules:".to_owned()),
            (true, true) => lines.push("viv: the rules that there are allow all that it reached".to_owned()),
            (false, true) => lines.push("viv: it reached nothing".to_owned()),
        }
        lines.extend(self.rules.iter().map(|rule| format!("  {}", rule.command(name))));
        for (told, title, kind) in [
            (&self.refused, "viv: refused, which observing does not change:", "refused"),
            (&self.failed, "viv: let through, and could not be reached:", "failed"),
        ] {
            if told.is_empty() {
                continue;
            }
            lines.push(title.to_owned());
            lines.extend(told.iter().take(MOST_LINES).map(|line| format!("  {line}")));
            let more = told.len().saturating_sub(MOST_LINES);
            if more > 0 {
                lines.push(format!("  and {more} more   viv policy log --type {kind} {name}"));
            }
        }
        lines
    }
}

/// What was let through although no rule allows it. A question for a name says nothing of the port.
fn observed(record: &Record) -> Option<Observed> {
    let what = &record.what;
    if what.decision != Decision::Observed || matches!(what.kind, Kind::Dns | Kind::Ended | Kind::Limit) {
        return None;
    }
    let request = what.method.clone().map(|method| (method, what.path.clone().unwrap_or_else(|| "/".into())));
    Some(Observed {
        host: HostKey::parse(&what.host).ok()?,
        port: what.port,
        protocol: what.protocol?,
        request,
        address: what.address,
    })
}

#[cfg(test)]
mod tests {
    use gateway::record::UNRESOLVED;
    use policy::{PolicySet, Preset, Protocol};

    use super::*;

    fn entry(decision: Decision, host: &str) -> Entry {
        let what = What { text: "\x1b[2J".into(), ..What::new(Kind::Connect, decision, host, 443) };
        let record = Record { time: 1_000, last: 2_000, count: 3, bytes_up: 5, bytes_down: 2048, what };
        Entry { seq: 7, entries: None, record }
    }

    #[test]
    fn a_line_says_all_and_draws_nothing() {
        let text = line("box", &entry(Decision::Refused, "a.example\n"));
        assert!(
            text.starts_with(
                "1970-01-01T00:00:01.000Z  box  refused   a.example\\n:443  3 times  5 B out, 2 KiB in"
            ),
            "{text}"
        );
        assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
    }

    #[test]
    fn types_are_decisions_and_kinds() {
        let of = |words: &str| Filter::new(&[words.to_owned()]);
        let record = entry(Decision::Refused, "a").record;
        for words in ["refused", "all", "connection", "allowed,blocked", "refused,connection"] {
            assert!(of(words).unwrap().lets(&record), "{words}");
        }
        for words in ["allowed", "dns", "refused,request"] {
            assert!(!of(words).unwrap().lets(&record), "{words}");
        }
        assert!(of("nonsense").is_err());
    }

    /// What a session that observed is told of these.
    fn told(whats: &[What]) -> Vec<String> {
        told_behind(0, whats)
    }

    /// The same when so many records before them are gone.
    fn told_behind(gone: u64, whats: &[What]) -> Vec<String> {
        let entry = |(seq, what): (u64, &What)| {
            let record =
                Record { time: 1, last: 1, count: 1, bytes_up: 0, bytes_down: 0, what: what.clone() };
            Entry { seq, entries: None, record }
        };
        let entries: Vec<Entry> = (gone + 1..).zip(whats).map(entry).collect();
        let rule = Rule::new(policy::Decision::Allow, "a.example".parse().unwrap());
        let set = PolicySet { preset: Preset::DenyAll, local: vec![rule], ..PolicySet::default() };
        Work::new(&entries, 0, &Policy::compile(&set)).words("box")
    }

    #[test]
    fn the_end_of_observing_says_what_is_true() {
        let flow = |decision, host: &str| What {
            protocol: Some(Protocol::Tcp),
            ..What::new(Kind::Connect, decision, host, 443)
        };
        let name = |decision, host: &str| What::new(Kind::Dns, decision, host, 0);
        let nothing = "viv: it reached nothing";
        let all = "viv: the rules that there are allow all that it reached";
        assert_eq!(told(&[]), [nothing]);
        let gone = "viv: 5 records are no longer in the log, so that this may not be all:";
        assert_eq!(told_behind(5, &[flow(Decision::Allowed, "a.example")]), [gone, all]);
        assert_eq!(told_behind(5, &[name(Decision::Observed, "b.example")]), [gone]);
        // A name that is asked for and no more is nothing that was reached.
        assert_eq!(told(&[name(Decision::Observed, "b.example")]), [nothing]);
        assert_eq!(told(&[flow(Decision::Allowed, "a.example")]), [all]);
        assert_eq!(
            told(&[flow(Decision::Allowed, "a.example"), flow(Decision::Observed, "b.example")]),
            ["viv: what it did needs these rules:", "  viv policy allow --sandbox box b.example:443"]
        );
        let denied = What {
            layer: Some("sandbox".into()),
            text: "denied by deny:c.example".into(),
            remedy: Some("viv policy rm --sandbox box --id deny:c.example".into()),
            ..name(Decision::Refused, "c.example")
        };
        let unresolved = flow(Decision::Failed, "nosuch.example").text(format!("{UNRESOLVED}: no such name"));
        let service = name(Decision::Refused, "_http._tcp.example");
        let given_up = flow(Decision::Failed, "a.example").text("given up");
        let refused = [
            "viv: refused, which observing does not change:",
            "  c.example  (sandbox: denied by deny:c.example)   allow: viv policy rm --sandbox box --id deny:c.example",
        ];
        let failed = [
            "viv: let through, and could not be reached:",
            "  nosuch.example:443  (its name cannot be resolved: no such name)",
        ];
        assert_eq!(
            told(&[denied.clone(), unresolved, service, denied.clone()]),
            [&[nothing], &refused[..], &failed[..]].concat()
        );
        assert_eq!(
            told(&[given_up, denied, flow(Decision::Allowed, "a.example")]),
            [&[all], &refused[..]].concat()
        );
        let many: Vec<What> = (0..13).map(|n| name(Decision::Refused, &format!("{n}.example"))).collect();
        let lines = told(&many);
        assert_eq!(lines.len(), 2 + MOST_LINES + 1);
        assert_eq!(lines.last().unwrap(), "  and 3 more   viv policy log --type refused box");
    }
}
