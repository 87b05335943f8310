"""rtnetlink with thousands of messages at a time: batches, filtered dumps and notifications over long-lived sockets.

pyroute2 needs 60 us to encode one neighbour and a round trip to send it; 5,000 peers are 15,000 such messages. Here a
message is packed in 2 us, and hundreds go in one system call: the kernel answers those it refuses, and the last one.
Formats: rtnetlink(7), netlink(7) and include/uapi/linux/{netlink,rtnetlink}.h.
"""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct as Layout
from struct import pack
from typing import NamedTuple, Self

from netagent.ports import NetagentError

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 1, 10, 11, 12
SO_RCVBUFFORCE = 33
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

CHUNK_MESSAGES = 400
"""Requests in one system call: other tasks of the agent run in between, and 400 refusals fit the receive buffer."""
RECEIVE_BUFFER_BYTES = 4 << 20
"""The kernel drops answers and notifications that do not fit. A limit, not a reservation."""
DATAGRAM_BYTES = 1 << 16
"""The kernel fills at most 32 KiB per datagram of a dump."""
NOTICES_MAX_BYTES = 32 << 20
"""Notifications kept while nobody reads them; beyond that the reader is told to read everything back."""
DUMP_ATTEMPTS = 8
"""A dump that changed while it was read is read again this often."""
REPLY_TIMEOUT_S = 30.0
"""The kernel answers at once unless another process holds its lock for long."""

