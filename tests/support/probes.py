"""Can this place reach that one? Hundreds of questions at once, answered by packets.

On one machine a packet that is let through has arrived when the system call that sent it returns, or a moment later. So
silence for a short time is a denial, and what should have answered but did not is asked again with more patience.
"""

import enum
import errno
import itertools
import os
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Sequence

from msgspec import Struct

from netagent.lab import sctp
from support.places import Place
from support.servers import ANSWER, Servers, sctp_init

DENIED_S = 0.2
"""Silence for this long is a denial."""
PATIENCE_S = (0.5, 2.0, 6.0)
"""For probes that should be answered and were not."""
LINGER_RESET = struct.pack("ii", 1, 0)

_tokens = itertools.count(1)


class Answer(enum.StrEnum):
    """What came of a probe."""

    YES = "answered"
    HALF = "arrived, but no answer came back"
    NO = "silence"


class Probe(Struct, frozen=True):
    """A new connection, datagram or echo request."""

    src: Place
    dst: str
    """Address."""
    port: int
    protocol: str
    """TCP, UDP, SCTP (version 4 only; arrival counts as answer) or ICMP."""


class _Flight:
    """A probe under way."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.answer = Answer.NO
        self.token = b"%08x" % next(_tokens)
        self.sock: socket.socket | None = None

    @property
    def version(self) -> int:
        return 6 if ":" in self.probe.dst else 4

    def start(self) -> None:
        """Inside the source: open the socket and send the first packet."""
        family = socket.AF_INET6 if self.version == 6 else socket.AF_INET
        getattr(self, f"_start_{self.probe.protocol.lower()}")(family)
        assert self.sock is not None
        self.sock.setblocking(False)

    def _start_tcp(self, family: int) -> None:
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        number = self.sock.connect_ex((self.probe.dst, self.probe.port))
        assert number in (0, errno.EINPROGRESS), f"{self.probe}: {os.strerror(number)}"

    def _start_udp(self, family: int) -> None:
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.connect((self.probe.dst, self.probe.port))
        self.sock.send(self.token)

    def _start_sctp(self, family: int) -> None:
        self.sock = socket.socket(family, socket.SOCK_RAW, sctp.PROTOCOL)
        self.token = os.urandom(4)
        packet = sctp_init(1024 + int.from_bytes(self.token[:2], "big") % 60000, self.probe.port, self.token)
        self.sock.sendto(packet, (self.probe.dst, 0))

    def _start_icmp(self, family: int) -> None:
        protocol = socket.IPPROTO_ICMPV6 if self.version == 6 else socket.IPPROTO_ICMP
        self.sock = socket.socket(family, socket.SOCK_RAW, protocol)
        body = struct.pack("!BBHHH", 128 if self.version == 6 else 8, 0, 0, os.getpid() & 0xFFFF, 1) + self.token
        if self.version == 4:
            body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        self.sock.sendto(body, (self.probe.dst, 0))

    def progress(self) -> None:
        """The socket has news."""
        assert self.sock is not None
        try:
            got = self.sock.recv(2048)
        except BlockingIOError:
            self.answer = Answer.HALF if self._connected() else self.answer
            return
        except ConnectionRefusedError:
            raise AssertionError(f"{self.probe.dst} does not serve {self.probe.port}/{self.probe.protocol}") from None
        except ConnectionResetError:
            return
        if self.probe.protocol == "ICMP":
            reply = got[(got[0] & 15) * 4 :] if self.version == 4 else got
            good = reply[0] in (0, 129) and reply[8:] == self.token
        else:
            good = got == (ANSWER if self.probe.protocol == "TCP" else self.token)
        self.answer = Answer.YES if good else self.answer

    def _connected(self) -> bool:
        if self.probe.protocol != "TCP" or self.sock is None:
            return False
        try:
            self.sock.getpeername()
        except OSError:
            return False
        return True


def run(probes: Sequence[Probe], servers: Servers, wait_s: float) -> list[Answer]:
    """Start all probes at once and wait until all are answered, at most `wait_s`."""
    flights = [_Flight(probe) for probe in probes]
    by_place: dict[Place, list[_Flight]] = defaultdict(list)
    for flight in flights:
        by_place[flight.probe.src].append(flight)
    try:
        for place, mine in by_place.items():
            place.inside(lambda mine=mine: [flight.start() for flight in mine])  # type: ignore[misc]
        _watch(flights, servers, wait_s)
    finally:
        for flight in flights:
            if flight.sock is not None:
                flight.sock.close()
    return [flight.answer for flight in flights]


def _watch(flights: list[_Flight], servers: Servers, wait_s: float) -> None:
    waiting = {}
    with select.epoll() as poll:
        for flight in flights:
            assert flight.sock is not None
            if flight.probe.protocol != "SCTP":
                waiting[flight.sock.fileno()] = flight
                poll.register(flight.sock.fileno(), select.EPOLLIN)
        deadline_s = time.monotonic() + wait_s
        while waiting and (rest_s := deadline_s - time.monotonic()) > 0:
            for number, _ in poll.poll(rest_s):
                flight = waiting[number]
                flight.progress()
                if flight.answer is Answer.YES:
                    poll.unregister(number)
                    del waiting[number]
    for flight in waiting.values():
        flight.progress()
    unheard = {flight.token for flight in flights if flight.probe.protocol == "SCTP"}
    while unheard - servers.datagrams and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for flight in flights:
        if flight.token in servers.datagrams and flight.answer is Answer.NO:
            flight.answer = Answer.YES if flight.probe.protocol == "SCTP" else Answer.HALF


def checksum(data: bytes) -> int:
    """The Internet checksum. Source: RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def differences(
    wanted: Sequence[tuple[Probe, bool]], servers: Servers, wait_s: float = DENIED_S
) -> list[tuple[Probe, bool, Answer]]:
    """Probes whose answer is not the wanted one (True: allowed). Call once the policy is committed."""
    answers = run([probe for probe, _ in wanted], servers, wait_s)
    wrong = [(*want, answer) for want, answer in zip(wanted, answers, strict=True) if _differs(want[1], answer)]
    slow = [(probe, want) for probe, want, _ in wrong if want]
    wrong = [one for one in wrong if not one[1]]
    for patience_s in PATIENCE_S:
        if not slow:
            break
        answers = run([probe for probe, _ in slow], servers, patience_s)
        left = [(*want, answer) for want, answer in zip(slow, answers, strict=True) if _differs(want[1], answer)]
        slow = [(probe, want) for probe, want, _ in left]
        last = left
    return wrong + (last if slow else [])


def _differs(want: bool, answer: Answer) -> bool:
    return answer is not (Answer.YES if want else Answer.NO)
