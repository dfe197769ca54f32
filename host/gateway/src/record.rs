//! Records of what was decided, and their way to the shim: equal ones fold into one with an exact count.
//!
//! Nothing is lost. Different records are bounded in number and rate ([`LIMITS`]); beyond that they fold by host and port, then by the
//! name's last two labels, then by kind alone. The count stays exact. A guest chooses what there is many of: attempts to carry a secret
//! off, what went out, and what was refused or only asked for each have limits of their own, so that a flood of one hides no other.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use policy::{HostKey, Protocol, Reason};
use serde::{Deserialize, Serialize};

use crate::allowance::Allowance;

/// Different records of one [`Class`] by how much is told of each: so many at once and while they wait for the shim, and so many in a
/// second. All of it; host and port; the name's zone.
const LIMITS: [(usize, f64); 3] = [(1024, 200.0), (256, 20.0), (64, 5.0)];
/// How long a record waits for others.
const WAIT: Duration = Duration::from_millis(50);
/// The shortest time between two batches.
const APART: Duration = Duration::from_millis(500);
/// Records in a batch.
const BATCH: usize = 32;
/// Bytes of a batch of several, in JSON: it fits a packet. For a longer message a descriptor is needed, of which a guest can leave none.
const BATCH_BYTES: usize = 96 << 10;
/// Bytes of a path, a text or a remedy that are kept.
const LONGEST: usize = 1024;

/// How the text of a flow begins that was let through to a name which does not resolve; the reason comes after it and `: `.
pub const UNRESOLVED: &str = "its name cannot be resolved";

/// What a record is of.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A DNS question.
    Dns,
    /// A TCP connection.
    Connect,
    /// A flow of UDP datagrams.
    Datagram,
    /// The beginning of a TLS connection: the server's name in it.
    Tls,
    /// A request in inspected traffic.
    Request,
    /// A connection from the host to a published port.
    Publish,
    /// A limit of the gateway was hit.
    Limit,
    /// A placeholder of a secret was on its way to a host that the secret is not for.
    Exfiltration,
    /// A flow's end, with the bytes that it carried.
    Ended,
    /// A request to the user's SSH agent. It comes from the session that forwards it, not from the gateway.
    SshAgent,
}

/// What was decided.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Let through.
    Allowed,
    /// Refused by policy or by a limit.
    Refused,
    /// Allowed, but upstream could not be reached.
    Failed,
    /// No rule allows it; let through because the sandbox is observed.
    Observed,
    /// Held until the user has answered.
    Asked,
}

/// One decision, or `count` equal ones.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Of the first, in milliseconds since 1970.
    pub time: u64,
    /// Of the last, likewise.
    pub last: u64,
    /// How many there were.
    pub count: u64,
    /// Bytes from the guest, of all of them.
    #[serde(default)]
    pub bytes_up: u64,
    /// Bytes to the guest, of all of them.
    #[serde(default)]
    pub bytes_down: u64,
    /// What was decided, of what.
    #[serde(flatten)]
    pub what: What,
}

/// What two records must have in common to be one.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
pub struct What {
    /// What it is of.
    pub kind: Kind,
    /// What was decided.
    pub decision: Decision,
    /// Name or address as the guest asked for it; `**.` before the last labels of many that were folded.
    pub host: String,
    /// Upstream's address, where one was connected to or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The destination's port; 0 where there is none.
    #[serde(default)]
    pub port: u16,
    /// Of the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Of an inspected request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Of an inspected request, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of the answer to an inspected request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The layer that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why, in words.
    #[serde(default)]
    pub text: String,
    /// A command that would allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl What {
    /// A decision about a host and port.
    pub fn new(kind: Kind, decision: Decision, host: impl ToString, port: u16) -> Self {
        Self {
            kind,
            decision,
            host: host.to_string(),
            address: None,
            port,
            protocol: None,
            method: None,
            path: None,
            status: None,
            layer: None,
            rule: None,
            text: String::new(),
            remedy: None,
        }
    }

