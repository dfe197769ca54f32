use super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::testing::{Buffer, Guest};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const CID: u64 = 3;
const ROOM: u32 = 100_000;

/// The guest's side of a connection, by hand.
struct Peer {
    guest: Guest,
    host: VsockHost,
}

impl Peer {
    fn new() -> Self {
        let (device, host) = Vsock::new(CID).unwrap();
        let mut peer = Self { guest: Guest::ready(device), host };
        for _ in 0..4 {
            peer.offer();
        }
        peer
    }

    /// Gives the device a receive buffer.
    fn offer(&mut self) {
        self.guest.add(0, &[Buffer::In(44), Buffer::In(4096)]);
        self.guest.ring(0);
    }

    /// The next packet from the device.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let used = self.guest.wait(0);
        self.offer();
        let header = Header::parse(used.data.first_chunk().unwrap());
        assert_eq!((header.from_cid, header.to_cid, header.kind), (HOST_CID, CID, STREAM));
        assert_eq!(used.len, 44 + header.len);
        (header, used.data[44..used.len as usize].to_vec())
    }

    fn expect(&mut self, operation: Operation) -> (Header, Vec<u8>) {
        let (header, data) = self.packet();
        assert_eq!(header.operation, Some(operation), "{header:?}");
        (header, data)
    }

    fn header(key: Key, operation: Operation) -> Header {
        Header {
            from_cid: CID,
            to_cid: HOST_CID,
            from_port: key.0,
            to_port: key.1,
            len: 0,
            kind: STREAM,
            operation: Some(operation),
            flags: 0,
            buffer: ROOM,
            forwarded: 0,
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..header };
        self.guest.request(1, &[Buffer::Out(&header.encode()), Buffer::Out(data)]);
    }

    fn say(&mut self, key: Key, operation: Operation) {
        self.send(Self::header(key, operation), &[]);
    }

    /// Dials the guest and lets it accept.
    fn dialled(&mut self, port: u32) -> (Key, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        self.host.connect(far.into(), port);
        let (header, _) = self.expect(Operation::Request);
        assert_eq!(header.to_port, port);
        let key = (port, header.from_port);
        self.say(key, Operation::Response);
        (key, near)
    }
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_host_dials_and_bytes_flow() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1024);
    near.write_all(b"hello guest").unwrap();
    assert_eq!(peer.expect(Operation::Data).1, b"hello guest");
    peer.send(Peer::header(key, Operation::Data), b"hello host");
    let mut bytes = [0; 10];
    near.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello host");
}

#[test]
fn a_connection_asked_for_early_waits_for_the_driver() {
    let (device, host) = Vsock::new(CID).unwrap();
    let (_near, far) = UnixStream::pair().unwrap();
    host.connect(far.into(), 7);
    let mut peer = Peer { guest: Guest::ready(device), host };
    peer.offer();
    assert_eq!(peer.expect(Operation::Request).0.to_port, 7);
}

#[test]
fn a_refused_connection_is_closed() {
    let mut peer = Peer::new();
    let (mut near, far) = UnixStream::pair().unwrap();
    peer.host.connect(far.into(), 9);
    let (header, _) = peer.expect(Operation::Request);
    peer.say((9, header.from_port), Operation::Reset);
    assert_eq!(read_all(&mut near), b"");
}

#[test]
fn the_guest_reaches_only_ports_with_a_listener() {
    let mut peer = Peer::new();
    peer.say((50_000, 22), Operation::Request);
    let (header, _) = peer.expect(Operation::Reset);
    assert_eq!((header.to_port, header.from_port), (50_000, 22));
    let (near, far) = UnixStream::pair().unwrap();
    let slot = std::sync::Mutex::new(Some(far));
    peer.host.listen(22, move || Some(slot.lock().unwrap().take()?.into()));
    peer.say((50_001, 22), Operation::Request);
    peer.expect(Operation::Response);
    peer.send(Peer::header((50_001, 22), Operation::Data), b"x");
    (&near).read_exact(&mut [0]).unwrap();
    peer.say((50_002, 22), Operation::Request);
    assert_eq!(peer.expect(Operation::Reset).0.to_port, 50_002, "the listener has no more");
    peer.host.unlisten(22);
    peer.say((50_003, 22), Operation::Request);
    peer.expect(Operation::Reset);
}

#[test]
fn both_sides_can_end_one_direction() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    near.write_all(b"last words").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.expect(Operation::Data).1, b"last words");
    assert_eq!(peer.expect(Operation::Shutdown).0.flags, SHUTDOWN_SEND);
    peer.send(Peer::header(key, Operation::Data), b"answer");
    peer.send(Header { flags: SHUTDOWN_SEND, ..Peer::header(key, Operation::Shutdown) }, &[]);
    assert_eq!(read_all(&mut near), b"answer");
    drop(near);
    assert_eq!(peer.expect(Operation::Shutdown).0.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    peer.say(key, Operation::Reset);
}

