"""Sockets that answer in the places: one thread serves them all, so that no test's event loop delays an answer."""

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterable

from netagent.lab import sctp
from support.places import Place

ANSWER = b"!"
BACKLOG = 1024
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 8 << 20


class Servers:
    """TCP says `!` to whoever connects, UDP sends back what it got, SCTP packets are only noted."""

    def __init__(self) -> None:
        self.datagrams: set[bytes] = set()
        """Payloads of UDP, and SCTP initiate tags, that arrived."""
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._new: list[tuple[socket.socket, Callable[[socket.socket], None]]] = []
        self._old: list[socket.socket] = []
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._stop = False
        self._thread = threading.Thread(target=self._serve, name="servers", daemon=True)
        self._thread.start()

    def open(self, place: Place, ports: Iterable[tuple[int, str]]) -> list[socket.socket]:
        """Listen in a place on (port, protocol), all IP versions. SCTP hears every port."""
        made = place.inside(lambda: [self._listen(port, protocol) for port, protocol in ports])
        with self._lock:
            self._new += made
        os.write(self._woken, b".")
        return [sock for sock, _ in made]

    def shut(self, sockets: Iterable[socket.socket]) -> None:
        """Stop listening."""
        with self._lock:
            self._old += sockets
        os.write(self._woken, b".")

    def close(self) -> None:
        """End of the thread and of all sockets."""
        self._stop = True
        os.write(self._woken, b".")
        self._thread.join()
        os.close(self._wake)
        os.close(self._woken)

    def _listen(self, port: int, protocol: str) -> tuple[socket.socket, Callable[[socket.socket], None]]:
        if protocol == "SCTP":
            return socket.socket(socket.AF_INET, socket.SOCK_RAW, sctp.PROTOCOL), self._note_init
        kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.bind(("::", port))
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
            return sock, self._greet
        return sock, self._echo

    # In the thread

    def _serve(self) -> None:
        while not self._stop:
            for key, _ in self._selector.select():
                if key.fd == self._wake:
                    os.read(self._wake, 4096)
                else:
                    with contextlib.suppress(BlockingIOError, ConnectionError, OSError):
                        key.data(key.fileobj)
            with self._lock:
                new, old = self._new, self._old
                self._new, self._old = [], []
            for sock, answer in new:
                self._selector.register(sock, selectors.EVENT_READ, answer)
            for sock in old:
                self._selector.unregister(sock)
                sock.close()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    @staticmethod
    def _greet(listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.send(ANSWER)

    def _echo(self, sock: socket.socket) -> None:
        while True:
            payload, sender = sock.recvfrom(2048)
            self.datagrams.add(payload)
            sock.sendto(payload, sender)

    def _note_init(self, sock: socket.socket) -> None:
        packet = sock.recv(2048, socket.MSG_DONTWAIT)
        header = (packet[0] & 15) * 4
        self.datagrams.add(packet[header + 16 : header + 20])


def sctp_init(source_port: int, port: int, tag: bytes) -> bytes:
    """An SCTP packet with one INIT chunk whose initiate tag is `tag`."""
    return sctp.Packet(source_port, port, 0, (sctp.init(int.from_bytes(tag, "big")),)).encoded()
