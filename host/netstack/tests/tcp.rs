//! TCP against a guest with a stack of its own.

mod common;

use std::time::Duration;

use common::{Net, config, offloaded, pattern, remote};
use netstack::{
    ConnectError, Event, HEADER, LimitKind, Limits, MAX_FRAME, MTU, NoFlow, Protocol, Received, Refusal,
    ResetCause, SendError, Stack,
};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{Ipv4Packet, TcpPacket};

#[test]
fn a_guest_that_does_not_read_stops_us_and_is_not_forgotten() {
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 5000, 5000);
    let flow = net.accept();
    let bytes = pattern(9, 2_000_000);
    let mut sent = net.write(flow, &bytes);
    assert_eq!(sent, 65535 * 8);
    net.settle();
    sent += net.write(flow, &bytes[sent..]);
    assert_eq!(sent, 65535 * 8 + 5000);
    assert_eq!(net.write(flow, &bytes), 0);
    // An hour of probes, at most one a minute in the end.
    let until = net.now + Duration::from_secs(3600);
    let mut probes = 0;
    while net.now < until {
        net.settle();
        probes += 1;
        assert!(net.wait());
    }
    assert!(probes < 200, "{probes}");
    assert_eq!(net.stack.sendable(flow), 0);
    let mut got = Vec::new();
    while got.len() < sent {
        net.socket(socket).recv(|piece| (piece.len(), got.extend_from_slice(piece))).unwrap();
        if !net.turn() {
            net.wait();
        }
    }
    assert!(got == bytes[..sent]);
    assert!(net.events.contains(&Event::Writable(flow)));
}

#[test]
fn a_small_window_holds_back_a_fast_guest() {
    let limits = Limits { buffer_bytes: 0, ..Limits::default() };
    let mut net = Net::new(&config(), limits, MTU);
    let socket = net.connect(remote(false), 1 << 20, 1 << 20);
    let flow = net.accept();
    assert_eq!(net.socket(socket).send_slice(&pattern(1, 1 << 20)).unwrap(), 1 << 20);
    net.settle();
    assert_eq!(net.stack.readable(flow), 32 << 10);
    assert_eq!(net.event(), Some(Event::Readable(flow)));
    assert_eq!(net.read(flow).len(), 32 << 10);
    net.settle();
    assert_eq!(net.stack.readable(flow), 32 << 10);
}

/// smoltcp announces 65535 in a SYN and scales it when segments come: with another size of buffer this ends the process.
#[test]
fn a_guest_that_sends_past_the_window_at_once_does_no_harm() {
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 1 << 20, 4 << 20);
    let flow = net.accept();
    assert_eq!(net.socket(socket).send_slice(&pattern(1, 4 << 20)).unwrap(), 4 << 20);
    // No frame goes out meanwhile, so the window of the SYN holds.
    let mut frames = Vec::new();
    let at = smoltcp::time::Instant::from_micros(net.now.as_micros() as i64);
    net.guest.poll(at, &mut net.card, &mut net.sockets);
    frames.extend(net.card.tx.drain(..));
    let template = frames[0].clone();
    let tcp = |frame: &[u8]| TcpPacket::new_unchecked(frame[HEADER + 34..].to_vec());
    let first = tcp(&template).seq_number();
    let len = tcp(&template).into_inner().len() - 20;
    for i in 0..64 {
        let mut frame = template.clone();
        let mut packet = TcpPacket::new_unchecked(&mut frame[HEADER + 34..]);
        packet.set_seq_number(first + i * len);
        let (from, to) = (common::abi::GUEST_IPV4.into(), remote(false).ip().into());
        packet.fill_checksum(&from, &to);
        net.stack.frame_in(&frame, net.now);
    }
    assert_eq!(net.stack.readable(flow), 65535 * 8);
    assert_eq!(net.stack.counters().bad_checksum, 0);
}

