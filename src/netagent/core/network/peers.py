"""Peers out of leases: which of them can be trusted with an entry in the kernel, kept up to date change by change.

The result depends on the leases alone, never on the order in which they came: of two peers that claim one MAC with
different public IPs, or one next hop with different MACs, the one whose subnet sorts first is taken and the other
reported.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping

from msgspec import Struct

from netagent.core.network.podnet import Entries, Key, direct_entries, tunnel_entries
from netagent.core.network.underlay import Neighbourhood
from netagent.records import SubnetLease

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
ZERO_MAC = "00:00:00:00:00:00"

BACKENDS = ("vxlan", "host-gw")
"""A lease that names none is read as vxlan."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Self(Struct, frozen=True, gc=False, kw_only=True):
    """This node, as far as peers must not claim what is its own."""

    node_name: str
    devices: Mapping[int, str]
    """vxlan device by family ("": this node has no tunnels); a family that is not in here has no peers."""
    pools: tuple[str, ...]
    subnets: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    public_ips: tuple[str, ...] = ()
    direct_routing: bool = False
    """Plain routes to vxlan peers on the same network."""
    underlay: int = 0
    """ifindex."""
    neighbourhood: Neighbourhood = Neighbourhood()


class Peer(Struct, frozen=True, gc=False):
    """Another node's subnet and the way to it."""

    family: int
    subnet: str
    mac: str
    """"" where a plain route leads there."""
    public_ip: str

    @property
    def claims(self) -> tuple[tuple[str, str], ...]:
        """What only one answer can be true of: (subject, answer)."""
        if not self.mac:
            return ()
        gateway = self.subnet.partition("/")[0]
        return ((f"{self.family} MAC {self.mac}", self.public_ip), (f"next hop {gateway}", self.mac))


