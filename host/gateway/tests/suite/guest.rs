//! A gateway in a thread, and a guest in this one: smoltcp behind the real frame ring, the shim's words by hand.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_proto::abi::{GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, GUEST_IPV4, GUEST_IPV6, GUEST_MAC};
use doorbell::Doorbell;
use frame_ring::{Link, MAX_FRAME, Side};
use gateway::control::{Configuration, FromGateway, HostsEntry, ToGateway};
use gateway::intercept::MakeInterceptor;
use gateway::record::Record;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name as WireName, RData, RecordType};
use policy::{Decision, PolicySet, Preset, Resource, Rule};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const HEADER: usize = 12;

/// The guest's card: frames of the ring with an empty offload header.
struct Card {
    link: Link,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Link);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0[HEADER..])
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; HEADER + len];
        let done = f(&mut frame[HEADER..]);
        // A full ring drops it; TCP sends it again.
        let _ = self.0.send(&[&frame]).unwrap();
        done
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let mut buffer = vec![0; MAX_FRAME];
        let length = self.link.receive(&mut buffer).unwrap()?;
        buffer.truncate(length);
        Some((Rx(buffer), Tx(&mut self.link)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.link))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 65_520 + 14;
        let mut checksum = ChecksumCapabilities::default();
        // As with VIRTIO_NET_F_GUEST_CSUM.
        (checksum.tcp, checksum.udp) = (Checksum::Tx, Checksum::Tx);
        capabilities.checksum = checksum;
        capabilities
    }
}

/// A sandbox: its guest, its shim, its gateway.
pub(crate) struct Guest {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    port: u16,
    control: Option<OwnedFd>,
    gateway: Option<JoinHandle<Result<(), String>>>,
    pub(crate) records: Vec<Record>,
    pub(crate) words: Vec<FromGateway>,
}

/// `allow` and `deny` rules for one sandbox, nothing else.
pub(crate) fn rules(allow: &[&str], deny: &[&str]) -> PolicySet {
    let rule = |decision, text: &&str| Rule::new(decision, Resource::parse(text).unwrap());
    let allowed = allow.iter().map(|text| rule(Decision::Allow, text));
    let denied = deny.iter().map(|text| rule(Decision::Deny, text));
    PolicySet {
        sandbox: "test".into(),
        preset: Preset::DenyAll,
        local: allowed.chain(denied).collect(),
        ..PolicySet::default()
    }
}

/// The host's table: each name with its addresses.
pub(crate) fn hosts(table: &[(&str, &str)]) -> Vec<HostsEntry> {
    let entry = |(name, address): &(&str, &str)| HostsEntry {
        address: address.parse().unwrap(),
        names: vec![(*name).into()],
    };
    table.iter().map(entry).collect()
}

/// A gateway in its thread, and what its guest and its shim have of it.
struct Ends {
    card: Card,
    control: OwnedFd,
    gateway: JoinHandle<Result<(), String>>,
}

fn launch(configuration: Configuration, make: impl FnOnce() -> MakeInterceptor + Send + 'static) -> Ends {
    let pair = frame_ring::pair().unwrap();
    let (control, far) = packet::pair().unwrap();
    let gateway =
        std::thread::spawn(move || gateway::main_loop(far, make()).map_err(|error| error.to_string()));
    let word = ToGateway::Configure(Box::new(configuration));
    let parts = [pair.memory.as_fd(), pair.network_bell.as_fd(), pair.guest_bell.as_fd()];
    packet::send_large(&control, &word, &parts).unwrap();
    let memory = pair.memory.try_clone().unwrap();
    let (mine, theirs) = (Doorbell::from(pair.guest_bell), Doorbell::from(pair.network_bell));
    let link = Link::from_parts(memory, Side::Guest, mine, theirs).unwrap();
    Ends { card: Card { link }, control, gateway }
}

impl Guest {
    pub(crate) fn start(configuration: Configuration) -> Self {
        Self::start_with(configuration, || Box::new(|_| Err("none here".into())))
    }

