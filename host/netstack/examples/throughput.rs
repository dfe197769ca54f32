//! How fast one core takes frames in memory to bytes and back, and what a flow costs.
//!
//! `cargo run --release -p netstack --example throughput [SECONDS]`. Up: frames with partial checksums, as a Linux guest sends
//! them, are taken in, their bytes copied to a sink, acknowledgements taken out. Down: bytes are copied from a source, frames
//! taken out, an acknowledgement for every eight taken in.

use std::hint::black_box;
use std::time::{Duration, Instant};

use netstack::{Config, Event, FlowId, HEADER, Limits, MAX_FRAME, Received, Stack};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: [u8; 4] = [198, 18, 0, 2];

fn config(segmentation: bool) -> Config {
    Config {
        guest_mac: GUEST_MAC,
        gateway_mac: GATEWAY_MAC,
        guest_ipv4: GUEST.into(),
        gateway_ipv4: [198, 18, 0, 1].into(),
        guest_ipv6: [0xfd76, 0, 0, 0, 0, 0, 0, 2].into(),
        gateway_ipv6: [0xfd76, 0, 0, 0, 0, 0, 0, 1].into(),
        segmentation,
        seed: 1,
    }
}

const TCP: usize = HEADER + 34;

/// A guest that knows just enough: it acknowledges all and announces a large window.
struct Guest {
    seq: u32,
    ack: u32,
    port: u16,
}

