//! A guest made of nothing but frames: enough of TCP to keep a gateway busy, and little enough that it is not what is measured.
//!
//! It answers as Linux does where the gateway can tell: an acknowledgement for every other segment and at the end of what came at
//! once, segments of the link's MTU, a window of some megabytes. What is lost is sent again from there on (no SACK).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::segment::{ACK, Ends, FIN, PSH, Packet, RST, SYN, Tcp, parse};
use crate::wire::Wire;

/// The longest segment on a link with an MTU of 65,520 bytes.
const MSS: u16 = 65_480;
/// The window that is announced: 3 MiB, about what Linux comes to by itself.
const WINDOW: u16 = 192;
const SHIFT: u8 = 14;
/// After so long without an acknowledgement everything is sent again.
const AGAIN: Duration = Duration::from_millis(300);
/// Bytes whose content means nothing. No protocol begins with zeros.
static BULK: [u8; 1 << 16] = [0; 1 << 16];
/// The port that questions come from.
const DNS: u16 = 9_000;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection, by its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u16);

#[derive(Debug)]
struct Connection {
    to: SocketAddrV4,
    open: bool,
    reset: bool,
    /// Places in our stream: the first unacknowledged and the next to be sent. The SYN is at 0, data begins at 1.
    una: u64,
    next: u64,
    /// Where data ends.
    end: u64,
    /// Data from `una` on; without, it is [`BULK`].
    data: Vec<u8>,
    bulk: bool,
    fin: bool,
    window: u64,
    mss: u64,
    shift: u8,
    /// The next sequence number of the other side.
    expected: u32,
    received: u64,
    /// What was received, where anyone wants it.
    kept: Option<Vec<u8>>,
    finished: bool,
    /// Segments that are not acknowledged yet.
    owed: u32,
    again: u32,
    progress: Instant,
    dirty: bool,
}

/// The guest.
pub(crate) struct Peer {
    wire: Box<dyn Wire>,
    ends: Ends,
    connections: HashMap<u16, Connection>,
    dirty: Vec<u16>,
    next_port: u16,
    datagrams: Vec<Vec<u8>>,
    looked: Instant,
    /// Times that something was sent again.
    pub(crate) again: u64,
}

impl Peer {
    pub(crate) fn new(wire: Box<dyn Wire>, ends: Ends) -> Self {
        Self {
            wire,
            ends,
            connections: HashMap::new(),
            dirty: Vec::new(),
            next_port: 10_000,
            datagrams: Vec::new(),
            looked: Instant::now(),
            again: 0,
        }
    }

    /// Begins a connection. One with `bulk` sends bytes that mean nothing.
    pub(crate) fn connect(&mut self, to: SocketAddrV4, bulk: bool) -> Id {
        while self.connections.contains_key(&self.next_port) {
            self.next_port += 1;
        }
        let port = self.next_port;
        self.next_port = if port >= 60_000 { 10_000 } else { port + 1 };
        let connection = Connection {
            to,
            open: false,
            reset: false,
            una: 0,
            next: 0,
            end: 1,
            data: Vec::new(),
            bulk,
            fin: false,
            window: 0,
            mss: 536,
            shift: 0,
            expected: 0,
            received: 0,
            kept: (!bulk).then(Vec::new),
            finished: false,
            owed: 0,
            again: 0,
            progress: Instant::now(),
            dirty: true,
        };
        self.connections.insert(port, connection);
        self.dirty.push(port);
        Id(port)
    }

    fn change(&mut self, id: Id, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connections.get_mut(&id.0) {
            change(connection);
            mark(&mut self.dirty, id.0, connection);
        }
    }

    /// Sends these bytes when there is room.
    pub(crate) fn send(&mut self, id: Id, bytes: &[u8]) {
        self.change(id, |connection| {
            connection.data.extend(bytes);
            connection.end += bytes.len() as u64;
        });
    }

    /// Sends so many more bytes that mean nothing.
    pub(crate) fn send_bulk(&mut self, id: Id, bytes: u64) {
        self.change(id, |connection| connection.end += bytes);
    }

    /// Says goodbye after everything is sent.
    pub(crate) fn finish(&mut self, id: Id) {
        self.change(id, |connection| connection.fin = true);
    }

