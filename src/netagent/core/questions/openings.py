"""Which ports are open between two ends, as sets that can be united, cut with each other and written for people."""

from collections.abc import Iterable

from msgspec import Struct

from netagent.core.policy.intervals import Range, united
from netagent.core.policy.meaning import PROTOCOLS
from netagent.core.questions.parties import ICMP

PORTS_FIRST, PORTS_LAST = 1, 65535
RANGES_NAMED = 6
"""Longest list of ports of one protocol in a text."""


class Openings(Struct, frozen=True, gc=False):
    """Ports by protocol, and whether ICMP passes."""

    ports: tuple[tuple[Range, ...], ...]
    """Of PROTOCOLS, in their order; disjoint, ascending, both ends included."""
    icmp: bool

    def holds(self, protocol: str, port: int | None) -> bool:
        """Whether a connection may be opened."""
        if protocol == ICMP:
            return self.icmp
        ranges = self.ports[PROTOCOLS.index(protocol)]
        return port is not None and any(first <= port <= last for first, last in ranges)

    def example(self) -> tuple[str, int | None] | None:
        """A protocol and port that are open; None where nothing is."""
        for protocol, ranges in zip(PROTOCOLS, self.ports, strict=True):
            if ranges:
                return protocol, ranges[0][0]
        return (ICMP, None) if self.icmp else None

    def __str__(self) -> str:
        """`all`, `none` or e.g. `TCP 80,443; UDP 53; ICMP`."""
        if self in (EVERYTHING, NOTHING):
            return "all" if self == EVERYTHING else "none"
        parts = [_text(*one) for one in zip(PROTOCOLS, self.ports, strict=True) if one[1]]
        return "; ".join([*parts, ICMP] if self.icmp else parts)


EVERY_PORT: tuple[Range, ...] = ((PORTS_FIRST, PORTS_LAST),)
NOTHING = Openings(((),) * len(PROTOCOLS), False)
EVERYTHING = Openings((EVERY_PORT,) * len(PROTOCOLS), True)


def openings(ranges: Iterable[tuple[str, Range]], *, icmp: bool = False) -> Openings:
    """From (protocol, ports); port 0 is none."""
    by_protocol: dict[str, list[Range]] = {protocol: [] for protocol in PROTOCOLS}
    for protocol, (first, last) in ranges:
        if last >= PORTS_FIRST:
            by_protocol[protocol].append((max(first, PORTS_FIRST), last))
    return Openings(tuple(tuple(united(one)) for one in by_protocol.values()), icmp)


def either(several: Iterable[Openings]) -> Openings:
    """What any of them opens."""
    found = list(several)
    if len(found) <= 1:
        return found[0] if found else NOTHING
    if EVERYTHING in found:
        return EVERYTHING
    ports = tuple(
        tuple(united(part for one in found for part in one.ports[number])) for number in range(len(PROTOCOLS))
    )
    return Openings(ports, any(one.icmp for one in found))


def both(one: Openings, other: Openings) -> Openings:
    """What each of the two opens."""
    if one is EVERYTHING or other is EVERYTHING:
        return other if one is EVERYTHING else one
    ports = tuple(_common(*pair) for pair in zip(one.ports, other.ports, strict=True))
    return Openings(ports, one.icmp and other.icmp)


def _common(one: tuple[Range, ...], other: tuple[Range, ...]) -> tuple[Range, ...]:
    found = []
    at, beside = 0, 0
    while at < len(one) and beside < len(other):
        first, last = max(one[at][0], other[beside][0]), min(one[at][1], other[beside][1])
        if first <= last:
            found.append((first, last))
        if one[at][1] < other[beside][1]:
            at += 1
        else:
            beside += 1
    return tuple(found)


def _text(protocol: str, ranges: tuple[Range, ...]) -> str:
    if ranges == EVERY_PORT:
        return protocol
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:RANGES_NAMED]]
    more = len(ranges) - RANGES_NAMED
    return f"{protocol} {','.join(texts)}" + (f" and {more} more" if more > 0 else "")
