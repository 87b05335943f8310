"""Which link carries the packets between nodes, which of its addresses peers send to, and which peers are next door.

The link is chosen by the first of these that is set, and by no other:

1. the node's own annotation, where it names an address of one of its links
2. network.interface, the link's name
3. network.interface_regex, found in the name of a link or, if in none, in an address of one
4. network.interface_cidr, which holds an address of a link
5. network.can_reach, an address to which the kernel has a route over the link
6. the Node object's InternalIPs, in their order
7. the default route, IPv4 first
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from netagent.config import NetworkConfig
from netagent.core.network.podnet import OVERHEAD_BYTES

IPV6_MIN_MTU_BYTES = 1280
"""RFC 8200: a link with less carries no IPv6."""
PUBLIC_IP_ANNOTATION = {4: "netagent.io/public-ip", 6: "netagent.io/public-ipv6"}
"""On the Node object, by family: the address that peers shall use for this node."""
POD_LINK = re.compile(r"nap[0-9a-f]{12}")
"""Node ends of pods' links never carry packets between nodes."""


class Interface(Struct, frozen=True, gc=False, kw_only=True):
    """A link of the node as the choice needs it."""

    index: int
    name: str
    mtu: int
    """Bytes."""
    loopback: bool = False
    up: bool = True
    """Administratively."""
    addresses: tuple[str, ...] = ()
    """Addresses of global scope; lasting ones first, otherwise in the kernel's order."""


class Way(NamedTuple):
    """Where the kernel sends packets to some address."""

    ifindex: int
    source: str
    """The address that they carry as their source; "" where the kernel does not say."""


class LinkRoute(NamedTuple):
    """A unicast route of the main table over one link."""

    network: str
    """Canonical CIDR."""
    connected: bool
    """Without a next hop: its addresses are on the link."""

    def holds(self, address: str) -> bool:
        """Whether it is a route to the address."""
        return ipaddress.ip_address(address) in ipaddress.ip_network(self.network)


class Wish(Struct, frozen=True, kw_only=True):
    """What decides about the link, from configuration and API."""

    config: NetworkConfig
    node_addresses: tuple[str, ...] = ()
    """The Node object's InternalIPs."""
    overrides: Mapping[int, str] = {}
    """Addresses from the Node's annotations by family, as text of unknown validity."""


class Underlay(Struct, frozen=True, gc=False, kw_only=True):
    """The link below the pod network."""

    interface: Interface
    addresses: tuple[tuple[int, str], ...]
    """(family, address of the link) from which this node sends; a family without an address is left out."""

    def address(self, family: int) -> str:
        """ "" where the link has no address of the family."""
        return dict(self.addresses).get(family, "")


def public_ip_overrides(annotations: Mapping[str, str]) -> dict[int, str]:
    """The annotations' texts by family."""
    return {family: annotations[name] for family, name in PUBLIC_IP_ANNOTATION.items() if annotations.get(name)}


def check_overrides(overrides: Mapping[int, str]) -> tuple[dict[int, str], list[str]]:
    """The usable ones in canonical text, and why the others are not."""
    usable: dict[int, str] = {}
    problems: list[str] = []
    for family, text in overrides.items():
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            address = None
        if (
            address is None
            or "%" in text
            or address.version != family
            or address.is_multicast
            or address.is_loopback
            or address.is_unspecified
            or address.is_link_local
        ):
            problems.append(
                f"the Node's annotation for its public IPv{family} address is {text!r}: no unicast address of it. "
                "It is ignored; put it right."
            )
        else:
            usable[family] = str(address)
    return usable, problems


def choose_underlay(
    interfaces: Iterable[Interface], wish: Wish, *, default: Way | None = None, reach: Way | None = None
) -> Underlay | str:
    """The link and its addresses, or the reason why there is none.

    `default` is the way of the default route, `reach` the way to network.can_reach.
    """
    links = [link for link in interfaces if not link.loopback and not POD_LINK.fullmatch(link.name)]
    config = wish.config
    overrides = tuple(check_overrides(wish.overrides)[0].values())
    preferred = (*overrides, *wish.node_addresses)
    if found := _with_one_of(links, overrides):
        option = ""
    elif config.interface:
        option = f"interface = {config.interface!r}"
        found = next((link for link in links if link.name == config.interface), None)
    elif config.interface_regex:
        option = f"interface_regex = {config.interface_regex!r}"
        found = _matching(links, config.interface_regex)
    elif config.interface_cidr:
        option = f"interface_cidr = {', '.join(config.interface_cidr)}"
        held = _within(links, config.interface_cidr)
        found, preferred = _with_one_of(links, held), (*overrides, *held)
    elif config.can_reach:
        option = f"can_reach = {config.can_reach!r}"
        found = next((link for link in links if reach and link.index == reach.ifindex), None)
        preferred = (*overrides, reach.source if reach else "", *wish.node_addresses)
    else:
        option = ""
        found = _by_itself(links, wish, default)
    return _underlay(found, preferred) if found else _none(option, links, wish)


