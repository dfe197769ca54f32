//! A guest's frames and a gateway's calls in any order. Segments can be made that fit a connection, as the numbers of what
//! comes out are kept.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netstack::{
    Config, Counters, Event, FlowId, HEADER, Limits, MAX_FRAME, Protocol, Received, Refusal, Stack,
};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, 2);

fn config() -> Config {
    Config {
        guest_mac: GUEST_MAC,
        gateway_mac: GATEWAY_MAC,
        guest_ipv4: GUEST4,
        gateway_ipv4: Ipv4Addr::new(198, 18, 0, 1),
        guest_ipv6: GUEST6,
        gateway_ipv6: Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, 1),
        segmentation: true,
        seed: 1,
    }
}

fn limits(choice: u8) -> Limits {
    let mut limits = Limits {
        tcp_flows: 6,
        tcp_pending: 3,
        buffer_bytes: 4 * 65535,
        large_buffer: 65535 << (choice & 1),
        small_buffer: 1 << (choice >> 1 & 15),
        udp_flows: 3,
        udp_queue: 4,
        udp_bytes: 4000,
        out_frames: 8,
        out_bytes: 20_000,
        events: 64,
        time_wait: 2,
        ..Limits::default()
    };
    if choice & 0x20 != 0 {
        limits.keepalive = Some(Duration::from_secs(7));
    }
    if choice & 0x40 != 0 {
        limits.tcp_idle = Some(Duration::from_secs(60));
    }
    limits
}

/// What is read from the input; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.min(self.0.len())).map(|_| self.byte()).collect()
    }
}

/// The guest's view of its connections, by port and destination: the next number of each side.
type Numbers = HashMap<(bool, u8), (u32, u32)>;

fn ip(v6: bool, protocol: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(GATEWAY_MAC);
    frame.extend(GUEST_MAC);
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([if protocol == 1 { 58 } else { protocol }, 255]);
        frame.extend(GUEST6.octets());
        frame.extend(Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, to.into()).octets());
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((payload.len() as u16 + 20).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(GUEST4.octets());
        frame.extend([198, 18, 0, to]);
        let sum: u32 =
            frame[HEADER + 14..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[HEADER + 24..HEADER + 26].copy_from_slice(&sum.to_be_bytes());
    }
    // Transport checksums are left to us.
    let (start, offset) = (if v6 { 54 } else { 34 }, if protocol == 6 { 16 } else { 6 });
    if protocol != 1 {
        frame[0] = 1;
        frame[6] = start;
        frame[8] = offset;
    }
    frame.extend(payload);
    frame
}

fn segment(input: &mut Input<'_>, numbers: &mut Numbers) -> Vec<u8> {
    let (choice, flags, shift, len) = (input.byte(), input.byte(), input.byte() as i8, input.byte());
    let (v6, port) = (choice & 8 != 0, choice & 7);
    let (seq, ack) = numbers.entry((v6, port)).or_insert((1000, 0));
    // Mostly the numbers fit, or nearly.
    let far = |n: u32| n.wrapping_add_signed(i32::from(shift) * if choice & 16 != 0 { 1 } else { 9000 });
    let (use_seq, use_ack) =
        (if choice & 32 != 0 { far(*seq) } else { *seq }, if choice & 64 != 0 { far(*ack) } else { *ack });
    let len = usize::from(len) * if choice & 128 != 0 { 256 } else { 1 };
    let options: &[u8] = match flags >> 6 {
        0 => &[],
        1 => &[2, 4, 0, 0, 3, 3, 0, 0],
        2 => &[2, 4, 255, 180, 3, 3, 7, 0, 4, 2, 0, 0],
        _ => &[2, 4, 5, 180, 3, 3, 255, 0],
    };
    let flags = flags & 0x3f;
    let mut payload = vec![0, port + 1, 0, 80];
    payload.extend(use_seq.to_be_bytes());
    payload.extend(use_ack.to_be_bytes());
    let window: u16 = if input.byte() & 1 == 0 { 0xffff } else { u16::from(input.byte()) };
    payload.extend([((20 + options.len()) * 4) as u8, flags]);
    payload.extend(window.to_be_bytes());
    payload.extend([0; 4]);
    payload.extend(options);
    payload.extend(std::iter::repeat_n(7, len.min(60_000)));
    let taken = len.min(60_000) as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
    if use_seq == *seq {
        *seq = seq.wrapping_add(taken);
    }
    ip(v6, 6, 9, &payload)
}

/// Looks at a frame that came out, and keeps its numbers.
fn look(frame: &[u8], numbers: &mut Numbers) {
    assert!(frame.len() <= MAX_FRAME && frame.len() >= HEADER + 14);
    assert_eq!(frame[HEADER..HEADER + 6], GUEST_MAC);
    assert_eq!(frame[HEADER + 6..HEADER + 12], GATEWAY_MAC);
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let at = HEADER + 14;
    let (v6, protocol, start) = match word(HEADER + 12) {
        0x0806 => return,
        0x0800 => (false, frame[at + 9], at + 20),
        0x86dd => (true, frame[at + 6], at + 40),
        other => panic!("ethertype {other:x}"),
    };
    let total = if v6 { usize::from(word(at + 4)) + 40 } else { usize::from(word(at + 2)) };
    assert_eq!(total, frame.len() - at);
    if protocol == 6 {
        let port = frame[start + 3].wrapping_sub(1) & 7;
        let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let payload = frame.len() - start - usize::from(frame[start + 12] >> 4) * 4;
        let flags = frame[start + 13];
        let next =
            number(start + 4).wrapping_add(payload as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1));
        numbers.entry((v6, port)).or_insert((1000, 0)).1 = next;
    }
}

