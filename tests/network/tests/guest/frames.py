"""Raw frames to a name that is allowed. Each attempt carries `escape-` and its name, each control `control-`; printed is what came back.

frames.py strangers|broken|protocols NAME PORT: NAME echoes datagrams at PORT, and takes connections there.
"""
import json
import sys

from link import *

what, name, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
card = Card()
four, six = addresses(name)
OTHER_MAC = bytes.fromhex('0276697600ee')


def mark(attempt):
    return b'escape-' + attempt.encode()


def ip_of(frame):
    return frame[14:]


def framed(kind, inner, **how):
    """Another Ethernet header before the packet of a frame."""
    return ethernet(kind, ip_of(inner), **how)


def good(attempt):
    return udp(four, port, mark(attempt))


def tagged(*tags, inner):
    """802.1Q: tags, then what stood behind the first header."""
    return inner[:12] + b''.join(struct.pack('!HH', kind, 7) for kind in tags) + inner[12:]


def discover(kind):
    """A message of DHCP (RFC 2131), from a client or from a server."""
    operation, ports = (1, (68, 67)) if kind in (1, 3) else (2, (67, 68))
    body = struct.pack('!BBBBIHH4s4s4s4s', operation, 1, 6, 0, 9, 0, 0, bytes(4), bytes_of('198.18.0.3'), bytes_of(GUEST), bytes(4))
    body += GUEST_MAC + bytes(10 + 64 + 128) + b'\x63\x82\x53\x63' + bytes([53, 1, kind, 255]) + mark(f'dhcp-{kind}')
    source = '0.0.0.0' if operation == 1 else GATEWAY
    payload = datagram('255.255.255.255', ports[1], body, source_port=ports[0], source=source)
    frame = ipv4(17, '255.255.255.255', payload, source=source)
    return EVERYBODY + frame[6:]


def strangers():
    """Frames that say to be from or for somebody else."""
    yield 'mac', framed(IP, good('mac'), source=OTHER_MAC)
    yield 'mac-gateway', framed(IP, good('mac-gateway'), source=GATEWAY_MAC)
    yield 'mac-group', framed(IP, good('mac-group'), source=EVERYBODY)
    yield 'for-other', framed(IP, good('for-other'), to=OTHER_MAC)
    yield 'for-all', framed(IP, good('for-all'), to=EVERYBODY)
    for number, source in enumerate(('198.18.0.3', GATEWAY, '10.0.0.5', '127.0.0.1', '0.0.0.0', four)):
        yield f'ip-{number}', udp(four, port, mark(f'ip-{number}'), source=source)
    for number, source in enumerate(('fd76:6976::3', GATEWAY6, '::1', '::', 'fe80::1', six)):
        yield f'ip6-{number}', udp(six, port, mark(f'ip6-{number}'), source=source)
    for number, to in enumerate(('127.0.0.1', '0.0.0.0', GUEST, '224.0.0.251', '255.255.255.255', '::1', '::', GUEST6, 'ff02::fb')):
        yield f'to-{number}', udp(to, port, mark(f'to-{number}'))
    for kind in (1, 2, 3, 5):
        yield f'dhcp-{kind}', discover(kind)
    yield 'dhcp6', udp('ff02::1:2', 547, mark('dhcp6'))
    yield 'advertisement', ipv6(58, 'ff02::1', icmp6(134, 0, bytes(12) + mark('advertisement'), 'ff02::1'), hops=255)
    yield 'redirect', ipv4(1, four, icmp(5, 1, bytes_of(GUEST) + ip_of(good('redirect'))))
    # "The gateway's address is mine", as answer, as question and unasked; "so is the name's".
    for number, (operation, sender) in enumerate(((2, GATEWAY), (1, GATEWAY), (2, four), (1, '198.18.0.3'))):
        yield f'arp-{number}', arp(operation, GUEST_MAC, sender, GATEWAY if number else GUEST)
    yield 'arp-other-mac', arp(1, OTHER_MAC, GUEST, GATEWAY)
    neighbour = b'\x20\0\0\0' + bytes_of(GATEWAY6) + b'\x02\x01' + GUEST_MAC
    yield 'neighbour', ipv6(58, 'ff02::1', icmp6(136, 0, neighbour, 'ff02::1'), hops=255)
    # Who has an address that is not the gateway's? Nobody says.
    for asked in (four, '198.18.0.3', '10.1.2.3'):
        yield f'who-has-{asked}', arp(1, GUEST_MAC, GUEST, asked)


