//! What was in log files that are no longer kept: equal decisions in one line with the sums, so that a guest that fills the log makes it
//! less detailed, and never silent. What went out and attempts to carry a secret off have room of their own.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use gateway::record::{Class, Record, What};

use super::{Entry, LogReader};
use crate::files;
use crate::logs::old;

/// Lines of each class, in the order of [`Class::ALL`]; what is beyond them folds by zone, half as many, and by kind.
const MOST: [usize; 3] = [256, 2048, 1024];

/// Where it is, beside the log.
pub(super) fn path(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".folded");
    name.into()
}

/// Folds what the file before a log has into what was folded before. What is in it already is left out.
pub(super) fn fold(log: &Path) -> io::Result<()> {
    let before = old(log);
    if !before.exists() {
        return Ok(());
    }
    let mut reader = LogReader { path: log.to_owned(), file: None, last: 0, begun: Vec::new() };
    let mut all: BTreeMap<String, Entry> = BTreeMap::new();
    let mut counts = [(0usize, 0usize); 3];
    for path in [path(log), before] {
        let Ok(file) = File::open(&path) else { continue };
        reader.begun.clear();
        let mut file = BufReader::new(file);
        // By pieces: a whole file of lines in memory would be much for a shim.
        while reader.some_lines(&mut file, |entry| put(&mut all, &mut counts, entry)) {}
    }
    let mut all: Vec<Entry> = all.into_values().collect();
    all.sort_by_key(|entry| entry.seq);
    let mut text = Vec::new();
    for entry in all {
        serde_json::to_writer(&mut text, &entry)?;
        text.push(b'\n');
    }
    files::write_whole(&path(log), &text).map_err(|error| io::Error::other(error.to_string()))
}

fn put(all: &mut BTreeMap<String, Entry>, counts: &mut [(usize, usize); 3], mut entry: Entry) {
    let what = entry.record.what.of_host().unwrap_or_else(|| entry.record.what.clone());
    let class = what.class();
    let at = Class::ALL.iter().zip(MOST).zip(counts).find(|((known, _), _)| **known == class);
    let Some(((_, most), (hosts, zones))) = at else { return };
    entry.record.what = what;
    for (less, count, most) in [
        (None, Some(hosts), most),
        (Some(entry.record.what.of_zone()), Some(zones), most / 2),
        (Some(entry.record.what.of_kind()), None, usize::MAX),
    ] {
        let what = less.unwrap_or_else(|| entry.record.what.clone());
        let has_room = count.as_ref().is_none_or(|count| **count < most);
        match all.entry(key(&what)) {
            Slot::Occupied(mut known) => return join(known.get_mut(), entry),
            Slot::Vacant(free) if has_room => {
                if let Some(count) = count {
                    *count += 1;
                }
                entry.record.what = what;
                free.insert(entry);
                return;
            }
            Slot::Vacant(_) => {}
        }
    }
}

fn join(known: &mut Entry, other: Entry) {
    known.entries = Some(known.entries.unwrap_or(1).saturating_add(other.entries.unwrap_or(1)));
    known.seq = known.seq.max(other.seq);
    sum(&mut known.record, &other.record);
}

/// Adds a record to those of its kind.
pub(super) fn add(all: &mut BTreeMap<String, Record>, record: Record) {
    match all.entry(key(&record.what)) {
        Slot::Occupied(mut known) => sum(known.get_mut(), &record),
        Slot::Vacant(free) => _ = free.insert(record),
    }
}

fn sum(known: &mut Record, other: &Record) {
    known.time = known.time.min(other.time);
    known.last = known.last.max(other.last);
    known.count = known.count.saturating_add(other.count);
    known.bytes_up = known.bytes_up.saturating_add(other.bytes_up);
    known.bytes_down = known.bytes_down.saturating_add(other.bytes_down);
}

/// The same for equal ones.
fn key(what: &What) -> String {
    serde_json::to_string(what).unwrap_or_default()
}
