//! TCP flows.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::socket::tcp::State;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket};

use super::Stack;
use super::frames::count;
use crate::emit;
use crate::event::{
    ConnectError, Event, FlowId, LimitKind, NoFlow, Protocol, Received, ResetCause, SendError,
};
use crate::flow::FlowKey;
use crate::ingress::Segment;
use crate::table::{Kind, Syn, UdpFlow};
use crate::tcp::{self, Owed, Poll};

impl Stack {
    /// A connection attempt.
    pub(super) fn incoming(&mut self, segment: &Segment<'_>) {
        if self.table.pending >= self.limits.tcp_pending {
            count(&mut self.counters.tcp_refused);
            return self.hit(LimitKind::TcpPending);
        }
        if self.table.tcp >= self.limits.tcp_flows && !self.reclaim(Protocol::Tcp) {
            count(&mut self.counters.tcp_refused);
            return self.hit(LimitKind::TcpFlows);
        }
        count(&mut self.counters.accepted);
        let flow = self.table.insert(segment.key, Kind::Syn(syn(segment)), self.now);
        self.events.push_back(Event::Incoming { flow, info: segment.key.info(&self.link) });
    }

    /// Something for a flow that nobody has decided on.
    pub(super) fn segment_of_pending(&mut self, flow: FlowId, segment: &Segment<'_>) {
        let Some(entry) = self.table.get_mut(flow) else { return };
        let Kind::Syn(pending) = &mut entry.kind else { return };
        match segment.tcp.control {
            // The guest's next try. With another number it is another connection: the older is over for the guest.
            TcpControl::Syn if segment.tcp.ack_number.is_none() => {
                count(&mut self.counters.syn_again);
                if segment.tcp.seq_number != pending.seq {
                    *pending = syn(segment);
                }
            }
            TcpControl::Rst if segment.tcp.seq_number == emit::after(pending.seq, 1) => {
                self.remove(flow);
                self.events.push_back(Event::Reset { flow, cause: ResetCause::Guest });
            }
            _ => {}
        }
    }

    /// A segment of an accepted flow.
    pub(super) fn segment_of_flow(&mut self, flow: FlowId, segment: &Segment<'_>) {
        let now = self.now;
        let Some(tcp) = self.table.tcp_mut(flow) else { return };
        if segment.tcp.control == TcpControl::Syn && tcp.state() == State::SynSent {
            tcp.mss = tcp::mss(&segment.tcp);
        }
        tcp.heard = now;
        if tcp.waiting.is_some() {
            tcp.waiting = Some(now);
        }
        if tcp.done {
            return;
        }
        let before = tcp.socket().recv_queue();
        let last_ack = matches!(tcp.state(), State::LastAck);
        let reply = match (segment.tcp.control, segment.tcp.payload) {
            (TcpControl::Fin, [_, ..]) => {
                let [data, fin] = split(segment);
                let reply = self.engine.ingress(tcp, &data, now);
                self.engine.ingress(tcp, &fin, now).or(reply)
            }
            _ => self.engine.ingress(tcp, segment.ip, now),
        };
        let readable = tcp.socket().recv_queue() > before;
        match tcp.state() {
            // Reset by the guest; in LAST-ACK a plain acknowledgement leads there too.
            State::Closed if last_ack && segment.tcp.control != TcpControl::Rst => tcp.done = true,
            State::Closed | State::Listen => {
                self.remove(flow);
                return self.events.push_back(Event::Reset { flow, cause: ResetCause::Guest });
            }
            _ => {}
        }
        let finished = tcp.guest_finished() && !tcp.fin;
        tcp.fin |= finished;
        if let Some(reply) = reply {
            self.queue(reply);
        }
        if readable || finished {
            self.tell_readable(flow);
        }
        self.settle(flow);
    }

