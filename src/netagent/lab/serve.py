"""What listens in pods, nodes and externals: servers that say their name and echo what they get."""

import asyncio
import socket
from collections.abc import Iterable
from typing import cast

from netagent.lab import sctp
from netagent.lab.namespaces import Sockets
from netagent.lab.plan import Serving

ANY = ("::",)
"""Every address of both families."""


class Greeter(asyncio.Protocol):
    """A TCP connection: the name in a line of its own, then whatever the client sends."""

    def __init__(self, name: str) -> None:
        self._line = name.encode() + b"\n"
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._line)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


class Answerer(asyncio.DatagramProtocol):
    """UDP: the name in a line of its own, then the datagram's content."""

    def __init__(self, name: str) -> None:
        self._line = name.encode() + b"\n"
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(self._line + data, addr)


class Servers:
    """The open servers of one endpoint."""

    def __init__(self) -> None:
        self._tcp: list[asyncio.Server] = []
        self._datagrams: list[asyncio.BaseTransport | sctp.Responder] = []

    async def open(
        self, sockets: Sockets, netns: int, name: str, servings: Iterable[Serving], addresses: tuple[str, ...] = ANY
    ) -> None:
        """Listen on each port at each address. Name addresses where there are several, or UDP answers from another.

        Raises OSError; then nothing of it is open.
        """
        loop = asyncio.get_running_loop()
        servings = tuple(servings)
        try:
            await self._open_sctp(sockets, netns, name, servings, addresses)
            for serving in servings:
                for address in addresses:
                    if serving.protocol == "TCP":
                        sock = await sockets.listen(netns, (address, serving.port))
                        self._tcp.append(await loop.create_server(lambda: Greeter(name), sock=sock, backlog=512))
                    elif serving.protocol == "UDP":
                        sock = await sockets.listen(netns, (address, serving.port), socket.SOCK_DGRAM)
                        transport, _ = await loop.create_datagram_endpoint(lambda: Answerer(name), sock=sock)
                        self._datagrams.append(transport)
        except OSError:
            self.close()
            raise

    async def _open_sctp(
        self, sockets: Sockets, netns: int, name: str, servings: tuple[Serving, ...], addresses: tuple[str, ...]
    ) -> None:
        """A raw socket hears all ports of its address."""
        ports = frozenset(serving.port for serving in servings if serving.protocol == "SCTP")
        for address in (("0.0.0.0", "::") if addresses == ANY else addresses) if ports else ():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            (sock,) = await sockets.open(netns, family, socket.SOCK_RAW, protocol=sctp.PROTOCOL)
            sock.bind((address, 0))
            self._datagrams.append(sctp.Responder(name, ports, sock))

    def close(self) -> None:
        """Stop listening."""
        for server in self._tcp:
            server.close()
        for transport in self._datagrams:
            transport.close()
        self._tcp.clear()
        self._datagrams.clear()
