"""Peers of the tests in the emulated machine. A PORT is of TCP, or of SCTP as in 3868/sctp.

peer.py serve PORT...          answers each line with the host's name and the line
peer.py client FIFO HOST PORT...  opens a connection to each port and prints its own; for each line of FIFO, sends it
                               over every one and prints the answers, or the error
peer.py mirror PORT [proxy]    takes what a client sends to its end; returns the client's address, as it is in the
                               connection or in the header of the PROXY protocol, and what was sent
peer.py echo PORT              returns what each connection and each datagram of UDP brings
peer.py steady HOST PORT COUNT END  sends a byte over each of COUNT connections every second, and a datagram every 10 ms,
                               until the file END exists; prints the connections that were lost, the datagrams that did
                               not come back, and the longest time without one
peer.py latency HOST PORT COUNT  sends COUNT datagrams of UDP to an echo, each 2 ms after the last one has come back;
                               prints the median and the 99th percentile of their round trips, in microseconds
peer.py numbers PORT           sends each connection a stream of numbers, 400 KB a second
peer.py download HOST PORT END receives that stream until the file END exists; prints the bytes, whether all are right,
                               and the longest time without any
peer.py announce FROM GROUP COUNT SEED  sends COUNT messages of synchronization, many of them damaged, to port 8848 of a
                               multicast group, as the director with the address FROM; equal seeds send the same
peer.py fragment NUMBER HOST PORT FROM...  sends from each address the fragment 0 or 1 of a datagram of UDP to an echo;
                               with 0, prints how many datagrams have come back, which is in half a minute at most
peer.py send FILE HOST PORT    sends a file to a mirror; prints the address and whether the file has come back whole
"""

import os
import random
import selectors
import socket
import struct
import sys
import threading
import time


def open_socket(port):
    """A socket of the port's protocol, and the port's number."""
    number, _, protocol = port.partition("/")
    protocol = socket.IPPROTO_SCTP if protocol == "sctp" else socket.IPPROTO_TCP
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol), int(number)


