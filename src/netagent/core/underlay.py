"""Which link carries the tunnels, and which of its addresses peers send to."""

import ipaddress
from collections.abc import Collection, Iterable

from msgspec import Struct

from netagent.core.podnet import OVERHEAD_BYTES

IPV6_MIN_MTU_BYTES = 1280
"""RFC 8200: a link with less carries no IPv6."""


class Interface(Struct, frozen=True, gc=False, kw_only=True):
    """A link of the node as the choice needs it."""

    index: int
    name: str
    mtu: int
    """Bytes."""
    loopback: bool = False
    addresses: tuple[str, ...] = ()
    """Addresses of global scope, in the kernel's order (primary ones first)."""


class Underlay(Struct, frozen=True, gc=False, kw_only=True):
    """The link below the tunnels."""

    interface: Interface
    public_ips: tuple[tuple[int, str], ...]
    """(family, address) where this node receives tunnelled packets; a family without an address is left out."""

    def public_ip(self, family: int) -> str:
        """ "" where the link has no address of the family."""
        return dict(self.public_ips).get(family, "")


def choose_underlay(
    interfaces: Iterable[Interface], *, wanted: str, node_addresses: Collection[str], default_index: int | None
) -> Underlay | str:
    """The link named `wanted`, else the one with an address of the Node object, else the default route's.

    Returns the reason where there is none.
    """
    links = [link for link in interfaces if not link.loopback]
    if wanted:
        named = next((link for link in links if link.name == wanted), None)
        if named is None:
            return (
                f"network.interface = {wanted!r}: no such interface. Routes to other nodes stay as they are; "
                f"this node has: {', '.join(sorted(link.name for link in links)) or 'none'}."
            )
        return _underlay(named, node_addresses)
    for address in node_addresses:
        for link in links:
            if address in link.addresses:
                return _underlay(link, node_addresses)
    for link in links:
        if link.index == default_index:
            return _underlay(link, node_addresses)
    return (
        f"no interface carries an InternalIP of this node ({', '.join(node_addresses) or 'it has none yet'}) "
        "and there is no default route. Routes to other nodes stay as they are; set network.interface."
    )


def _underlay(link: Interface, node_addresses: Collection[str]) -> Underlay:
    found: dict[int, str] = {}
    # The Node object's own addresses come first, in its order; then what the link has.
    for address in (*(address for address in node_addresses if address in link.addresses), *link.addresses):
        found.setdefault(ipaddress.ip_address(address).version, address)
    return Underlay(interface=link, public_ips=tuple(sorted(found.items())))


def pod_mtu(underlay_mtu: int, families: Collection[int], wanted: int) -> tuple[int, str]:
    """MTU of pods and tunnels in bytes, and a problem where the wanted one does not do (0: no wish)."""
    largest = underlay_mtu - max(OVERHEAD_BYTES[family] for family in families)
    mtu, problem = wanted or largest, ""
    if mtu > largest:
        problem = f"network.mtu = {wanted} does not fit the underlay's {underlay_mtu}: {largest} is used."
        mtu = largest
    if 6 in families and mtu < IPV6_MIN_MTU_BYTES:
        problem = f"MTU {mtu} carries no IPv6 (at least {IPV6_MIN_MTU_BYTES}): raise the underlay's {underlay_mtu}."
    return mtu, problem
