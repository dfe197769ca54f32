//! The gateway by itself: frames in memory on one side, sockets of this host on the other.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::costs::{self, Costs};
use crate::peer::Id;
use crate::server::Servers;
use crate::side::Side;
use crate::table::{Rows, Unit};

/// Bytes of a request, and of its answer.
const REQUEST: usize = 64;
const REQUESTS: usize = 5_000;
/// Connections of one sample, and how many of them there are at once.
const CONNECTIONS: usize = 4_000;
const AT_ONCE: usize = 32;
/// Idle flows, and what each has carried each way before.
const FLOWS: usize = 1_000;
const CARRIED: usize = 4_096;
/// How long an idle process is watched.
const IDLE: Duration = Duration::from_secs(10);
/// How long bytes flow.
const LENGTH: Duration = Duration::from_secs(3);
/// Before they are counted.
const WARM: Duration = Duration::from_millis(500);

/// What moves bytes takes of its process's CPU, and of everybody's time.
fn rates(rows: &mut Rows, side: &Side, way: &str, bytes: u64, begun: Instant, before: Costs) -> Result<()> {
    let seconds = begun.elapsed().as_secs_f64();
    let used = Costs::of(side.pid)?.since(before).nanoseconds as f64 / 1e9;
    let gigabits = bytes as f64 * 8.0 / 1e9;
    rows.add(&format!("TCP {way}, a second of its CPU"), Unit::Gigabits, side.name, gigabits / used);
    rows.add(&format!("TCP {way}, a second of the clock"), Unit::Gigabits, side.name, gigabits / seconds);
    Ok(())
}

fn open(side: &mut Side, port: u16, bulk: bool) -> Result<Id> {
    let id = side.peer.connect(side.to(port), bulk);
    side.peer.until("a connection", |peer| peer.is_open(id))?;
    Ok(id)
}

fn run_for(side: &mut Side, id: Id, length: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < length {
        ensure!(side.peer.is_open(id)?, "the connection ended");
        side.peer.turn(Duration::from_millis(100))?;
    }
    Ok(())
}

/// One flow from the guest.
pub(crate) fn up(side: &mut Side, servers: &Servers, rows: &mut Rows) -> Result<()> {
    let id = open(side, servers.sink, true)?;
    side.peer.send_bulk(id, 1 << 50);
    run_for(side, id, WARM)?;
    let (bytes, begun, before) = (servers.sunk.load(Ordering::Relaxed), Instant::now(), Costs::of(side.pid)?);
    run_for(side, id, LENGTH)?;
    let bytes = servers.sunk.load(Ordering::Relaxed) - bytes;
    rates(rows, side, "up", bytes, begun, before)?;
    side.peer.abort(id)
}

/// One flow to the guest.
pub(crate) fn down(side: &mut Side, servers: &Servers, rows: &mut Rows) -> Result<()> {
    let id = open(side, servers.source, true)?;
    run_for(side, id, WARM)?;
    let (bytes, begun, before) = (side.peer.received(id), Instant::now(), Costs::of(side.pid)?);
    run_for(side, id, LENGTH)?;
    let bytes = side.peer.received(id) - bytes;
    rates(rows, side, "down", bytes, begun, before)?;
    side.peer.abort(id)
}

/// Requests and answers, one after the other on one flow.
pub(crate) fn requests(side: &mut Side, servers: &Servers, rows: &mut Rows) -> Result<()> {
    let id = open(side, servers.echo, false)?;
    let mut took = Vec::with_capacity(REQUESTS);
    let (mut before, mut answered) = (Costs::default(), 0);
    for number in 0..REQUESTS + 100 {
        if number == 100 {
            before = Costs::of(side.pid)?;
        }
        let begun = Instant::now();
        side.peer.send(id, &[1; REQUEST]);
        answered += REQUEST as u64;
        side.peer.until("an answer", |peer| Ok(peer.received(id) >= answered))?;
        if number >= 100 {
            took.push(begun.elapsed());
        }
        side.peer.take(id);
    }
    let used = Costs::of(side.pid)?.since(before).nanoseconds as f64;
    latency(rows, "a request and its answer", side.name, &mut took);
    rows.add("the same, CPU of its process", Unit::Microseconds, side.name, used / 1e3 / REQUESTS as f64);
    side.peer.abort(id)
}

