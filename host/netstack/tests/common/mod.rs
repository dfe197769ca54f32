//! A guest of its own (smoltcp with ARP, neighbour discovery, checksums and all) on a link that can lose, repeat and reorder,
//! and what a virtio device and a guest's kernel do with offloads. Time is made up.
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use netstack::{Config, Event, FlowId, HEADER, Limits, MAX_FRAME, MTU, Stack};
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket,
};

/// The link of a sandbox, as the guest's agent sets it up.
pub(crate) mod abi {
    use std::net::{Ipv4Addr, Ipv6Addr};

    pub(crate) const GUEST_IPV4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    pub(crate) const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    pub(crate) const LINK_PREFIX_V4: u8 = 30;
    pub(crate) const GUEST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, 2);
    pub(crate) const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6976, 0, 0, 0, 0, 0, 1);
    pub(crate) const LINK_PREFIX_V6: u8 = 126;
    pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x76, 0x00, 0x02];
    pub(crate) const GATEWAY_MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x76, 0x00, 0x01];
}

pub(crate) fn config() -> Config {
    Config {
        guest_mac: abi::GUEST_MAC,
        gateway_mac: abi::GATEWAY_MAC,
        guest_ipv4: abi::GUEST_IPV4,
        gateway_ipv4: abi::GATEWAY_IPV4,
        guest_ipv6: abi::GUEST_IPV6,
        gateway_ipv6: abi::GATEWAY_IPV6,
        segmentation: true,
        seed: 1,
    }
}

pub(crate) const REMOTE4: &str = "198.18.7.9:443";
pub(crate) const REMOTE6: &str = "[fd76:6976::7:9]:443";

pub(crate) fn remote(v6: bool) -> SocketAddr {
    if v6 { REMOTE6 } else { REMOTE4 }.parse().unwrap()
}

/// What happens to frames, in parts of 256, each way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub loss: u8,
    pub repeat: u8,
    pub reorder: u8,
}

/// A xorshift generator.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn hit(&mut self, of_256: u8) -> bool {
        (self.next() >> 24) as u8 >= 255 - of_256 && of_256 != 0
    }
}

/// The guest's network card.
pub(crate) struct Card {
    pub rx: VecDeque<Vec<u8>>,
    pub tx: VecDeque<Vec<u8>>,
    mtu: usize,
}