/// smoltcp takes the FIN of a segment whose data it cut at the end of the window.
#[test]
fn a_fin_behind_data_that_was_cut_is_not_taken() {
    let limits = Limits { buffer_bytes: 0, small_buffer: 100, ..Limits::default() };
    let mut net = Net::new(&config(), limits, MTU);
    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    // What the guest sends within the window, made longer, with a FIN.
    net.socket(socket).send_slice(&[1; 100]).unwrap();
    let at = smoltcp::time::Instant::from_micros(net.now.as_micros() as i64);
    net.guest.poll(at, &mut net.card, &mut net.sockets);
    let mut frame = net.card.tx.pop_front().unwrap();
    frame.extend([2; 50]);
    let len = frame.len() - HEADER - 14;
    let mut ip = Ipv4Packet::new_unchecked(&mut frame[HEADER + 14..]);
    ip.set_total_len(len as u16);
    ip.fill_checksum();
    let mut tcp = TcpPacket::new_unchecked(&mut frame[HEADER + 34..]);
    tcp.set_fin(true);
    tcp.fill_checksum(&common::abi::GUEST_IPV4.into(), &remote(false).ip().into());
    net.stack.frame_in(&frame, net.now);
    assert_eq!(net.read(flow), [1; 100]);
    assert_eq!(net.stack.recv_with(flow, |_| unreachable!()), Ok(Received::Empty));
    net.settle();
    // Once more, now that there is room.
    net.stack.frame_in(&frame, net.now);
    assert_eq!(net.read(flow), [2; 50]);
    assert_eq!(net.stack.recv_with(flow, |_| unreachable!()), Ok(Received::Finished));
}

#[test]
fn a_syn_is_heard_once_and_answered_when_accepted() {
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 1000, 1000);
    net.settle();
    let Some(Event::Incoming { flow, info }) = net.event() else { panic!() };
    assert_eq!((info.protocol, info.destination), (Protocol::Tcp, remote(false)));
    assert_eq!(info.source.ip(), std::net::IpAddr::V4(common::abi::GUEST_IPV4));
    let frames = net.stack.counters().frames_out;
    for _ in 0..5 {
        assert!(net.wait());
        net.settle();
    }
    assert!(net.stack.counters().syn_again >= 4);
    assert_eq!(net.stack.counters().frames_out, frames);
    assert_eq!(net.event(), None);
    assert_eq!(net.socket(socket).state(), State::SynSent);
    assert_eq!(net.stack.next_deadline(), None);
    net.stack.accept(flow, net.now).unwrap();
    assert_eq!(net.stack.accept(flow, net.now), Err(NoFlow));
    net.settle();
    assert_eq!(net.socket(socket).state(), State::Established);
    assert_eq!(net.event(), Some(Event::Writable(flow)));
    assert_eq!(net.stack.next_deadline(), None);
}

#[test]
fn a_refused_flow_hears_why() {
    for v6 in [false, true] {
        for refusal in [Refusal::Reset, Refusal::Unreachable, Refusal::Prohibited] {
            let mut net = Net::usual();
            let socket = net.connect(remote(v6), 1000, 1000);
            net.settle();
            let Some(Event::Incoming { flow, .. }) = net.event() else { panic!() };
            net.stack.refuse(flow, refusal, net.now).unwrap();
            assert_eq!(net.stack.refuse(flow, refusal, net.now), Err(NoFlow));
            let mut buffer = vec![0; MAX_FRAME];
            let len = net.stack.frame_out(&mut buffer, net.now).unwrap();
            let frame = offloaded(&buffer[..len]).pop().unwrap();
            let ip = if v6 { 40 } else { 20 };
            let payload = &frame[14 + ip..];
            match (refusal, v6) {
                (Refusal::Reset, _) => {
                    let tcp = TcpPacket::new_checked(payload).unwrap();
                    assert!(tcp.rst() && tcp.ack());
                }
                (Refusal::Unreachable, false) => assert_eq!(payload[..2], [3, 1]),
                (Refusal::Prohibited, false) => assert_eq!(payload[..2], [3, 13]),
                (Refusal::Unreachable, true) => assert_eq!(payload[..2], [1, 3]),
                (Refusal::Prohibited, true) => assert_eq!(payload[..2], [1, 1]),
            }
            if refusal != Refusal::Reset {
                // The SYN itself is quoted.
                let quoted = &payload[8..];
                assert_eq!(TcpPacket::new_checked(&quoted[ip..]).unwrap().dst_port(), 443);
            }
            net.card.rx.push_back(frame);
            net.settle();
            assert_eq!(net.socket(socket).is_open(), refusal != Refusal::Reset);
            assert_eq!(net.stack.flows().count(), 0);
        }
    }
}

