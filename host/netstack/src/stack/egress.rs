//! Frames to the guest.

use std::time::Duration;

use smoltcp::wire::TcpControl;

use super::Stack;
use super::frames::count;
use crate::config::MAX_FRAME;
use crate::emit;
use crate::event::{FlowId, Protocol};

impl Stack {
    /// Writes the next frame for the guest, `virtio_net_hdr_v1` and an Ethernet frame, to `buffer`, which has room for
    /// [`MAX_FRAME`] bytes; its length, or `None` if there is nothing to send now.
    pub fn frame_out(&mut self, buffer: &mut [u8], now: Duration) -> Option<usize> {
        self.tick(now);
        if buffer.len() < MAX_FRAME {
            return None;
        }
        self.expire();
        // Answers and flows take turns: neither can hold up the other.
        self.flows_turn = !self.flows_turn;
        let len = if self.flows_turn {
            self.next_segment(buffer).or_else(|| self.next_queued(buffer))
        } else {
            self.next_queued(buffer).or_else(|| self.next_segment(buffer))
        }?;
        count(&mut self.counters.frames_out);
        Some(len)
    }

    /// Looks after the flows whose deadline has come, and tells of limits whose second is over.
    fn expire(&mut self) {
        while let Some(event) = self.log.due(self.now) {
            self.events.push_back(event);
        }
        while let Some(flow) = self.timers.expired(self.now, &mut self.table) {
            match self.table.get(flow).map(|entry| entry.key.protocol) {
                Some(Protocol::Tcp) => self.tcp_expired(flow),
                Some(Protocol::Udp) => self.udp_expired(flow),
                None => {}
            }
        }
        self.timers.tidy(self.table.len(), &mut self.table);
    }

    fn next_queued(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let frame = match self.resets.pop_front() {
            Some(reset) => {
                let (remote, port) = (reset.key.remote, reset.key.guest_port);
                emit::tcp(&self.link, remote, port, TcpControl::Rst, reset.seq, reset.ack)
            }
            None => {
                let frame = self.out.pop_front()?;
                self.out_bytes = self.out_bytes.saturating_sub(frame.len());
                frame
            }
        };
        buffer.get_mut(..frame.len())?.copy_from_slice(&frame);
        Some(frame.len())
    }

    /// The next segment of the flows that have some, one of each in turn.
    fn next_segment(&mut self, buffer: &mut [u8]) -> Option<usize> {
        while let Some(flow) = self.ready.pop_front() {
            let now = self.now;
            let Some(entry) = self.table.get_mut(flow) else { continue };
            entry.queued = false;
            let Some(tcp) = self.table.tcp_mut(flow) else { continue };
            let written = self.engine.egress(tcp, buffer, now);
            if let Some((_, sent)) = written
                && sent.payload > 0
                && let Some(entry) = self.table.get_mut(flow)
            {
                entry.active = now;
            }
            self.settle(flow);
            if let Some((len, _)) = written {
                return Some(len);
            }
            self.still(flow);
        }
        None
    }

    /// A flow that had nothing to send after all does not stay ready: it would be asked for ever.
    fn still(&mut self, flow: FlowId) {
        if let Some(entry) = self.table.get_mut(flow)
            && entry.queued
        {
            entry.queued = false;
            self.ready.retain(|ready| *ready != flow);
        }
    }
}