def broken():
    """Frames that a lenient reader might take."""
    yield 'vlan', tagged(VLAN, inner=good('vlan'))
    yield 'vlan-0', good('vlan-0')[:12] + b'\x81\0\0\0' + good('vlan-0')[12:]
    yield 'service-vlan', tagged(0x88a8, VLAN, inner=good('service-vlan'))
    yield 'two-vlans', tagged(VLAN, VLAN, inner=good('two-vlans'))
    for kind in (0x0101, 0x8847, 0x8864, 0x88b5, 0x22f0):
        yield f'ethertype-{kind:x}', framed(kind, good(f'ethertype-{kind:x}'))
    snap = b'\xaa\xaa\x03\0\0\0\x08\0' + ip_of(good('802.3'))
    yield '802.3', ethernet(len(snap), snap)
    data = datagram(four, port, mark('fragment'))
    yield 'first-fragment', ipv4(17, four, data, fragment=0x2000)
    yield 'fragments', ipv4(17, four, data[:16], fragment=0x2000)
    yield 'fragments', ipv4(17, four, data[16:], fragment=2)
    yield 'overlap', ipv4(17, four, data[:24], fragment=0x2000)
    yield 'overlap', ipv4(17, four, b'escape-overlap!!', fragment=1)
    yield 'tiny', ipv4(6, four, segment(four, port, 41000)[:8], fragment=0x2000)
    yield 'tiny', ipv4(6, four, segment(four, port, 41000)[8:], fragment=1)
    yield 'far-fragment', ipv4(17, four, mark('far-fragment'), fragment=0x1fff)
    data6 = datagram(six, port, mark('fragment6'))
    yield 'atomic', ipv6(44, six, struct.pack('!BBHI', 17, 0, 0, 1) + data6)
    yield 'fragment6', ipv6(44, six, struct.pack('!BBHI', 17, 0, 1, 1) + data6)
    for following in (0, 43, 60, 135):
        yield f'header-{following}', ipv6(following, six, b'\x11\0\1\4\0\0\0\0' + datagram(six, port, mark(f'header-{following}')))
    for number, options in enumerate((b'\x83\x07\x04' + bytes_of('10.1.2.3') + b'\0', b'\x89\x07\x04' + bytes_of('10.1.2.3') + b'\0', b'\x07\x07\x04' + bytes(5), b'\x01' * 4)):
        yield f'options-{number}', ipv4(17, four, datagram(four, port, mark(f'options-{number}')), options=options)
    lengths = {'short': 24, 'none': 0, 'head': 20, 'long': 2000, 'longest': 65535}
    for word, total in lengths.items():
        yield f'total-{word}', ipv4(17, four, datagram(four, port, mark(f'total-{word}')), total=total)
    for first in (0x44, 0x40, 0x4f, 0x55, 0x65, 0x05):
        yield f'first-{first:x}', ipv4(17, four, datagram(four, port, mark(f'first-{first:x}')), first=first)
    yield 'ttl', ipv4(17, four, datagram(four, port, mark('ttl')), ttl=0)
    yield 'hops', ipv6(17, six, datagram(six, port, mark('hops')), hops=0)
    yield 'length6-long', ipv6(17, six, datagram(six, port, mark('length6-long')), length=2000)
    yield 'length6-short', ipv6(17, six, datagram(six, port, mark('length6-short')), length=4)
    yield 'version6', ipv6(17, six, datagram(six, port, mark('version6')), first=0x40)
    for word, length in (('long', 2000), ('short', 7), ('none', 0)):
        yield f'udp-{word}', udp(four, port, mark(f'udp-{word}'), length=length)
    yield 'udp-port-0', udp(four, port, mark('udp-port-0'), source_port=0)
    yield 'sum-ip', ipv4(17, four, datagram(four, port, mark('sum-ip')), wrong=1)
    yield 'sum-udp', udp(four, port, mark('sum-udp'), wrong=1)
    yield 'sum-udp6', udp(six, port, mark('sum-udp6'), wrong=1)
    yield 'sum-none6', udp(six, port, mark('sum-none6'), none=True)
    yield 'sum-icmp', ipv4(1, GATEWAY, icmp(8, 0, mark('sum-icmp'))[:-1] + b'!')
    for number, how in enumerate(({'wrong': 1}, {'words': 4}, {'words': 15}, {'flags': SYN | FIN}, {'flags': SYN | RST}, {'flags': 0}, {'flags': FIN}, {'flags': ACK, 'data': b'escape-tcp'})):
        yield f'tcp-{number}', tcp(four, port, 42000 + number, **how)
    yield 'tcp-short', ipv4(6, four, segment(four, port, 42100)[:12])
    yield 'empty', ethernet(IP, b'')
    yield 'half', good('half')[:30]