    /// A decision about a flow.
    pub fn flow(kind: Kind, decision: Decision, host: &HostKey, port: u16, protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), ..Self::new(kind, decision, host, port) }
    }

    /// With the policy's reason.
    pub fn because(mut self, reason: &Reason) -> Self {
        self.layer = Some(reason.layer.to_string());
        self.rule = reason.rule.as_ref().map(ToString::to_string);
        self.text.clone_from(&reason.text);
        self.remedy.clone_from(&reason.remedy);
        self
    }

    /// With a reason in words.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// With upstream's address.
    pub fn at(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    fn shortened(mut self) -> Self {
        shorten(&mut self.host);
        shorten(&mut self.text);
        for text in [&mut self.path, &mut self.method, &mut self.remedy].into_iter().flatten() {
            shorten(text);
        }
        self
    }

    /// Which limits it counts against.
    pub fn class(&self) -> Class {
        match (self.kind, self.decision) {
            (Kind::Exfiltration, _) => Class::Secret,
            (Kind::Dns, _) => Class::Asked,
            (_, Decision::Allowed | Decision::Observed | Decision::Failed) => Class::Out,
            (_, Decision::Refused | Decision::Asked) => Class::Asked,
        }
    }

    /// What many have in common that are about one port of one host; `None`: there is no less to say.
    pub fn of_host(&self) -> Option<Self> {
        let less = Self { address: None, path: None, status: None, text: String::new(), ..self.clone() };
        // Which secret it was is in the words.
        let text = if self.kind == Kind::Exfiltration { &self.text } else { MANY };
        let is_less = self.address.is_some() || self.path.is_some() || self.status.is_some();
        (is_less || self.kind != Kind::Dns).then(|| less.text(text)).filter(|less| less != self)
    }

    /// What many of the kind have in common: the name's last two labels.
    pub fn of_zone(&self) -> Self {
        let mut labels = self.host.rsplit('.');
        let named = self.host.parse::<IpAddr>().is_err();
        let host = match (labels.next(), labels.next()) {
            (Some(last), Some(before)) if named => format!("**.{before}.{last}"),
            _ => "**".to_owned(),
        };
        self.folded(host)
    }

    /// What all of the kind have in common.
    pub fn of_kind(&self) -> Self {
        self.folded("**".to_owned())
    }

    fn folded(&self, host: String) -> Self {
        Self { protocol: self.protocol, ..Self::new(self.kind, self.decision, host, 0) }.text(MANY)
    }
}

/// The words of what was folded.
const MANY: &str = "too many different ones to tell them apart";

/// Records that share limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Attempts to carry a secret off.
    Secret,
    /// What was let through.
    Out,
    /// What was refused, and questions.
    Asked,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Secret, Self::Out, Self::Asked];
}

fn shorten(text: &mut String) {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
}

/// Milliseconds since 1970.
fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The records that wait for the shim.
#[derive(Debug)]
pub(crate) struct Recorder {
    waiting: Vec<Record>,
    places: HashMap<What, usize>,
    /// When the next batch is due, if anything waits.
    due: Option<Instant>,
    sent: Option<Instant>,
    /// Of each class, by how much is told.
    budgets: [[Budget; 3]; 3],
}

/// How many different records may still come.
#[derive(Debug)]
struct Budget {
    most: usize,
    allowance: Allowance,
    waiting: usize,
}

impl Budget {
    fn new((most, a_second): (usize, f64)) -> Self {
        Self { most, allowance: Allowance::new(most as f64, a_second), waiting: 0 }
    }

