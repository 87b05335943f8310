"""Who has which pod address: one pool of addresses in memory, over all subnets this node has had.

Fresh addresses are handed out in ascending order. A freed address goes to the end of a queue and is used again only
when its subnet has no fresh one left, the one freed longest ago first. An address outside the present subnets (the
node held another subnet before) stays taken until it is freed.

Never handed out: an IPv4 subnet's network address (the VTEP's) and broadcast, an IPv6 subnet's ::0.
"""

import ipaddress
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache

from netagent.core.addresses import parse_address
from netagent.ports import NetagentError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_FRESH = 1 << 16
"""Only the first 65,536 addresses of a subnet are handed out unasked. It bounds the queue of freed addresses (about
10 MB) where an IPv6 subnet has 2^64 of them; no node runs more pods."""


class IpamError(NetagentError):
    """No address was allocated."""


class SubnetFullError(IpamError):
    """Every address of the subnet is taken; it passes when pods go."""


class AddressRefusedError(IpamError):
    """The requested address cannot be given."""


class Pool:
    """Addresses (canonical text) and their owners (any text that names one pod interface)."""

    def __init__(self, taken: Mapping[str, str] | None = None, freed: Iterable[str] = ()) -> None:
        """`freed`: oldest first; addresses that are also taken are skipped."""
        self._taken: dict[str, str] = dict(taken or {})
        self._freed: dict[str, None] = {}
        self._cursors: dict[str, int] = {}
        for ip in freed:
            if ip not in self._taken:
                self._freed.pop(ip, None)
                self._freed[ip] = None

    def allocate(
        self, subnets: Iterable[str], owner: str, requested: Iterable[str] = (), *, others: Container[str] = ()
    ) -> tuple[str, ...]:
        """One address from each subnet, all of them or none, IPv4 first.

        `requested` (canonical text, at most one per family) replaces the pool's own choice; `others` are addresses that
        somebody else has given out. Raises SubnetFullError or AddressRefusedError.
        """
        networks = sorted((_network(text) for text in subnets), key=lambda network: network.version)
        wishes = _wishes(requested, networks)
        chosen: list[str] = []
        for network in networks:
            wish = wishes.get(network.version)
            chosen.append(self._next(network, others) if wish is None else self._grant(wish, network, owner, others))
        for ip in chosen:
            self._freed.pop(ip, None)
            self._taken[ip] = owner
        return tuple(chosen)

    def release(self, owner: str) -> tuple[str, ...]:
        """Free all addresses of an owner; they go to the end of the queue. Returns them."""
        ips = self.addresses_of(owner)
        for ip in ips:
            del self._taken[ip]
            self._freed[ip] = None
        return ips

    def addresses_of(self, owner: str) -> tuple[str, ...]:
        return tuple(ip for ip, other in self._taken.items() if other == owner)

    @property
    def taken(self) -> Mapping[str, str]:
        """Address -> owner."""
        return self._taken

    @property
    def freed(self) -> tuple[str, ...]:
        """Freed addresses, oldest first."""
        return tuple(self._freed)

    def _next(self, network: Network, others: Container[str]) -> str:
        first, last = _fresh_range(network)
        cursor = self._cursors.get(str(network), first)
        while cursor <= last:
            ip = str(network.network_address + cursor)
            if self._is_fresh(ip, others):
                self._cursors[str(network)] = cursor
                return ip
            cursor += 1
        self._cursors[str(network)] = cursor
        for ip in self._freed:
            if ip not in others and ipaddress.ip_address(ip) in network:
                return ip
        # What was others' when the cursor passed may be free by now.
        for offset in range(first, last + 1):
            if self._is_fresh(ip := str(network.network_address + offset), others):
                return ip
        count = sum(1 for ip in self._taken if ipaddress.ip_address(ip) in network)
        raise SubnetFullError(
            f"subnet {network} is full: all of its {count} addresses are taken. The pod has none; it gets one when "
            f"another pod of this node goes, or on a node with a free one."
        )

    def _is_fresh(self, ip: str, others: Container[str]) -> bool:
        return ip not in self._taken and ip not in self._freed and ip not in others

    def _grant(self, ip: str, network: Network, owner: str, others: Container[str]) -> str:
        address = ipaddress.ip_address(ip)
        if address not in network:
            raise AddressRefusedError(f"requested address {ip} is outside this node's subnet {network}.")
        if address == network.network_address or (network.version == 4 and address == network.broadcast_address):
            raise AddressRefusedError(f"requested address {ip} is reserved in subnet {network}.")
        if ip in self._taken:
            raise AddressRefusedError(f"requested address {ip} is taken by {self._taken[ip]}; {owner} cannot have it.")
        if ip in others:
            raise AddressRefusedError(
                f"requested address {ip} is a pod's of another plugin or node; {owner} cannot have it."
            )
        return ip


def first_address(subnet: str) -> str:
    """The first usable address: where a bridge plugin has the pods' gateway."""
    return str(_network(subnet).network_address + 1)


def canonical(text: str) -> str:
    """An address as `ipaddress` prints it; a prefix length after "/" is ignored. Raises AddressRefusedError."""
    try:
        return str(parse_address(text.partition("/")[0]))
    except ValueError as error:
        raise AddressRefusedError(f"requested address: {error}.") from None


def _wishes(requested: Iterable[str], networks: list[Network]) -> dict[int, str]:
    wishes: dict[int, str] = {}
    for ip in requested:
        version = ipaddress.ip_address(ip).version
        if version in wishes:
            raise AddressRefusedError(f"requested addresses {wishes[version]} and {ip}: at most one of a family.")
        if all(network.version != version for network in networks):
            raise AddressRefusedError(f"requested address {ip}: this node has no IPv{version} subnet.")
        wishes[version] = ip
    return wishes


def _fresh_range(network: Network) -> tuple[int, int]:
    """First and last offset from the network address that is handed out unasked."""
    last = network.num_addresses - (2 if network.version == 4 else 1)
    return 1, min(last, MAX_FRESH)


@lru_cache(maxsize=64)
def _network(text: str) -> Network:
    return ipaddress.ip_network(text)


def valid_addresses(lines: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Canonical addresses among the lines, and the lines that are none."""
    good: list[str] = []
    bad: list[str] = []
    for line in lines:
        try:
            good.append(str(parse_address(line)))
        except ValueError:
            bad.append(line)
    return tuple(good), tuple(bad)
