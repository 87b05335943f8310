"""Which source address does the other side see? Datagrams between network namespaces, multicast routed by a node."""

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from netagent.kernel.netns import run_in_netns

PORT = 7777
GROUPS = {4: "239.77.0.1", 6: "ff0e::77:1"}
PATIENCE_S = 10.0
RESEND_S = 0.3
ANYWHERE = {4: "0.0.0.0", 6: "::"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
MRT_INIT, MRT_ADD_VIF, MRT_ADD_MFC = 200, 202, 204
"""The same numbers for IPv6 (linux/mroute.h, linux/mroute6.h)."""
VIFF_USE_IFINDEX = 8


class Seen(Struct, frozen=True):
    """A datagram as its receiver saw it."""

    source: str
    port: int
    answered: bool
    """Whether the receiver's answer came back to the sender."""


def seen(src: int, dst: int, ip: str, *, bind: str = "", port: int = 0, group_if: str = "") -> Seen | None:
    """Send from one namespace (a descriptor) to an address in another; None where nothing arrives.

    `bind` and `port` are the sender's; `group_if` is the interface on both sides where `ip` is a multicast group.
    """
    version = 6 if ":" in ip else 4
    receiver = run_in_netns(dst, lambda: _receiver(version, ip, group_if))
    sender = run_in_netns(src, lambda: _sender(version, bind, port, group_if))
    with receiver, sender:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            sender.sendto(b"question", (ip, PORT))
            try:
                _, address = receiver.recvfrom(64)
                receiver.sendto(b"answer", address)
                break
            except TimeoutError:
                continue
        else:
            return None
        try:
            answered = sender.recv(64) == b"answer"
        except TimeoutError:
            answered = False
    return Seen(address[0], address[1], answered)


def _receiver(version: int, ip: str, group_if: str) -> socket.socket:
    sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    sock.settimeout(RESEND_S)
    if not group_if:
        sock.bind((ip, PORT))
        return sock
    index, group = socket.if_nametoindex(group_if), socket.inet_pton(FAMILY[version], ip)
    sock.bind((ANYWHERE[version], PORT))
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + struct.pack("=4xi", index))
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("=i", index))
    return sock


def _sender(version: int, bind: str, port: int, group_if: str) -> socket.socket:
    sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    sock.settimeout(5 * RESEND_S)
    sock.bind((bind or ANYWHERE[version], port))
    if group_if:
        index = socket.if_nametoindex(group_if)
        if version == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=8xi", index))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
    return sock


@contextmanager
def multicast_route(netns: int, version: int, origin: str, link_in: str, link_out: str) -> Iterator[None]:
    """While it lasts, the namespace routes the group from `origin`, which comes in on one link, out on another."""
    router = run_in_netns(netns, lambda: {4: _route_v4, 6: _route_v6}[version](origin, link_in, link_out))
    try:
        yield
    finally:
        router.close()


def _route_v4(origin: str, link_in: str, link_out: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
    sock.setsockopt(socket.IPPROTO_IP, MRT_INIT, 1)
    for number, link in enumerate((link_in, link_out)):
        interface = struct.pack("=HBBIi4s", number, VIFF_USE_IFINDEX, 1, 0, socket.if_nametoindex(link), bytes(4))
        sock.setsockopt(socket.IPPROTO_IP, MRT_ADD_VIF, interface)
    ttls = bytes((0, 1)) + bytes(30)
    entry = struct.pack("=4s4sH32sxxIIIi", socket.inet_aton(origin), socket.inet_aton(GROUPS[4]), 0, ttls, 0, 0, 0, 0)
    sock.setsockopt(socket.IPPROTO_IP, MRT_ADD_MFC, entry)
    return sock


def _route_v6(origin: str, link_in: str, link_out: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    sock.setsockopt(socket.IPPROTO_IPV6, MRT_INIT, 1)
    for number, link in enumerate((link_in, link_out)):
        interface = struct.pack("=HBBHxxI", number, 0, 1, socket.if_nametoindex(link), 0)
        sock.setsockopt(socket.IPPROTO_IPV6, MRT_ADD_VIF, interface)
    entry = _sockaddr_in6(origin) + _sockaddr_in6(GROUPS[6]) + struct.pack("=Hxx8I", 0, 1 << 1, *[0] * 7)
    sock.setsockopt(socket.IPPROTO_IPV6, MRT_ADD_MFC, entry)
    return sock


def _sockaddr_in6(ip: str) -> bytes:
    return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, ip), 0)


def route_device(netns: int, ip: str) -> str:
    """The link over which a namespace reaches an address."""
    words = _in(netns, lambda: _output("ip", "route", "get", ip)).split()
    return words[words.index("dev") + 1]


def run_in(netns: int, *command: str) -> str:
    """Run a command in a namespace; its output."""
    return _in(netns, lambda: _output(*command))


def _in(netns: int, work: Callable[[], str]) -> str:
    return run_in_netns(netns, work)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
