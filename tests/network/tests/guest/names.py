"""Tries to carry data out by names, by datagrams and by addresses in disguise.

names.py dns REFUSED ALLOWED SERVER: questions with data in them, to every server, about names below these two
names.py udp ALLOWED REFUSED ADDRESS: datagrams on ports that tunnels use
names.py syn PORT ADDRESS...: what comes back to a SYN: "open", "reset" or "nothing"
"""
import json
import sys

from link import *

A, CNAME, NULL, MX, TXT, AAAA, SRV, HTTPS, AXFR, ANY = 1, 5, 10, 15, 16, 28, 33, 65, 252, 255


def question(name, kind, options=b'', operation=0, kind_of_message=0):
    labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.') if label)
    flags = kind_of_message << 15 | operation << 11 | 0x100
    message = struct.pack('!HHHHHH', 77, flags, 1, 0, 0, 1 if options else 0) + labels + b'\0' + struct.pack('!HH', kind, 1)
    if options:
        message += struct.pack('!BHHIH', 0, 41, 4096, 0, len(options)) + options
    return message


def read(answer):
    """The response code, the answers, and the address of the first one if it is of type A."""
    code, answers = answer[3] & 15, struct.unpack('!H', answer[6:8])[0]
    return code, answers, socket.inet_ntoa(answer[-4:]) if answers and answer[-14:-10] == b'\0\1\0\1' else None


def ask(server, message):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        s.connect((server, 53))
        s.send(message)
        return read(s.recv(65535))


def ask_by_tcp(server, messages):
    with socket.create_connection((server, 53), 20) as s:
        s.sendall(b''.join(struct.pack('!H', len(message)) + message for message in messages))
        stream = s.makefile('rb')
        return [read(stream.read(struct.unpack('!H', stream.read(2))[0])) for _ in messages]


def ends(kind, host, port, mark='escape-'):
    """How a connection, or a datagram with a question in it, ends."""
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(20)
        try:
            s.connect((host, port))
            s.send(mark.encode() + str(port).encode() + question(mark + 'other-port.example', TXT))
            return len(s.recv(100))
        except OSError as error:
            return type(error).__name__


def dns(refused, allowed, server):
    kinds = (A, AAAA, CNAME, NULL, MX, TXT, SRV, HTTPS, ANY)
    data = 'escape-' + 'x' * 50 + '.' + 'escape-' + 'y' * 50
    codes = set()
    for place in (GATEWAY, '8.8.8.8', server, addresses('control.' + allowed)[0]):
        messages = [question(f'{data}.{number}.{refused}', kind) for number, kind in enumerate(kinds)]
        messages.append(question(refused, TXT, options=struct.pack('!HH', 65001, 11) + b'escape-edns'))
        messages += [question(name, A) for name in ('10.1.2.3', '167838211', '0x0a010203', 'escape-alone')]
        codes |= {ask(place, message) for message in messages} | set(ask_by_tcp(place, messages))
    odd = [
        ask(server, question(f'escape-transfer.{refused}', AXFR)),
        ask(server, question(f'escape-update.{refused}', A, operation=5)),
        ask(server, question(f'escape-notify.{refused}', A, operation=4)),
    ]
    # Below a name that is allowed there are addresses, and nothing else; no question goes on before there is a connection.
    plain = {kind: ask(server, question(f'escape-{kind}.{allowed}', kind)) for kind in kinds}
    elsewhere = [ends(socket.SOCK_STREAM, server, 853), ends(socket.SOCK_STREAM, server, 443), ends(socket.SOCK_DGRAM, server, 853), ends(socket.SOCK_DGRAM, server, 5353), ends(socket.SOCK_DGRAM, server, 443)]
    return {
        'refused': sorted(codes, key=str),
        'odd': [code for code, *_ in odd],
        'address': plain[A][2],
        'others': sorted({(code, answers) for kind, (code, answers, _) in plain.items() if kind not in (A, AAAA, ANY)}),
        'elsewhere': elsewhere,
    }


def udp_ports(allowed, refused, address):
    ports = (69, 123, 161, 443, 500, 514, 1194, 1701, 3478, 4500, 5060, 51820)
    hosts = (socket.gethostbyname(refused), address, '8.8.8.8', '10.1.2.3', '198.18.99.99')
    ended = [ends(socket.SOCK_DGRAM, host, port) for host in hosts for port in ports]
    return {'refused': ended.count('ConnectionRefusedError'), 'tried': len(ended), 'allowed': ends(socket.SOCK_DGRAM, socket.gethostbyname(allowed), 51820, 'control-')}


def syn(port, places):
    card = Card()
    found = {}
    for number, to in enumerate(places):
        card.send(tcp(to, port, 44000 + number))
        answer = card.listen(lambda frame: is_tcp(frame, 44000 + number, 0), patience=10)
        found[to] = 'nothing' if answer is None else 'open' if is_tcp(answer, 44000 + number, SYN) else 'reset'
    return found


what, *words = sys.argv[1:]
print(json.dumps(dns(*words) if what == 'dns' else udp_ports(*words) if what == 'udp' else syn(int(words[0]), words[1:])))