impl Guest {
    fn frame(&self, flags: u8, options: &[u8], payload: usize) -> Vec<u8> {
        let total = (40 + options.len() + payload) as u16;
        let mut frame = vec![1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        if payload > 1460 {
            (frame[1], frame[4], frame[5]) = (1, 0xb4, 5);
        }
        frame.extend(GATEWAY_MAC);
        frame.extend(GUEST_MAC);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(GUEST);
        frame.extend([198, 18, 7, 9]);
        let sum: u32 =
            frame[HEADER + 14..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[HEADER + 24..HEADER + 26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(self.port.to_be_bytes());
        frame.extend([1, 187]);
        frame.extend(self.seq.to_be_bytes());
        frame.extend(self.ack.to_be_bytes());
        frame.extend([((20 + options.len()) * 4) as u8, flags, 255, 255, 0, 0, 0, 0]);
        frame.extend(options);
        frame.resize(frame.len() + payload, 7);
        frame
    }

    fn renew(&self, frame: &mut [u8]) {
        frame[TCP + 4..TCP + 8].copy_from_slice(&self.seq.to_be_bytes());
        frame[TCP + 8..TCP + 12].copy_from_slice(&self.ack.to_be_bytes());
    }

    /// Connects to the stack.
    fn connect(port: u16, mss: u16, stack: &mut Stack, buffer: &mut [u8], now: Duration) -> (Self, FlowId) {
        let mut guest = Self { seq: 1, ack: 0, port };
        let [high, low] = mss.to_be_bytes();
        stack.frame_in(&guest.frame(2, &[2, 4, high, low, 3, 3, 8, 0], 0), now);
        guest.seq += 1;
        let Some(Event::Incoming { flow, .. }) = stack.next_event() else { panic!("no flow") };
        stack.accept(flow, now).expect("the flow is there");
        let len = stack.frame_out(buffer, now).expect("a SYN|ACK");
        guest.ack = u32::from_be_bytes(buffer[TCP + 4..len.min(TCP + 8)].try_into().expect("a number")) + 1;
        stack.frame_in(&guest.frame(16, &[], 0), now);
        loop {
            match stack.next_event() {
                Some(Event::Writable(_)) => return (guest, flow),
                Some(Event::Limit { .. } | Event::Prohibited { .. }) => {}
                event => panic!("{event:?}"),
            }
        }
    }
}

fn rate(bytes: u64, start: Instant) -> f64 {
    bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64()
}

fn up(payload: usize, length: Duration) -> f64 {
    let mut stack = Stack::new(&config(true), Limits::default());
    let mut buffer = vec![0; MAX_FRAME];
    let (mut guest, flow) = Guest::connect(1, 1460, &mut stack, &mut buffer, Duration::ZERO);
    let mut frame = guest.frame(24, &[], payload);
    let mut sink = vec![0; 1 << 20];
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < length {
        for _ in 0..64 {
            let now = start.elapsed();
            for _ in 0..4 {
                guest.renew(&mut frame);
                stack.frame_in(&frame, now);
                guest.seq = guest.seq.wrapping_add(payload as u32);
            }
            while stack.next_event().is_some() {}
            while let Ok(Received::Bytes(taken)) = stack.recv_with(flow, |piece| {
                sink[..piece.len()].copy_from_slice(piece);
                piece.len()
            }) {
                black_box(&sink);
                bytes += taken as u64;
            }
            while let Some(len) = stack.frame_out(&mut buffer, now) {
                black_box(&buffer[..len]);
            }
        }
    }
    assert_eq!(bytes % (payload as u64), 0);
    rate(bytes, start)
}

fn down(mss: u16, segmentation: bool, length: Duration) -> (f64, usize) {
    let mut stack = Stack::new(&config(segmentation), Limits::default());
    let mut buffer = vec![0; MAX_FRAME];
    let (mut guest, flow) = Guest::connect(1, mss, &mut stack, &mut buffer, Duration::ZERO);
    let mut ack = guest.frame(16, &[], 0);
    let source = vec![5; 1 << 20];
    let start = Instant::now();
    let (mut bytes, mut longest) = (0, 0);
    while start.elapsed() < length {
        for _ in 0..64 {
            let now = start.elapsed();
            while let Ok(1..) = stack.send_with(flow, |room| {
                let len = room.len().min(128 << 10);
                room[..len].copy_from_slice(&source[..len]);
                len
            }) {}
            for _ in 0..8 {
                let Some(len) = stack.frame_out(&mut buffer, now) else { break };
                let payload = len - TCP - 20;
                longest = longest.max(len - HEADER - 14);
                guest.ack = guest.ack.wrapping_add(payload as u32);
                bytes += payload as u64;
                black_box(&buffer[..len]);
            }
            guest.renew(&mut ack);
            stack.frame_in(&ack, now);
            while stack.next_event().is_some() {}
        }
    }
    (rate(bytes, start), longest)
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

fn idle(flows: u16) -> u64 {
    let mut stack = Stack::new(&config(true), Limits::default());
    let mut buffer = vec![0; MAX_FRAME];
    let before = resident();
    for port in 1..=flows {
        let (mut guest, flow) = Guest::connect(port, 65480, &mut stack, &mut buffer, Duration::ZERO);
        // A request and a response of 4 KiB each.
        stack.frame_in(&guest.frame(24, &[], 4096), Duration::ZERO);
        guest.seq += 4096;
        let _ = stack.recv_with(flow, <[u8]>::len);
        let _ = stack.send_with(flow, |room| {
            room[..4096].fill(1);
            4096
        });
        while let Some(len) = stack.frame_out(&mut buffer, Duration::ZERO) {
            guest.ack = guest.ack.wrapping_add((len - TCP - 20) as u32);
        }
        stack.frame_in(&guest.frame(16, &[], 0), Duration::ZERO);
        while stack.next_event().is_some() {}
    }
    assert_eq!(stack.next_deadline(), None);
    assert_eq!(stack.flows().count(), usize::from(flows));
    resident() - before
}

fn connections(length: Duration) -> f64 {
    let mut stack = Stack::new(&config(true), Limits::default());
    let mut buffer = vec![0; MAX_FRAME];
    let start = Instant::now();
    let mut count = 0u32;
    while start.elapsed() < length {
        let now = start.elapsed();
        let port = (count % 60_000) as u16 + 1;
        let (mut guest, flow) = Guest::connect(port, 65480, &mut stack, &mut buffer, now);
        stack.finish(flow).expect("the flow is there");
        while let Some(len) = stack.frame_out(&mut buffer, now) {
            guest.ack += u32::from(buffer[TCP + 13] & 1);
            black_box(&buffer[..len]);
        }
        stack.frame_in(&guest.frame(17, &[], 0), now);
        while let Some(len) = stack.frame_out(&mut buffer, now) {
            black_box(&buffer[..len]);
        }
        while stack.next_event().is_some() {}
        assert!(stack.info(flow).is_none());
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(2.0);
    let length = Duration::from_secs_f64(seconds);
    println!("1000 idle flows, 4 KiB each way before: {} KiB", idle(1000));
    println!("up,   64 KiB frames:                    {:.1} Gbit/s", up(65480, length));
    println!("up,   1500-byte frames:                 {:.1} Gbit/s", up(1460, length));
    for (mss, segmentation, name) in [
        (65480, true, "MSS 65480"),
        (1460, true, "MSS 1460, cut by the guest"),
        (1460, false, "MSS 1460, cut here"),
    ] {
        let (rate, longest) = down(mss, segmentation, length);
        println!("down, {name:27} (≤ {longest:5}): {rate:.1} Gbit/s");
    }
    println!("connections made and closed:            {:.0}/s", connections(length));
}