def listen(port, answer):
    """Calls `answer` for each connection, in a thread of its own."""
    listener, number = open_socket(port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", number))
    listener.listen()
    while True:
        connection, client = listener.accept()
        threading.Thread(target=answer, args=(connection, client), daemon=True).start()


def connect(host, port):
    """A connection to the port."""
    connection, number = open_socket(port)
    connection.settimeout(60)
    connection.connect((host, number))
    return connection


def serve(ports):
    """Answers the lines of each connection."""
    name = socket.gethostname()

    def answer(connection, _):
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                stream.write(f"{name} {line}")
                stream.flush()

    threads = [threading.Thread(target=listen, args=(port, answer)) for port in ports]
    for thread in threads:
        thread.start()


def client(fifo, host, ports):
    """Sends lines over connections that stay open."""
    streams = []
    for port in ports:
        connection = connect(host, port)
        streams.append((port, connection.makefile("rw")))
        print(port, "from", connection.getsockname()[1], flush=True)
    with open(fifo, encoding="ascii") as lines:
        while True:
            line = lines.readline()
            if not line:
                break
            for port, stream in streams:
                try:
                    stream.write(line)
                    stream.flush()
                    print(port, stream.readline().strip() or "closed", flush=True)
                except OSError as error:
                    print(port, error, flush=True)


def mirror(port, proxy):
    """Returns what each connection brings."""

    def answer(connection, peer):
        with connection, connection.makefile("rwb") as stream:
            address = peer[0]
            if proxy:
                # Version 2: 12 bytes of signature, 2 of version and family, 2 of length, then the source's address.
                header = stream.read(16)
                assert header[:14] == b"\r\n\r\n\0\r\nQUIT\n\x21\x11", header
                address = socket.inet_ntoa(stream.read(int.from_bytes(header[14:], "big"))[:4])
            content = stream.read()
            stream.write(f"{address}\n".encode() + content)

    listen(port, answer)


def send(path, host, port):
    """Compares a file with what a mirror returns."""
    with open(path, "rb") as file:
        content = file.read()
    with connect(host, port) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            address = stream.readline().decode().strip()
            back = stream.read()
    print(address, "whole" if back == content else f"{len(back)} bytes, which differ")


def echo(port):
    """Returns what comes."""
    chosen = selectors.DefaultSelector()
    listener, datagrams = socket.create_server(("", port), backlog=1000), socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(("", port))
    chosen.register(listener, selectors.EVENT_READ)
    chosen.register(datagrams, selectors.EVENT_READ)
    while True:
        for key, _ in chosen.select():
            if key.fileobj is listener:
                chosen.register(listener.accept()[0], selectors.EVENT_READ)
            elif key.fileobj is datagrams:
                content, peer = datagrams.recvfrom(100)
                datagrams.sendto(content, peer)
            else:
                try:
                    content = key.fileobj.recv(100)
                    key.fileobj.sendall(content)
                except OSError:
                    content = b""
                if not content:
                    chosen.unregister(key.fileobj)
                    key.fileobj.close()


def steady(host, port, count, end):
    """Keeps connections and a stream of datagrams busy."""
    chosen, waiting, lost = selectors.DefaultSelector(), {}, 0
    for _ in range(count):
        connection = socket.create_connection((host, port), timeout=60)
        connection.setblocking(False)
        chosen.register(connection, selectors.EVENT_READ)
        waiting[connection] = 0
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.connect((host, port))
    datagrams.setblocking(False)
    chosen.register(datagrams, selectors.EVENT_READ)
    print("begun", flush=True)
    connections, turn, sent, back, ended = list(waiting), 0.0, 0, 0, None
    next_datagram = latest = time.monotonic()
    longest = 0.0
    # What was sent last may still come, also after TCP's second retransmission.
    while ended is None or time.monotonic() < ended + 8 and any(waiting.values()):
        now = time.monotonic()
        if ended is None and os.path.exists(end):
            ended = now
        while ended is None and now >= next_datagram:
            for place in range(int(turn), int(turn + count / 100)):
                connection = connections[place % count]
                if connection in waiting:
                    try:
                        connection.send(b"x")
                        waiting[connection] += 1
                    except OSError:
                        pass
            turn += count / 100
            try:
                datagrams.send(b"x")
                sent += 1
            except OSError:
                pass
            next_datagram += 0.01
        for key, _ in chosen.select(max(0, next_datagram - now) if ended is None else 0.1):
            try:
                content = key.fileobj.recv(100)
            except OSError:
                content = b""
            if key.fileobj is datagrams:
                if content:
                    back += 1
                    longest, latest = max(longest, time.monotonic() - latest), time.monotonic()
            elif content:
                waiting[key.fileobj] -= len(content)
            else:
                chosen.unregister(key.fileobj)
                del waiting[key.fileobj]
                lost += 1
    lost += sum(1 for missing in waiting.values() if missing)
    print(f"{lost} of {count} connections lost, {sent - back} of {sent} datagrams, pause {longest * 1000:.0f} ms", flush=True)


def fragment(number, host, port, sources):
    """Sends one of the two fragments of each datagram."""
    chosen, back = selectors.DefaultSelector(), 0
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    # No checksum (RFC 768), so that the fragments need not know each other's content.
    content = struct.pack("!HHHH", 4000, port, 8 + 1600, 0) + bytes(1600)
    for source in sources:
        if number == 0:
            answer = socket.socket(type=socket.SOCK_DGRAM)
            answer.bind((source, 4000))
            chosen.register(answer, selectors.EVENT_READ)
        part, place = (content[:1400], 0x2000) if number == 0 else (content[1400:], 1400 // 8)
        addresses = socket.inet_aton(source) + socket.inet_aton(host)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), 4711, place, 64, socket.IPPROTO_UDP, 0)
        raw.sendto(head + addresses + part, (host, 0))
    until = time.monotonic() + 30
    while chosen.get_map() and (left := until - time.monotonic()) > 0:
        for key, _ in chosen.select(left):
            key.fileobj.recv(100)
            chosen.unregister(key.fileobj)
            back += 1
    print(back, flush=True)


