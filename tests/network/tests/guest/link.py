"""Frames of every kind, well-formed or not, straight onto the sandbox's network card."""
import ctypes
import socket
import struct
import time
from array import array

GUEST, GATEWAY = '198.18.0.2', '198.18.0.1'
GUEST6, GATEWAY6 = 'fd76:6976::2', 'fd76:6976::1'
GUEST_MAC, GATEWAY_MAC = bytes.fromhex('027669760002'), bytes.fromhex('027669760001')
EVERYBODY = b'\xff' * 6
IP, ARP, VLAN, IP6 = 0x0800, 0x0806, 0x8100, 0x86dd
OUTGOING = 4
FIN, SYN, RST, ACK = 1, 2, 4, 16


def checksum(data):
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack(f'!{len(data) // 2}H', data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def bytes_of(address):
    return socket.inet_pton(socket.AF_INET6 if ':' in address else socket.AF_INET, address)


def ethernet(kind, payload, source=GUEST_MAC, to=GATEWAY_MAC):
    return to + source + struct.pack('!H', kind) + payload


def pseudo(protocol, source, to, length):
    if ':' in to:
        return bytes_of(source) + bytes_of(to) + struct.pack('!IxxxB', length, protocol)
    return bytes_of(source) + bytes_of(to) + struct.pack('!BBH', 0, protocol, length)


def ipv4(protocol, to, payload, source=GUEST, total=None, fragment=0, ttl=64, first=0x45, options=b'', wrong=0):
    """`first` is the byte with version and header length, `fragment` the flags and offset, `wrong` is added to the checksum."""
    if options:
        first = 0x45 + len(options) // 4
    total = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack('!BBHHHBBH4s4s', first, 0, total, 7, fragment, ttl, protocol, 0, bytes_of(source), bytes_of(to)) + options
    sum_ = (checksum(head) + wrong) & 0xffff
    return ethernet(IP, head[:10] + struct.pack('!H', sum_) + head[12:] + payload)


def ipv6(following, to, payload, source=GUEST6, length=None, hops=64, first=0x60):
    length = len(payload) if length is None else length
    head = struct.pack('!BBHHBB', first, 0, 0, length, following, hops)
    return ethernet(IP6, head + bytes_of(source) + bytes_of(to) + payload)


def datagram(to, port, data, source_port=40000, source=None, length=None, wrong=0, none=False):
    source = source or (GUEST6 if ':' in to else GUEST)
    length = 8 + len(data) if length is None else length
    head = struct.pack('!HHHH', source_port, port, length, 0)
    sum_ = (checksum(pseudo(17, source, to, 8 + len(data)) + head + data) or 0xffff) + wrong & 0xffff
    return head[:6] + struct.pack('!H', 0 if none else sum_) + data


def udp(to, port, data, **how):
    """A datagram in its frame; the arguments are those of `datagram`."""
    packet = ipv6 if ':' in to else ipv4
    return packet(17, to, datagram(to, port, data, **how), **({'source': how['source']} if 'source' in how else {}))


def segment(to, port, source_port, flags=SYN, seq=1, ack=0, data=b'', words=5, wrong=0, source=None):
    source = source or (GUEST6 if ':' in to else GUEST)
    head = struct.pack('!HHIIBBHHH', source_port, port, seq, ack, words << 4, flags, 65535, 0, 0)
    sum_ = checksum(pseudo(6, source, to, len(head) + len(data)) + head + data) + wrong & 0xffff
    return head[:16] + struct.pack('!HH', sum_, 0) + data


def tcp(to, port, source_port, **how):
    packet = ipv6 if ':' in to else ipv4
    return packet(6, to, segment(to, port, source_port, **how), **({'source': how['source']} if 'source' in how else {}))


def icmp(kind, code, rest):
    body = struct.pack('!BBH', kind, code, 0) + rest
    return body[:2] + struct.pack('!H', checksum(body)) + body[4:]


def icmp6(kind, code, rest, to, source=GUEST6):
    body = struct.pack('!BBH', kind, code, 0) + rest
    return body[:2] + struct.pack('!H', checksum(pseudo(58, source, to, len(body)) + body)) + body[4:]


def arp(operation, sender_mac, sender, target, target_mac=b'\0' * 6, to=EVERYBODY, source=GUEST_MAC):
    body = struct.pack('!HHBBH', 1, IP, 6, 4, operation) + sender_mac + bytes_of(sender) + target_mac + bytes_of(target)
    return ethernet(ARP, body, source=source, to=to)


class Card:
    """The network card; what the gateway sends is kept."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind(('eth0', 3))
        self.heard = []

    def send(self, frame):
        self.socket.send(frame)

    def listen(self, until, patience=20):
        """Hears until a frame is as `until` wants it; None if none ever is."""
        end = time.monotonic() + patience
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                frame, (*_, kind, _, _) = self.socket.recvfrom(65600)
            except TimeoutError:
                break
            if kind == OUTGOING:
                continue
            self.heard.append(frame)
            if until(frame):
                return frame
        return None

    def send_many(self, frames, length):
        """Sends `frames`, which lie one behind the other in one buffer, by as few calls as possible. How many were taken."""
        frames = bytearray(frames)
        count = len(frames) // length
        held = (ctypes.c_char * len(frames)).from_buffer(frames)
        start = ctypes.addressof(held)
        parts = array('Q', [0]) * (2 * count)
        parts[0::2] = array('Q', range(start, start + count * length, length))
        parts[1::2] = array('Q', [length]) * count
        messages = array('Q', [0]) * (8 * count)
        first_part = parts.buffer_info()[0]
        messages[2::8] = array('Q', range(first_part, first_part + count * 16, 16))
        messages[3::8] = array('Q', [1]) * count
        first = messages.buffer_info()[0]
        libc = ctypes.CDLL(None, use_errno=True)
        self.socket.setblocking(True)
        done = 0
        while done < count:
            taken = libc.sendmmsg(self.socket.fileno(), ctypes.c_void_p(first + done * 64), min(1024, count - done), 0)
            if taken < 0:
                # The card's queue is full.
                if ctypes.get_errno() not in (11, 105):
                    raise OSError(ctypes.get_errno(), 'sendmmsg')
                time.sleep(0.001)
                continue
            done += taken
        return done


def told(frame):
    """What an ICMP message says: version, type, code; None if it is none."""
    kind = struct.unpack('!H', frame[12:14])[0]
    if kind == IP and frame[23] == 1:
        return [4, frame[34], frame[35]]
    if kind == IP6 and frame[20] == 58:
        return [6, frame[54], frame[55]]
    return None


def is_tcp(frame, port, flags):
    """Whether it is a segment to this port of the guest's with these flags."""
    kind = struct.unpack('!H', frame[12:14])[0]
    at = 34 if kind == IP and frame[23] == 6 else 54 if kind == IP6 and frame[20] == 6 else None
    return at is not None and struct.unpack('!H', frame[at + 2:at + 4])[0] == port and frame[at + 13] & flags == flags


def addresses(name):
    """The synthetic addresses of a name, IPv4 and IPv6."""
    return [socket.getaddrinfo(name, 1, family)[0][4][0] for family in (socket.AF_INET, socket.AF_INET6)]
