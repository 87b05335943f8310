"""ipBlock arithmetic: networks minus excepts, united, as disjoint ranges of addresses.

Computed here so that the kernel's interval sets are never asked to merge anything.
"""

import ipaddress
from collections.abc import Iterable

from netagent.core.policy.meaning import BlockPeer

Range = tuple[int, int]
"""First and last address as integers, both included."""


def united(ranges: Iterable[Range]) -> list[Range]:
    """The same addresses as disjoint, ascending ranges that do not touch each other."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def without(whole: Range, holes: Iterable[Range]) -> list[Range]:
    """The range minus the holes."""
    rest: list[Range] = []
    start, end = whole
    for first, last in united(holes):
        if first > end or last < start:
            continue
        if first > start:
            rest.append((start, first - 1))
        start = last + 1
    if start <= end:
        rest.append((start, end))
    return rest


def block_ranges(blocks: Iterable[BlockPeer], version: int) -> list[Range]:
    """All addresses of one IP version that any of the blocks holds."""
    return united(part for block in blocks for part in _one(block, version))


def range_text(part: Range, version: int) -> str:
    """`10.0.0.0-10.0.0.255` or a single address, as nft reads it."""
    address = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    first, last = part
    return str(address(first)) if first == last else f"{address(first)}-{address(last)}"


def holds(block: BlockPeer, address: str) -> bool:
    """Whether the block holds an address."""
    ip = ipaddress.ip_address(address)
    network = ipaddress.ip_network(block.cidr)
    return ip in network and not any(ip in ipaddress.ip_network(text) for text in block.excepts)


def _one(block: BlockPeer, version: int) -> list[Range]:
    network = ipaddress.ip_network(block.cidr)
    if network.version != version:
        return []
    return without(_bounds(network), (_bounds(ipaddress.ip_network(text)) for text in block.excepts))


def _bounds(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Range:
    return int(network.network_address), int(network.broadcast_address)
