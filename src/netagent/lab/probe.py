"""Can this endpoint reach that one: one real connection, or thousands at a time.

Sockets are opened inside the source's network namespace and used from the caller's event loop, so a probe costs no
process and no thread of its own.
"""

import asyncio
import errno
import os
import socket
import struct
import time

from msgspec import Struct

from netagent.lab import sctp
from netagent.lab.namespaces import Sockets

TIMEOUT_S = 1.0
"""A first SYN that is lost comes again after 1 s; a UDP datagram is sent three times within the timeout."""
UDP_SENDS = 3
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that ends a connection by RST, so that thousands of probes leave no TIME-WAIT."""


class Verdict(Struct, frozen=True, kw_only=True):
    """What a probe found."""

    allowed: bool
    """TCP: connected and a byte came back. UDP: a datagram went and a reply came back. SCTP: associated, and a message
    came."""
    detail: str
    """answered, timeout, refused, unreachable, or another error's name."""
    answer: str = ""
    """Name of the endpoint that answered."""
    latency_ms: float
    """From the first packet to the answer, or to giving up."""


class Target(Struct, frozen=True, order=True):
    """Where a probe goes."""

    ip: str
    port: int
    protocol: str = "TCP"


async def probe(
    sockets: Sockets, source: int, target: Target, *, timeout_s: float = TIMEOUT_S, source_ip: str = ""
) -> Verdict:
    """Try once. `source`: file descriptor of a network namespace. `source_ip`: the address to come from, if it matters.

    Raises ValueError for a protocol that cannot be probed.
    """
    if target.protocol not in WAYS:
        raise ValueError(f"{target.protocol} cannot be probed; {', '.join(WAYS)} can")
    kind, number, exchange = WAYS[target.protocol]
    family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
    (sock,) = await sockets.open(source, family, kind, protocol=number)
    begin = time.monotonic()
    answer, detail = b"", "answered"
    try:
        if source_ip:
            sock.bind((source_ip, 0))
        async with asyncio.timeout(timeout_s):
            answer = await exchange(sock, target, timeout_s)
        detail = "answered" if answer else "closed"
    except TimeoutError:
        detail = "timeout"
    except OSError as error:
        detail = _error_name(error)
    finally:
        sock.close()
    name = answer.partition(b"\n")[0].decode(errors="replace")
    latency_ms = (time.monotonic() - begin) * 1e3
    return Verdict(allowed=bool(answer), detail=detail, answer=name, latency_ms=latency_ms)


async def _tcp(sock: socket.socket, target: Target, _timeout_s: float) -> bytes:
    loop = asyncio.get_running_loop()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    await loop.sock_connect(sock, (target.ip, target.port))
    return await loop.sock_recv(sock, 512)


async def _udp(sock: socket.socket, target: Target, timeout_s: float) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (target.ip, target.port))
    for _ in range(UDP_SENDS):
        await loop.sock_sendall(sock, b"?")
        try:
            async with asyncio.timeout(timeout_s / UDP_SENDS):
                return await loop.sock_recv(sock, 512)
        except TimeoutError:
            continue
    raise TimeoutError


async def _sctp(sock: socket.socket, target: Target, timeout_s: float) -> bytes:
    return await sctp.Client(sock, target.ip, target.port).first_message(timeout_s)


WAYS = {
    "TCP": (socket.SOCK_STREAM, 0, _tcp),
    "UDP": (socket.SOCK_DGRAM, 0, _udp),
    "SCTP": (socket.SOCK_RAW, sctp.PROTOCOL, _sctp),
}
"""Protocol -> kind and protocol number of the socket, how to get an answer."""


def _error_name(error: OSError) -> str:
    names = {
        errno.ECONNREFUSED: "refused",
        errno.ENETUNREACH: "unreachable",
        errno.EHOSTUNREACH: "unreachable",
        errno.EACCES: "prohibited",
        errno.EPERM: "prohibited",
        errno.ECONNRESET: "reset",
    }
    return names.get(error.errno or 0) or os.strerror(error.errno or 0)