class PeerTable:
    """The peers' entries. `update` costs the leases that changed, plus one identity comparison for each other one."""

    def __init__(self, node: Self) -> None:
        self._self = node
        self._pools: tuple[Network, ...] = tuple(ipaddress.ip_network(pool) for pool in node.pools)
        self._own: tuple[Network, ...] = tuple(ipaddress.ip_network(subnet) for subnet in node.subnets)
        self._leases: dict[str, SubnetLease] = {}
        self._peers: dict[str, Peer] = {}
        self._claimants: dict[str, dict[str, str]] = {}
        """Subject of a claim -> subnet of each claimant -> its answer."""
        self._unreadable: dict[str, str] = {}
        self._outclaimed: dict[str, str] = {}
        self._keys_of: dict[str, tuple[Key, ...]] = {}
        """The entries of each subnet that was taken."""
        self.entries: Entries = {}

    @property
    def count(self) -> int:
        """Peers that have their entries."""
        return len(self._keys_of)

    def way(self, subnet: str) -> str:
        """How packets get there: vxlan or direct; "" where there is no way."""
        peer = self._peers.get(subnet) if subnet in self._keys_of else None
        return "" if peer is None else "vxlan" if peer.mac else "direct"

    @property
    def problems(self) -> dict[str, str]:
        """Why a lease's subnet has no entries, by subnet."""
        return dict(sorted((self._unreadable | self._outclaimed).items()))

    def update(self, leases: Iterable[SubnetLease]) -> set[Key]:
        """Take these leases for all there are. Returns the keys whose entry changed, came or went."""
        fresh: dict[str, SubnetLease] = {}
        for lease in leases:
            other = fresh.setdefault(lease.subnet, lease)
            if other is not lease and lease.key < other.key:
                fresh[lease.subnet] = lease
        known = self._leases
        changed = [subnet for subnet, lease in fresh.items() if known.get(subnet) is not lease]
        changed += known.keys() - fresh.keys()
        self._leases = fresh
        affected: set[str] = set()
        for subnet in changed:
            affected |= self._replace(subnet, fresh.get(subnet))
        return self._settle(affected)

    def _replace(self, subnet: str, lease: SubnetLease | None) -> set[str]:
        """Read one lease again. Returns the subnets whose standing may have changed by it."""
        peer, problem = self._read(lease) if lease else (None, "")
        self._unreadable.pop(subnet, None)
        if problem:
            self._unreadable[subnet] = problem
        before = self._peers.get(subnet)
        if peer == before:
            return set()
        affected = {subnet}
        for subject, _ in before.claims if before else ():
            claimants = self._claimants[subject]
            del claimants[subnet]
            affected.update(claimants)
            if not claimants:
                del self._claimants[subject]
        for subject, answer in peer.claims if peer else ():
            claimants = self._claimants.setdefault(subject, {})
            affected.update(claimants)
            claimants[subnet] = answer
        if peer:
            self._peers[subnet] = peer
        else:
            del self._peers[subnet]
        return affected

    def _settle(self, affected: set[str]) -> set[Key]:
        """Make these subnets' entries again. Subnets that share an entry share a claim, so all of them are here."""
        before: Entries = {}
        after: Entries = {}
        first: dict[str, str] = {}
        for subnet in affected:
            for key in self._keys_of.pop(subnet, ()):
                if key in self.entries:
                    before[key] = self.entries.pop(key)
        for subnet in affected:
            self._outclaimed.pop(subnet, None)
            peer = self._peers.get(subnet)
            if peer and not self._is_outclaimed(peer, first):
                made = self._entries_of(peer)
                after.update(made)
                self._keys_of[subnet] = tuple(made)
        self.entries.update(after)
        return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    def _entries_of(self, peer: Peer) -> Entries:
        if not peer.mac:
            return direct_entries(peer.family, self._self.underlay, peer.subnet, peer.public_ip)
        device = self._self.devices[peer.family]
        return tunnel_entries(peer.family, device, peer.subnet, peer.mac, peer.public_ip)

    def _is_outclaimed(self, peer: Peer, first: dict[str, str]) -> bool:
        """Whether the first claimant says otherwise; `first` keeps who that is, by subject."""
        for subject, answer in peer.claims:
            claimants = self._claimants[subject]
            if subject not in first:
                first[subject] = min(claimants)
            winner = first[subject]
            if claimants[winner] != answer:
                self._outclaimed[peer.subnet] = (
                    f"{peer.subnet} says {answer} of {subject}, but {winner} says {claimants[winner]}. {peer.subnet} "
                    f"gets no route; one of the two leases is wrong: see who holds them, and delete it."
                )
                return True
        return False

    def _read(self, lease: SubnetLease) -> tuple[Peer | None, str]:
        """The lease as a peer; or why it cannot be one; or neither, where it does not mean to be one."""
        if not lease.holder or lease.holder == self._self.node_name or lease.subnet in self._self.subnets:
            return None, ""
        try:
            subnet = ipaddress.ip_network(lease.subnet)
        except ValueError as error:
            return None, f"lease {lease.key} of node {lease.holder}: {error}. It gets no route."
        if subnet.version not in self._self.devices:
            return None, ""
        problem = self._subnet_problem(lease, subnet)
        address, address_problem = self._public_ip(lease, subnet.version)
        direct = not address_problem and self._is_direct(lease, address)
        problem = problem or address_problem or ("" if direct else self._tunnel_problem(lease, subnet.version))
        if problem:
            return None, f"lease {lease.key} of node {lease.holder}: {problem} It gets no route."
        return Peer(subnet.version, lease.subnet, "" if direct else lease.vtep_mac, address), ""

    def _is_direct(self, lease: SubnetLease, address: str) -> bool:
        """Whether a plain route leads there: both ends need none of the other's backend for it. So nodes whose backend
        is being changed one after the other go on reaching each other, where they are on one network."""
        tunnels = lease.backend in ("", "vxlan") and self._self.devices[6 if ":" in address else 4]
        if tunnels and not self._self.direct_routing:
            return False
        return lease.backend in ("", *BACKENDS) and address in self._self.neighbourhood

    def _subnet_problem(self, lease: SubnetLease, subnet: Network) -> str:
        if str(subnet) != lease.subnet:
            return f"subnet {lease.subnet} is not written as {subnet}."
        if not any(_contains(pool, subnet) for pool in self._pools):
            return f"subnet {subnet} is in none of the pools {', '.join(map(str, self._pools))}."
        for own in self._own:
            if own.version == subnet.version and own.overlaps(subnet):
                return f"subnet {subnet} overlaps this node's own {own}."
        return ""

    def _tunnel_problem(self, lease: SubnetLease, family: int) -> str:
        """Why no tunnel leads there. A peer on the same network has a plain route by now, if it may."""
        mac = lease.vtep_mac
        if lease.backend not in ("", *BACKENDS):
            return f"its backend is {lease.backend}, which netagent does not have."
        if lease.backend == "host-gw" or not self._self.devices[family]:
            ours = "vxlan" if self._self.devices[family] else "host-gw"
            return (
                f"its backend is {lease.backend or 'unknown'}, this node's is {ours}, and its public IP "
                f"{lease.public_ip} is not on a network of this node's interface: only vxlan at both ends goes through "
                f"routers."
            )
        if not mac:
            return "no VTEP MAC or public IP yet: its agent publishes them once its device is up."
        if not is_unicast_mac(mac):
            return f"VTEP MAC {mac!r} is not a lower-case unicast MAC."
        return f"VTEP MAC {mac} is this node's own." if mac in self._self.macs else ""

    def _public_ip(self, lease: SubnetLease, family: int) -> tuple[str, str]:
        """The lease's public IP in canonical text, or why it cannot be one."""
        if not lease.public_ip:
            return "", "no VTEP MAC or public IP yet: its agent publishes them once it has joined."
        try:
            address = ipaddress.ip_address(lease.public_ip)
        except ValueError:
            return "", f"public IP {lease.public_ip!r} is not an address."
        mapped = address.version == 6 and getattr(address, "ipv4_mapped", None) is not None
        if address.version != family or mapped or address.is_multicast or address.is_loopback or address.is_unspecified:
            return "", f"public IP {address} is not a unicast IPv{family} address."
        if str(address) in self._self.public_ips:
            return "", f"public IP {address} is this node's own."
        if any(address in pool for pool in self._pools if pool.version == family):
            return "", f"public IP {address} lies in the pod network, so packets for it would be tunnelled to itself."
        return str(address), ""


def is_unicast_mac(text: str) -> bool:
    """Lower-case text of a MAC that one station can have."""
    return bool(MAC.fullmatch(text)) and not int(text[:2], 16) & 1 and text != ZERO_MAC


def _contains(pool: Network, subnet: Network) -> bool:
    return pool.version == subnet.version and subnet.subnet_of(pool)  # type: ignore[arg-type]