#[test]
fn each_side_finishes_by_itself() {
    // The guest first.
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    net.socket(socket).send_slice(b"ask").unwrap();
    net.socket(socket).close();
    net.settle();
    assert_eq!(net.event(), Some(Event::Readable(flow)));
    assert_eq!(net.read(flow), b"ask");
    assert_eq!(net.stack.recv_with(flow, |_| unreachable!()), Ok(Received::Finished));
    assert_eq!(net.write(flow, b"answer"), 6);
    net.settle();
    assert_eq!(net.socket(socket).recv(|piece| (piece.len(), piece.to_vec())).unwrap(), b"answer");
    net.stack.finish(flow).unwrap();
    assert_eq!(net.stack.send_with(flow, |_| unreachable!()), Err(SendError::Finished));
    net.settle();
    assert_eq!(net.event(), Some(Event::Closed { flow }));
    assert_eq!(net.stack.recv_with(flow, |_| unreachable!()), Err(NoFlow));

    // The gateway first, before the flow is even established.
    let socket = net.connect(remote(false), 1000, 1000);
    net.settle();
    let Some(Event::Incoming { flow, .. }) = net.event() else { panic!() };
    net.stack.accept(flow, net.now).unwrap();
    net.stack.finish(flow).unwrap();
    net.settle();
    assert_eq!(net.socket(socket).state(), State::CloseWait);
    net.socket(socket).send_slice(b"late").unwrap();
    net.socket(socket).close();
    net.settle();
    // What was not read keeps it.
    assert!(!net.events.iter().any(|event| matches!(event, Event::Closed { .. })));
    net.now += Duration::from_secs(100);
    net.settle();
    assert_eq!(net.read(flow), b"late");
    net.settle();
    assert_eq!(net.events.back(), Some(&Event::Closed { flow }));
    assert_eq!(net.stack.flows().count(), 0);
}

#[test]
fn both_sides_finish_at_once() {
    let mut net = Net::usual();
    let socket = net.connect(remote(true), 1000, 1000);
    let flow = net.accept();
    net.socket(socket).close();
    net.stack.finish(flow).unwrap();
    // Our FIN leaves before the guest's is heard.
    let mut buffer = vec![0; MAX_FRAME];
    let len = net.stack.frame_out(&mut buffer, net.now).unwrap();
    let at = smoltcp::time::Instant::from_micros(net.now.as_micros() as i64);
    net.guest.poll(at, &mut net.card, &mut net.sockets);
    net.card.rx.extend(offloaded(&buffer[..len]));
    net.settle();
    assert_eq!(net.events, [Event::Readable(flow), Event::Closed { flow }]);
    assert_eq!(net.socket(socket).state(), State::TimeWait);
}

#[test]
fn resets_of_both_sides() {
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    net.socket(socket).abort();
    net.settle();
    assert_eq!(net.event(), Some(Event::Reset { flow, cause: ResetCause::Guest }));
    assert_eq!(net.stack.reset(flow), Err(NoFlow));

    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    net.write(flow, b"some");
    net.settle();
    net.stack.reset(flow).unwrap();
    net.settle();
    assert_eq!(net.socket(socket).state(), State::Closed);
    assert_eq!(net.event(), None);

    // While it is being decided on: the guest gives up.
    let socket = net.connect(remote(false), 1000, 1000);
    net.settle();
    let Some(Event::Incoming { flow, .. }) = net.event() else { panic!() };
    net.socket(socket).abort();
    net.settle();
    assert_eq!(net.event(), Some(Event::Reset { flow, cause: ResetCause::Guest }));
    assert_eq!(net.stack.accept(flow, net.now), Err(NoFlow));

    // The same while we answer.
    let socket = net.connect(remote(false), 1000, 1000);
    net.settle();
    let Some(Event::Incoming { flow, .. }) = net.event() else { panic!() };
    net.socket(socket).abort();
    net.stack.accept(flow, net.now).unwrap();
    net.settle();
    assert_eq!(net.event(), Some(Event::Reset { flow, cause: ResetCause::Guest }));
    assert_eq!(net.stack.flows().count(), 0);
}