/// Median and 99th percentile.
pub(crate) fn latency(rows: &mut Rows, what: &str, side: &'static str, took: &mut [Duration]) {
    took.sort_unstable();
    for (name, part) in [("p50", 50), ("p99", 99)] {
        let at = took.get(took.len() * part / 100).copied().unwrap_or_default();
        rows.add(&format!("{what}, {name}"), Unit::Microseconds, side, at.as_secs_f64() * 1e6);
    }
}

/// Connections with one request each, some at a time. As with a program that closes its socket, nobody waits for goodbyes.
pub(crate) fn connections(side: &mut Side, servers: &Servers, rows: &mut Rows) -> Result<()> {
    let (mut begun, mut done) = (0, 0);
    let (mut running, mut closing): (Vec<Id>, Vec<Id>) = Default::default();
    let (clock, before) = (Instant::now(), Costs::of(side.pid)?);
    while done < CONNECTIONS {
        while running.len() < AT_ONCE && begun < CONNECTIONS {
            let id = side.peer.connect(side.to(servers.echo), false);
            side.peer.send(id, &[1; REQUEST]);
            running.push(id);
            begun += 1;
        }
        side.peer.turn(Duration::from_millis(100))?;
        let peer = &mut side.peer;
        running.retain(|id| {
            let answered = peer.received(*id) == REQUEST as u64;
            if answered {
                peer.finish(*id);
                closing.push(*id);
                done += 1;
            }
            !answered
        });
        closing.retain(|id| !peer.forget_if_over(*id));
        ensure!(clock.elapsed() < Duration::from_secs(120), "connections fail");
    }
    let seconds = clock.elapsed().as_secs_f64();
    side.peer.until("goodbyes", |peer| {
        closing.retain(|id| !peer.forget_if_over(*id));
        Ok(closing.is_empty())
    })?;
    let used = Costs::of(side.pid)?.since(before).nanoseconds as f64 / 1e9;
    let count = CONNECTIONS as f64;
    rows.add("connections with one request each", Unit::Rate, side.name, count / seconds);
    rows.add("the same, a second of its CPU", Unit::Rate, side.name, count / used);
    Ok(())
}

fn watch(side: &Side, rows: &mut Rows, row: &str) -> Result<()> {
    let before = Costs::of(side.pid)?;
    std::thread::sleep(IDLE);
    let used = Costs::of(side.pid)?.since(before);
    rows.add(row, Unit::Count, side.name, used.switches as f64);
    Ok(())
}

/// What a process takes that has just started, and what idle flows add.
pub(crate) fn idle(side: &mut Side, servers: &Servers, rows: &mut Rows) -> Result<()> {
    std::thread::sleep(Duration::from_secs(1));
    let resident = costs::resident(side.pid)?;
    rows.add("idle: resident memory", Unit::Bytes, side.name, resident as f64);
    let others: u64 = side.other.map_or(Ok(0), costs::share)?;
    let own = costs::share(side.pid)? + others;
    rows.add("idle: its own share of memory, its keeper's included", Unit::Bytes, side.name, own as f64);
    watch(side, rows, "idle: wake-ups in 10 s")?;
    let mut flows = Vec::new();
    for _ in 0..FLOWS {
        let id = open(side, servers.echo, false)?;
        side.peer.send(id, &[1; CARRIED]);
        side.peer.until("an answer", |peer| Ok(peer.received(id) == CARRIED as u64))?;
        flows.push(id);
    }
    std::thread::sleep(Duration::from_secs(2));
    let each = costs::resident(side.pid)?.saturating_sub(resident) as f64 / FLOWS as f64;
    rows.add("1,000 idle flows: memory of each", Unit::SmallBytes, side.name, each);
    watch(side, rows, "1,000 idle flows: wake-ups in 10 s")?;
    let (clock, peer) = (Instant::now(), &side.peer);
    let open = flows.iter().filter(|id| peer.is_open(**id).unwrap_or(false)).count();
    ensure!(open == FLOWS && clock.elapsed() < IDLE, "flows ended");
    Ok(())
}