    pub(crate) fn start_with(
        configuration: Configuration,
        make: impl FnOnce() -> MakeInterceptor + Send + 'static,
    ) -> Self {
        let Ends { mut card, control, gateway } = launch(configuration, make);
        let start = Instant::now();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST_IPV4.into(), 30)).unwrap();
            addresses.push(IpCidr::new(GUEST_IPV6.into(), 126)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY_IPV4).unwrap();
        interface.routes_mut().add_default_ipv6_route(GATEWAY_IPV6).unwrap();
        let mut guest = Self {
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start,
            port: 40_000,
            control: Some(control),
            gateway: Some(gateway),
            records: Vec::new(),
            words: Vec::new(),
        };
        guest.word("Ready", |word| matches!(word, FromGateway::Ready));
        guest
    }

    /// Another gateway for the same guest, whose stack notices nothing but a link that was still for a moment. What the gateway before
    /// said is forgotten.
    pub(crate) fn restart(&mut self, configuration: Configuration) {
        self.stop();
        self.records.clear();
        self.words.clear();
        let Ends { card, control, gateway } = launch(configuration, || Box::new(|_| Err("none here".into())));
        (self.card, self.control, self.gateway) = (card, Some(control), Some(gateway));
        self.word("Ready", |word| matches!(word, FromGateway::Ready));
    }

    /// Says a word to the gateway.
    pub(crate) fn say(&self, word: &ToGateway, descriptors: &[&OwnedFd]) {
        let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        packet::send_large(self.control.as_ref().unwrap(), word, &descriptors).unwrap();
    }

    /// Says a word and waits until it was heard: the ring and the control line are two ways, and what is said on one may be heard after
    /// what is said later on the other.
    pub(crate) fn tell(&mut self, word: &ToGateway) {
        self.say(word, &[]);
        self.say(&ToGateway::Count, &[]);
        self.word("that it was heard", |word| matches!(word, FromGateway::Counted { .. }));
    }

    fn hear(&mut self) {
        let control = self.control.as_ref().unwrap();
        loop {
            let mut poll = [rustix::event::PollFd::new(control, rustix::event::PollFlags::IN)];
            if rustix::event::poll(&mut poll, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))
                .unwrap()
                == 0
            {
                return;
            }
            match packet::receive_large::<FromGateway>(control).unwrap() {
                Some((FromGateway::Records { records }, _)) => self.records.extend(records),
                Some((word, _)) => self.words.push(word),
                None => return,
            }
        }
    }

    /// One turn of the guest: frames both ways, and the shim's ear.
    pub(crate) fn turn(&mut self) {
        self.card.link.bell().answer();
        let now =
            smoltcp::time::Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap());
        let moved = self.interface.poll(now, &mut self.card, &mut self.sockets);
        self.hear();
        if moved == smoltcp::iface::PollResult::None {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Turns until `done` says something.
    pub(crate) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if let Some(found) = done(self) {
                return found;
            }
            assert!(
                Instant::now() < end,
                "waited in vain for {what}; records {:#?}, words {:?}",
                self.records,
                self.words
            );
        }
    }

    /// Waits for a word of the gateway, and takes it.
    pub(crate) fn word(&mut self, what: &str, matches: impl Fn(&FromGateway) -> bool) -> FromGateway {
        self.until(what, |guest| {
            let place = guest.words.iter().position(&matches)?;
            Some(guest.words.remove(place))
        })
    }

    /// Waits for a record.
    pub(crate) fn record(&mut self, what: &str, matches: impl Fn(&Record) -> bool) -> Record {
        self.until(what, |guest| guest.records.iter().find(|record| matches(record)).cloned())
    }

    fn next_port(&mut self) -> u16 {
        self.port += 1;
        self.port
    }

    /// Sends one datagram and waits for the answer.
    pub(crate) fn datagram(&mut self, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        self.datagram_within(to, payload, Duration::from_secs(20))
    }

    /// Sends one datagram and waits so long for an answer; `None` without one.
    pub(crate) fn datagram_within(
        &mut self,
        to: SocketAddr,
        payload: &[u8],
        patience: Duration,
    ) -> Option<Vec<u8>> {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 65_536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(self.next_port()).unwrap();
        socket.send_slice(payload, (smoltcp::wire::IpAddress::from(to.ip()), to.port())).unwrap();
        let handle = self.sockets.add(socket);
        let end = Instant::now() + patience;
        let answer = self.until("a datagram", |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            match socket.recv() {
                Ok((bytes, _)) => Some(Some(bytes.to_vec())),
                Err(_) if Instant::now() > end => Some(None),
                Err(_) => None,
            }
        });
        self.sockets.remove(handle);
        answer
    }

    /// Sends one datagram and does not wait.
    pub(crate) fn cast(&mut self, to: SocketAddr, payload: &[u8]) {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 2], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(self.next_port()).unwrap();
        socket.send_slice(payload, (smoltcp::wire::IpAddress::from(to.ip()), to.port())).unwrap();
        let handle = self.sockets.add(socket);
        // The first one waits until the gateway has said where it is.
        self.until("its way out", |guest| (guest.udp(handle).send_queue() == 0).then_some(()));
        self.sockets.remove(handle);
    }

    /// Sends one IPv4 packet of a protocol.
    pub(crate) fn packet(&mut self, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet};
        let mut frame = vec![0; HEADER + 14 + 20];
        frame.extend_from_slice(payload);
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[HEADER..]);
        ethernet.set_src_addr(EthernetAddress(GUEST_MAC));
        ethernet.set_dst_addr(EthernetAddress(GATEWAY_MAC));
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(u16::try_from(20 + payload.len()).unwrap());
        ip.set_hop_limit(64);
        ip.set_next_header(protocol.into());
        ip.set_src_addr(GUEST_IPV4);
        ip.set_dst_addr(to);
        ip.fill_checksum();
        assert_eq!(self.card.link.send(&[&frame]).unwrap(), frame_ring::Sent::Taken);
        self.turn();
    }

    /// Asks the gateway's DNS.
    pub(crate) fn ask(&mut self, name: &str, kind: RecordType) -> Message {
        let bytes = question(name, kind);
        let answer = self.datagram((GATEWAY_IPV4, 53).into(), &bytes).expect("an answer");
        Message::from_vec(&answer).unwrap()
    }

    /// The synthetic IPv4 address of a name.
    pub(crate) fn resolve(&mut self, name: &str) -> Option<Ipv4Addr> {
        let reply = self.ask(name, RecordType::A);
        if reply.metadata.response_code == ResponseCode::NXDomain {
            return None;
        }
        match reply.answers.first()?.data {
            RData::A(address) => Some(address.0),
            _ => None,
        }
    }

    /// Begins a connection.
    pub(crate) fn dial(&mut self, to: impl Into<SocketAddr>) -> SocketHandle {
        let to = to.into();
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 20]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let port = self.next_port();
        let remote = (smoltcp::wire::IpAddress::from(to.ip()), to.port());
        socket.connect(self.interface.context(), remote, port).unwrap();
        self.sockets.add(socket)
    }

    /// A socket that waits for connections.
    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 20]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// A socket for datagrams.
    pub(crate) fn bind(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut::<udp::Socket<'static>>(handle)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket<'static>>(handle)
    }

    /// Waits until the connection is there, or refused.
    pub(crate) fn opened(&mut self, handle: SocketHandle) -> bool {
        self.until("a connection", |guest| match guest.tcp(handle).state() {
            tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Listen => None,
            tcp::State::Closed => Some(false),
            _ => Some(true),
        })
    }

    /// Connects; `None` when that is refused.
    pub(crate) fn connect(&mut self, to: impl Into<SocketAddr>) -> Option<SocketHandle> {
        let handle = self.dial(to);
        self.opened(handle).then_some(handle)
    }

    /// Connects to a name that must be resolvable.
    pub(crate) fn connect_to(&mut self, name: &str, port: u16) -> Option<SocketHandle> {
        let address = self.resolve(name).unwrap_or_else(|| panic!("{name} has no address"));
        self.connect((IpAddr::from(address), port))
    }

    /// Sends everything.
    pub(crate) fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut sent = 0;
        self.until("room to send", |guest| {
            let socket = guest.tcp(handle);
            if !socket.may_send() {
                return Some(());
            }
            sent += socket.send_slice(&bytes[sent..]).unwrap();
            (sent == bytes.len()).then_some(())
        });
    }

    /// Receives so many bytes, or fewer when the connection ends.
    pub(crate) fn receive(&mut self, handle: SocketHandle, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("bytes", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() && bytes.len() < count {
                let most = count - bytes.len();
                socket
                    .recv(|part| {
                        let part = &part[..part.len().min(most)];
                        bytes.extend_from_slice(part);
                        (part.len(), ())
                    })
                    .unwrap();
            }
            let over = !socket.may_recv() && !socket.can_recv();
            (bytes.len() == count || over && socket.state() != tcp::State::SynSent).then_some(())
        });
        bytes
    }

    /// Receives until the other side says goodbye.
    pub(crate) fn receive_all(&mut self, handle: SocketHandle) -> Vec<u8> {
        self.receive(handle, usize::MAX)
    }

    /// Says goodbye.
    pub(crate) fn finish(&mut self, handle: SocketHandle) {
        self.tcp(handle).close();
    }

    /// Waits until the connection is reset.
    pub(crate) fn is_reset(&mut self, handle: SocketHandle) {
        self.until("a reset", |guest| (guest.tcp(handle).state() == tcp::State::Closed).then_some(()));
    }

    /// Ends the gateway as its shim does; it must end well.
    pub(crate) fn end(mut self) -> Vec<Record> {
        self.stop();
        std::mem::take(&mut self.records)
    }

    /// The same by a shim that does not listen any more: its gateway has more to say than there is room for.
    pub(crate) fn end_unheard(mut self) {
        for _ in 0..1000 {
            self.say(&ToGateway::Count, &[]);
        }
        // Until it waits for room: what it does when it is told of the end only then is of interest.
        std::thread::sleep(Duration::from_millis(100));
        self.close();
    }

    fn stop(&mut self) {
        self.hear();
        self.close();
    }

    fn close(&mut self) {
        drop(self.control.take());
        self.gateway.take().unwrap().join().unwrap().unwrap();
    }
}

/// A DNS question.
pub(crate) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(WireName::from_ascii(format!("{name}.")).unwrap(), kind));
    message.to_vec().unwrap()
}

/// A server that echoes every connection, half-close included; its port.
pub(crate) fn echo(address: &str) -> u16 {
    let listener = std::net::TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}
