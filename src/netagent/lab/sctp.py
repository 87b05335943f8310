"""SCTP associations over raw sockets: as much of the protocol as it takes to establish one and get an answer.

The kernels of many machines have no SCTP sockets, while conntrack and nftables know the protocol; so policies on SCTP
ports are tried with packets all the same. Source: RFC 9260, with the checksum of its appendix A.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Iterator

from msgspec import Struct

PROTOCOL = 132
DATA, INIT, INIT_ACK, ABORT, COOKIE_ECHO, COOKIE_ACK = 0, 1, 2, 6, 10, 11
WHOLE_MESSAGE = 3
"""Flags of a DATA chunk that is not a fragment."""
STATE_COOKIE = 7
TAGS = struct.Struct("!II")
"""A cookie: the client's tag, the server's."""
SENDS = 3
"""Times that a packet is sent within the timeout."""


class AbortedError(ConnectionRefusedError):
    """The peer does not want the association."""


class Chunk(Struct, frozen=True):
    """One chunk of a packet."""

    kind: int
    body: bytes = b""
    flags: int = 0


class Packet(Struct, frozen=True):
    """The chunks between two ports."""

    source_port: int
    port: int
    tag: int
    """Verification tag."""
    chunks: tuple[Chunk, ...]

    def encoded(self) -> bytes:
        """Without IP header."""
        content = struct.pack("!HHII", self.source_port, self.port, self.tag, 0)
        for chunk in self.chunks:
            content += struct.pack("!BBH", chunk.kind, chunk.flags, 4 + len(chunk.body)) + chunk.body
            content += bytes(-len(content) % 4)
        return content[:8] + struct.pack("<I", crc32c(content)) + content[12:]


def decode(content: bytes) -> Packet:
    """A packet without IP header. Raises ValueError."""
    if len(content) < 12:
        raise ValueError("shorter than an SCTP header")
    source_port, port, tag, _ = struct.unpack_from("!HHII", content)
    return Packet(source_port, port, tag, tuple(_chunks(content[12:])))


def _chunks(content: bytes) -> Iterator[Chunk]:
    while content:
        if len(content) < 4:
            raise ValueError("cut off in a chunk's header")
        kind, flags, length = struct.unpack_from("!BBH", content)
        if not 4 <= length <= len(content):
            raise ValueError("a chunk is longer than its packet")
        yield Chunk(kind, content[4:length], flags)
        content = content[length + -length % 4 :]


def init(tag: int, kind: int = INIT, parameters: bytes = b"") -> Chunk:
    """INIT or INIT ACK with one stream each way."""
    return Chunk(kind, struct.pack("!IIHHI", tag, 65536, 1, 1, tag) + parameters)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def without_ip(packet: bytes, family: int) -> bytes:
    """What a raw socket read, less the header that those of IPv4 show."""
    return packet[(packet[0] & 15) * 4 :] if family == socket.AF_INET and packet else packet


class Responder:
    """Whoever establishes an association on one of the ports gets the name as its first message; others an ABORT."""

    def __init__(self, name: str, ports: frozenset[int], sock: socket.socket) -> None:
        """`sock`: a non-blocking raw socket, which is closed with this."""
        self._line = name.encode() + b"\n"
        self._ports = ports
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._read)

    def close(self) -> None:
        """Answer nobody any more."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            content, sender = self._sock.recvfrom(2048)
            packet = decode(without_ip(content, self._sock.family))
            answer = self._answer(packet.chunks[0], packet.port) if packet.chunks else None
            if answer is not None:
                tag, chunks = answer
                self._sock.sendto(Packet(packet.port, packet.source_port, tag, chunks).encoded(), (sender[0], 0))

    def _answer(self, chunk: Chunk, port: int) -> tuple[int, tuple[Chunk, ...]] | None:
        """Verification tag and chunks. All state is in the cookie."""
        if chunk.kind == INIT and len(chunk.body) >= 16:
            (tag,) = struct.unpack_from("!I", chunk.body)
            if port not in self._ports:
                return tag, (Chunk(ABORT),)
            own = _new_tag()
            cookie = struct.pack("!HH", STATE_COOKIE, 4 + TAGS.size) + TAGS.pack(tag, own)
            return tag, (init(own, INIT_ACK, cookie),)
        if chunk.kind == COOKIE_ECHO and len(chunk.body) == TAGS.size and port in self._ports:
            tag, own = TAGS.unpack(chunk.body)
            message = struct.pack("!IHHI", own, 0, 0, 0) + self._line
            return tag, (Chunk(COOKIE_ACK), Chunk(DATA, message, WHOLE_MESSAGE))
        return None


class Client:
    """One association; use it once."""

    def __init__(self, sock: socket.socket, ip: str, port: int) -> None:
        """`sock`: a non-blocking raw socket in the source's namespace."""
        self._sock = sock
        self._to = (ip, 0)
        self._port = port
        self._own_port = 1024 + secrets.randbelow(64000)
        self._own_tag, self._tag = _new_tag(), 0

    async def first_message(self, timeout_s: float) -> bytes:
        """Establish the association, wait for what the server says, abort. Raises TimeoutError, OSError."""
        reply = await self._exchange(init(self._own_tag), 0, INIT_ACK, timeout_s)
        (self._tag,) = struct.unpack_from("!I", reply.body)
        established = await self._exchange(Chunk(COOKIE_ECHO, _cookie(reply.body)), self._tag, DATA, timeout_s)
        await self._send(Chunk(ABORT), self._tag)
        return established.body[12:]

    async def _exchange(self, chunk: Chunk, tag: int, wanted: int, timeout_s: float) -> Chunk:
        for _ in range(SENDS):
            await self._send(chunk, tag)
            try:
                async with asyncio.timeout(timeout_s / SENDS):
                    return await self._receive(wanted)
            except TimeoutError:
                continue
        raise TimeoutError

    async def _send(self, chunk: Chunk, tag: int) -> None:
        packet = Packet(self._own_port, self._port, tag, (chunk,)).encoded()
        await asyncio.get_running_loop().sock_sendto(self._sock, packet, self._to)

    async def _receive(self, wanted: int) -> Chunk:
        """The raw socket sees the SCTP packets of everybody in its namespace."""
        loop = asyncio.get_running_loop()
        while True:
            content, _ = await loop.sock_recvfrom(self._sock, 2048)
            try:
                packet = decode(without_ip(content, self._sock.family))
            except ValueError:
                continue
            ours = (packet.source_port, packet.port, packet.tag) == (self._port, self._own_port, self._own_tag)
            for chunk in packet.chunks if ours else ():
                if chunk.kind == ABORT:
                    raise AbortedError(111, os.strerror(111))
                if chunk.kind == wanted:
                    return chunk


def _cookie(body: bytes) -> bytes:
    """State cookie among the parameters of an INIT ACK. Raises ConnectionError."""
    at = 16
    while at + 4 <= len(body):
        kind, length = struct.unpack_from("!HH", body, at)
        if kind == STATE_COOKIE:
            return body[at + 4 : at + length]
        at += max(4, length + -length % 4)
    raise ConnectionError("INIT ACK without a cookie")


def _new_tag() -> int:
    return 1 + secrets.randbelow(0xFFFFFFFF)