    fn take(&mut self, now: Instant) -> bool {
        let may = self.waiting < self.most && self.allowance.take(now);
        if may {
            self.waiting = self.waiting.saturating_add(1);
        }
        may
    }
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            waiting: Vec::new(),
            places: HashMap::new(),
            due: None,
            sent: None,
            budgets: [(); 3].map(|()| LIMITS.map(Budget::new)),
        }
    }

    /// Takes one decision down, with the bytes that were carried.
    pub(crate) fn add(&mut self, what: What, bytes: (u64, u64), now: Instant) {
        let time = wall();
        let record = Record { time, last: time, count: 1, bytes_up: bytes.0, bytes_down: bytes.1, what };
        self.merge(record, now);
    }

    /// The same for many equal ones.
    pub(crate) fn add_many(&mut self, what: What, count: u64, now: Instant) {
        let time = wall();
        self.merge(Record { time, last: time, count, bytes_up: 0, bytes_down: 0, what }, now);
    }

    fn merge(&mut self, record: Record, now: Instant) {
        let due = now.checked_add(WAIT).max(self.sent.and_then(|sent| sent.checked_add(APART)));
        self.due = self.due.or(due);
        let what = record.what.clone().shortened();
        if self.fold(&what, &record) {
            return;
        }
        let what = self.told(what, now);
        if !self.fold(&what, &record) {
            self.places.insert(what.clone(), self.waiting.len());
            self.waiting.push(Record { what, ..record });
        }
    }

    /// As much of it as the limits let be told.
    fn told(&mut self, what: What, now: Instant) -> What {
        let [whole, host, zone] = match what.class() {
            Class::Secret => &mut self.budgets[0],
            Class::Out => &mut self.budgets[1],
            Class::Asked => &mut self.budgets[2],
        };
        if whole.take(now) {
            return what;
        }
        if let Some(less) = what.of_host()
            && (self.places.contains_key(&less) || host.take(now))
        {
            return less;
        }
        let less = what.of_zone();
        if self.places.contains_key(&less) || zone.take(now) { less } else { what.of_kind() }
    }

    fn fold(&mut self, what: &What, record: &Record) -> bool {
        let Some(old) = self.places.get(what).and_then(|place| self.waiting.get_mut(*place)) else {
            return false;
        };
        old.last = record.last.max(old.last);
        old.count = old.count.saturating_add(record.count);
        old.bytes_up = old.bytes_up.saturating_add(record.bytes_up);
        old.bytes_down = old.bytes_down.saturating_add(record.bytes_down);
        true
    }

    /// When [`Recorder::take`] has something next.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Everything that waits, in batches that fit a packet.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<Vec<Record>> {
        self.due = None;
        self.places.clear();
        self.budgets.iter_mut().flatten().for_each(|budget| budget.waiting = 0);
        let all = std::mem::take(&mut self.waiting);
        if !all.is_empty() {
            self.sent = Some(now);
        }
        let mut batches: Vec<Vec<Record>> = Vec::new();
        let mut bytes = 0usize;
        for record in all {
            let length = serde_json::to_vec(&record).map_or(BATCH_BYTES, |text| text.len());
            bytes = bytes.saturating_add(length);
            match batches.last_mut().filter(|batch| batch.len() < BATCH && bytes <= BATCH_BYTES) {
                Some(batch) => batch.push(record),
                None => {
                    bytes = length;
                    batches.push(vec![record]);
                }
            }
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str) -> What {
        What::new(Kind::Dns, Decision::Refused, host, 0)
    }

    fn taken(recorder: &mut Recorder, now: Instant) -> Vec<Record> {
        recorder.take(now).concat()
    }

    #[test]
    fn equal_decisions_are_one_record_with_sums() {
        let now = Instant::now();
        let mut recorder = Recorder::new();
        assert_eq!(recorder.due(), None);
        for n in 0..100_000u64 {
            recorder.add(refused("a.example"), (n, 1), now);
        }
        recorder.add(refused("b.example"), (0, 0), now);
        recorder.add_many(refused("b.example"), 41, now);
        assert_eq!(recorder.due(), Some(now + WAIT));
        let records = taken(&mut recorder, now + WAIT);
        let [a, b] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!((a.count, a.bytes_up, a.bytes_down), (100_000, 4_999_950_000, 100_000));
        assert_eq!(b.count, 42);
        assert_eq!(recorder.due(), None);
        // The next ones wait longer: there may be many.
        recorder.add(refused("a.example"), (0, 0), now + WAIT);
        assert_eq!(recorder.due(), Some(now + WAIT + APART));
    }

    #[test]
    fn a_flood_of_different_names_folds_by_zone_and_loses_nothing() {
        let now = Instant::now();
        let mut recorder = Recorder::new();
        let mut counts: HashMap<String, u64> = HashMap::new();
        for n in 0..1_000_000u64 {
            recorder.add(refused(&format!("{n:x}.tunnel.example")), (0, 0), now);
        }
        let records = taken(&mut recorder, now);
        assert_eq!(records.iter().map(|record| record.count).sum::<u64>(), 1_000_000);
        assert_eq!(records.len(), LIMITS[0].0 + 1);
        for record in records {
            *counts.entry(record.what.host).or_default() += record.count;
        }
        assert_eq!(counts["**.tunnel.example"], 1_000_000 - LIMITS[0].0 as u64);
    }

    #[test]
    fn a_flood_of_zones_is_bounded_and_exact_too() {
        let now = Instant::now();
        let mut recorder = Recorder::new();
        for n in 0..100_000u64 {
            recorder.add(refused(&format!("a.{n:x}.example")), (0, 0), now);
        }
        let records = taken(&mut recorder, now);
        assert_eq!(records.len(), LIMITS[0].0 + LIMITS[2].0 + 1);
        assert_eq!(records.iter().map(|record| record.count).sum::<u64>(), 100_000);
        assert!(records.iter().any(|record| record.what.host == "**"));
        // And so it stays, however often the shim takes them.
        let mut lines = 0;
        for tick in 1..=20 {
            let later = now + APART * tick;
            (0..2000u64)
                .for_each(|n| recorder.add(refused(&format!("a.{tick}-{n:x}.example")), (0, 0), later));
            lines += taken(&mut recorder, later).len();
        }
        assert!(lines <= 10 * (200 + 5) + 20, "{lines}");
    }

    fn request(decision: Decision, host: &str, path: String) -> What {
        What { path: Some(path), ..What::new(Kind::Request, decision, host, 443) }
    }

    #[test]
    fn a_flood_of_one_class_hides_nothing_of_another() {
        let now = Instant::now();
        let mut recorder = Recorder::new();
        for n in 0..10_000u64 {
            recorder.add(refused(&format!("{n:x}.tunnel.example")), (0, 0), now);
            recorder.add(request(Decision::Refused, "flood.example", format!("/{n}")), (0, 0), now);
        }
        let out = request(Decision::Allowed, "a.example", "/what/went/out".into()).text("with github");
        let secret =
            What { kind: Kind::Exfiltration, ..request(Decision::Refused, "b.example", "/s".into()) };
        recorder.add(out.clone(), (5, 6), now);
        recorder.add(secret.clone(), (0, 0), now);
        let records = taken(&mut recorder, now);
        for what in [out, secret] {
            assert!(records.iter().any(|record| record.what == what && record.count == 1), "{what:?}");
        }
    }

    #[test]
    fn a_flood_of_paths_at_one_host_hides_no_request_to_another() {
        let now = Instant::now();
        let mut recorder = Recorder::new();
        for n in 0..10_000u64 {
            recorder.add(request(Decision::Allowed, "flood.example", format!("/{n}")), (1, 1), now);
        }
        recorder.add(request(Decision::Allowed, "upload.flood.example", "/hidden".into()), (99, 0), now);
        let records = taken(&mut recorder, now);
        let of = |host: &str| records.iter().filter(|record| record.what.host == host).collect::<Vec<_>>();
        assert_eq!(of("flood.example").len(), LIMITS[0].0 + 1);
        assert_eq!(of("flood.example").iter().map(|record| record.count).sum::<u64>(), 10_000);
        let [hidden] = of("upload.flood.example")[..] else { panic!("{records:?}") };
        assert_eq!((hidden.what.port, hidden.bytes_up, hidden.what.text.as_str()), (443, 99, MANY));
    }

    #[test]
    fn a_batch_fits_a_packet_whatever_the_guest_writes() {
        let now = Instant::now();
        let mut recorder = Recorder::new();
        for n in 0..200 {
            let mut what =
                request(Decision::Refused, &"\\".repeat(2000), format!("{n}{}", "\"".repeat(2000)));
            (what.method, what.remedy) = (Some("\u{1}".repeat(2000)), Some("\"".repeat(2000)));
            recorder.add(what.text("\\".repeat(2000)), (0, 0), now);
        }
        let batches = recorder.take(now);
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 200);
        for batch in batches {
            assert!(serde_json::to_vec(&batch).unwrap().len() < 127 << 10, "{}", batch.len());
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let now = Instant::now();
        let mut recorder = Recorder::new();
        let mut what = refused("a.example").text("é".repeat(LONGEST));
        what.path = Some("/".repeat(1 << 20));
        recorder.add(what, (0, 0), now);
        let record = taken(&mut recorder, now).remove(0);
        assert!(record.what.text.len() <= LONGEST + '…'.len_utf8());
        assert!(record.what.path.unwrap().len() <= LONGEST + '…'.len_utf8());
    }
}
