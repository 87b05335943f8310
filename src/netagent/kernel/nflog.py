"""Packets that `log group` rules hand over, read from an NFLOG group.

One netlink socket binds the group; the kernel gathers packets of a tenth of a second into one datagram. Where the
reader is too slow the kernel drops them: their sequence numbers are missing and are counted as lost.
"""

import asyncio
import contextlib
import errno
import os
import socket
import struct
from types import TracebackType
from typing import Self

from msgspec import Struct

from netagent.kernel.nfnetlink import (
    DATAGRAM_BYTES,
    NFPROTO_UNSPEC,
    NLM_F_ACK,
    NLMSG_ERROR,
    SUBSYSTEM_ULOG,
    MalformedError,
    Message,
    NfnetlinkError,
    attribute,
    attributes,
    message,
    messages,
    number,
    open_socket,
    text,
)

PACKET = SUBSYSTEM_ULOG << 8 | 0
CONFIG = SUBSYSTEM_ULOG << 8 | 1
NFULA_MARK, NFULA_INDEV, NFULA_OUTDEV, NFULA_PAYLOAD, NFULA_PREFIX, NFULA_SEQ = 2, 4, 5, 9, 10, 12
CFG_CMD, CFG_MODE, CFG_TIMEOUT, CFG_QTHRESH, CFG_FLAGS = 1, 2, 4, 5, 6
BIND = 1
COPY_PACKET = 2
SEQUENCED = 1
RECEIVE_BYTES = 1 << 20
"""Some thousand packets of 128 bytes; what comes while it is full is lost and counted."""
GATHERED_PACKETS = 32
GATHERED_CS = 10
"""Hundredths of a second that a packet waits in the kernel for company, at most."""
ACK_TIMEOUT_S = 5.0


class LoggedPacket(Struct, frozen=True, gc=False):
    """One packet."""

    prefix: str
    """Of the rule; printable ASCII."""
    payload: bytes
    """From the network header on, as much as the rule asks for."""
    in_index: int
    """Interface it came in by; 0: none."""
    out_index: int
    mark: int
    sequence: int | None


class Batch(Struct, frozen=True, gc=False):
    """What one read gave."""

    packets: tuple[LoggedPacket, ...]
    lost: int = 0
    """Packets that the kernel had to drop since the last read."""
    malformed: int = 0
    """Messages that could not be read."""


class PacketStream:
    """Reads the datagrams of one group in their order."""

    def __init__(self) -> None:
        self._next: int | None = None
        """Sequence number that is due."""

    def read(self, datagram: bytes) -> Batch:
        """The packets of a datagram; what cannot be read is counted and left."""
        packets, lost, malformed = [], 0, 0
        try:
            for one in messages(datagram):
                if one.type != PACKET:
                    continue
                try:
                    packet = parse_packet(one)
                except MalformedError:
                    malformed += 1
                    continue
                lost += self._gap(packet.sequence)
                packets.append(packet)
        except MalformedError:
            malformed += 1
        return Batch(tuple(packets), lost, malformed)

    def _gap(self, sequence: int | None) -> int:
        if sequence is None:
            return 0
        expected, self._next = self._next, (sequence + 1) & 0xFFFFFFFF
        return (sequence - expected) & 0xFFFFFFFF if expected is not None else 0


class NflogReader:
    """A bound group; a context manager."""

    def __init__(self, group: int, copy_bytes: int = 128) -> None:
        """Raises NfnetlinkError: the group is taken, or no permission."""
        self._packets = PacketStream()
        self._socket = open_socket(RECEIVE_BYTES)
        try:
            self._socket.settimeout(ACK_TIMEOUT_S)
            self._bind(group, copy_bytes)
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the group."""
        self._socket.close()

    async def receive(self) -> Batch:
        """Wait for packets. Raises NfnetlinkError where the socket is dead."""
        try:
            datagram = await asyncio.get_running_loop().sock_recv(self._socket, DATAGRAM_BYTES)
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # how many is told by the gap in the sequence
                return Batch(())
            raise NfnetlinkError(f"reading logged packets: {error.strerror}.") from None
        return self._packets.read(datagram)

    def _bind(self, group: int, copy_bytes: int) -> None:
        requests = (
            attribute(CFG_CMD, bytes([BIND])),
            attribute(CFG_MODE, struct.pack("!IBB", copy_bytes, COPY_PACKET, 0))
            + attribute(CFG_QTHRESH, struct.pack("!I", GATHERED_PACKETS))
            + attribute(CFG_TIMEOUT, struct.pack("!I", GATHERED_CS))
            + attribute(CFG_FLAGS, struct.pack("!H", SEQUENCED)),
        )
        for sequence, body in enumerate(requests, start=1):
            request = message(CONFIG, NLM_F_ACK, sequence, family=NFPROTO_UNSPEC, resource=group, body=body)
            try:
                self._socket.send(request)
                code = self._acknowledged(sequence)
            except (OSError, MalformedError) as error:
                raise NfnetlinkError(f"NFLOG group {group}: {error}. Nothing is read from it.") from None
            if code in (errno.EPERM, errno.EBUSY):
                raise NfnetlinkError(
                    f"NFLOG group {group} is read by another program, or CAP_NET_ADMIN is missing "
                    f"({os.strerror(code)}). Denied packets are dropped but not logged; give policy.drop_log_group "
                    "another number."
                )
            if code:
                raise NfnetlinkError(f"NFLOG group {group}: {os.strerror(code)}. Denied packets are not logged.")

    def _acknowledged(self, sequence: int) -> int:
        """Error number of the answer to a request; packets may already come in between."""
        while True:
            for one in messages(self._socket.recv(DATAGRAM_BYTES)):
                if one.type == NLMSG_ERROR and one.sequence == sequence and len(one.payload) >= 4:
                    return -int(struct.unpack_from("=i", one.payload)[0])


def parse_packet(one: Message) -> LoggedPacket:
    """A packet message. Raises MalformedError."""
    found = attributes(one.body)
    one.resource  # noqa: B018 - must have its header
    return LoggedPacket(
        text(found, NFULA_PREFIX),
        found.get(NFULA_PAYLOAD, b""),
        number(found, NFULA_INDEV) or 0,
        number(found, NFULA_OUTDEV) or 0,
        number(found, NFULA_MARK) or 0,
        number(found, NFULA_SEQ),
    )


def link_name(index: int) -> str:
    """Name of an interface; "" where there is none of this number any more."""
    with contextlib.suppress(OSError):
        return socket.if_indextoname(index) if index else ""
    return ""
