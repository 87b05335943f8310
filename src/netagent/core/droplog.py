"""A denied packet in words: its headers, its two ends, the policies that isolate.

The bytes come from pods and from anywhere else: every length is checked, extension headers are followed only so far,
and what is cut off or a later fragment has no ports.
"""

import ipaddress
from collections.abc import Callable, Container
from typing import Any

from msgspec import Struct

from netagent.core.policy.meaning import Direction
from netagent.ports import NetagentError
from netagent.records import Key

PROTOCOL_NAMES = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
WITH_PORTS = (6, 17, 132)
EXTENSIONS = (0, 43, 44, 51, 60)
"""IPv6: hop-by-hop, routing, fragment, authentication, destination options."""
EXTENSIONS_FOLLOWED = 8
FRAGMENT, AUTHENTICATION = 44, 51
POLICIES_NAMED = 8
"""Longest list of policies in the text of one line; the structured field has them all."""


class NotAPacketError(NetagentError):
    """The bytes do not start with an IP header."""


class DroppedPacket(Struct, frozen=True, gc=False):
    """What the headers say."""

    source: str
    destination: str
    protocol: str
    """TCP, UDP, SCTP, ICMP, ICMPv6 or the number as text."""
    source_port: int | None = None
    """None: the protocol has none, or they are not in these bytes."""
    port: int | None = None
    """Of the destination."""
    icmp_type: int | None = None

    def turned(self) -> "DroppedPacket":
        """The packet that this one answers."""
        return DroppedPacket(self.destination, self.source, self.protocol, self.port, self.source_port, self.icmp_type)


