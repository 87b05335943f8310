"""What the pod network is in the kernel, as values: entries by key, and the difference between two sets of them.

A packet from a pod here to a pod on a peer takes the peer's route (`<subnet> via <its network address> dev <vxlan>
onlink`), the permanent neighbour of that next hop (the peer's VTEP MAC) and the forwarding entry of that MAC (the
peer's public IP). A peer on the same network can do without the tunnel (backend host-gw, direct routing): its route
leads straight to its public IP. A packet to a pod of ours that is gone ends in the blackhole route of our own subnet.
Each family has a device of its own, so either works, fails and is repaired without the other.
"""

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from enum import IntEnum
from operator import attrgetter

from msgspec import Struct

ROUTE_PROTOCOL = 0x4E
"""rtm_protocol of every route of ours: how a restarted agent knows them. Not in rt_protos; 78 is "N"."""
FLANNEL_PROTOCOL = 3
"""RTPROT_BOOT: what flannel's routes carry."""
DEVICE_PREFIX = {4: "netagent.", 6: "netagent6."}
"""vxlan devices are named by family and VNI: a vxlan device holds sockets of its local address's family only."""
FLANNEL_PREFIX = {4: "flannel.", 6: "flannel-v6."}
"""What flannel calls its devices, and node mode too: one that is there is taken over, with all that hangs on it."""
OVERHEAD_BYTES = {4: 50, 6: 70}
"""Outer IP, UDP, VXLAN and inner Ethernet headers."""
PEER_METRIC = {4: 0, 6: 1024}
"""Metric of peers' routes: what the kernel takes when none is given."""
BLACKHOLE_METRIC = 0xFFFF
"""A connected route of the whole subnet, should anybody have one, goes first."""


class LinkKey(Struct, frozen=True, gc=False):
    """A vxlan device."""

    family: int
    """4 or 6, as in every key: the family whose pods it carries."""
    device: str


class OffloadKey(Struct, frozen=True, gc=False):
    """The transmit checksum offload of a vxlan device."""

    family: int
    device: str


class SysctlKey(Struct, frozen=True, gc=False):
    """A file below /proc/sys."""

    family: int
    path: str


class AddressKey(Struct, frozen=True, gc=False):
    """An address on a device of ours, as /32 or /128."""

    family: int
    device: str
    address: str


class NeighbourKey(Struct, frozen=True, gc=False):
    """A permanent neighbour on a device of ours."""

    family: int
    device: str
    address: str


class FdbKey(Struct, frozen=True, gc=False):
    """A forwarding entry of a device of ours."""

    family: int
    device: str
    mac: str


class RouteKey(Struct, frozen=True, gc=False):
    """A route of our protocol in the main table."""

    family: int
    subnet: str
    metric: int


class Vxlan(Struct, frozen=True, gc=False, kw_only=True):
    """A vxlan device: what is asked for, or what is there."""

    kind: str = "vxlan"
    """IFLA_INFO_KIND; anything else was not made by us and gives way."""
    vni: int
    port: int
    local: str
    underlay: int
    """ifindex of the parent."""
    mac: str
    mtu: int
    """Bytes."""
    learning: bool = False
    checksum: bool = True
    """Outer UDP checksum: IPv4 peers accept either, IPv6 peers refuse packets without."""
    up: bool = True


class Route(Struct, frozen=True, gc=False, kw_only=True):
    """Where a route leads."""

    kind: str = "unicast"
    """unicast, blackhole, or the number of another type."""
    via: str = ""
    device: str = ""
    """Name of a device of ours, or "#<ifindex>" of a foreign one: others may rename it."""
    onlink: bool = False
    protocol: int = ROUTE_PROTOCOL
    """Another one: a route of flannel's on a device that is ours now; it is replaced where it stands."""


Key = LinkKey | OffloadKey | SysctlKey | AddressKey | NeighbourKey | FdbKey | RouteKey
Value = Vxlan | Route | str
"""By key: Vxlan; on or off; text of a sysctl; "" of an address; MAC of a neighbour; public IP behind a MAC; Route."""
Entries = dict[Key, Value]

ORDER: tuple[type[Key], ...] = (LinkKey, OffloadKey, SysctlKey, AddressKey, NeighbourKey, FdbKey, RouteKey)
"""Referents before references; removals take it in reverse."""
_RANK = {kind: rank for rank, kind in enumerate(ORDER)}