def may_be_chosen(config: NetworkConfig, text: str) -> bool:
    """Whether a link that comes with this name or address may be one that the options ask for."""
    if config.interface:
        return text == config.interface
    if config.interface_regex:
        return re.search(config.interface_regex, text) is not None
    try:
        return _in_one_of(text, [ipaddress.ip_network(cidr) for cidr in config.interface_cidr])
    except ValueError:  # a name
        return False


class Neighbourhood:
    """The networks that the underlay is on, by its routes: the longest match decides, as in the kernel."""

    def __init__(self, routes: Iterable[LinkRoute] = ()) -> None:
        parsed = ((ipaddress.ip_network(route.network), route.connected) for route in set(routes))
        self._routes = sorted(parsed, key=lambda route: (-route[0].prefixlen, not route[1]))
        self._known = frozenset((str(network), connected) for network, connected in self._routes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Neighbourhood) and self._known == other._known

    def __hash__(self) -> int:
        return hash(self._known)

    def __contains__(self, address: str) -> bool:
        """Whether packets to the address need no router."""
        wanted = ipaddress.ip_address(address)
        for network, connected in self._routes:
            if network.version == wanted.version and wanted in network:
                return connected
        return False

    def changes_with(self, route: LinkRoute, *, present: bool) -> bool:
        """Whether the coming (or going) of a route over the link changes the answer for any address."""
        if present == ((route.network, route.connected) in self._known):
            return False
        network = ipaddress.ip_network(route.network)
        # A route with a next hop counts only as the exception within a network that we are on.
        return route.connected or any(
            connected and near.version == network.version and network.subnet_of(near)  # type: ignore[arg-type]
            for near, connected in self._routes
        )


def pod_mtu(underlay_mtu: int, families: Collection[int], wanted: int, *, tunnels: bool = True) -> tuple[int, str]:
    """MTU of pods and tunnels in bytes, and a problem where the wanted one does not do (0: no wish)."""
    largest = underlay_mtu - (max(OVERHEAD_BYTES[family] for family in families) if tunnels else 0)
    mtu, problem = wanted or largest, ""
    if mtu > largest:
        problem = f"network.mtu = {wanted} does not fit the underlay's {underlay_mtu}: {largest} is used."
        mtu = largest
    if 6 in families and mtu < IPV6_MIN_MTU_BYTES:
        problem = f"MTU {mtu} carries no IPv6 (at least {IPV6_MIN_MTU_BYTES}): raise the underlay's {underlay_mtu}."
    return mtu, problem


def _by_itself(links: Sequence[Interface], wish: Wish, default: Way | None) -> Interface | None:
    by_default = (link for link in links if default and link.index == default.ifindex)
    return _with_one_of(links, wish.node_addresses) or next(by_default, None)


def _within(links: Sequence[Interface], cidrs: Iterable[str]) -> list[str]:
    """The links' addresses in the networks, in the links' order."""
    networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
    return [address for link in links for address in link.addresses if _in_one_of(address, networks)]


def _with_one_of(links: Sequence[Interface], addresses: Iterable[str]) -> Interface | None:
    """The link with the first of the addresses that any link has."""
    return next((link for address in addresses for link in links if address in link.addresses), None)


def _matching(links: Sequence[Interface], pattern: str) -> Interface | None:
    usable = [link for link in links if link.addresses]
    by_name = (link for link in usable if re.search(pattern, link.name))
    return next(by_name, None) or next(
        (link for link in usable if any(re.search(pattern, address) for address in link.addresses)), None
    )


def _in_one_of(address: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in network for network in networks)


def _none(option: str, links: Iterable[Interface], wish: Wish) -> str:
    if option:
        return (
            f"network.{option}: no such interface. Routes to other nodes stay as they are; "
            f"this node has: {', '.join(sorted(link.name for link in links)) or 'none'}."
        )
    return (
        f"no interface carries an InternalIP of this node ({', '.join(wish.node_addresses) or 'it has none yet'}) "
        "and there is no default route. Routes to other nodes stay as they are; set network.interface."
    )


def _underlay(link: Interface, preferred: Iterable[str]) -> Underlay:
    found: dict[int, str] = {}
    # What somebody named comes first, in its order; then what the link has.
    for address in (*(address for address in preferred if address in link.addresses), *link.addresses):
        found.setdefault(ipaddress.ip_address(address).version, address)
    return Underlay(interface=link, addresses=tuple(sorted(found.items())))