#[test]
fn a_reset_can_wait_for_what_was_sent() {
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 100, 1000);
    let flow = net.accept();
    let sent = pattern(3, 5000);
    assert_eq!(net.write(flow, &sent), sent.len());
    net.stack.reset_after_sent(flow).unwrap();
    assert_eq!(net.stack.send_with(flow, |_| 1), Err(SendError::Finished));
    assert_eq!(net.stack.sendable(flow), 0);
    // The guest's buffer holds a fiftieth of it.
    let mut got = Vec::new();
    while got.len() < sent.len() {
        net.settle();
        // Not before the last piece is there.
        assert_eq!(net.stack.flows().count(), usize::from(got.len() + 100 < sent.len()));
        net.socket(socket).recv(|part| (part.len(), got.extend_from_slice(part))).unwrap();
    }
    assert_eq!(got, sent);
    net.settle();
    assert_eq!(net.socket(socket).state(), State::Closed);
    assert_eq!((net.stack.flows().count(), net.event()), (0, None));

    // Nothing to wait for.
    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    net.stack.reset_after_sent(flow).unwrap();
    net.settle();
    assert_eq!(net.socket(socket).state(), State::Closed);
}

#[test]
fn the_last_acknowledgement_is_repeated() {
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    net.stack.finish(flow).unwrap();
    net.settle();
    net.socket(socket).close();
    let at = smoltcp::time::Instant::from_micros(net.now.as_micros() as i64);
    net.guest.poll(at, &mut net.card, &mut net.sockets);
    let fin = net.card.tx.pop_front().unwrap();
    let mut buffer = vec![0; MAX_FRAME];
    let mut answers = Vec::new();
    for _ in 0..3 {
        net.stack.frame_in(&fin, net.now);
        while let Some(len) = net.stack.frame_out(&mut buffer, net.now) {
            answers.push(offloaded(&buffer[..len]).pop().unwrap());
        }
    }
    assert_eq!(answers.len(), 3);
    let tcp = |frame: &[u8]| {
        let tcp = TcpPacket::new_checked(frame[34..].to_vec()).unwrap();
        (tcp.seq_number(), tcp.ack_number(), tcp.rst())
    };
    assert_eq!(tcp(&answers[0]), tcp(&answers[1]));
    assert_eq!(tcp(&answers[0]), tcp(&answers[2]));
    assert!(!tcp(&answers[0]).2);
    assert_eq!(net.stack.next_deadline(), None);
    net.card.rx.push_back(answers.remove(0));
    net.settle();
    assert_eq!(net.socket(socket).state(), State::Closed);
    // The same ports again, at once.
    let port = 50001;
    let again = net.connect_from(port, remote(false), 1000, 1000);
    net.events.clear();
    net.accept();
    assert_eq!(net.socket(again).state(), State::Established);
}

#[test]
fn what_we_do_not_know_is_reset() {
    let mut net = Net::usual();
    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    net.write(flow, b"hello");
    net.settle();
    // The gateway has lost everything.
    net.stack = Stack::new(&config(), Limits::default());
    net.socket(socket).send_slice(b"anybody?").unwrap();
    net.settle();
    assert_eq!(net.socket(socket).state(), State::Closed);
    assert_eq!(net.stack.counters().stray, 1);
}

