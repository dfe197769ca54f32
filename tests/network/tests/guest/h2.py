"""HTTP/2 frame by frame, over TLS.

h2.py HOST: one connection for each attempt; printed is how it ended: the status of the first answer, or the errors.
"""
import json
import socket
import ssl
import struct
import sys

HOST = sys.argv[1]
DATA, HEADERS, RESET, SETTINGS, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b''):
    return len(payload).to_bytes(3, 'big') + bytes([kind, flags]) + struct.pack('!I', stream) + payload


def text(data):
    """A string without Huffman's code (RFC 7541 §5.2)."""
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, out = len(data) - 127, b'\x7f'
    while rest >= 128:
        out += bytes([rest % 128 | 128])
        rest //= 128
    return out + bytes([rest]) + data


def block(*fields):
    return b''.join(b'\0' + text(name.encode()) + text(value.encode('latin-1')) for name, value in fields)


def request(*more, path='/open/a', method='GET', authority=HOST):
    return block((':method', method), (':scheme', 'https'), (':authority', authority), (':path', path), *more)


def connection():
    context = ssl.create_default_context()
    context.set_alpn_protocols(['h2'])
    stream = context.wrap_socket(socket.create_connection((HOST, 443), 20), server_hostname=HOST)
    stream.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(SETTINGS, 0, 0))
    return stream


def status(fields):
    """The status that a block of fields begins with: from the static table, or by Huffman's code (RFC 7541, appendices A and B)."""
    known = {0x88: 200, 0x89: 204, 0x8a: 206, 0x8b: 304, 0x8c: 400, 0x8d: 404, 0x8e: 500}
    if fields[0] in known:
        return known[fields[0]]
    bits = ''.join(f'{byte:08b}' for byte in fields[2:2 + (fields[1] & 127)])
    digits = ''
    while len(digits) < 3:
        short = bits.startswith('000')
        digits += str(int(bits[:5], 2) if short else int(bits[:6], 2) - 22)
        bits = bits[5 if short else 6:]
    return int(digits)


def outcome(stream):
    """The status of the first answer; else what ends stream or connection."""
    held = b''
    try:
        while True:
            piece = stream.recv(65536)
            if not piece:
                return 'closed'
            held += piece
            while len(held) >= 9 + (length := int.from_bytes(held[:3], 'big')):
                kind, payload, held = held[3], held[9:9 + length], held[9 + length:]
                if kind == HEADERS:
                    return status(payload)
                if kind in (RESET, GOAWAY):
                    return ['reset', 'gone'][kind == GOAWAY] + ' ' + str(struct.unpack('!I', payload[-4:] if kind == RESET else payload[4:8])[0])
    except TimeoutError:
        return 'silence'
    except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
        return 'closed'


def attempt(*frames):
    stream = connection()
    try:
        stream.sendall(b''.join(frames))
    except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
        pass
    return outcome(stream)


def get(*more, **how):
    return attempt(frame(HEADERS, END_HEADERS | END_STREAM, 1, request(*more, **how)))


def post(*more, body=b'', **how):
    return attempt(frame(HEADERS, END_HEADERS, 1, request(*more, method='POST', **how)), frame(DATA, END_STREAM, 1, body))


def flood(make, count):
    """Sends so many; how many were taken before the connection was ended."""
    stream = connection()
    stream.settimeout(20)
    sent = 0
    try:
        for first in range(0, count, 50):
            stream.sendall(b''.join(make(2 * number + 1) for number in range(first, first + 50)))
            sent = first + 50
        # What it says is read to its end.
        while stream.recv(65536):
            pass
        return sent, 'closed'
    except TimeoutError:
        return sent, 'open'
    except OSError:
        return sent, 'closed'


SMUGGLED = 'x\r\n\r\nGET /closed HTTP/1.1\r\nHost: ' + HOST + '\r\n\r\n'
print(json.dumps({
    'good': get(),
    'good with a body': post(('content-length', '4'), body=b'body'),
    'a line in a value': get(('x-a', SMUGGLED)),
    'a line in a name': get(('x-a: b\r\ntransfer-encoding', 'chunked')),
    'a line in the path': get(path='/open/a HTTP/1.1\r\nHost: x\r\n\r\nGET /closed'),
    'a space in the path': get(path='/open/a /closed'),
    'a line in the method': attempt(frame(HEADERS, END_HEADERS | END_STREAM, 1, request(method='GET /closed HTTP/1.1\r\nX:'))),
    'chunked': post(('transfer-encoding', 'chunked'), body=b'0\r\n\r\nGET /closed HTTP/1.1\r\n\r\n'),
    'a shorter length': post(('content-length', '0'), body=b'GET /closed HTTP/1.1\r\n\r\n'),
    'two lengths': post(('content-length', '4'), ('content-length', '0'), body=b'body'),
    'a connection field': get(('connection', 'x-a')),
    'capitals': get(('X-A', 'b')),
    'two paths': get((':path', '/closed')),
    'a path behind fields': attempt(frame(HEADERS, END_HEADERS | END_STREAM, 1, block((':method', 'GET'), (':scheme', 'https'), (':authority', HOST), ('x-a', 'b'), (':path', '/closed')))),
    'another authority': get(authority='escape-authority.example'),
    'another host': get(('host', 'escape-host.example')),
    'no authority': attempt(frame(HEADERS, END_HEADERS | END_STREAM, 1, block((':method', 'GET'), (':scheme', 'https'), (':path', '/open/a'), ('host', 'escape-host.example')))),
    'CONNECT': attempt(frame(HEADERS, END_HEADERS, 1, block((':method', 'CONNECT'), (':authority', 'escape-connect.example:443')))),
    'rapid reset': flood(lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, request(path='/open/flood')) + frame(RESET, 0, stream, b'\0\0\0\x08'), 2000),
    'made to reset': flood(lambda stream: frame(HEADERS, END_HEADERS, stream, request(path='/open/flood')) + frame(WINDOW, 0, stream, bytes(4)), 2000),
    'continuations': flood(lambda stream: frame(HEADERS, END_STREAM, 1, request(path='/open/flood')) if stream == 1 else frame(CONTINUATION, 0, 1, block(('x-a', 'a' * 1000))), 2000),
    'good again': get(),
}))