def protocols():
    """IP protocols that could carry something, and ICMP's own messages to others."""
    for number, to in enumerate((four, '198.51.100.1', '10.1.2.3', '198.18.0.1')):
        for kind in (8, 13, 15, 17, 42) if to != GATEWAY else (13, 15, 17, 42):
            yield f'icmp-{kind}-{number}', ipv4(1, to, icmp(kind, 0, b'\0\1\0\1' + mark(f'icmp-{kind}-{number}')))
    for number, to in enumerate((six, '2001:db8::1', GATEWAY6)):
        for kind in (128, 139, 144, 160) if to != GATEWAY6 else (139, 144, 160):
            yield f'icmp6-{kind}-{number}', ipv6(58, to, icmp6(kind, 0, b'\0\1\0\1' + mark(f'icmp6-{kind}-{number}'), to))
    for protocol in (4, 41, 47, 50, 51, 89, 94, 103, 115, 132, 136, 253, 255):
        yield f'ip-{protocol}', ipv4(protocol, four, ip_of(good(f'ip-{protocol}')))
    for protocol in (4, 41, 47, 50, 132, 136):
        yield f'ip6-{protocol}', ipv6(protocol, six, ip_of(good(f'ip6-{protocol}')))


attempts = 0
for attempt, frame in {'strangers': strangers, 'broken': broken, 'protocols': protocols}[what]():
    card.send(frame)
    attempts += 1

# The same tool gets through where it may: frames are taken in order, so all attempts are behind us when these are answered.
controls = []
card.send(arp(1, GUEST_MAC, GUEST, GATEWAY))
controls.append(card.listen(lambda frame: frame[12:14] == b'\x08\x06' and frame[22:28] == GATEWAY_MAC) is not None)
card.send(ipv4(1, GATEWAY, icmp(8, 0, b'\0\1\0\1control-echo')))
controls.append(card.listen(lambda frame: b'control-echo' in frame and told(frame) == [4, 0, 0]) is not None)
for number, address in enumerate((four, six)):
    data = f'control-{what}-udp-{number}'.encode()
    card.send(udp(address, port, data, source_port=40100 + number))
    controls.append(card.listen(lambda frame: data in frame) is not None)
    card.send(tcp(address, port, 43000 + number))
    controls.append(card.listen(lambda frame: is_tcp(frame, 43000 + number, SYN | ACK)) is not None)
# RFC 768: IPv4 may go without a checksum.
card.send(udp(four, port, f'control-{what}-unsummed'.encode(), source_port=40102, none=True))
controls.append(card.listen(lambda frame: b'-unsummed' in frame) is not None)

messages = [message for frame in card.heard if (message := told(frame)) and message != [4, 0, 0]]
print(json.dumps({
    'attempts': attempts,
    'controls': controls,
    # Echoed by the server, or quoted by an ICMP message of the gateway's.
    'echoed': sum(b'escape-' in frame and told(frame) is None for frame in card.heard),
    'answered': sum(b'escape-' in frame and told(frame) in ([4, 0, 0], [6, 129, 0]) for frame in card.heard),
    'arp': sum(frame[12:14] == b'\x08\x06' and frame[20:22] == b'\0\2' for frame in card.heard),
    'dhcp': sum(frame[12:14] == b'\x08\0' and frame[23] == 17 and frame[36:38] in (b'\0\x43', b'\0\x44') for frame in card.heard),
    'prohibited': messages.count([4, 3, 13]) + messages.count([6, 1, 1]),
    'others': sorted(map(list, {tuple(message) for message in messages} - {(4, 3, 13), (6, 1, 1)})),
    'opened': [number for number in range(8) if any(is_tcp(frame, 42000 + number, SYN) for frame in card.heard)],
}))