#[test]
fn a_host_that_closes_ends_the_connection_after_its_data() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    near.write_all(&[7; 10_000]).unwrap();
    drop(near);
    let mut received = 0;
    loop {
        let (header, data) = peer.packet();
        received += data.len();
        if header.operation == Some(Operation::Shutdown) {
            // Half first if the end was seen before the hang-up.
            if header.flags == SHUTDOWN_SEND | SHUTDOWN_RECEIVE {
                break;
            }
        }
    }
    assert_eq!(received, 10_000);
    peer.say(key, Operation::Reset);
    peer.say(key, Operation::CreditUpdate);
    peer.expect(Operation::Reset);
}

#[test]
fn a_guest_that_closes_is_confirmed_and_its_data_arrives() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    peer.send(Peer::header(key, Operation::Data), &[5; 60_000]);
    let both = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    peer.send(Header { flags: both, ..Peer::header(key, Operation::Shutdown) }, &[]);
    peer.expect(Operation::Reset);
    assert_eq!(read_all(&mut near), vec![5; 60_000]);
}

/// The sum of CREDIT_UPDATEs lets the guest send without end, and never more than the buffer is outstanding.
#[test]
fn credit_flows_to_the_guest_as_the_host_reads() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    let reader = std::thread::spawn(move || read_all(&mut near).len());
    let (mut sent, mut known) = (0u32, 0u32);
    while sent < 3_000_000 {
        while sent - known + 50_000 > connection::BUFFER {
            known = peer.expect(Operation::CreditUpdate).0.forwarded;
        }
        peer.send(Peer::header(key, Operation::Data), &[1; 50_000]);
        sent += 50_000;
    }
    peer.send(Header { flags: 3, ..Peer::header(key, Operation::Shutdown) }, &[]);
    assert_eq!(reader.join().unwrap(), sent as usize);
}

#[test]
fn a_guest_that_ignores_its_credit_is_cut_off() {
    let mut peer = Peer::new();
    let (key, near) = peer.dialled(1);
    let (other, mut fine) = peer.dialled(2);
    // A reader that does not read: the socket's own buffer fills, then ours.
    for _ in 0..40 {
        peer.send(Peer::header(key, Operation::Data), &[1; 60_000]);
    }
    let reset = loop {
        let (header, _) = peer.packet();
        if header.operation == Some(Operation::Reset) {
            break header;
        }
        assert_eq!(header.operation, Some(Operation::CreditUpdate));
    };
    assert_eq!((reset.to_port, reset.from_port), key);
    peer.send(Peer::header(other, Operation::Data), b"not slowed down");
    let mut bytes = [0; 15];
    fine.read_exact(&mut bytes).unwrap();
    drop(near);
}

#[test]
fn the_device_keeps_to_the_guests_credit() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    peer.send(Header { buffer: 5000, ..Peer::header(key, Operation::CreditUpdate) }, &[]);
    near.write_all(&[3; 20_000]).unwrap();
    let mut received = 0;
    for round in 1..=4u32 {
        while received < 5000 * round {
            received += peer.expect(Operation::Data).1.len() as u32;
        }
        assert_eq!(received, 5000 * round);
        if round < 4 {
            peer.expect(Operation::CreditRequest);
        }
        peer.send(
            Header { buffer: 5000, forwarded: received, ..Peer::header(key, Operation::CreditUpdate) },
            &[],
        );
    }
}

#[test]
fn a_guest_that_lies_about_its_credit_gets_nothing() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    peer.send(Header { buffer: 5, forwarded: 1000, ..Peer::header(key, Operation::CreditUpdate) }, &[]);
    near.write_all(b"waits").unwrap();
    peer.expect(Operation::CreditRequest);
    peer.send(Header { forwarded: 0, ..Peer::header(key, Operation::CreditUpdate) }, &[]);
    assert_eq!(peer.expect(Operation::Data).1, b"waits");
}

#[test]
fn data_waits_while_the_guest_offers_no_buffers() {
    let (device, host) = Vsock::new(CID).unwrap();
    let mut peer = Peer { guest: Guest::ready(device), host };
    peer.offer();
    let (near, far) = UnixStream::pair().unwrap();
    peer.host.connect(far.into(), 1);
    let used = peer.guest.wait(0);
    let port = Header::parse(used.data.first_chunk().unwrap()).from_port;
    (&near).write_all(b"patience").unwrap();
    peer.say((1, port), Operation::Response);
    assert_eq!(peer.guest.poll(0), None);
    peer.offer();
    assert_eq!(peer.expect(Operation::Data).1, b"patience");
}