pub(crate) struct Token(Vec<u8>);
pub(crate) struct Sender<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Token {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; HEADER + len];
        let result = f(&mut frame[HEADER..]);
        self.0.push_back(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Token;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Token, Sender<'_>)> {
        Some((Token(self.rx.pop_front()?), Sender(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// Does what the header in front of a frame asks for: cuts it, completes checksums. What comes out is plain Ethernet.
pub(crate) fn offloaded(frame: &[u8]) -> Vec<Vec<u8>> {
    let (header, frame) = frame.split_at(HEADER);
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]) as usize;
    let (flags, kind, headers, segment, start, offset) =
        (header[0], header[1], word(2), word(4), word(6), word(8));
    assert!(flags & !1 == 0, "{header:?}");
    let v6 = frame[14] >> 4 == 6;
    if kind == 0 {
        let mut frame = frame.to_vec();
        if flags & 1 != 0 {
            complete(&mut frame, start, offset);
        }
        return vec![frame];
    }
    assert_eq!(flags, 1);
    assert_eq!(kind, if v6 { 4 } else { 1 });
    let payload = &frame[headers..];
    assert!(segment > 0 && payload.len() > segment, "{segment} {}", payload.len());
    let count = payload.len().div_ceil(segment);
    let pieces = payload.chunks(segment).enumerate().map(|(i, piece)| {
        let mut cut = frame[..headers].to_vec();
        cut.extend_from_slice(piece);
        let total = (cut.len() - 14) as u16;
        if v6 {
            Ipv6Packet::new_unchecked(&mut cut[14..]).set_payload_len(total - 40);
        } else {
            let mut ip = Ipv4Packet::new_unchecked(&mut cut[14..]);
            ip.set_total_len(total);
            ip.fill_checksum();
        }
        // The partial sum has the whole length in it.
        let sum = pseudo(&cut, start, v6);
        let mut tcp = TcpPacket::new_unchecked(&mut cut[start..]);
        let seq = tcp.seq_number() + i * segment;
        tcp.set_seq_number(seq);
        if i + 1 < count {
            tcp.set_fin(false);
            tcp.set_psh(false);
        }
        tcp.set_checksum(sum);
        complete(&mut cut, start, offset);
        cut
    });
    pieces.collect()
}

fn pseudo(frame: &[u8], start: usize, v6: bool) -> u16 {
    let ip = &frame[14..];
    let (source, destination): (IpAddress, IpAddress) = if v6 {
        let ip = Ipv6Packet::new_unchecked(ip);
        (ip.src_addr().into(), ip.dst_addr().into())
    } else {
        let ip = Ipv4Packet::new_unchecked(ip);
        (ip.src_addr().into(), ip.dst_addr().into())
    };
    let length = (frame.len() - start) as u32;
    smoltcp::wire::checksum::pseudo_header(&source, &destination, IpProtocol::Tcp, length)
}

fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let sum = !smoltcp::wire::checksum::data(&frame[start..]);
    frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A guest and its stack.
pub(crate) struct Net {
    pub stack: Stack,
    pub guest: Interface,
    pub card: Card,
    pub sockets: SocketSet<'static>,
    pub now: Duration,
    pub weather: Weather,
    pub dice: Dice,
    pub events: VecDeque<Event>,
    /// Lengths of the IP packets that reached the guest, before and after being cut.
    pub whole: usize,
    pub cut: usize,
    port: u16,
}

impl Net {
    pub(crate) fn new(config: &Config, limits: Limits, mtu: usize) -> Self {
        let mut card = Card { rx: VecDeque::new(), tx: VecDeque::new(), mtu };
        let mut guest_config =
            InterfaceConfig::new(HardwareAddress::Ethernet(EthernetAddress(abi::GUEST_MAC)));
        guest_config.random_seed = 7;
        let mut guest = Interface::new(guest_config, &mut card, Instant::ZERO);
        guest.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(abi::GUEST_IPV4.into(), abi::LINK_PREFIX_V4)).unwrap();
            addresses.push(IpCidr::new(abi::GUEST_IPV6.into(), abi::LINK_PREFIX_V6)).unwrap();
        });
        guest.routes_mut().add_default_ipv4_route(abi::GATEWAY_IPV4).unwrap();
        guest.routes_mut().add_default_ipv6_route(abi::GATEWAY_IPV6).unwrap();
        Self {
            stack: Stack::new(config, limits),
            guest,
            card,
            sockets: SocketSet::new(Vec::new()),
            now: Duration::from_secs(1),
            weather: Weather::default(),
            dice: Dice(0x9e37_79b9_7f4a_7c15),
            events: VecDeque::new(),
            whole: 0,
            cut: 0,
            port: 50000,
        }
    }

    pub(crate) fn usual() -> Self {
        Self::new(&config(), Limits::default(), MTU)
    }

    fn instant(&self) -> Instant {
        Instant::from_micros(self.now.as_micros() as i64)
    }

    /// A connection of the guest, with buffers of these sizes.
    pub(crate) fn connect(&mut self, to: SocketAddr, rx: usize, tx: usize) -> SocketHandle {
        self.port += 1;
        self.connect_from(self.port, to, rx, tx)
    }

    pub(crate) fn connect_from(&mut self, port: u16, to: SocketAddr, rx: usize, tx: usize) -> SocketHandle {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; rx]), SocketBuffer::new(vec![0; tx]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let local: IpAddress = match to {
            SocketAddr::V4(_) => abi::GUEST_IPV4.into(),
            SocketAddr::V6(_) => abi::GUEST_IPV6.into(),
        };
        let local = IpEndpoint::new(local, port);
        socket.connect(self.guest.context(), IpEndpoint::from(to), local).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets everything that is due happen once; whether anything moved.
    pub(crate) fn turn(&mut self) -> bool {
        let mut moved = false;
        let at = self.instant();
        self.guest.poll(at, &mut self.card, &mut self.sockets);
        let sent = std::mem::take(&mut self.card.tx);
        for frame in self.through(sent.into()) {
            moved = true;
            self.stack.frame_in(&frame, self.now);
        }
        while let Some(event) = self.stack.next_event() {
            moved = true;
            self.events.push_back(event);
        }
        let mut frames = Vec::new();
        let mut buffer = vec![0; MAX_FRAME];
        while let Some(len) = self.stack.frame_out(&mut buffer, self.now) {
            frames.push(buffer[..len].to_vec());
        }
        for frame in self.through(frames) {
            moved = true;
            self.whole = self.whole.max(frame.len() - HEADER - 14);
            for piece in offloaded(&frame) {
                self.cut = self.cut.max(piece.len() - 14);
                self.card.rx.push_back(piece);
            }
        }
        let at = self.instant();
        self.guest.poll(at, &mut self.card, &mut self.sockets);
        moved || !self.card.tx.is_empty()
    }

    fn through(&mut self, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut out: Vec<Vec<u8>> = Vec::new();
        for frame in frames {
            if self.dice.hit(self.weather.loss) {
                continue;
            }
            if self.dice.hit(self.weather.repeat) {
                out.push(frame.clone());
            }
            let at = if self.dice.hit(self.weather.reorder) && !out.is_empty() {
                (self.dice.next() as usize) % out.len()
            } else {
                out.len()
            };
            out.insert(at, frame);
        }
        out
    }

    /// Lets time pass until the next thing that either side waits for.
    pub(crate) fn wait(&mut self) -> bool {
        let at = self.instant();
        let guest =
            self.guest.poll_at(at, &self.sockets).map(|at| Duration::from_micros(at.total_micros() as u64));
        let next = [guest, self.stack.next_deadline()].into_iter().flatten().min();
        match next {
            Some(next) => {
                self.now = self.now.max(next) + Duration::from_micros(1);
                true
            }
            None => false,
        }
    }

    /// Runs until nothing moves any more without waiting.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() {
                return;
            }
            self.now += Duration::from_micros(50);
        }
        panic!("it never comes to rest");
    }

    pub(crate) fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The flow of the next `Incoming`, accepted and established.
    pub(crate) fn accept(&mut self) -> FlowId {
        let is_incoming = |event: &Event| matches!(event, Event::Incoming { .. });
        self.settle();
        // smoltcp asks for one neighbour a second.
        for _ in 0..10 {
            if !self.events.iter().any(is_incoming) {
                self.wait();
                self.settle();
            }
        }
        let incoming = self.events.iter().position(is_incoming);
        let Some(Event::Incoming { flow, .. }) = incoming.and_then(|at| self.events.remove(at)) else {
            panic!("no flow comes in: {:?}", self.events)
        };
        self.stack.accept(flow, self.now).unwrap();
        self.settle();
        assert!(self.events.contains(&Event::Writable(flow)), "{:?}", self.events);
        self.events.retain(|event| *event != Event::Writable(flow) && !matches!(event, Event::Limit { .. }));
        flow
    }

    /// All that the stack has for the gateway in a flow.
    pub(crate) fn read(&mut self, flow: FlowId) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(netstack::Received::Bytes(_)) = self.stack.recv_with(flow, |piece| {
            bytes.extend_from_slice(piece);
            piece.len()
        }) {}
        bytes
    }

    /// Sends as much as there is room for.
    pub(crate) fn write(&mut self, flow: FlowId, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        while !bytes.is_empty() {
            let sent = self.stack.send_with(flow, |room| {
                let len = room.len().min(bytes.len());
                room[..len].copy_from_slice(&bytes[..len]);
                len
            });
            match sent {
                Ok(sent) if sent > 0 => bytes = &bytes[sent..],
                _ => break,
            }
        }
        all - bytes.len()
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed | 1);
    (0..len).map(|_| dice.next() as u8).collect()
}