    /// Ends a connection without goodbye.
    pub(crate) fn abort(&mut self, id: Id) -> Result<()> {
        let Some(connection) = self.connections.remove(&id.0) else { return Ok(()) };
        let tcp = Tcp {
            from: id.0,
            to: connection.to.port(),
            seq: number(id.0, connection.next),
            ack: connection.expected,
            flags: RST | ACK,
            ..Tcp::default()
        };
        let frame = self.ends.tcp(*connection.to.ip(), &tcp, 0);
        while !self.wire.send(&frame, &[])? {
            self.turn(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// Bytes that came.
    pub(crate) fn received(&self, id: Id) -> u64 {
        self.connections.get(&id.0).map_or(0, |connection| connection.received)
    }

    /// Takes what came on a connection without `bulk`.
    pub(crate) fn take(&mut self, id: Id) -> Vec<u8> {
        self.connections
            .get_mut(&id.0)
            .and_then(|connection| connection.kept.as_mut())
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Whether it is established.
    pub(crate) fn is_open(&self, id: Id) -> Result<bool> {
        match self.connections.get(&id.0) {
            Some(connection) if connection.reset => bail!("a connection was reset"),
            other => Ok(other.is_some_and(|connection| connection.open)),
        }
    }

    /// Whether both ways are finished and acknowledged, or it is reset.
    pub(crate) fn is_over(&self, id: Id) -> bool {
        self.connections.get(&id.0).is_none_or(Connection::is_over)
    }

    /// Forgets a connection that is over. Whether it was.
    pub(crate) fn forget_if_over(&mut self, id: Id) -> bool {
        let over = self.is_over(id);
        if over {
            self.connections.remove(&id.0);
        }
        over
    }

    /// Turns until `done`.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        while !done(self)? {
            self.turn(Duration::from_millis(100))?;
            if begun.elapsed() > PATIENCE {
                bail!("waited in vain for {what}");
            }
        }
        Ok(())
    }

    /// Asks the DNS server at `server` for a name.
    pub(crate) fn resolve(&mut self, server: Ipv4Addr, name: &str) -> Result<Ipv4Addr> {
        // One question, recursion desired: the name, A, IN (RFC 1035 §4.1).
        let mut question = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len())?);
            question.extend(label.bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        let frame = self.ends.udp(DNS, SocketAddrV4::new(server, 53), question.len());
        if !self.wire.send(&frame, &question)? {
            bail!("there is no room for a question");
        }
        self.until("an answer of DNS", |peer| Ok(!peer.datagrams.is_empty()))?;
        let answer = self.datagrams.remove(0);
        // The first record behind the question: a pointer to the name, A, IN, four bytes of TTL, the length, the address.
        match answer.get(question.len()..) {
            Some([0xc0, 12, 0, 1, 0, 1, _, _, _, _, 0, 4, a, b, c, d, ..]) => {
                Ok(Ipv4Addr::new(*a, *b, *c, *d))
            }
            _ => bail!("{name} has no address: {answer:?}"),
        }
    }

    /// Takes what came and sends what there is; waits for it when there is nothing.
    pub(crate) fn turn(&mut self, patience: Duration) -> Result<()> {
        let mut moved = false;
        while let Some(frame) = self.wire.receive()? {
            moved = true;
            let (tcp, payload) = match parse(frame) {
                Packet::Tcp(tcp, payload) => (tcp, payload),
                Packet::Udp(DNS, payload) => {
                    self.datagrams.push(payload.to_vec());
                    continue;
                }
                Packet::Udp(..) | Packet::Other => continue,
            };
            let Some(connection) = self.connections.get_mut(&tcp.to) else { continue };
            connection.hear(&tcp, payload);
            mark(&mut self.dirty, tcp.to, connection);
            if connection.owed >= 2 {
                // Without room it is sent with what comes next.
                connection.acknowledge(tcp.to, &self.ends, &mut *self.wire)?;
            }
        }
        self.look_at_clocks();
        let mut blocked = false;
        for port in std::mem::take(&mut self.dirty) {
            let Some(connection) = self.connections.get_mut(&port) else { continue };
            connection.dirty = false;
            let (sent, all) = connection.speak(port, &self.ends, &mut *self.wire)?;
            moved |= sent;
            if !all {
                blocked = true;
                mark(&mut self.dirty, port, connection);
            }
        }
        if blocked || !moved { self.wire.wait(patience).context("waiting for frames") } else { Ok(()) }
    }

    /// Goes back where nothing was acknowledged for too long.
    fn look_at_clocks(&mut self) {
        if self.looked.elapsed() < Duration::from_millis(100) {
            return;
        }
        self.looked = Instant::now();
        for (port, connection) in &mut self.connections {
            if connection.next > connection.una && connection.progress.elapsed() > AGAIN {
                connection.next = connection.una;
                connection.progress = Instant::now();
                self.again += 1;
                mark(&mut self.dirty, *port, connection);
            }
        }
    }
}

fn mark(dirty: &mut Vec<u16>, port: u16, connection: &mut Connection) {
    if !connection.dirty {
        connection.dirty = true;
        dirty.push(port);
    }
}

/// The sequence number of a place in our stream.
fn number(port: u16, place: u64) -> u32 {
    (u32::from(port) << 12).wrapping_add(place as u32)
}

impl Connection {
    fn is_over(&self) -> bool {
        self.reset || self.finished && self.fin && self.una > self.end
    }

