//! The stack: what it holds, the calls that are the same for all flows.

mod egress;
mod frames;
mod saved;
mod tcp;
mod udp;

use std::collections::VecDeque;
use std::time::Duration;

use smoltcp::wire::TcpSeqNumber;

use crate::config::{Config, Limits};
use crate::counters::Counters;
use crate::emit;
use crate::event::{Event, FlowId, FlowInfo, LimitKind, NoFlow, Protocol, Refusal, ResetCause};
use crate::flow::FlowKey;
use crate::icmp::{self, Unreachable};
use crate::rate::{Bucket, LimitLog};
use crate::table::{Flow, Kind, Table, TimeWait};
use crate::tcp::{Buffers, Engine};
use crate::timers::Timers;

pub use saved::RestoreError;

/// A guest's far end.
///
/// ```text
/// frames come in → frame_in each → next_event until None → flows' calls → frame_out until None
///   → sleep until a frame, a socket, or next_deadline → (at a deadline: frame_out and next_event until None) → …
/// ```
///
/// Time is a [`Duration`] since any fixed start; it does not go back (an older value is taken for the latest one).
#[derive(Debug)]
pub struct Stack {
    link: Config,
    limits: Limits,
    buffers: Buffers,
    now: Duration,
    engine: Engine,
    table: Table,
    timers: Timers,
    time_wait: TimeWait,
    events: VecDeque<Event>,
    /// Frames that are ready, and their bytes.
    out: VecDeque<Vec<u8>>,
    out_bytes: usize,
    /// Resets to be sent.
    resets: VecDeque<FinalReset>,
    /// Flows that may have something to send.
    ready: VecDeque<FlowId>,
    /// Whose turn it is: the flows' or the ready frames'.
    flows_turn: bool,
    icmp: Bucket,
    stray: Bucket,
    log: LimitLog,
    counters: Counters,
    /// Bytes of large buffers in use.
    reserved: usize,
    /// Bytes of datagrams that wait for the gateway.
    udp_bytes: usize,
    /// Before this, no flow can be reclaimed: TCP, UDP.
    reclaim_at: [Duration; 2],
    /// Identification of the next IPv4 datagram.
    ident: u16,
}

/// A reset, all that is left of a flow.
#[derive(Clone, Copy, Debug)]
struct FinalReset {
    key: FlowKey,
    seq: TcpSeqNumber,
    ack: Option<TcpSeqNumber>,
}

impl Stack {
    /// The far end of a guest that has just started.
    pub fn new(link: &Config, limits: Limits) -> Self {
        Self {
            buffers: Buffers::new(&limits),
            now: Duration::ZERO,
            engine: Engine::new(link),
            table: Table::default(),
            timers: Timers::default(),
            time_wait: TimeWait::new(limits.time_wait),
            events: VecDeque::new(),
            out: VecDeque::new(),
            out_bytes: 0,
            resets: VecDeque::new(),
            ready: VecDeque::new(),
            flows_turn: false,
            icmp: Bucket::new(limits.icmp_rate),
            stray: Bucket::new(limits.stray_rate),
            log: LimitLog::default(),
            counters: Counters::default(),
            reserved: 0,
            udp_bytes: 0,
            reclaim_at: [Duration::ZERO; 2],
            ident: 0,
            link: link.clone(),
            limits,
        }
    }