/// Sends `up` bytes from the guest and `down` bytes to it at once, finishes both sides, and sees both arrive.
pub(crate) fn exchange(net: &mut Net, v6: bool, up: usize, down: usize, guest_buffer: usize) {
    let (sent_up, sent_down) = (pattern(3, up), pattern(5, down));
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let (mut at_up, mut at_down) = (0, 0);
    let socket = net.connect(remote(v6), guest_buffer, guest_buffer.max(1000));
    let mut flow = None;
    let (mut closed, mut finished) = (false, false);
    let lossy = net.weather.loss > 0;
    for round in 0.. {
        assert!(round < 2_000_000, "up {} down {}", got_up.len(), got_down.len());
        let moved = net.turn();
        while let Some(event) = net.event() {
            match event {
                Event::Incoming { flow: new, .. } => {
                    net.stack.accept(new, net.now).unwrap();
                    flow = Some(new);
                }
                Event::Closed { .. } => closed = true,
                // As said below, of either side.
                Event::Reset { .. } if lossy => {
                    assert!(got_up.len() == up && got_down.len() == down, "{event:?}");
                    closed = true;
                }
                Event::Reset { .. } => panic!("{event:?}"),
                _ => {}
            }
        }
        if let Some(flow) = flow.filter(|_| !closed) {
            got_up.extend(net.read(flow));
            at_down += net.write(flow, &sent_down[at_down..]);
            if at_down == down && net.stack.readable(flow) == 0 && !finished {
                finished = true;
                net.stack.finish(flow).unwrap();
            }
        }
        let guest = net.socket(socket);
        if guest.may_send() && at_up < up {
            at_up += guest.send_slice(&sent_up[at_up..]).unwrap();
        } else if at_up == up && guest.may_send() {
            guest.close();
        }
        while guest.can_recv() {
            guest.recv(|piece| (piece.len(), got_down.extend_from_slice(piece))).unwrap();
        }
        // The guest may have to wait out TIME-WAIT; ours is over.
        if closed && got_down.len() == down && !moved {
            break;
        }
        net.now += Duration::from_micros(50);
        if !moved && !net.wait() {
            // smoltcp, on either side, forgets a lost FIN when three acknowledgements are repeated after it. Ours is given
            // up in the end, the guest's is not.
            let (up_left, down_left) = (up - got_up.len(), down - got_down.len());
            assert!(lossy && up_left + down_left == 0, "nothing moves: up {up_left} down {down_left}");
            net.socket(socket).abort();
            net.weather = Weather::default();
        }
    }
    assert!(got_up == sent_up && got_down == sent_down);
    assert_eq!(net.stack.flows().count(), 0);
    assert_eq!(net.stack.next_deadline(), None);
}