#[test]
fn saved_connections_are_reset_after_a_restore() {
    let mut net = Net::usual();
    let sockets = [false, true].map(|v6| {
        let socket = net.connect(remote(v6), 1000, 1000);
        let flow = net.accept();
        assert_eq!(net.write(flow, b"to be read"), 10);
        net.settle();
        net.socket(socket).send_slice(b"taken").unwrap();
        net.settle();
        socket
    });
    let pending = net.connect(remote(false), 1000, 1000);
    net.settle();
    let state = net.stack.save();
    let mut stack = Stack::new(&config(), Limits::default());
    assert_eq!(net.stack.restore(&state), Err(netstack::RestoreError::InUse));
    stack.restore(&state).unwrap();
    assert_eq!(stack.save().len(), state.len());
    net.stack = stack;
    assert!(net.stack.next_deadline().is_some());
    net.events.clear();
    net.settle();
    for socket in sockets {
        assert_eq!(net.socket(socket).state(), State::Closed);
    }
    // The pending one comes in by itself.
    while net.events.is_empty() {
        assert!(net.wait());
        net.settle();
    }
    net.accept();
    assert_eq!(net.socket(pending).state(), State::Established);
    for spoilt in [&state[..state.len() - 1], &[0x0a, 0x00], &[0x0a, 0x02, 0x12, 0x00], b"nonsense"] {
        let mut stack = Stack::new(&config(), Limits::default());
        assert!(stack.restore(spoilt).is_err(), "{spoilt:?}");
        assert_eq!(stack.next_deadline(), None);
    }
}

#[test]
fn a_changed_policy_kills_flows() {
    let mut net = Net::usual();
    let (keep, kill) = (net.connect(remote(true), 1000, 1000), net.connect(remote(false), 1000, 1000));
    net.accept();
    net.accept();
    let pending = net.connect("198.18.7.10:80".parse().unwrap(), 1000, 1000);
    net.settle();
    assert_eq!(net.stack.kill_flows(|_, info| info.destination.is_ipv4()), 2);
    net.settle();
    assert_eq!(net.socket(kill).state(), State::Closed);
    assert_eq!(net.socket(pending).state(), State::Closed);
    assert_eq!(net.socket(keep).state(), State::Established);
    assert_eq!(net.stack.flows().count(), 1);
}

/// A SYN from a port, with its offload header.
fn syn(port: u16, to: u16) -> Vec<u8> {
    let mut net = Net::usual();
    let to = std::net::SocketAddr::new(remote(false).ip(), to);
    net.connect_from(port, to, 1000, 1000);
    // ARP comes first.
    for _ in 0..4 {
        net.turn();
        if let Some(frame) = net.card.tx.iter().find(|frame| frame[HEADER + 12..HEADER + 14] == [8, 0]) {
            return frame.clone();
        }
    }
    panic!("no SYN");
}

/// The same SYN from another port.
fn from_port(frame: &[u8], port: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mut tcp = TcpPacket::new_unchecked(&mut frame[HEADER + 34..]);
    tcp.set_src_port(port);
    tcp.fill_checksum(&common::abi::GUEST_IPV4.into(), &remote(false).ip().into());
    frame
}

