//! All flows, by name and by what the wire shows.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use smoltcp::wire::TcpSeqNumber;

use crate::event::{FlowId, Protocol};
use crate::flow::FlowKey;
use crate::tcp::TcpFlow;
use crate::timers::{Timer, TimerParts};

/// A flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) kind: Kind,
    pub(crate) timer: Timer,
    /// When something came or went.
    pub(crate) active: Duration,
    /// It is in the queue of those that may have something to send.
    pub(crate) queued: bool,
    /// `Readable` or `Datagram` waits to be taken.
    pub(crate) told_readable: bool,
    /// `Writable` waits to be taken.
    pub(crate) told_writable: bool,
}

/// What is special to a flow.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A SYN that nobody has decided on.
    Syn(Syn),
    /// An accepted TCP flow.
    Tcp(Box<TcpFlow>),
    /// A UDP flow.
    Udp(UdpFlow),
}

/// A SYN that waits.
#[derive(Debug)]
pub(crate) struct Syn {
    /// The IP packet, without data.
    pub(crate) ip: Box<[u8]>,
    pub(crate) seq: TcpSeqNumber,
    pub(crate) mss: u16,
}

/// A UDP flow.
#[derive(Debug)]
pub(crate) struct UdpFlow {
    /// The head of the first packet, to be quoted in a refusal, until the flow is accepted.
    pub(crate) head: Option<Box<[u8]>>,
    /// Datagrams for the gateway.
    pub(crate) queue: VecDeque<Vec<u8>>,
}

/// All flows.
#[derive(Debug, Default)]
pub(crate) struct Table {
    flows: HashMap<FlowId, Flow>,
    keys: HashMap<FlowKey, FlowId>,
    next: u64,
    /// Numbers of flows: TCP, of these pending, UDP.
    pub(crate) tcp: usize,
    pub(crate) pending: usize,
    pub(crate) udp: usize,
}

impl Table {
    pub(crate) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.keys.get(key).copied()
    }

    pub(crate) fn get(&self, flow: FlowId) -> Option<&Flow> {
        self.flows.get(&flow)
    }

    pub(crate) fn get_mut(&mut self, flow: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(&flow)
    }

    /// An accepted TCP flow.
    pub(crate) fn tcp_mut(&mut self, flow: FlowId) -> Option<&mut TcpFlow> {
        match &mut self.flows.get_mut(&flow)?.kind {
            Kind::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }

    /// The same to look at.
    pub(crate) fn tcp(&self, flow: FlowId) -> Option<&TcpFlow> {
        match &self.flows.get(&flow)?.kind {
            Kind::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        self.flows.iter().map(|(flow, entry)| (*flow, entry))
    }

    /// Adds a flow; its key is not in the table yet.
    pub(crate) fn insert(&mut self, key: FlowKey, kind: Kind, now: Duration) -> FlowId {
        let flow = FlowId(self.next);
        self.next = self.next.saturating_add(1);
        match key.protocol {
            Protocol::Tcp => self.tcp = self.tcp.saturating_add(1),
            Protocol::Udp => self.udp = self.udp.saturating_add(1),
        }
        if matches!(kind, Kind::Syn(_)) {
            self.pending = self.pending.saturating_add(1);
        }
        self.keys.insert(key, flow);
        let entry = Flow {
            key,
            kind,
            timer: Timer::default(),
            active: now,
            queued: false,
            told_readable: false,
            told_writable: false,
        };
        self.flows.insert(flow, entry);
        flow
    }

    /// A pending flow is pending no more.
    pub(crate) fn decided(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    pub(crate) fn remove(&mut self, flow: FlowId) -> Option<Flow> {
        let entry = self.flows.remove(&flow)?;
        if let Entry::Occupied(key) = self.keys.entry(entry.key)
            && *key.get() == flow
        {
            key.remove();
        }
        match entry.key.protocol {
            Protocol::Tcp => self.tcp = self.tcp.saturating_sub(1),
            Protocol::Udp => self.udp = self.udp.saturating_sub(1),
        }
        if matches!(entry.kind, Kind::Syn(_)) {
            self.decided();
        }
        Some(entry)
    }
}

impl TimerParts for Table {
    fn timer(&mut self, flow: FlowId) -> Option<&mut Timer> {
        self.flows.get_mut(&flow).map(|flow| &mut flow.timer)
    }
}

/// Closed connections, so that a last acknowledgement that was lost can be repeated (RFC 9293 §3.3.2, TIME-WAIT). They have
/// no timers: an entry that is too old is dropped when it is met, or pushed out.
#[derive(Debug)]
pub(crate) struct TimeWait {
    entries: HashMap<FlowKey, Last>,
    order: VecDeque<(FlowKey, Duration)>,
    limit: usize,
}

/// The end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    pub(crate) seq: TcpSeqNumber,
    pub(crate) ack: TcpSeqNumber,
    until: Duration,
}

impl TimeWait {
    const LENGTH: Duration = Duration::from_secs(60);

    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), limit }
    }

    pub(crate) fn insert(&mut self, key: FlowKey, seq: TcpSeqNumber, ack: TcpSeqNumber, now: Duration) {
        let until = now.saturating_add(Self::LENGTH);
        self.entries.insert(key, Last { seq, ack, until });
        self.order.push_back((key, until));
        while self.order.len() > self.limit
            && let Some((key, until)) = self.order.pop_front()
        {
            if self.entries.get(&key).is_some_and(|last| last.until == until) {
                self.entries.remove(&key);
            }
        }
    }

    pub(crate) fn get(&mut self, key: &FlowKey, now: Duration) -> Option<Last> {
        let last = *self.entries.get(key)?;
        if last.until <= now {
            self.entries.remove(key);
            return None;
        }
        Some(last)
    }

    pub(crate) fn remove(&mut self, key: &FlowKey) {
        self.entries.remove(key);
    }
}
