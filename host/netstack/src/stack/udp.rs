//! UDP flows.

use std::collections::VecDeque;
use std::time::Duration;

use super::Stack;
use super::frames::count;
use crate::config::MTU;
use crate::event::{DatagramError, Event, FlowId, LimitKind, NoFlow, Protocol};
use crate::flow::FlowKey;
use crate::ingress::Datagrams;
use crate::table::{Kind, UdpFlow};
use crate::{emit, icmp};

/// What a waiting datagram counts.
pub(super) fn cost(datagram: &[u8]) -> usize {
    datagram.len().saturating_add(64)
}

impl Stack {
    pub(super) fn datagrams_in(&mut self, datagrams: &Datagrams<'_>) {
        let flow = match self.table.find(&datagrams.key) {
            Some(flow) => flow,
            None => {
                if self.table.udp >= self.limits.udp_flows && !self.reclaim(Protocol::Udp) {
                    count(&mut self.counters.udp_refused);
                    return self.hit(LimitKind::UdpFlows);
                }
                let head = datagrams.ip.get(..icmp::quotable(datagrams.key.remote.is_ipv6()));
                let head = Some(head.unwrap_or(datagrams.ip).into());
                let kind = Kind::Udp(UdpFlow { head, queue: VecDeque::new() });
                let flow = self.table.insert(datagrams.key, kind, self.now);
                self.events.push_back(Event::Incoming { flow, info: datagrams.key.info(&self.link) });
                flow
            }
        };
        self.touch(flow);
        let whole = match datagrams.pieces.filter(|size| *size > 0 && !datagrams.payload.is_empty()) {
            // Every piece has a place or none: what was one packet is one loss.
            Some(size) => {
                datagrams.payload.chunks(size).map(|piece| self.enqueue(flow, piece)).fold(true, |a, b| a & b)
            }
            None => self.enqueue(flow, datagrams.payload),
        };
        if whole {
            count(&mut self.counters.accepted);
        } else {
            count(&mut self.counters.udp_refused);
            self.hit(LimitKind::UdpQueue);
        }
    }

    /// Queues a datagram for the gateway, if there is room.
    fn enqueue(&mut self, flow: FlowId, payload: &[u8]) -> bool {
        let bytes = self.udp_bytes.saturating_add(cost(payload));
        let Some(entry) = self.table.get_mut(flow) else { return false };
        let Kind::Udp(udp) = &mut entry.kind else { return false };
        if udp.queue.len() >= self.limits.udp_queue || bytes > self.limits.udp_bytes {
            return false;
        }
        udp.queue.push_back(payload.to_vec());
        self.udp_bytes = bytes;
        if udp.head.is_none() {
            self.tell_readable(flow);
        }
        true
    }

    /// Something came or went.
    fn touch(&mut self, flow: FlowId) {
        let due = Some(self.now.saturating_add(self.limits.udp_idle));
        if let Some(entry) = self.table.get_mut(flow) {
            entry.active = self.now;
            self.timers.set(flow, &mut entry.timer, due);
        }
    }

    pub(super) fn open_udp(&mut self, key: FlowKey) -> FlowId {
        let kind = Kind::Udp(UdpFlow { head: None, queue: VecDeque::new() });
        let flow = self.table.insert(key, kind, self.now);
        self.touch(flow);
        flow
    }

    /// A flow's deadline has come: nothing came or went for long enough.
    pub(super) fn udp_expired(&mut self, flow: FlowId) {
        if self.remove(flow).is_some() {
            self.events.push_back(Event::Closed { flow });
        }
    }

    /// The next datagram from the guest.
    pub fn recv_datagram(&mut self, flow: FlowId) -> Option<Vec<u8>> {
        let Kind::Udp(udp) = &mut self.table.get_mut(flow)?.kind else { return None };
        if udp.head.is_some() {
            return None;
        }
        let datagram = udp.queue.pop_front()?;
        self.udp_bytes = self.udp_bytes.saturating_sub(cost(&datagram));
        Some(datagram)
    }

    /// Queues a datagram for the guest.
    pub fn send_datagram(
        &mut self,
        flow: FlowId,
        payload: &[u8],
        now: Duration,
    ) -> Result<(), DatagramError> {
        self.tick(now);
        let entry = self.table.get(flow).ok_or(NoFlow)?;
        let Kind::Udp(UdpFlow { head: None, .. }) = &entry.kind else { return Err(NoFlow.into()) };
        let key = entry.key;
        let headers = if key.remote.is_ipv4() { 28 } else { 48 };
        if payload.len().saturating_add(headers) > MTU {
            return Err(DatagramError::TooLong);
        }
        self.touch(flow);
        self.ident = self.ident.wrapping_add(1);
        let frame = emit::udp(&self.link, key.remote, key.guest_port, self.ident, payload);
        if self.queue(frame) { Ok(()) } else { Err(DatagramError::Full) }
    }
}