    /// Looks at a flow after anything was done to it: what to tell, when to come back, whether it is over.
    pub(super) fn settle(&mut self, flow: FlowId) {
        let now = self.now;
        let Some(tcp) = self.table.tcp_mut(flow) else { return };
        let mut writable = false;
        if !tcp.opened && tcp.socket().may_send() {
            tcp.opened = true;
            writable = true;
        }
        if tcp.cut && tcp.socket().send_queue() == 0 {
            // It is there: it was looked at just now.
            let _ = self.reset(flow);
            return;
        }
        if tcp.finish && tcp.opened {
            tcp.socket_mut().close();
        }
        if tcp.wants_room && tcp.socket().may_send() && has_room(tcp) {
            tcp.wants_room = false;
            writable = true;
        }
        match (tcp.owed(), tcp.waiting) {
            (None, _) => tcp.waiting = None,
            (Some(_), None) => tcp.waiting = Some(now),
            (Some(_), Some(_)) => {}
        }
        let poll = if tcp.done { Poll::Never } else { self.engine.poll(tcp, now) };
        let over = tcp.done || (tcp.state() == State::TimeWait && poll != Poll::Now);
        if over && tcp.socket().recv_queue() == 0 {
            return self.close(flow);
        }
        if writable {
            self.tell_writable(flow);
        }
        if poll == Poll::Now {
            self.make_ready(flow);
        }
        self.arm(flow, poll);
    }

    /// A flow that ended as it should.
    fn close(&mut self, flow: FlowId) {
        if let Some(entry) = self.remove(flow) {
            if let Kind::Tcp(tcp) = &entry.kind
                && !tcp.done
            {
                self.time_wait.insert(entry.key, tcp.next, tcp.ack, self.now);
            }
            self.events.push_back(Event::Closed { flow });
        }
    }

