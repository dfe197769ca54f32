//! Frames from the guest.

use std::net::IpAddr;
use std::time::Duration;

use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use super::{FinalReset, Stack};
use crate::event::{Event, LimitKind};
use crate::icmp::{self, Unreachable};
use crate::ingress::{self, Packet, Segment};
use crate::table::Kind;
use crate::{emit, link};

impl Stack {
    /// Takes a frame of the guest: `virtio_net_hdr_v1` and an Ethernet frame, both copied out of shared memory.
    pub fn frame_in(&mut self, frame: &[u8], now: Duration) {
        self.tick(now);
        count(&mut self.counters.frames_in);
        if self.events.len() >= self.limits.events {
            count(&mut self.counters.events_full);
            self.hit(LimitKind::Events);
            return;
        }
        let packet = match ingress::parse(frame, &self.link) {
            Ok(packet) => packet,
            Err(dropped) => return count(dropped(&mut self.counters)),
        };
        match packet {
            Packet::Tcp(segment) => return self.segment_in(&segment),
            Packet::Udp(datagrams) => return self.datagrams_in(&datagrams),
            Packet::ArpRequest { sender } => self.answer_icmp(link::arp_reply(&self.link, sender)),
            Packet::Solicitation { sender } => self.answer_icmp(link::advertisement(&self.link, sender)),
            Packet::OtherNeighbour => count(&mut self.counters.neighbour_ignored),
            Packet::Echo { v6, message } => {
                count(&mut self.counters.echo);
                self.answer_icmp(icmp::echo_reply(&self.link, v6, message));
            }
            Packet::Prohibited { v6, ip } => {
                count(&mut self.counters.prohibited);
                self.events.extend(prohibited(v6, ip));
                self.answer_icmp(icmp::unreachable(&self.link, v6, Unreachable::Prohibited, ip));
            }
        }
        count(&mut self.counters.accepted);
    }

    fn segment_in(&mut self, segment: &Segment<'_>) {
        let Some(flow) = self.table.find(&segment.key) else { return self.segment_of_none(segment) };
        count(&mut self.counters.accepted);
        let now = self.now;
        let Some(entry) = self.table.get_mut(flow) else { return };
        entry.active = now;
        match &entry.kind {
            Kind::Syn(_) => self.segment_of_pending(flow, segment),
            Kind::Tcp(_) => self.segment_of_flow(flow, segment),
            Kind::Udp(_) => {}
        }
    }

    /// A segment of a connection that we do not know: a new one, one that is over, or one of before a restore.
    fn segment_of_none(&mut self, segment: &Segment<'_>) {
        let tcp = &segment.tcp;
        if tcp.control == TcpControl::Syn && tcp.ack_number.is_none() {
            self.time_wait.remove(&segment.key);
            return self.incoming(segment);
        }
        count(&mut self.counters.accepted);
        count(&mut self.counters.stray);
        let last = self.time_wait.get(&segment.key, self.now);
        if tcp.control == TcpControl::Rst {
            self.time_wait.remove(&segment.key);
            return;
        }
        if last.is_some() && tcp.segment_len() == 0 {
            return;
        }
        if self.resets.len() >= self.limits.out_frames || !self.stray.take(self.now) {
            count(&mut self.counters.rate_limited);
            return self.hit(LimitKind::StrayRate);
        }
        match last {
            Some(last) => {
                let (remote, port) = (segment.key.remote, segment.key.guest_port);
                let frame = emit::tcp(&self.link, remote, port, TcpControl::None, last.seq, Some(last.ack));
                self.queue(frame);
            }
            None => self.resets.push_back(reset_for(segment)),
        }
    }
}

/// The reset that answers a segment (RFC 9293 §3.10.7.1).
fn reset_for(segment: &Segment<'_>) -> FinalReset {
    let tcp: &TcpRepr<'_> = &segment.tcp;
    match tcp.ack_number {
        Some(ack) => FinalReset { key: segment.key, seq: ack, ack: None },
        None => FinalReset {
            key: segment.key,
            seq: TcpSeqNumber(0),
            ack: Some(emit::after(tcp.seq_number, tcp.segment_len())),
        },
    }
}

/// What is told of a packet that does not pass (RFC 791 §3.1, RFC 8200 §3).
fn prohibited(v6: bool, ip: &[u8]) -> Option<Event> {
    let (protocol, destination): (u8, IpAddr) = if v6 {
        (*ip.get(6)?, <[u8; 16]>::try_from(ip.get(24..40)?).ok()?.into())
    } else {
        (*ip.get(9)?, <[u8; 4]>::try_from(ip.get(16..20)?).ok()?.into())
    };
    Some(Event::Prohibited { destination, protocol })
}

pub(super) fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}
