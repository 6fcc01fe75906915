"""Peers of the tests in the emulated machine.

peer.py serve PORT             answers each line with the host's name and the line
peer.py client FIFO HOST PORT...  opens a connection to each port and prints its own; for each line of FIFO, sends it
                               over every one and prints the answers, or the error
"""

import socket
import sys
import threading


def serve(port):
    """Answers the lines of each connection."""
    listener = socket.create_server(("", port))
    name = socket.gethostname()

    def answer(connection):
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                stream.write(f"{name} {line}")
                stream.flush()

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def client(fifo, host, ports):
    """Sends lines over connections that stay open."""
    streams = {}
    for port in ports:
        connection = socket.create_connection((host, port), timeout=60)
        streams[port] = connection.makefile("rw")
        print(port, "from", connection.getsockname()[1], flush=True)
    with open(fifo, encoding="ascii") as lines:
        while True:
            line = lines.readline()
            if not line:
                break
            for port, stream in streams.items():
                try:
                    stream.write(line)
                    stream.flush()
                    print(port, stream.readline().strip() or "closed", flush=True)
                except OSError as error:
                    print(port, error, flush=True)


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    client(sys.argv[2], sys.argv[3], [int(port) for port in sys.argv[4:]])