#[test]
fn a_flood_of_syns_costs_a_bounded_amount() {
    let template = syn(1, 443);
    let mut stack = Stack::new(&config(), Limits::default());
    let mut now = Duration::from_secs(1);
    let mut incoming = Vec::new();
    let mut told = 0;
    for i in 0..100_000u32 {
        let mut frame = from_port(&template, (i % 60_000) as u16 + 1);
        // 100,000 different ones: two destination addresses.
        frame[HEADER + 14 + 19] = if i < 60_000 { 9 } else { 10 };
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[HEADER + 14..]);
        ip.fill_checksum();
        let to = ip.dst_addr();
        let mut tcp = TcpPacket::new_unchecked(&mut frame[HEADER + 34..]);
        tcp.fill_checksum(&common::abi::GUEST_IPV4.into(), &to.into());
        now += Duration::from_micros(20);
        stack.frame_in(&frame, now);
        while let Some(event) = stack.next_event() {
            match event {
                Event::Incoming { flow, .. } => incoming.push(flow),
                Event::Limit { limit: LimitKind::TcpPending, count } => told += count,
                event => panic!("{event:?}"),
            }
        }
    }
    assert_eq!(incoming.len(), 1024);
    assert_eq!(stack.counters().tcp_refused, 100_000 - 1024);
    assert!(told > 1000 && told < 100_000 - 1024);
    // What the last second brought is told of when it is over, and then there is nothing to wake up for.
    now = stack.next_deadline().unwrap();
    assert_eq!(stack.frame_out(&mut vec![0; MAX_FRAME], now), None);
    while let Some(event) = stack.next_event() {
        let Event::Limit { limit: LimitKind::TcpPending, count } = event else { panic!("{event:?}") };
        told += count;
    }
    assert_eq!(told, 100_000 - 1024);
    assert_eq!(stack.counters().frames_out, 0);
    assert_eq!(stack.next_deadline(), None);
    // The oldest are still there, and with each decision there is room again.
    stack.refuse(incoming[0], Refusal::Reset, now).unwrap();
    stack.frame_in(&from_port(&template, 65_000), now);
    assert!(matches!(stack.next_event(), Some(Event::Incoming { .. })));
}

#[test]
fn a_full_table_gives_up_only_what_has_long_been_idle() {
    let limits = Limits { tcp_flows: 2, ..Limits::default() };
    let mut net = Net::new(&config(), limits, MTU);
    let first = net.connect(remote(false), 1000, 1000);
    let first_flow = net.accept();
    let second = net.connect(remote(false), 1000, 1000);
    net.accept();
    let third = net.connect(remote(false), 1000, 1000);
    net.settle();
    assert!(matches!(net.event(), Some(Event::Limit { limit: LimitKind::TcpFlows, count: 1 })));
    assert_eq!(net.event(), None);
    net.now += Duration::from_secs(290);
    net.socket(second).send_slice(b"busy").unwrap();
    net.settle();
    net.now += Duration::from_secs(20);
    net.settle();
    while !net.events.iter().any(|event| matches!(event, Event::Incoming { .. })) {
        assert!(net.wait());
        net.settle();
    }
    assert!(net.events.contains(&Event::Reset { flow: first_flow, cause: ResetCause::Reclaimed }));
    assert_eq!(net.stack.counters().reclaimed, 1);
    assert_eq!(net.socket(first).state(), State::Closed);
    assert_eq!(net.socket(second).state(), State::Established);
    assert_eq!(net.socket(third).state(), State::SynSent);
}

/// To the nearest second.
fn seconds(time: Duration) -> u64 {
    time.as_secs_f64().round() as u64
}

#[test]
fn a_silent_guest_is_given_up() {
    // With data that it does not acknowledge.
    let mut net = Net::usual();
    net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    assert_eq!(net.stack.next_deadline(), None);
    net.write(flow, b"anybody?");
    net.weather.loss = 255;
    let start = net.now;
    while net.stack.flows().count() > 0 {
        net.turn();
        let deadline = net.stack.next_deadline();
        net.now = deadline.unwrap_or(net.now);
    }
    net.turn();
    assert_eq!(net.events.back(), Some(&Event::Reset { flow, cause: ResetCause::Stalled }));
    assert_eq!(seconds(net.now - start), 900);

    // In the middle of a handshake.
    let mut net = Net::usual();
    net.connect(remote(false), 1000, 1000);
    net.settle();
    let Some(Event::Incoming { flow, .. }) = net.event() else { panic!() };
    net.stack.accept(flow, net.now).unwrap();
    net.weather.loss = 255;
    let start = net.now;
    while net.stack.flows().count() > 0 {
        net.turn();
        net.now = net.stack.next_deadline().unwrap_or(net.now);
    }
    assert_eq!(seconds(net.now - start), 60);

    // With keepalive; a guest that answers stays.
    let limits = Limits { keepalive: Some(Duration::from_secs(10)), ..Limits::default() };
    let mut net = Net::new(&config(), limits, MTU);
    net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    for _ in 0..30 {
        net.now = net.stack.next_deadline().unwrap();
        net.settle();
    }
    assert!(net.now > Duration::from_secs(250));
    assert_eq!(net.stack.flows().count(), 1);
    net.weather.loss = 255;
    let start = net.now;
    while net.stack.flows().count() > 0 {
        net.turn();
        net.now = net.stack.next_deadline().unwrap_or(net.now);
    }
    net.turn();
    assert_eq!(net.events.back(), Some(&Event::Reset { flow, cause: ResetCause::Stalled }));
    // The last answer may have been lost: the guest's ARP entry lapses every minute.
    assert!((40..=50).contains(&seconds(net.now - start)));

    // With a limit for idle flows.
    let limits = Limits { tcp_idle: Some(Duration::from_secs(30)), ..Limits::default() };
    let mut net = Net::new(&config(), limits, MTU);
    let socket = net.connect(remote(false), 1000, 1000);
    let flow = net.accept();
    net.now = net.stack.next_deadline().unwrap();
    net.settle();
    assert_eq!(net.event(), Some(Event::Reset { flow, cause: ResetCause::Idle }));
    assert_eq!(net.socket(socket).state(), State::Closed);
}