    /// Takes a segment.
    fn hear(&mut self, tcp: &Tcp, payload: &[u8]) {
        if tcp.flags & RST != 0 {
            self.reset = true;
            return;
        }
        if tcp.flags & ACK != 0 {
            let gone = tcp.ack.wrapping_sub(number(tcp.to, self.una));
            let gone = u64::from(gone);
            if gone > 0 && gone <= self.next - self.una {
                let data = gone.min(self.end.saturating_sub(self.una)) - u64::from(self.una == 0);
                if !self.bulk {
                    self.data.drain(..data as usize);
                }
                self.una += gone;
                self.again = 0;
                self.progress = Instant::now();
            } else if gone == 0 && payload.is_empty() && self.next > self.una && tcp.flags & (SYN | FIN) == 0
            {
                self.again += 1;
                if self.again == 3 {
                    self.next = self.una;
                }
            }
            let shift = if tcp.flags & SYN != 0 { 0 } else { self.shift };
            self.window = u64::from(tcp.window) << shift;
        }
        if tcp.flags & SYN != 0 {
            self.expected = tcp.seq.wrapping_add(1);
            if let Some((mss, shift)) = tcp.options {
                (self.mss, self.shift) = (u64::from(mss.min(MSS)), shift);
            }
            self.open = true;
            // At once and by itself, as Linux does it: passt throws away data that comes with it.
            self.owed = 2;
            return;
        }
        if !self.open {
            return;
        }
        let old = self.expected.wrapping_sub(tcp.seq) as usize;
        let length = payload.len() + usize::from(tcp.flags & FIN != 0);
        match payload.get(old..) {
            Some(new) if old < length => {
                self.expected = self.expected.wrapping_add((length - old) as u32);
                self.received += new.len() as u64;
                if let Some(kept) = &mut self.kept {
                    kept.extend(new);
                }
                self.finished |= tcp.flags & FIN != 0;
                self.owed += 1;
            }
            // From before or from after what is expected.
            _ if length > 0 => self.owed += 2,
            _ => {}
        }
    }

    fn header(&self, port: u16, flags: u8) -> Tcp {
        Tcp {
            from: port,
            to: self.to.port(),
            seq: number(port, self.next),
            ack: self.expected,
            flags,
            window: WINDOW,
            options: None,
        }
    }

    fn acknowledge(&mut self, port: u16, ends: &Ends, wire: &mut dyn Wire) -> Result<bool> {
        let sent = wire.send(&ends.tcp(*self.to.ip(), &self.header(port, ACK), 0), &[])?;
        if sent {
            self.owed = 0;
        }
        Ok(sent)
    }

    /// Sends what it may. Whether it sent anything, and whether all.
    fn speak(&mut self, port: u16, ends: &Ends, wire: &mut dyn Wire) -> Result<(bool, bool)> {
        if self.reset {
            return Ok((false, true));
        }
        if !self.open {
            if self.next > 0 {
                return Ok((false, true));
            }
            let syn = Tcp { options: Some((MSS, SHIFT)), ack: 0, ..self.header(port, SYN) };
            let syn = Tcp { window: u16::MAX, ..syn };
            let sent = wire.send(&ends.tcp(*self.to.ip(), &syn, 0), &[])?;
            self.next = u64::from(sent);
            return Ok((sent, sent));
        }
        let mut moved = false;
        loop {
            let free = (self.una + self.window).saturating_sub(self.next);
            let left = self.end.saturating_sub(self.next);
            let length = self.mss.min(free).min(left);
            let in_flight = self.next > self.una;
            // No small segments only because the window is small just now.
            if length == 0 || length < self.mss.min(left) && in_flight {
                break;
            }
            let from = (self.next - self.una) as usize;
            let payload = if self.bulk {
                BULK.get(..length as usize)
            } else {
                self.data.get(from..from + length as usize)
            };
            let payload = payload.context("data that is not there")?;
            let headers = ends.tcp(*self.to.ip(), &self.header(port, ACK | PSH), payload.len());
            if !wire.send(&headers, payload)? {
                return Ok((moved, false));
            }
            if !in_flight {
                self.progress = Instant::now();
            }
            self.next += length;
            self.owed = 0;
            moved = true;
        }
        if self.fin && self.next == self.end {
            if !wire.send(&ends.tcp(*self.to.ip(), &self.header(port, ACK | FIN), 0), &[])? {
                return Ok((moved, false));
            }
            self.progress = Instant::now();
            self.next += 1;
            self.owed = 0;
            moved = true;
        }
        if self.owed > 0 {
            let sent = self.acknowledge(port, ends, wire)?;
            return Ok((moved | sent, sent));
        }
        Ok((moved, true))
    }
}