class Party(Struct, frozen=True, gc=False):
    """One end of a packet."""

    ip: str
    kind: str
    """pod, node or outside."""
    name: str = ""
    """namespace/name of a pod, name of a node."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.ip})" if self.name else f"{self.kind} {self.ip}"


class Drop(Struct, frozen=True, gc=False, kw_only=True):
    """One denied packet, resolved."""

    at_s: float
    """Seconds since the epoch."""
    reason: str
    """policy, unknown_pod, spoofed or unknown_vtep."""
    source: Party
    destination: Party
    packet: DroppedPacket
    """With the ends as they stand here."""
    direction: str = ""
    """ingress or egress: of the policies; "" where no policy denied it."""
    policies: tuple[Key, ...] = ()
    """Those that isolate the pod in this direction; none of them admits the packet."""
    answer: bool = False
    """The dropped packet was an answer: it went from destination to source."""
    interface: str = ""
    """Where it came in; only where that is what identifies the sender."""
    left_out: int = 0
    """Denied packets before this one that have no line."""

    @property
    def text(self) -> str:
        """The line, for people."""
        return "".join((self._flow(), "; ", self._why(), self._missing()))

    @property
    def fields(self) -> dict[str, Any]:
        """The line, for programs; absent fields are left out."""
        ends = {"source": self.source, "destination": self.destination}
        found: dict[str, Any] = {"reason": self.reason, "direction": self.direction}
        for end, party in ends.items():
            found |= {end: party.name, f"{end}_kind": party.kind, f"{end}_ip": party.ip}
        packet = self.packet
        found |= {"protocol": packet.protocol, "source_port": packet.source_port, "port": packet.port}
        found |= {"icmp_type": packet.icmp_type, "policies": [str(key) for key in self.policies]}
        found |= {"answer": self.answer, "interface": self.interface, "left_out": self.left_out}
        return {name: value for name, value in found.items() if value not in ("", None, [], False)}

    def _flow(self) -> str:
        packet = self.packet
        what = packet.protocol if packet.port is None else f"{packet.protocol} port {packet.port}"
        if packet.icmp_type is not None:
            what += f" type {packet.icmp_type}"
        verb = f"{self.direction} denied" if self.direction else "dropped"
        return f"{verb}: {self.source} to {self.destination}, {what}" + (", an answer" if self.answer else "")

    def _why(self) -> str:
        if self.reason == "policy":
            named = ", ".join(map(str, self.policies[:POLICIES_NAMED])) or "policies that are gone by now"
            more = len(self.policies) - POLICIES_NAMED
            return f"isolated by {named}" + (f" and {more} more" if more > 0 else "")
        return REASONS.get(self.reason, self.reason).format(interface=self.interface or "a pod's link")

    def _missing(self) -> str:
        return f"; {self.left_out} more left out before this one" if self.left_out else ""


REASONS = {
    "unknown_pod": "the API server has not shown the pod of this address",
    "spoofed": "not the address of the pod behind {interface}",
    "unknown_vtep": "VXLAN from an address that is no node's",
}
"""Reason of a fixed counter -> words."""


class TokenBucket:
    """At most `rate_per_s` on average, a second's worth at once."""

    def __init__(self, rate_per_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._size = max(1.0, rate_per_s)
        self._tokens = self._size
        self._at_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Whether there is a token; it is gone then."""
        if self._at_s is not None:
            self._tokens = min(self._size, self._tokens + max(0.0, now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def as_judged(packet: DroppedPacket, direction: Direction, isolated: Container[str]) -> tuple[DroppedPacket, bool]:
    """The flow as its policies judged it, and whether the packet was an answer in it.

    Both directions of a flow are judged as one: a packet from an isolated server, dropped by its ingress class, is an
    answer. `isolated` are the addresses of the class.
    """
    subject, other = packet.destination, packet.source
    if direction is Direction.EGRESS:
        subject, other = other, subject
    answer = subject not in isolated and other in isolated
    return (packet.turned() if answer else packet), answer


def resolve(ip: str, owner: Callable[[str], Key | None], nodes: Callable[[str], str]) -> Party:
    """Who an address is. `nodes` gives a node's name, or ""."""
    key = owner(ip)
    if key is not None:
        return Party(ip, "pod", str(key))
    name = nodes(ip)
    return Party(ip, "node", name) if name else Party(ip, "outside")


def parse(payload: bytes) -> DroppedPacket:
    """The headers of a packet, from its network header on. Raises NotAPacketError."""
    version = payload[0] >> 4 if payload else 0
    if version == 4 and len(payload) >= 20:
        return _parse4(payload)
    if version == 6 and len(payload) >= 40:
        return _parse6(payload)
    raise NotAPacketError(f"{len(payload)} bytes that are no IPv4 or IPv6 header.")


def _parse4(payload: bytes) -> DroppedPacket:
    header_bytes = (payload[0] & 0xF) * 4
    if header_bytes < 20:
        raise NotAPacketError(f"IPv4 header that says {header_bytes} bytes.")
    source, destination = (str(ipaddress.IPv4Address(payload[at : at + 4])) for at in (12, 16))
    later_fragment = int.from_bytes(payload[6:8], "big") & 0x1FFF
    rest = b"" if later_fragment else payload[header_bytes:]
    return _with_transport(source, destination, payload[9], rest)


def _parse6(payload: bytes) -> DroppedPacket:
    source, destination = (str(ipaddress.IPv6Address(payload[at : at + 16])) for at in (8, 24))
    protocol, rest = payload[6], payload[40:]
    for _ in range(EXTENSIONS_FOLLOWED):
        if protocol not in EXTENSIONS or len(rest) < 8:
            break
        later_fragment = protocol == FRAGMENT and int.from_bytes(rest[2:4], "big") >> 3
        length = {FRAGMENT: 8, AUTHENTICATION: (rest[1] + 2) * 4}.get(protocol, (rest[1] + 1) * 8)
        protocol, rest = rest[0], (b"" if later_fragment else rest[length:])
    return _with_transport(source, destination, protocol, rest)


def _with_transport(source: str, destination: str, protocol: int, rest: bytes) -> DroppedPacket:
    name = PROTOCOL_NAMES.get(protocol, str(protocol))
    if protocol in WITH_PORTS and len(rest) >= 4:
        ports = int.from_bytes(rest[:2], "big"), int.from_bytes(rest[2:4], "big")
        return DroppedPacket(source, destination, name, *ports)
    if name.startswith("ICMP") and rest:
        return DroppedPacket(source, destination, name, icmp_type=rest[0])
    return DroppedPacket(source, destination, name)