_HEADER = Layout("=IHHII")
_ATTRIBUTE = Layout("=HH")
_ERROR = Layout("=i")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class RtnetlinkError(NetagentError):
    """rtnetlink could not be asked, or refused a request."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.errno = number


class MalformedError(RtnetlinkError):
    """Bytes that are no message of their kind. Nothing is guessed: what they speak of is to be read back."""


class Request(NamedTuple):
    """A message without its header."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """A message from the kernel."""

    kind: int
    flags: int
    sequence: int
    port: int
    """The socket that caused it, where the kernel says so."""
    body: bytes


class Refusal(NamedTuple):
    """Why the kernel refused a request."""

    errno: int
    reason: str


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute (struct nlattr) with its padding."""
    size = len(payload)
    return _ATTRIBUTE.pack(4 + size, kind) + payload + _PADDING[size & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    """An attribute with one 32-bit number."""
    return _ATTRIBUTE.pack(8, kind) + pack("=I", value)


def text(kind: int, value: str) -> bytes:
    """An attribute with a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """The attributes of a message from `offset` on, by kind; of a repeated kind the last. Raises MalformedError."""
    found: dict[int, bytes] = {}
    end = len(body)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(body, offset)
        if not 4 <= size <= end - offset:
            raise MalformedError(f"rtnetlink attribute {kind} says {size} bytes where {end - offset} are left.")
        found[kind & NLA_TYPE_MASK] = body[offset + 4 : offset + size]
        offset += size + 3 & ~3
    return found


def messages(datagram: bytes) -> Iterator[Message]:
    """Cut a datagram into its messages. Raises MalformedError at the first that does not fit into it."""
    offset, end = 0, len(datagram)
    while offset + 16 <= end:
        size, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if not 16 <= size <= end - offset:
            raise MalformedError(f"rtnetlink message says {size} bytes where {end - offset} are left.")
        yield Message(kind, flags, sequence, port, datagram[offset + 16 : offset + size])
        offset += size + 3 & ~3


def fields(layout: Layout, message: Message) -> tuple[int, ...]:
    """The fixed part of a message. Raises MalformedError."""
    if len(message.body) < layout.size:
        raise MalformedError(f"rtnetlink message {message.kind} has {len(message.body)} bytes, not {layout.size}.")
    return layout.unpack_from(message.body)


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        except PermissionError:  # without CAP_NET_ADMIN: reading still works, with the system's limit
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


class Rtnetlink:
    """A socket for requests, of the network namespace that it was opened in. One batch or dump at a time."""

    def __init__(self) -> None:
        self._sock = _open()
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._sock.setsockopt(SOL_NETLINK, option, 1)
        self.port: int = self._sock.getsockname()[0]
        self._sequence = 0
        self._turn = asyncio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    async def batch(self, requests: Sequence[Request]) -> dict[int, Refusal]:
        """Run the requests in order; one that is refused does not stop the others.

        Returns the refusals by index. Raises RtnetlinkError; how many requests took effect is then unknown.
        """
        refusals: dict[int, Refusal] = {}
        async with self._turn:
            for start in range(0, len(requests), CHUNK_MESSAGES):
                if start:
                    await asyncio.sleep(0)
                first = self._send(requests[start : start + CHUNK_MESSAGES], NLM_F_ACK)
                answered = False
                while not answered:
                    for message in await self._receive(first):
                        refusal = _refusal(message)
                        if refusal.errno:
                            refusals[start + message.sequence - first] = refusal
                        answered |= message.sequence == self._sequence
        return refusals

    async def dump(self, kind: int, body: bytes) -> list[Message]:
        """Everything that the kernel has of a kind, as of one moment. Raises RtnetlinkError."""
        async with self._turn:
            for _ in range(DUMP_ATTEMPTS):
                answer, interrupted = await self._dump_once(kind, body)
                if not interrupted:
                    return answer
        raise RtnetlinkError(
            f"dump {kind} of rtnetlink changed under {DUMP_ATTEMPTS} readings. Nothing was changed; "
            "netagent tries again."
        )

    async def _dump_once(self, kind: int, body: bytes) -> tuple[list[Message], bool]:
        first = self._send((Request(kind, NLM_F_DUMP, body),), 0)
        answer: list[Message] = []
        interrupted = False
        while True:
            for message in await self._receive(first):
                interrupted |= bool(message.flags & NLM_F_DUMP_INTR)
                if message.kind not in (NLMSG_DONE, NLMSG_ERROR):
                    answer.append(message)
                    continue
                refusal = _refusal(message)  # both begin with an error number
                if refusal.errno:
                    raise RtnetlinkError(
                        f"rtnetlink refused dump {kind}: {refusal.reason}. Nothing was changed; netagent tries again.",
                        refusal.errno,
                    )
                return answer, interrupted

    async def get(self, kind: int, body: bytes) -> Message | Refusal:
        """One object, or why there is none. Raises RtnetlinkError."""
        async with self._turn:
            first = self._send((Request(kind, 0, body),), NLM_F_ACK)
            answer: Message | None = None
            while True:
                for message in await self._receive(first):
                    if message.kind != NLMSG_ERROR:
                        answer = message
                        continue
                    refusal = _refusal(message)
                    return answer if answer and not refusal.errno else refusal

    def _send(self, requests: Sequence[Request], last_flags: int) -> int:
        """Send in one system call; the last message carries last_flags too. Returns the first sequence number."""
        first = self._sequence + 1
        parts: list[bytes] = []
        for sequence, (kind, flags, body) in enumerate(requests, first):
            parts.append(_HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, sequence, 0))
            parts.append(body)
        self._sequence += len(requests)
        size = 16 + len(requests[-1].body)
        parts[-2] = _HEADER.pack(
            size, requests[-1].kind, requests[-1].flags | NLM_F_REQUEST | last_flags, self._sequence, 0
        )
        try:
            self._sock.send(b"".join(parts))
        except OSError as error:
            raise _os_error("rtnetlink cannot be asked", error) from None
        return first

    async def _receive(self, first: int) -> list[Message]:
        """The next answers to sequence numbers from `first` on; earlier ones belong to an abandoned request."""
        try:
            try:
                datagram = self._sock.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    datagram = await asyncio.get_running_loop().sock_recv(self._sock, DATAGRAM_BYTES)
        except TimeoutError:
            raise RtnetlinkError(f"rtnetlink gave no answer for {REPLY_TIMEOUT_S:g} s. netagent tries again.") from None
        except OSError as error:
            raise _os_error("rtnetlink's answer was lost", error) from None
        return [message for message in messages(datagram) if message.sequence >= first]


class Monitor:
    """Notifications of the namespace that it was opened in, kept until they are taken.

    `wake` is called in the event loop whenever something has arrived.
    """

    def __init__(self, groups: Iterable[int], wake: Callable[[], None]) -> None:
        self._wake = wake
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._lost = False
        self._sock = _open()
        for group in groups:
            self._sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._readable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def take(self) -> tuple[list[bytes], bool]:
        """The datagrams since the last call, and whether any were lost."""
        self._collect()
        kept, lost = list(self._kept), self._lost
        self._kept.clear()
        self._kept_bytes, self._lost = 0, False
        return kept, lost

    def _readable(self) -> None:
        self._collect()
        self._wake()

    def _collect(self) -> None:
        while True:
            try:
                datagram = self._sock.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost = True
                if error.errno != errno.ENOBUFS:
                    return
                continue
            if self._kept_bytes < NOTICES_MAX_BYTES:
                self._kept.append(datagram)
                self._kept_bytes += len(datagram)
            else:
                self._lost = True


def _refusal(message: Message) -> Refusal:
    """The kernel's verdict on a request; errno 0: done."""
    number = -fields(_ERROR, message)[0]
    if not number:
        return Refusal(0, "")
    reason = os.strerror(number) if -(2**31) < number < 2**31 else str(number)
    if message.flags & NLM_F_ACK_TLVS:
        said = (
            attributes(message.body, 4 if message.kind == NLMSG_DONE else 20)
            .get(NLMSGERR_ATTR_MSG, b"")
            .rstrip(b"\0")
            .decode(errors="replace")
        )
        reason = f"{said} ({reason})" if said else reason
    return Refusal(number, reason)


def _os_error(what: str, error: OSError) -> RtnetlinkError:
    return RtnetlinkError(
        f"{what}: {error.strerror or error}. What is programmed stays; netagent reads it back and tries again.",
        error.errno or 0,
    )
