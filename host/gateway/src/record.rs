//! Records of what was decided, and their way to the shim: equal ones fold into one with an exact count.
//!
//! Nothing is lost: what waits is bounded by [`MOST_WAITING`], and beyond that (or when new kinds of records come faster than
//! [`A_SECOND`]) records fold by the name's last two labels, then by kind alone. The count stays exact.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use policy::{HostKey, Protocol, Reason};
use serde::{Deserialize, Serialize};

/// Different records that wait for the shim.
const MOST_WAITING: usize = 1024;
/// Different records in a second, after a burst of [`MOST_WAITING`].
const A_SECOND: f64 = 200.0;
/// How long a record waits for others.
const WAIT: Duration = Duration::from_millis(50);
/// The shortest time between two batches.
const APART: Duration = Duration::from_millis(500);
/// Records in a batch: with the lengths below it fits a packet.
const BATCH: usize = 32;
/// Bytes of a path, a text or a remedy that are kept.
const LONGEST: usize = 1024;

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

    /// What many of the kind have in common: the name's last two labels.
    fn zone(&self) -> Self {
        let mut labels = self.host.rsplit('.');
        let named = self.host.parse::<IpAddr>().is_err();
        let host = match (labels.next(), labels.next()) {
            (Some(last), Some(before)) if named => format!("**.{before}.{last}"),
            _ => "**".to_owned(),
        };
        self.folded(host)
    }

    fn folded(&self, host: String) -> Self {
        let protocol = self.protocol;
        let text = "too many different ones to tell them apart".to_owned();
        Self { protocol, text, ..Self::new(self.kind, self.decision, host, 0) }
    }
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
    /// Different records that may still come, and when that was counted.
    allowance: (f64, Instant),
}

impl Recorder {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            waiting: Vec::new(),
            places: HashMap::new(),
            due: None,
            sent: None,
            allowance: (MOST_WAITING as f64, now),
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
        let (left, then) = self.allowance;
        let grown = left + now.saturating_duration_since(then).as_secs_f64() * A_SECOND;
        self.allowance = (grown.min(MOST_WAITING as f64), now);
        let what = if self.allowance.0 >= 1.0 && self.waiting.len() < MOST_WAITING {
            self.allowance.0 -= 1.0;
            what
        } else {
            let zone = what.zone();
            // The zones of a flood are many, too.
            let crowded = self.waiting.len() >= MOST_WAITING.saturating_mul(2);
            if crowded && !self.places.contains_key(&zone) { what.folded("**".to_owned()) } else { zone }
        };
        if !self.fold(&what, &record) {
            self.places.insert(what.clone(), self.waiting.len());
            self.waiting.push(Record { what, ..record });
        }
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
        let all = std::mem::take(&mut self.waiting);
        if !all.is_empty() {
            self.sent = Some(now);
        }
        all.chunks(BATCH).map(<[Record]>::to_vec).collect()
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
        let mut recorder = Recorder::new(now);
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
        let mut recorder = Recorder::new(now);
        let mut counts: HashMap<String, u64> = HashMap::new();
        for n in 0..1_000_000u64 {
            recorder.add(refused(&format!("{n:x}.tunnel.example")), (0, 0), now);
        }
        let records = taken(&mut recorder, now);
        assert_eq!(records.iter().map(|record| record.count).sum::<u64>(), 1_000_000);
        assert_eq!(records.len(), MOST_WAITING + 1);
        for record in records {
            *counts.entry(record.what.host).or_default() += record.count;
        }
        assert_eq!(counts["**.tunnel.example"], 1_000_000 - MOST_WAITING as u64);
    }

    #[test]
    fn a_flood_of_zones_is_bounded_and_exact_too() {
        let now = Instant::now();
        let mut recorder = Recorder::new(now);
        for n in 0..100_000u64 {
            recorder.add(refused(&format!("a.{n:x}.example")), (0, 0), now);
        }
        let records = taken(&mut recorder, now);
        assert!(records.len() <= MOST_WAITING * 2 + 1, "{}", records.len());
        assert_eq!(records.iter().map(|record| record.count).sum::<u64>(), 100_000);
        assert!(records.iter().any(|record| record.what.host == "**"));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let now = Instant::now();
        let mut recorder = Recorder::new(now);
        let mut what = refused("a.example").text("é".repeat(LONGEST));
        what.path = Some("/".repeat(1 << 20));
        recorder.add(what, (0, 0), now);
        let record = taken(&mut recorder, now).remove(0);
        assert!(record.what.text.len() <= LONGEST + '…'.len_utf8());
        assert!(record.what.path.unwrap().len() <= LONGEST + '…'.len_utf8());
    }
}
