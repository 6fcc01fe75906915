"""Peers of the tests in the emulated machine. A PORT is of TCP, or of SCTP as in 3868/sctp.

peer.py serve PORT...          answers each line with the host's name and the line
peer.py client FIFO HOST PORT...  opens a connection to each port and prints its own; for each line of FIFO, sends it
                               over every one and prints the answers, or the error
peer.py mirror PORT [proxy]    takes what a client sends to its end; returns the client's address, as it is in the
                               connection or in the header of the PROXY protocol, and what was sent
peer.py send FILE HOST PORT    sends a file to a mirror; prints the address and whether the file has come back whole
"""

import socket
import sys
import threading


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


_, command, *words = sys.argv
if command == "serve":
    serve(words)
elif command == "client":
    client(words[0], words[1], words[2:])
elif command == "mirror":
    mirror(words[0], words[1:] == ["proxy"])
else:
    send(*words)