def numbers(port):
    """Sends consecutive numbers of eight bytes."""

    def answer(connection, _):
        first = 0
        with connection:
            try:
                while True:
                    connection.sendall(b"".join(number.to_bytes(8, "big") for number in range(first, first + 1000)))
                    first += 1000
                    time.sleep(0.02)
            except OSError:
                pass

    listen(port, answer)


def download(host, port, end):
    """Checks a stream of numbers."""
    count, rest, wrong, longest = 0, b"", 0, 0.0
    with connect(host, port) as connection:
        print("begun", flush=True)
        latest = time.monotonic()
        while not os.path.exists(end):
            content = connection.recv(65536)
            longest, latest = max(longest, time.monotonic() - latest), time.monotonic()
            if not content:
                print("closed", flush=True)
                break
            content = rest + content
            whole = len(content) // 8
            for at in range(whole):
                wrong += content[8 * at : 8 * at + 8] != (count + at).to_bytes(8, "big")
            count, rest = count + whole, content[8 * whole :]
    print(f"{8 * count} bytes, {wrong} wrong, pause {longest * 1000:.0f} ms", flush=True)


def latency(host, port, count):
    """Times round trips."""
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.settimeout(5)
    datagrams.connect((host, port))
    times = []
    for _ in range(count):
        begun = time.monotonic()
        datagrams.send(b"x")
        datagrams.recv(100)
        times.append(time.monotonic() - begun)
        time.sleep(0.002)
    times.sort()
    print(*(round(times[count * part // 100] * 1e6) for part in (50, 99)))


def option(draw):
    """A parameter of a connection: of the kernel, of none, or damaged."""
    kind = draw.choice([1, 2, 3, 3, 10, 63, 128 + draw.randrange(64), 0x41, 0x42] + 4 * [0x40 + draw.randrange(4, 64)])
    data = bytes(draw.choice([1, 4, 6, 12, 16, 17, 18, 24, 24]))
    if kind & 0xBF == 3 and draw.random() < 0.5:
        data = draw.choice([b"sip", b"nosuch"])
    claimed = len(data) if draw.random() < 0.9 else draw.randrange(30)
    return bytes([kind, claimed]) + data


def entry(draw, port):
    """A connection of this client port in a message of version 1."""
    options = b"".join(option(draw) for _ in range(draw.choice([0, 0, 0, 1, 1, 2, 3])))
    length = 36 + len(options) if draw.random() < 0.95 else draw.randrange(64)
    version = length if draw.random() < 0.98 else length | 0x1000
    state = draw.randrange(1, 11) if draw.random() < 0.95 else draw.randrange(256)
    head = struct.pack("!BBHIHHHHII", 0, 6, version, 0x100, state, port, 81, 80, 0, 600)
    return head + bytes([10, 1, 0, 10, 10, 1, 0, 100, 10, 1, 0, 20]) + options


def announce(source, group, count, seed):
    """Sends messages, each connection with a client port of its own."""
    sender = socket.socket(type=socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
    sender.bind((source, 0))
    draw, port = random.Random(seed), 1000
    for _ in range(count):
        body, entries = b"", draw.randrange(1, 4)
        for _ in range(entries):
            body += bytes(-len(body) % 4) + entry(draw, port)
            port += 1
        if draw.random() < 0.1:
            body = body[: draw.randrange(len(body))]
        entries += draw.choice([0, 0, 0, 0, 1, -1])
        sender.sendto(struct.pack("!BBHBBH", 0, 7, 8 + len(body), entries, 1, 0) + body, (group, 8848))
        time.sleep(0.02)


_, command, *words = sys.argv
if command == "serve":
    serve(words)
elif command == "client":
    client(words[0], words[1], words[2:])
elif command == "mirror":
    mirror(words[0], words[1:] == ["proxy"])
elif command == "echo":
    echo(int(words[0]))
elif command == "steady":
    steady(words[0], int(words[1]), int(words[2]), words[3])
elif command == "numbers":
    numbers(words[0])
elif command == "download":
    download(*words)
elif command == "latency":
    latency(words[0], int(words[1]), int(words[2]))
elif command == "fragment":
    fragment(int(words[0]), words[1], int(words[2]), words[3:])
elif command == "announce":
    announce(words[0], words[1], int(words[2]), int(words[3]))
else:
    send(*words)