    /// When a guest that owes something, or says nothing at all, is given up; and why.
    fn patience(&self, flow: FlowId) -> Option<(Duration, ResetCause)> {
        let entry = self.table.get(flow)?;
        let tcp = self.table.tcp(flow)?;
        let owed = tcp.owed().zip(tcp.waiting).map(|(owed, since)| match owed {
            Owed::Handshake => since.saturating_add(self.limits.handshake),
            Owed::Acknowledgement => since.saturating_add(self.limits.stall),
        });
        let silent = self.limits.keepalive.filter(|_| tcp.opened && !tcp.done);
        let silent = silent.map(|interval| tcp.heard.saturating_add(interval.saturating_mul(5)));
        let idle = self.limits.tcp_idle.map(|idle| entry.active.saturating_add(idle));
        [
            owed.map(|at| (at, ResetCause::Stalled)),
            silent.map(|at| (at, ResetCause::Stalled)),
            idle.map(|at| (at, ResetCause::Idle)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    fn arm(&mut self, flow: FlowId, poll: Poll) {
        let patience = self.patience(flow).map(|(at, _)| at);
        let polled = match poll {
            Poll::At(at) => Some(at),
            Poll::Now | Poll::Never => None,
        };
        let due = [patience, polled].into_iter().flatten().min();
        if let Some(entry) = self.table.get_mut(flow) {
            self.timers.set(flow, &mut entry.timer, due);
        }
    }

    /// A flow's deadline has come.
    pub(super) fn tcp_expired(&mut self, flow: FlowId) {
        match self.patience(flow) {
            Some((at, cause)) if at <= self.now => self.give_up(flow, cause),
            _ => self.make_ready(flow),
        }
    }

    /// Answers a connection attempt, or takes up a UDP flow.
    pub fn accept(&mut self, flow: FlowId, now: Duration) -> Result<(), NoFlow> {
        self.tick(now);
        let buffer = self.reserve();
        let entry = self.table.get_mut(flow).ok_or(NoFlow)?;
        let local = entry.key.remote;
        match &mut entry.kind {
            Kind::Udp(UdpFlow { head, queue }) => {
                head.take().ok_or(NoFlow)?;
                if !queue.is_empty() {
                    self.tell_readable(flow);
                }
                return Ok(());
            }
            Kind::Tcp(_) => return Err(NoFlow),
            Kind::Syn(syn) => {
                let mut tcp =
                    self.engine.answer(&syn.ip, local, buffer, &self.limits, self.now).map_err(|_| NoFlow)?;
                tcp.mss = syn.mss;
                if tcp.state() != State::SynReceived {
                    return Err(NoFlow);
                }
                tcp.ack = emit::after(syn.seq, 1);
                entry.kind = Kind::Tcp(Box::new(tcp));
                entry.active = self.now;
            }
        }
        self.table.decided();
        self.take_buffer(buffer);
        self.settle(flow);
        Ok(())
    }

    /// The size of buffer that the next flow gets.
    fn reserve(&self) -> usize {
        let wanted = self.reserved.saturating_add(self.buffers.large.saturating_mul(2));
        if wanted <= self.limits.buffer_bytes { self.buffers.large } else { self.buffers.small }
    }

    /// Notes that a flow got one.
    fn take_buffer(&mut self, buffer: usize) {
        if buffer == self.buffers.large {
            self.reserved = self.reserved.saturating_add(buffer.saturating_mul(2));
        } else {
            self.hit(LimitKind::BufferBytes);
        }
    }

    /// Opens a flow towards the guest, which sees it come from `source`. A TCP flow gives `Writable` once it is established
    /// and `Reset` if it is refused; a UDP flow is open at once.
    pub fn connect(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        now: Duration,
    ) -> Result<FlowId, ConnectError> {
        self.tick(now);
        let possible = !(source.ip().is_unspecified() || source.ip().is_multicast())
            && destination.ip() == emit::guest_of(&self.link, source.ip())
            && source.ip() != destination.ip()
            && source.port() != 0
            && destination.port() != 0;
        if !possible {
            return Err(ConnectError::Address);
        }
        // Without the flow label and scope that a caller's address may have and a packet's has not.
        let remote = SocketAddr::new(source.ip(), source.port());
        let key = FlowKey { protocol, guest_port: destination.port(), remote };
        if self.table.find(&key).is_some() {
            return Err(ConnectError::InUse);
        }
        let (used, limit) = match protocol {
            Protocol::Tcp => (self.table.tcp, self.limits.tcp_flows),
            Protocol::Udp => (self.table.udp, self.limits.udp_flows),
        };
        if used >= limit && !self.reclaim(protocol) {
            return Err(ConnectError::Full);
        }
        if protocol == Protocol::Udp {
            return Ok(self.open_udp(key));
        }
        let buffer = self.reserve();
        let tcp = self
            .engine
            .call(remote, destination, buffer, &self.limits, self.now)
            .ok_or(ConnectError::Address)?;
        self.time_wait.remove(&key);
        let flow = self.table.insert(key, Kind::Tcp(Box::new(tcp)), self.now);
        self.take_buffer(buffer);
        self.settle(flow);
        Ok(flow)
    }

    /// Lets `take` see the next bytes from the guest, as one piece; it says how many of them it has used. It is not called if
    /// there are none.
    pub fn recv_with(&mut self, flow: FlowId, take: impl FnOnce(&[u8]) -> usize) -> Result<Received, NoFlow> {
        let tcp = self.table.tcp_mut(flow).ok_or(NoFlow)?;
        if tcp.socket().recv_queue() == 0 {
            return Ok(if tcp.guest_finished() { Received::Finished } else { Received::Empty });
        }
        let taken = tcp.socket_mut().recv(|piece| {
            let taken = take(piece).min(piece.len());
            (taken, taken)
        });
        let taken = taken.map_err(|_| NoFlow)?;
        self.settle(flow);
        Ok(Received::Bytes(taken))
    }

    /// Lets `fill` write bytes for the guest into the free room, as far as it is one piece; it says how many it has written.
    /// Without room it is not called, the result is 0, and [`Event::Writable`] follows.
    pub fn send_with(
        &mut self,
        flow: FlowId,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, SendError> {
        let now = self.now;
        let entry = self.table.get_mut(flow).ok_or(NoFlow)?;
        let Kind::Tcp(tcp) = &mut entry.kind else { return Err(NoFlow.into()) };
        if tcp.finish || tcp.cut {
            return Err(SendError::Finished);
        }
        if !tcp.socket().can_send() {
            tcp.wants_room = true;
            return Ok(0);
        }
        entry.active = now;
        let sent = tcp.socket_mut().send(|room| {
            let sent = fill(room).min(room.len());
            (sent, sent)
        });
        let sent = sent.map_err(|_| SendError::Finished)?;
        self.settle(flow);
        Ok(sent)
    }

    /// How many bytes from the guest wait.
    pub fn readable(&self, flow: FlowId) -> usize {
        self.table.tcp(flow).map_or(0, |tcp| tcp.socket().recv_queue())
    }

    /// How many bytes can be sent now.
    pub fn sendable(&self, flow: FlowId) -> usize {
        self.table.tcp(flow).filter(|tcp| !tcp.finish && !tcp.cut && tcp.socket().may_send()).map_or(
            0,
            |tcp| {
                let socket = tcp.socket();
                socket.send_capacity().saturating_sub(socket.send_queue())
            },
        )
    }

    /// Ends a flow like [`Stack::reset`], after the guest has acknowledged all that was sent. No event follows, unless the flow ends
    /// otherwise before.
    pub fn reset_after_sent(&mut self, flow: FlowId) -> Result<(), NoFlow> {
        let tcp = self.table.tcp_mut(flow).ok_or(NoFlow)?;
        tcp.cut = true;
        tcp.wants_room = false;
        self.settle(flow);
        Ok(())
    }

    /// Finishes our side: the guest sees the end after all that was sent.
    pub fn finish(&mut self, flow: FlowId) -> Result<(), NoFlow> {
        let tcp = self.table.tcp_mut(flow).ok_or(NoFlow)?;
        tcp.finish = true;
        tcp.wants_room = false;
        self.settle(flow);
        Ok(())
    }
}

/// Whether there is enough room to be worth telling.
fn has_room(tcp: &tcp::TcpFlow) -> bool {
    let socket = tcp.socket();
    let free = socket.send_capacity().saturating_sub(socket.send_queue());
    free.saturating_mul(4) >= socket.send_capacity()
}

/// A segment's data and its FIN as packets of their own. smoltcp cuts data that goes past the window and takes the FIN
/// behind it all the same: the stream would end early, and look complete.
fn split(segment: &Segment<'_>) -> [Vec<u8>; 2] {
    let payload = segment.tcp.payload.len();
    let header = if segment.key.remote.is_ipv4() { 20 } else { 40 };
    let mut data = segment.ip.to_vec();
    let mut fin = headers(segment);
    if let Some(tcp) = data.get_mut(header..) {
        TcpPacket::new_unchecked(tcp).set_fin(false);
    }
    if let Some(tcp) = fin.get_mut(header..) {
        TcpPacket::new_unchecked(tcp).set_seq_number(emit::after(segment.tcp.seq_number, payload));
    }
    [data, fin]
}

/// A segment's packet without its data; checksums are not made right.
fn headers(segment: &Segment<'_>) -> Vec<u8> {
    let len = segment.ip.len().saturating_sub(segment.tcp.payload.len());
    let mut ip = segment.ip.get(..len).unwrap_or_default().to_vec();
    let total = u16::try_from(len).unwrap_or(u16::MAX);
    if segment.key.remote.is_ipv4() {
        Ipv4Packet::new_unchecked(&mut ip[..]).set_total_len(total);
    } else {
        Ipv6Packet::new_unchecked(&mut ip[..]).set_payload_len(total.saturating_sub(40));
    }
    ip
}

/// What is kept of a SYN: without data, which is sent again (we do not do TCP Fast Open).
fn syn(segment: &Segment<'_>) -> Syn {
    let (ip, seq) = (headers(segment).into(), segment.tcp.seq_number);
    Syn { ip, seq, mss: tcp::mss(&segment.tcp) }
}
