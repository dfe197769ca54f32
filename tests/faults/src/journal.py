"""`write FIRST [LAST]` writes numbered records and says each number once it is durable; `check LAST` checks that what was said is there.

Odd numbers are appended to a log and synced. Even ones become a file of their own under one of 256 names: written beside, synced,
renamed over the old one, the folder synced, as programs replace files.
"""
import hashlib, os, sys

FOLDER = os.environ.get("JOURNAL", "/var/tmp/journal")
SLOTS = 512


def content(number):
    digest = hashlib.sha256(b"%d" % number).digest()
    return b"%08d " % number + (digest * 800)[: 16 + number * 7919 % 25000]


def line(number):
    return b"%08d %s\n" % (number, hashlib.sha256(b"line %d" % number).hexdigest().encode())


def sync(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def write(number, last=None):
    os.makedirs(FOLDER, exist_ok=True)
    log = os.open("%s/log-%08d" % (FOLDER, number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sync(FOLDER)
    sync(os.path.dirname(FOLDER))
    while last is None or number <= last:
        if number % 2:
            os.write(log, line(number))
            os.fsync(log)
        else:
            name = "%s/slot-%d" % (FOLDER, number % SLOTS)
            with open(name + ".new", "wb") as file:
                file.write(content(number))
                file.flush()
                os.fsync(file.fileno())
            os.rename(name + ".new", name)
            sync(FOLDER)
        print(number, flush=True)
        number += 1


def check(last):
    wrong, seen = [], set()
    for name in sorted(os.listdir(FOLDER)) if last else []:
        if not name.startswith("log-"):
            continue
        number = int(name[4:])
        number += 1 - number % 2
        for said in open(FOLDER + "/" + name, "rb").read().splitlines(keepends=True):
            if said != line(number):
                # Only what was never said to be durable may be torn.
                break
            seen.add(number)
            number += 2
    wrong += ["record %d" % number for number in range(1, last + 1, 2) if number not in seen]
    for slot in range(2, SLOTS + 2, 2):
        least = last - (last - slot) % SLOTS
        if least < 2:
            continue
        try:
            data = open("%s/slot-%d" % (FOLDER, slot % SLOTS), "rb").read()
            found = int(data[:8])
            if found < least or found % SLOTS != slot % SLOTS or data != content(found):
                wrong.append("file of %d: %d, %d bytes" % (least, found, len(data)))
        except (OSError, ValueError) as error:
            wrong.append("file of %d: %s" % (least, error))
    print("\n".join(wrong[:20]) if wrong else "whole")


{"write": write, "check": check}[sys.argv[1]](*map(int, sys.argv[2:]))