    /// Takes the next event.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let event = self.events.pop_front()?;
            // What a flow had to say is of no interest once it is gone.
            match event {
                Event::Readable(flow) | Event::Datagram(flow) => match self.table.get_mut(flow) {
                    Some(entry) => entry.told_readable = false,
                    None => continue,
                },
                Event::Writable(flow) => match self.table.get_mut(flow) {
                    Some(entry) => entry.told_writable = false,
                    None => continue,
                },
                _ => {}
            }
            return Some(event);
        }
    }

    /// When [`Stack::frame_out`] has to be called though nothing else happens; `None`: never.
    pub fn next_deadline(&mut self) -> Option<Duration> {
        if !self.out.is_empty() || !self.resets.is_empty() || !self.ready.is_empty() {
            return Some(self.now);
        }
        [self.timers.next(&mut self.table), self.log.next()].into_iter().flatten().min()
    }

    /// Refuses a pending flow. One that was accepted is reset.
    pub fn refuse(&mut self, flow: FlowId, refusal: Refusal, now: Duration) -> Result<(), NoFlow> {
        self.tick(now);
        let entry = self.table.get(flow).ok_or(NoFlow)?;
        let v6 = entry.key.remote.is_ipv6();
        let why = match (entry.key.protocol, refusal) {
            (Protocol::Udp, _) => Unreachable::Port,
            (Protocol::Tcp, Refusal::Unreachable) => Unreachable::Host,
            (Protocol::Tcp, Refusal::Prohibited) => Unreachable::Prohibited,
            (Protocol::Tcp, Refusal::Reset) => return self.reset(flow),
        };
        let quote = match &entry.kind {
            Kind::Syn(syn) => Some(&syn.ip),
            Kind::Udp(udp) => udp.head.as_ref(),
            Kind::Tcp(_) => None,
        };
        let Some(quote) = quote else { return self.reset(flow) };
        let message = icmp::unreachable(&self.link, v6, why, quote);
        self.remove(flow);
        self.answer_icmp(message);
        Ok(())
    }

    /// Ends a flow at once: a TCP guest is sent a reset, a UDP flow is forgotten. No event follows.
    pub fn reset(&mut self, flow: FlowId) -> Result<(), NoFlow> {
        let entry = self.remove(flow).ok_or(NoFlow)?;
        // Beyond that the guest hears it with its next segment.
        if let Some(reset) = final_reset(&entry)
            && self.resets.len() < self.limits.tcp_flows.saturating_add(self.limits.out_frames)
        {
            self.resets.push_back(reset);
        }
        Ok(())
    }

    /// Resets every flow, pending or not, for which `kill` says so; how many. For a changed policy.
    pub fn kill_flows(&mut self, mut kill: impl FnMut(FlowId, &FlowInfo) -> bool) -> usize {
        let doomed: Vec<FlowId> =
            self.flows().filter(|(flow, info)| kill(*flow, info)).map(|(flow, _)| flow).collect();
        for flow in &doomed {
            // It is there: the list was made a moment ago.
            let _ = self.reset(*flow);
        }
        doomed.len()
    }

    /// A flow's ends.
    pub fn info(&self, flow: FlowId) -> Option<FlowInfo> {
        Some(self.table.get(flow)?.key.info(&self.link))
    }

    /// All flows, in no order.
    pub fn flows(&self) -> impl Iterator<Item = (FlowId, FlowInfo)> {
        self.table.iter().map(|(flow, entry)| (flow, entry.key.info(&self.link)))
    }

    /// What became of the frames.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes note of the time.
    fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Takes a flow out of all tables, and gives back what it had reserved.
    fn remove(&mut self, flow: FlowId) -> Option<Flow> {
        let entry = self.table.remove(flow)?;
        match &entry.kind {
            Kind::Syn(_) => {}
            Kind::Tcp(tcp) => {
                if tcp.buffer == self.buffers.large {
                    self.reserved = self.reserved.saturating_sub(tcp.buffer.saturating_mul(2));
                }
            }
            Kind::Udp(udp) => {
                let bytes: usize = udp.queue.iter().map(|datagram| udp::cost(datagram)).sum();
                self.udp_bytes = self.udp_bytes.saturating_sub(bytes);
            }
        }
        Some(entry)
    }

    fn hit(&mut self, limit: LimitKind) {
        if let Some(event) = self.log.hit(limit, self.now) {
            self.events.push_back(event);
        }
    }

    /// Queues a frame for the guest, if there is room.
    fn queue(&mut self, frame: Vec<u8>) -> bool {
        let bytes = self.out_bytes.saturating_add(frame.len());
        if self.out.len() >= self.limits.out_frames || bytes > self.limits.out_bytes {
            self.counters.out_dropped = self.counters.out_dropped.saturating_add(1);
            self.hit(LimitKind::OutQueue);
            return false;
        }
        self.out_bytes = bytes;
        self.out.push_back(frame);
        true
    }

    /// Queues an answer of the kind that is limited by number.
    fn answer_icmp(&mut self, frame: Vec<u8>) {
        if self.icmp.take(self.now) {
            self.queue(frame);
        } else {
            self.counters.rate_limited = self.counters.rate_limited.saturating_add(1);
            self.hit(LimitKind::IcmpRate);
        }
    }

    /// Resets the flow of a protocol that has been idle longest, if it has been so long enough; whether there was one.
    fn reclaim(&mut self, protocol: Protocol) -> bool {
        let (after, slot) = match protocol {
            Protocol::Tcp => (self.limits.reclaim_after, 0),
            Protocol::Udp => (self.limits.reclaim_after.checked_div(10).unwrap_or_default(), 1),
        };
        // The search looks at every flow; once it has failed it need not be repeated before the oldest is old enough.
        let Some(next) = self.reclaim_at.get_mut(slot).filter(|next| **next <= self.now) else {
            return false;
        };
        let oldest = self
            .table
            .iter()
            .filter(|(_, entry)| entry.key.protocol == protocol && !matches!(entry.kind, Kind::Syn(_)))
            .min_by_key(|(flow, entry)| (entry.active, *flow))
            .map(|(flow, entry)| (flow, entry.active));
        let Some((flow, active)) = oldest else {
            *next = self.now.saturating_add(after);
            return false;
        };
        let ripe = active.saturating_add(after);
        if ripe > self.now {
            *next = ripe;
            return false;
        }
        self.counters.reclaimed = self.counters.reclaimed.saturating_add(1);
        self.give_up(flow, ResetCause::Reclaimed);
        true
    }

    /// Resets a flow of our own accord.
    fn give_up(&mut self, flow: FlowId, cause: ResetCause) {
        if self.reset(flow).is_ok() {
            self.events.push_back(Event::Reset { flow, cause });
        }
    }

    /// Puts a flow among those that may have something to send.
    fn make_ready(&mut self, flow: FlowId) {
        if let Some(entry) = self.table.get_mut(flow)
            && !entry.queued
        {
            entry.queued = true;
            self.ready.push_back(flow);
        }
    }

    /// Says that a flow has something to read.
    fn tell_readable(&mut self, flow: FlowId) {
        if let Some(entry) = self.table.get_mut(flow)
            && !entry.told_readable
        {
            entry.told_readable = true;
            self.events.push_back(match entry.key.protocol {
                Protocol::Tcp => Event::Readable(flow),
                Protocol::Udp => Event::Datagram(flow),
            });
        }
    }

    /// Says that a flow can be written to.
    fn tell_writable(&mut self, flow: FlowId) {
        if let Some(entry) = self.table.get_mut(flow)
            && !entry.told_writable
        {
            entry.told_writable = true;
            self.events.push_back(Event::Writable(flow));
        }
    }
}

/// The reset that ends a flow.
fn final_reset(entry: &Flow) -> Option<FinalReset> {
    let (seq, ack) = match &entry.kind {
        Kind::Syn(syn) => (TcpSeqNumber(0), emit::after(syn.seq, 1)),
        // Both sides know already.
        Kind::Tcp(tcp) if tcp.done => return None,
        Kind::Tcp(tcp) => (tcp.next, tcp.ack),
        Kind::Udp(_) => return None,
    };
    Some(FinalReset { key: entry.key, seq, ack: Some(ack) })
}