class Verb(IntEnum):
    """What a step does with its entry."""

    ADD = 1
    """The entry is not there. A foreign route in its place is left alone, and the step fails."""
    CHANGE = 2
    """The entry is there with another value, or was ours until somebody took it: it is overwritten."""
    DELETE = 3


class Step(Struct, frozen=True, gc=False):
    """One change of one entry."""

    verb: Verb
    key: Key
    value: Value
    """The wanted value; of a DELETE the value that goes."""

    @property
    def rank(self) -> int:
        """Place of the entry's kind in ORDER."""
        return _RANK[type(self.key)]


class Vtep(Struct, frozen=True, gc=False, kw_only=True):
    """This node's end of one family's tunnels."""

    family: int
    device: str
    link: Vxlan
    offload: bool = True
    """Transmit checksums may be left to the network card; some cards get those of tunnelled packets wrong."""


class End(Struct, frozen=True, gc=False, kw_only=True):
    """Where this node takes in one family's packets from its peers."""

    family: int
    public_ip: str
    """What peers are told."""
    local: str
    """The address of this node that stands for it; another one only behind address translation."""
    underlay: int
    """ifindex."""
    vtep: Vtep | None
    """None: there are no tunnels (host-gw)."""

    @property
    def mac(self) -> str:
        """The VTEP's; "" where there is none."""
        return self.vtep.link.mac if self.vtep else ""


def device_name(family: int, vni: int, prefix: Mapping[int, str] = DEVICE_PREFIX) -> str:
    """Name of the family's vxlan device."""
    return f"{prefix[family]}{vni}"


def family_of_device(name: str, *, flannel: bool = False) -> int | None:
    """The family of a device that carries a name of ours (or flannel's, where these are ours); None for others."""
    for prefixes in (DEVICE_PREFIX, FLANNEL_PREFIX)[: 1 + flannel]:
        for family, prefix in prefixes.items():
            if name.startswith(prefix) and name[len(prefix) :].isdecimal():
                return family
    return None


def vtep_mac(node_name: str, family: int) -> str:
    """The MAC of a node's VTEP: locally administered, unicast, the same after every restart and reboot."""
    digest = bytearray(hashlib.sha256(f"vtep/{node_name}/{family}".encode()).digest()[:6])
    digest[0] = digest[0] & 0xFC | 0x02
    return digest.hex(":")


def network_address(subnet: str) -> str:
    """The address by which a node is the next hop for its subnet."""
    return str(ipaddress.ip_network(subnet).network_address)


def node_entries(end: End, subnets: Iterable[str]) -> Entries:
    """Everything of one family that does not depend on peers: device, sysctls, addresses, blackholes of own subnets."""
    family, vtep = end.family, end.vtep
    entries: Entries = {}
    for sysctl, text in sysctls(family, vtep.device if vtep else "").items():
        entries[sysctl] = text
    if vtep:
        entries[LinkKey(family, vtep.device)] = vtep.link
        entries[OffloadKey(family, vtep.device)] = "on" if vtep.offload else "off"
    for subnet in subnets:
        if vtep:
            entries[AddressKey(family, vtep.device, network_address(subnet))] = ""
        entries[RouteKey(family, subnet, BLACKHOLE_METRIC)] = Route(kind="blackhole")
    return entries


def sysctls(family: int, device: str) -> dict[SysctlKey, str]:
    """What forwarding between pods and this device ("": none) needs. Nobody sets them back when we go."""
    wanted = {"net/ipv4/ip_forward" if family == 4 else "net/ipv6/conf/all/forwarding": "1"}
    if device and family == 4:
        # Loose: the larger of this and conf.all counts, so a strict conf.all does not drop asymmetric paths here.
        wanted[f"net/ipv4/conf/{device}/rp_filter"] = "2"
    elif device:
        wanted[f"net/ipv6/conf/{device}/disable_ipv6"] = "0"
    return {SysctlKey(family, path): text for path, text in wanted.items()}


def direct_entries(family: int, underlay: int, subnet: str, public_ip: str) -> Entries:
    """The route by which the pods of a peer on the underlay's own network are reached; `underlay` is an ifindex."""
    return {RouteKey(family, subnet, PEER_METRIC[family]): Route(via=public_ip, device=f"#{underlay}")}