#[test]
fn we_call_the_guest() {
    let mut net = Net::usual();
    let source = "198.18.0.1:40000".parse().unwrap();
    let guest: std::net::SocketAddr = (common::abi::GUEST_IPV4, 8080).into();
    let tcp = Protocol::Tcp;
    // The guest knows our MAC address.
    net.connect(remote(false), 1000, 1000);
    net.accept();
    // Nobody listens.
    let flow = net.stack.connect(tcp, source, guest, net.now).unwrap();
    assert_eq!(net.stack.connect(tcp, source, guest, net.now), Err(ConnectError::InUse));
    net.settle();
    assert_eq!(net.event(), Some(Event::Reset { flow, cause: ResetCause::Guest }));
    // Somebody does.
    let buffer = || smoltcp::socket::tcp::SocketBuffer::new(vec![0; 100_000]);
    let mut listener = smoltcp::socket::tcp::Socket::new(buffer(), buffer());
    listener.listen(8080).unwrap();
    let socket = net.sockets.add(listener);
    let flow = net.stack.connect(tcp, source, guest, net.now).unwrap();
    assert_eq!(net.stack.info(flow).map(|info| (info.source, info.destination)), Some((guest, source)));
    net.settle();
    assert_eq!(net.event(), Some(Event::Writable(flow)));
    let bytes = pattern(2, 90_000);
    assert_eq!(net.write(flow, &bytes), bytes.len());
    net.settle();
    let mut got = Vec::new();
    while net.socket(socket).can_recv() {
        net.socket(socket).recv(|piece| (piece.len(), got.extend_from_slice(piece))).unwrap();
    }
    assert_eq!(got, bytes);
    // Addresses that do not reach it.
    for (source, destination) in [
        ("198.18.0.1:1", "198.18.0.3:1"),
        ("198.18.0.1:0", "198.18.0.2:1"),
        ("198.18.0.1:1", "198.18.0.2:0"),
        ("198.18.0.2:1", "198.18.0.2:1"),
        ("0.0.0.0:1", "198.18.0.2:1"),
        ("[::1]:1", "198.18.0.2:1"),
    ] {
        let ends = (source.parse().unwrap(), destination.parse().unwrap());
        assert_eq!(net.stack.connect(tcp, ends.0, ends.1, net.now), Err(ConnectError::Address));
    }
}

#[test]
fn an_idle_stack_needs_no_wake_up() {
    let mut net = Net::usual();
    assert_eq!(net.stack.next_deadline(), None);
    let sockets: Vec<_> = (0..20).map(|i| net.connect(remote(i % 2 == 0), 5000, 5000)).collect();
    for _ in 0..20 {
        let flow = net.accept();
        net.write(flow, b"something");
    }
    for socket in sockets {
        net.socket(socket).send_slice(b"something else").unwrap();
    }
    net.settle();
    assert_eq!(net.stack.flows().count(), 20);
    assert_eq!(net.stack.next_deadline(), None);
}