#[test]
fn malformed_packets_are_dropped_or_refused() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    let data = Peer::header(key, Operation::Data);
    peer.guest.request(1, &[Buffer::Out(&[0; 43])]);
    peer.guest.request(1, &[Buffer::In(100)]);
    for wrong in
        [Header { from_cid: 4, ..data }, Header { len: 10, ..data }, Header { len: u32::MAX, ..data }]
    {
        peer.guest.request(1, &[Buffer::Out(&wrong.encode()), Buffer::Out(b"short")]);
    }
    for wrong in
        [Header { to_cid: 5, ..data }, Header { kind: 2, ..data }, Header { operation: None, ..data }]
    {
        peer.send(wrong, b"x");
        assert_eq!(peer.expect(Operation::Reset).0.to_port, key.0);
    }
    peer.send(Header { to_cid: 5, ..Peer::header(key, Operation::Reset) }, &[]);
    peer.say((77, 78), Operation::Data);
    assert_eq!(peer.expect(Operation::Reset).0.to_port, 77);
    peer.say((77, 78), Operation::Reset);
    peer.send(data, b"still there");
    let mut bytes = [0; 11];
    near.read_exact(&mut bytes).unwrap();
    peer.say(key, Operation::Request);
    peer.expect(Operation::Reset);
    assert_eq!(read_all(&mut near), b"", "a second request breaks the connection");
}

#[test]
fn control_packets_are_bounded_by_not_taking_more() {
    let (device, host) = Vsock::new(CID).unwrap();
    let mut peer = Peer { guest: Guest::ready(device), host };
    let packet = Peer::header((1, 2), Operation::Data).encode();
    let mut taken = 0;
    let send = |guest: &mut Guest| {
        for _ in 0..8 {
            guest.add(1, &[Buffer::Out(&packet)]);
        }
        guest.ring(1);
    };
    while taken < CONTROL_MAX {
        send(&mut peer.guest);
        for _ in 0..8.min(CONTROL_MAX - taken) {
            peer.guest.wait(1);
            taken += 1;
        }
    }
    send(&mut peer.guest);
    std::thread::sleep(Duration::from_millis(20));
    assert!(peer.guest.poll(1).is_none(), "more was taken");
    // With buffers to answer in, it goes on.
    peer.offer();
    peer.expect(Operation::Reset);
    peer.guest.wait(1);
}

#[test]
fn a_reset_device_has_closed_everything() {
    let mut peer = Peer::new();
    let (_, mut near) = peer.dialled(1);
    peer.guest.set_status(0);
    assert_eq!(read_all(&mut near), b"");
}

#[test]
fn a_broken_queue_ends_connections_and_refuses_dials_until_a_reset() {
    let mut peer = Peer::new();
    let (_, mut near) = peer.dialled(1);
    // A head outside of the descriptor table.
    peer.guest.make_available(1, 9999);
    peer.guest.ring(1);
    assert_eq!(read_all(&mut near), b"");
    peer.guest.wait_for_needs_reset();
    let dial = |host: &VsockHost| {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        host.connect(far.into(), 1);
        near
    };
    assert_eq!(read_all(&mut dial(&peer.host)), b"");
    // So does a machine that goes on elsewhere.
    peer.guest.function.quiesce();
    let saved = peer.guest.function.save().unwrap();
    let (device, host) = Vsock::new(CID).unwrap();
    let next = Guest::with_ram(device, peer.guest.ram.clone());
    next.function.restore(&saved).unwrap();
    next.function.resume();
    assert_eq!(read_all(&mut dial(&host)), b"");
    peer.guest.function.resume();
    peer.guest.queues.fill_with(Default::default);
    peer.guest.initialise(crate::testing::VERSION_1);
    (0..4).for_each(|_| peer.offer());
    let (_, mut near) = peer.dialled(1);
    near.write_all(b"again").unwrap();
    assert_eq!(peer.expect(Operation::Data).1, b"again");
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut peer = Peer::new();
    let (_, _near) = peer.dialled(1);
    peer.guest.add(2, &[Buffer::In(4)]);
    peer.guest.ring(2);
    peer.guest.function.quiesce();
    let saved = peer.guest.function.save().unwrap();
    let (device, host) = Vsock::new(CID).unwrap();
    let mut next = Guest::with_ram(device, peer.guest.ram.clone());
    next.function.restore(&saved).unwrap();
    next.queues = peer.guest.queues.clone();
    next.function.resume();
    assert_eq!(next.wait(2).data, TRANSPORT_RESET.to_le_bytes());
    let mut next = Peer { guest: next, host };
    let (key, _near) = next.dialled(1);
    assert!(key.1 > FIRST_PORT, "a port that the guest may still know is not used again");
}

#[test]
fn a_quiet_device_moves_nothing_and_goes_on() {
    let mut peer = Peer::new();
    let (key, mut near) = peer.dialled(1);
    for round in 0..20u8 {
        peer.guest.function.quiesce();
        near.write_all(&[round]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(peer.guest.poll(0), None);
        peer.guest.function.resume();
        assert_eq!(peer.expect(Operation::Data).1, [round]);
    }
    peer.send(Peer::header(key, Operation::Data), b"x");
    near.read_exact(&mut [0]).unwrap();
}