def tunnel_entries(family: int, device: str, subnet: str, mac: str, public_ip: str) -> Entries:
    """The three entries by which one peer's pods are reached through the tunnel."""
    gateway = subnet.partition("/")[0]
    return {
        NeighbourKey(family, device, gateway): mac,
        FdbKey(family, device, mac): public_ip,
        RouteKey(family, subnet, PEER_METRIC[family]): Route(via=gateway, device=device, onlink=True),
    }


def needs_new_device(want: Vxlan, have: Vxlan) -> bool:
    """Whether the kernel cannot turn `have` into `want` in place.

    It changes MAC, MTU, up, learning, the parent, and the local address within its family; the forwarding entries stay.
    """
    return _fixed(want) != _fixed(have) or not have.local or (":" in want.local) != (":" in have.local)


_fixed = attrgetter("kind", "vni", "port", "checksum")


def diff(
    desired: Mapping[Key, Value],
    actual: Mapping[Key, Value],
    *,
    keys: Iterable[Key] | None = None,
    held: Collection[Key] = frozenset(),
) -> tuple[Step, ...]:
    """The steps from actual to desired, in order.

    `keys` limits the comparison to these (never links: what is on a link goes with it). `held` are entries that were
    ours until now: where one is missing, whoever sits in its place is overwritten.
    """
    making: frozenset[int] = frozenset()
    if keys is None:
        making = _families_with_new_devices(desired, actual)
        actual = _surviving(desired, actual, making)
        keys = (*desired, *(key for key in actual if key not in desired))
    adds: list[Step] = []
    deletes: list[Step] = []
    for key in keys:
        want, have = desired.get(key), actual.get(key)
        if want == have:
            continue
        if want is None:
            if have is not None and not isinstance(key, SysctlKey | OffloadKey):
                deletes.append(Step(Verb.DELETE, key, have))
        else:
            adds.append(Step(Verb.ADD if have is None and key not in held else Verb.CHANGE, key, want))
    adds.sort(key=attrgetter("rank"))
    deletes.sort(key=attrgetter("rank"), reverse=True)
    # A stale device may hold the VNI and port that a new one of its family needs: then it goes before that comes.
    # Otherwise it goes last, when the routes that led over it lead elsewhere.
    first = [step for step in deletes if isinstance(step.key, LinkKey) and step.key.family in making]
    return (*first, *adds, *(step for step in deletes if step not in first))


def _families_with_new_devices(desired: Mapping[Key, Value], actual: Mapping[Key, Value]) -> frozenset[int]:
    found: set[int] = set()
    for key, want in desired.items():
        if isinstance(key, LinkKey) and isinstance(want, Vxlan):
            have = actual.get(key)
            if not isinstance(have, Vxlan) or needs_new_device(want, have):
                found.add(key.family)
    return frozenset(found)


def _surviving(
    desired: Mapping[Key, Value], actual: Mapping[Key, Value], making: frozenset[int]
) -> Mapping[Key, Value]:
    """`actual` as it will be once the links are right: without what goes with a device that is deleted or remade."""
    gone: set[str] = set()
    moved: set[str] = set()
    leaving: set[str] = set()
    for key, have in actual.items():
        if isinstance(key, LinkKey) and isinstance(have, Vxlan) and (want := desired.get(key)) != have:
            if not isinstance(want, Vxlan) or needs_new_device(want, have):
                gone.add(key.device)
                if key.family not in making:
                    leaving.add(key.device)
            elif want.mac != have.mac:
                moved.add(key.device)  # the kernel flushes a device's neighbours when its MAC changes
    if not gone and not moved:
        return actual
    return {
        key: value
        for key, value in actual.items()
        if not _lost(key, value, gone, moved)
        # Over a device that goes last a route is there until it is replaced.
        or (isinstance(value, Route) and value.device in leaving and key in desired)
    }


def _lost(key: Key, value: Value, gone: set[str], moved: set[str]) -> bool:
    if isinstance(key, LinkKey):
        return False
    if isinstance(key, RouteKey):
        return isinstance(value, Route) and value.device in gone
    if isinstance(key, SysctlKey):
        return any(f"/{device}/" in key.path for device in gone)
    return key.device in gone or (isinstance(key, NeighbourKey) and key.device in moved)


def contradicts(key: Key, value: Value | None, expected: Mapping[Key, Value]) -> bool:
    """Whether a notification (value None: the entry went) says other than what we expect of the kernel."""
    return expected.get(key) != value
