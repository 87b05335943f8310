"""Netfilter's netlink: messages and attributes in bytes, and sockets that speak it.

Layout (linux/netlink.h, linux/netfilter/nfnetlink.h): nlmsghdr of 16 bytes in host order, nfgenmsg of 4 bytes, then
attributes of 4 bytes plus value, each padded to 4 bytes. Values are in network order. What does not add up is refused
whole; nothing is guessed.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from msgspec import Struct

from netagent.ports import NetagentError

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
SO_RCVBUFFORCE = 33
NFPROTO_UNSPEC = 0
NFPROTO_INET = 1
SUBSYSTEM_ULOG = 4
SUBSYSTEM_NFTABLES = 10
NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NESTED = 0x8000
ATTRIBUTE_TYPE = 0x3FFF
DATAGRAM_BYTES = 1 << 16
"""Longest datagram that is read; the kernel's batches are of a page or two."""

HEADER = struct.Struct("=IHHII")
GENERIC = struct.Struct("!BBH")
ATTRIBUTE = struct.Struct("=HH")


class NfnetlinkError(NetagentError):
    """The kernel refused a request, or a socket could not be opened."""


class MalformedError(NetagentError):
    """Bytes that are no message; they were thrown away."""


class Message(Struct, frozen=True, gc=False):
    """One message."""

    type: int
    """Subsystem in the upper byte; below 16 it is one of netlink's own."""
    flags: int
    sequence: int
    portid: int
    """Of an answer: ours. Of a notification: of the socket that made the change."""
    payload: bytes
    """After the nlmsghdr."""

    @property
    def family(self) -> int:
        """NFPROTO_*. Raises MalformedError."""
        return self._generic()[0]

    @property
    def resource(self) -> int:
        """res_id. Raises MalformedError."""
        return self._generic()[2]

    @property
    def body(self) -> bytes:
        """The attributes."""
        return self.payload[GENERIC.size :]

    def _generic(self) -> tuple[int, int, int]:
        if len(self.payload) < GENERIC.size:
            raise MalformedError(f"netfilter message of type {self.type:#x} with {len(self.payload)} bytes of payload.")
        family, version, resource = GENERIC.unpack_from(self.payload)
        return family, version, resource


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of a datagram. Raises MalformedError at the first that does not fit into it."""
    offset = 0
    while offset < len(datagram):
        rest = len(datagram) - offset
        if rest < HEADER.size:
            raise MalformedError(f"{rest} bytes after the last netlink message, fewer than a header.")
        length, kind, flags, sequence, portid = HEADER.unpack_from(datagram, offset)
        if not HEADER.size <= length <= rest:
            raise MalformedError(f"netlink message says {length} bytes where {rest} are left.")
        yield Message(kind, flags, sequence, portid, datagram[offset + HEADER.size : offset + length])
        offset += _aligned(length)


def attributes(body: bytes) -> dict[int, bytes]:
    """Type -> value. Raises MalformedError where one does not fit or comes twice."""
    found: dict[int, bytes] = {}
    for kind, value in each_attribute(body):
        if kind in found:
            raise MalformedError(f"netlink attribute {kind} comes twice.")
        found[kind] = value
    return found


def each_attribute(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value), in order. Raises MalformedError at the first that does not fit."""
    offset = 0
    while offset < len(body):
        rest = len(body) - offset
        if rest < ATTRIBUTE.size:
            raise MalformedError(f"{rest} bytes after the last netlink attribute, fewer than a header.")
        length, kind = ATTRIBUTE.unpack_from(body, offset)
        kind &= ATTRIBUTE_TYPE
        if not ATTRIBUTE.size <= length <= rest:
            raise MalformedError(f"netlink attribute {kind} says {length} bytes where {rest} are left.")
        yield kind, body[offset + ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def number(found: dict[int, bytes], kind: int, size_bytes: int = 4) -> int | None:
    """An attribute as unsigned number; None where it is absent. Raises MalformedError for another length."""
    value = found.get(kind)
    if value is None:
        return None
    if len(value) != size_bytes:
        raise MalformedError(f"netlink attribute {kind} has {len(value)} bytes, {size_bytes} expected.")
    return int.from_bytes(value, "big")


def text(found: dict[int, bytes], kind: int) -> str:
    """An attribute as text, up to its first zero byte; "" where it is absent. What is not printable ASCII is `?`."""
    raw = found.get(kind, b"").split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(char if " " <= char <= "~" else "?" for char in raw)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def message(kind: int, flags: int, sequence: int, *, family: int, resource: int = 0, body: bytes = b"") -> bytes:
    """One request."""
    length = HEADER.size + GENERIC.size + len(body)
    return HEADER.pack(length, kind, flags | NLM_F_REQUEST, sequence, 0) + GENERIC.pack(family, 0, resource) + body


def open_socket(receive_bytes: int) -> socket.socket:
    """A blocking socket with a receive buffer of that size. Raises NfnetlinkError."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise NfnetlinkError(f"cannot open a netfilter socket: {error.strerror}.") from None
    try:
        opened.bind((0, 0))
        # Beyond net.core.rmem_max where we may; the kernel takes the memory only while it is filled.
        try:
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    except OSError as error:
        opened.close()
        raise NfnetlinkError(f"cannot set up a netfilter socket: {error.strerror}.") from None
    return opened


def own_portids() -> frozenset[int]:
    """Netfilter sockets of this process in its network namespace, by port ID, as the kernel lists them now.

    The process ID that a notification carries is a thread's in the first PID namespace, which an agent in a container
    cannot know of itself; the port ID is unique in the network namespace as long as the socket is open.
    """
    inodes = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    found = set()
    with open("/proc/self/net/netlink", encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if len(fields) >= 10 and fields[1] == str(NETLINK_NETFILTER) and fields[9] in inodes:
                found.add(int(fields[2]))
    return frozenset(found - {0})


def _aligned(length: int) -> int:
    return (length + 3) & ~3
