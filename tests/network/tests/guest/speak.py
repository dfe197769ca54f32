"""Says bytes to servers, one conversation after the other, and prints what came back.

speak.py FILE: a list of objects:
  to     [host, port]
  say    a list of texts (each character a byte), `{"await": text}` (goes on when that came) and `{"pause": seconds}`
  tls    the server's name, for TLS; alpn: the protocols that are offered
  hello  instead: the name of a ClientHello of `HELLOS`, which is all that is said, for the server `server`
  enough ends the conversation when this text came; patience: how long an answer is waited for, in seconds
`HOLDER[NAME]` stands for the value of the guest's variable of this name.
"""
import json
import os
import re
import socket
import ssl
import struct
import sys
import time
import zlib

PATIENCE = 20


def hello(server):
    """A real client's ClientHello, without its record's header."""
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()[5:]


def edited(message, edit):
    """The message with its extensions as `edit` makes them of a list of (kind, content)."""
    at = 4 + 34
    at += 1 + message[at]
    at += 2 + struct.unpack('!H', message[at:at + 2])[0]
    at += 1 + message[at]
    rest, extensions = message[at + 2:], []
    while rest:
        kind, length = struct.unpack('!HH', rest[:4])
        extensions.append((kind, rest[4:4 + length]))
        rest = rest[4 + length:]
    block = b''.join(struct.pack('!HH', kind, len(content)) + content for kind, content in edit(extensions))
    body = message[4:at] + struct.pack('!H', len(block)) + block
    return b'\1' + len(body).to_bytes(3, 'big') + body


def records(message, size=16384, version=b'\3\1'):
    """In records of so many bytes."""
    return [b'\x16' + version + struct.pack('!H', len(message[at:at + size])) + message[at:at + size] for at in range(0, len(message), size)]


def named(*names):
    """The content of a server_name extension (RFC 6066)."""
    entries = b''.join(b'\0' + struct.pack('!H', len(name)) + name.encode() for name in names)
    return struct.pack('!H', len(entries)) + entries


def with_first(*extensions):
    return lambda old: list(extensions) + [one for one in old if one[0] not in {kind for kind, _ in extensions}]


# An encrypted ClientHello (RFC 9849): outer, a suite, a configuration, a key, and the payload that could be anything.
ENCRYPTED = b'\0\0\1\0\1\7\0\x20' + bytes(32) + struct.pack('!H', 64) + b'escape-encrypted' * 4

# Each a list of pieces that are said one after the other, of the name of the server that the connection is to.
HELLOS = {
    'good': lambda server: records(hello(server)),
    'bytewise': lambda server: [bytes([byte]) for record in records(hello(server), 90) for byte in record],
    'record-bytes': lambda server: [b''.join(records(hello(server), 1))],
    'capitals': lambda server: records(edited(hello(server), with_first((0, named(server.upper()))))),
    'other': lambda server: records(hello('other.' + server)),
    'unknown': lambda server: records(hello('escape-name.example')),
    'none': lambda server: records(edited(hello(server), lambda old: [one for one in old if one[0]])),
    'address': lambda server: records(edited(hello(server), with_first((0, named('198.51.100.1'))))),
    'two-names': lambda server: records(edited(hello(server), with_first((0, named(server, 'escape-second.example'))))),
    'twice': lambda server: records(edited(hello(server), lambda old: old + [(0, named('escape-twice.example'))])),
    'odd-name': lambda server: records(edited(hello(server), with_first((0, named('escape-odd\0' + server))))),
    'empty-name': lambda server: records(edited(hello(server), with_first((0, named(''))))),
    'encrypted': lambda server: records(edited(hello(server), with_first((0xfe0d, ENCRYPTED)))),
    'encrypted-other': lambda server: records(edited(hello('other.' + server), with_first((0xfe0d, ENCRYPTED)))),
    # Longer than any message may be that a server takes (65,535 bytes).
    'oversized': lambda server: records(b'\1' + (80000).to_bytes(3, 'big') + hello(server)[4:] + b'escape-oversized' * 5000),
    'alert-first': lambda server: [b'\x15\3\1\0\2\1\0'] + records(hello('escape-alert.example')),
    'spec-first': lambda server: [b'\x14\3\1\0\1\1'] + records(hello('escape-spec.example')),
    'cut': lambda server: [records(hello(server))[0][:-1]],
    'damaged': lambda server: [b'\x16\3\1\0\5escape-damaged'],
    'sslv2': lambda server: [b'\x80\x2e\1\3\1' + struct.pack('!HHH', 21, 0, 16) + b'control-suites!!!!!!!' + b'control-challeng'],
}


def filled(text):
    return re.sub(r'HOLDER\[(\w+)\]', lambda found: os.environ[found[1]], text)


def packed(text):
    """`GZIP[text]` is that text compressed, as an HTTP/1 chunk."""
    def chunk(found):
        data = zlib.compress(found[1].encode(), wbits=31)
        return f'{len(data):x}\r\n' + data.decode('latin-1') + '\r\n'
    return re.sub(r'GZIP\[(.*?)\]', chunk, text)


def chunked(text):
    """`CHUNKS[n:text]` is that text in chunks of n bytes, with extensions."""
    def chunks(found):
        size, data = int(found[1]), found[2]
        return ''.join(f'{len(data[at:at + size]):x};a="b"\r\n{data[at:at + size]}\r\n' for at in range(0, len(data), size))
    return re.sub(r'CHUNKS\[(\d+):(.*?)\]', chunks, text)


def converse(of):
    heard = b''
    try:
        stream = socket.create_connection(tuple(of['to']), PATIENCE)
    except socket.gaierror:
        return heard, 'no name'
    except ConnectionRefusedError:
        return heard, 'refused'
    stream.settimeout(of.get('patience', PATIENCE))
    try:
        if 'tls' in of:
            context = ssl.create_default_context()
            context.set_alpn_protocols(of.get('alpn', ['http/1.1']))
            stream = context.wrap_socket(stream, server_hostname=of['tls'])
        for part in HELLOS[of['hello']](of['server']) if 'hello' in of else of['say']:
            if isinstance(part, str):
                part = chunked(packed(filled(part))).encode('latin-1')
            if isinstance(part, bytes):
                stream.sendall(part)
            elif 'pause' in part:
                time.sleep(part['pause'])
            else:
                while part['await'].encode('latin-1') not in heard:
                    piece = stream.recv(65536)
                    if not piece:
                        return heard, 'closed'
                    heard += piece
        while 'enough' not in of or of['enough'].encode('latin-1') not in heard:
            piece = stream.recv(65536)
            if not piece:
                return heard, 'closed'
            heard += piece
        return heard, 'enough'
    except (ConnectionResetError, BrokenPipeError):
        # What came before the reset may wait still.
        return heard, 'reset'
    except TimeoutError:
        return heard, 'silence'
    except OSError as error:
        return heard, type(error).__name__
    finally:
        stream.close()


if __name__ == '__main__':
    with open(sys.argv[1]) as conversations:
        spoken = [converse(one) for one in json.load(conversations)]
    print(json.dumps([{'heard': heard.decode('latin-1'), 'end': end} for heard, end in spoken]))
