"""Flows that stay open: one packet per millisecond, numbered and timed, so that a test can say which arrived.

Every packet carries the moment it was sent. "Nothing sent after the commit has arrived" needs no tolerance.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from support.places import Place
from support.servers import BUFFER_BYTES, SO_RCVBUFFORCE

RECORD = struct.Struct("=QQ")
"""Number and CLOCK_MONOTONIC in ns."""
PERIOD_S = 0.001
POLL_S = 0.05


class Flow:
    """A stream of records from `sender` to `receiver`, whoever of them opened it."""

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[], bytes], *sockets: socket.socket) -> None:
        self.sent = 0
        self._send = send
        self._receive = receive
        self._sockets = sockets
        self._received: list[tuple[int, int]] = []
        self._stop_sending = threading.Event()
        self._stop_receiving = threading.Event()
        self._threads = [threading.Thread(target=self._sender), threading.Thread(target=self._receiver)]
        for thread in self._threads:
            thread.start()

    @property
    def received(self) -> int:
        """Records so far."""
        return len(self._received)

    def sent_after_and_received(self, moment_ns: int) -> int:
        """Records that were sent after a moment and arrived all the same."""
        return sum(sent_ns > moment_ns for _, sent_ns in self._received)

    def finish(self) -> int:
        """Stop sending, wait for what is under way; the number of records that never arrived."""
        self._stop_sending.set()
        self._threads[0].join()
        deadline_s = time.monotonic() + 10
        while self.received < self.sent and time.monotonic() < deadline_s:
            before = self.received
            time.sleep(0.3)
            if self.received == before:
                break
        return self.sent - len({number for number, _ in self._received})

    def close(self) -> None:
        """End of the threads and the sockets."""
        self._stop_sending.set()
        self._stop_receiving.set()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _sender(self) -> None:
        while not self._stop_sending.is_set():
            with contextlib.suppress(OSError):
                self._send(RECORD.pack(self.sent, time.monotonic_ns()))
                self.sent += 1
            time.sleep(PERIOD_S)

    def _receiver(self) -> None:
        rest = b""
        while not self._stop_receiving.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                rest += self._receive()
                whole = len(rest) - len(rest) % RECORD.size
                self._received += RECORD.iter_unpack(rest[:whole])
                rest = rest[whole:]


def udp_forth(client: Place, server: Place, port: int, version: int = 4) -> Flow:
    """The client sends; the server never answers."""
    receiving = _udp_server(server, port, version)
    sending = _udp_client(client, server, port, version)
    return Flow(sending.send, lambda: receiving.recv(2048), sending, receiving)


def udp_back(client: Place, server: Place, port: int, version: int = 4) -> Flow:
    """The client sends one datagram; from then on only the server sends."""
    sending = _udp_server(server, port, version)
    receiving = _udp_client(client, server, port, version)
    receiving.send(b"start")
    sending.settimeout(10)
    _, address = sending.recvfrom(2048)
    return Flow(lambda record: sending.sendto(record, address), lambda: receiving.recv(2048), sending, receiving)


def tcp_forth(client: Place, server: Place, port: int, version: int = 4) -> Flow:
    """The client sends over a connection."""
    near, far = _tcp(client, server, port, version)
    return Flow(near.send, lambda: _stream(far), near, far)


def tcp_back(client: Place, server: Place, port: int, version: int = 4) -> Flow:
    """The server sends over a connection that the client opened."""
    near, far = _tcp(client, server, port, version)
    return Flow(far.send, lambda: _stream(near), near, far)


KINDS = {"tcp_forth": tcp_forth, "tcp_back": tcp_back, "udp_forth": udp_forth, "udp_back": udp_back}


def _family(version: int) -> int:
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def _udp_server(place: Place, port: int, version: int) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(_family(version), socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.bind((place.ip(version), port))
        sock.settimeout(POLL_S)
        return sock

    return place.inside(make)


def _udp_client(client: Place, server: Place, port: int, version: int) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(_family(version), socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.connect((server.ip(version), port))
        sock.settimeout(POLL_S)
        return sock

    return client.inside(make)


def _tcp(client: Place, server: Place, port: int, version: int) -> tuple[socket.socket, socket.socket]:
    def listen() -> socket.socket:
        sock = socket.socket(_family(version), socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((server.ip(version), port))
        sock.listen(1)
        return sock

    with server.inside(listen) as listener:
        listener.settimeout(10)
        near = client.inside(lambda: socket.create_connection((server.ip(version), port), timeout=10))
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(POLL_S)
    return near, far


def _stream(sock: socket.socket) -> bytes:
    data = sock.recv(1 << 16)
    if not data:
        time.sleep(POLL_S)
    return data


def flood(src: Place, dst: str, receiver: Place, port: int) -> Flow:
    """UDP from a place to an address, begun whether or not anybody is connected yet."""
    family = _family(6 if ":" in dst else 4)

    def make(wildcard: str) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        if wildcard:
            sock.bind((wildcard, port))
        sock.settimeout(POLL_S)
        return sock

    receiving = receiver.inside(lambda: make("::" if family == socket.AF_INET6 else "0.0.0.0"))
    sending = src.inside(lambda: make(""))
    return Flow(lambda record: sending.sendto(record, (dst, port)), lambda: receiving.recv(2048), sending, receiving)