fn accounted(counters: &Counters) {
    let c = counters;
    let dropped = [
        c.short,
        c.long,
        c.bad_offload,
        c.spoofed,
        c.not_for_us,
        c.vlan,
        c.ethertype,
        c.bad_arp,
        c.bad_ip,
        c.fragment,
        c.ip_options,
        c.extension_header,
        c.bad_checksum,
        c.multicast,
        c.martian,
        c.bad_tcp,
        c.bad_udp,
        c.bad_icmp,
        c.icmp_ignored,
        c.events_full,
        c.tcp_refused,
        c.udp_refused,
    ];
    assert_eq!(c.frames_in, c.accepted + dropped.iter().sum::<u64>());
}

fn call(input: &mut Input<'_>, stack: &mut Stack, flows: &[FlowId], now: Duration) {
    let (what, which, len) = (input.byte(), input.byte(), input.byte());
    let flow = match flows.get(usize::from(which) % flows.len().max(1)) {
        Some(flow) => *flow,
        None => return,
    };
    let len = usize::from(len) * if what & 0x80 != 0 { 300 } else { 1 };
    let known = stack.info(flow).is_some();
    match what & 15 {
        0..=3 => _ = stack.accept(flow, now),
        4 => _ = stack.refuse(flow, Refusal::Reset, now),
        5 => _ = stack.refuse(flow, Refusal::Unreachable, now),
        6 | 7 => {
            let readable = stack.readable(flow);
            match stack.recv_with(flow, |piece| piece.len().min(len)) {
                Ok(Received::Bytes(taken)) => assert!(taken <= len && taken <= readable),
                Ok(_) => assert_eq!(readable, 0),
                Err(_) => {}
            }
        }
        8 | 9 => {
            let room = stack.sendable(flow);
            if let Ok(sent) = stack.send_with(flow, |room| room.len().min(len)) {
                assert!(sent <= room);
            }
        }
        10 => _ = stack.finish(flow),
        11 => {
            let _ = stack.reset(flow);
            assert_eq!(stack.info(flow), None);
        }
        12 => _ = stack.recv_datagram(flow),
        13 => _ = stack.send_datagram(flow, &vec![1; len], now),
        14 => _ = stack.kill_flows(|flow, _| flow.cmp(&flows[0]).is_gt()),
        _ => {
            let (source, to) = (([198, 18, 0, 9], 80).into(), (GUEST4, u16::from(len as u8)).into());
            let protocol = if which & 1 == 0 { Protocol::Tcp } else { Protocol::Udp };
            let _ = stack.connect(protocol, source, to, now);
        }
    }
    // A name that was gone stays gone.
    assert!(known || stack.info(flow).is_none());
}

pub(crate) fn drive(input: &[u8]) {
    let mut input = Input(input);
    let choice = input.byte();
    let mut stack = Stack::new(&config(), limits(choice));
    let mut now = Duration::from_secs(1);
    let mut flows: Vec<FlowId> = Vec::new();
    let mut numbers = Numbers::new();
    let mut buffer = vec![0; MAX_FRAME];
    while !input.0.is_empty() {
        match input.byte() & 15 {
            0 => {
                let len = input.byte().into();
                stack.frame_in(&input.bytes(len), now);
            }
            1 => {
                let (v6, protocol, len) = (input.byte() & 1 == 0, input.byte(), input.byte().into());
                let payload = input.bytes(len);
                stack.frame_in(&ip(v6, protocol, 1 + (protocol & 8), &payload), now);
            }
            2 => {
                let (v6, port, len) = (input.byte() & 1 == 0, input.byte(), input.byte());
                let mut payload = vec![0, port & 7, 0, 53];
                payload.extend((u16::from(len) + 8).to_be_bytes());
                payload.extend([0, 0]);
                payload.extend(std::iter::repeat_n(3, len.into()));
                let mut frame = ip(v6, 17, 9, &payload);
                if port & 0x80 != 0 {
                    (frame[1], frame[4]) = (5, port & 0x7f);
                }
                stack.frame_in(&frame, now);
            }
            3..=8 => {
                let frame = segment(&mut input, &mut numbers);
                stack.frame_in(&frame, now);
            }
            9 => now += Duration::from_millis(1 << (input.byte() & 15)),
            10 => {
                // As the deadline says.
                if let Some(deadline) = stack.next_deadline() {
                    now = now.max(deadline);
                }
            }
            11 => {
                let state = stack.save();
                let mut next = Stack::new(&config(), limits(choice));
                next.restore(&state).expect("what was saved is taken back");
                assert!(stack.restore(&input.bytes(20)).is_err() || stack.flows().count() == 0);
                if input.byte() & 1 == 0 {
                    stack = next;
                    flows.clear();
                }
            }
            _ => call(&mut input, &mut stack, &flows, now),
        }
        accounted(stack.counters());
        while let Some(event) = stack.next_event() {
            if let Event::Incoming { flow, info } = event {
                assert!(!flows.contains(&flow));
                assert!(info.source.ip() == GUEST4 || info.source.ip() == GUEST6);
                flows.push(flow);
            }
        }
        assert!(stack.flows().count() <= 9);
        // An end: nothing is sent for ever.
        let mut frames = 0;
        if input.byte() & 3 != 0 {
            while let Some(len) = stack.frame_out(&mut buffer, now) {
                look(&buffer[..len], &mut numbers);
                frames += 1;
                assert!(frames < 200_000);
            }
            assert!(stack.next_deadline().is_none_or(|deadline| deadline > now));
        }
    }
}
