"""The pod network's entries as rtnetlink messages, both ways.

Which are ours: devices by name; on them host addresses, permanent neighbours and all forwarding entries; routes by
protocol number with a next hop or as blackholes (the routes to local pods, of the same protocol, have neither).
"""

import socket
from collections.abc import Iterable, Iterator
from struct import Struct as Layout
from typing import NamedTuple

from netagent.core.network.podnet import (
    FLANNEL_PROTOCOL,
    ROUTE_PROTOCOL,
    AddressKey,
    FdbKey,
    Key,
    LinkKey,
    NeighbourKey,
    Route,
    RouteKey,
    Step,
    Value,
    Verb,
    family_of_device,
)
from netagent.core.network.underlay import LinkRoute
from netagent.kernel import links
from netagent.kernel.links import AF, FAMILY, PREFIX_BITS, RTMSG, Address, Link, address_bytes, address_text, mac_bytes
from netagent.kernel.rtnetlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    fields,
    u32,
)

RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
AF_BRIDGE = 7
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_EXPIRES = 1, 4, 5, 6, 9, 15, 18, 23
PASSING_ROUTE_S = 5
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_NOWHERE = 0, 255
RTN_UNICAST, RTN_BLACKHOLE = 1, 6
ROUTE_KINDS = {RTN_UNICAST: "unicast", RTN_BLACKHOLE: "blackhole"}
ROUTE_NUMBERS = {name: number for number, name in ROUTE_KINDS.items()}
RTNH_F_ONLINK = 4
RTM_F_CLONED = 0x200

NDMSG = Layout("=BxxxiHBB")


class Notice(NamedTuple):
    """An entry of ours came or changed (its value now), or went (None)."""

    key: Key
    value: Value | None


class InterfaceNotice(NamedTuple):
    """A foreign link came, changed or went."""

    ifindex: int
    name: str
    mtu: int
    """Bytes; 0: it went."""
    up: bool
    """Administratively."""


class AddressNotice(NamedTuple):
    """A foreign link's address came, changed or went."""

    ifindex: int
    address: str
    present: bool


class RouteNotice(NamedTuple):
    """A foreign unicast route of the main table came or went."""

    ifindex: int
    """0: it leads over several links."""
    route: LinkRoute
    present: bool
    replaced: RouteKey | None = None
    """It took the place of whatever had this key."""


AnyNotice = Notice | InterfaceNotice | AddressNotice | RouteNotice


class Devices:
    """Our devices' names and numbers at this moment, and with them the messages' meaning."""

    def __init__(self, *, flannel: bool = False) -> None:
        """`flannel`: devices of flannel's names are ours, and its routes on them."""
        self._flannel = flannel
        self._ifindex: dict[str, int] = {}
        self._name: dict[int, str] = {}

    def owns(self, name: str) -> bool:
        """Whether a device of this name is ours."""
        return family_of_device(name, flannel=self._flannel) is not None

    def know(self, ours: Iterable[Link]) -> None:
        """These are our devices now."""
        self._name = {link.index: link.name for link in ours}
        self._ifindex = {name: index for index, name in self._name.items()}

    def __contains__(self, ifindex: int) -> bool:
        return ifindex in self._name

    def address_key(self, address: Address) -> AddressKey | None:
        """None where the address is not one of those we set."""
        device = self._name.get(address.index)
        if device is None or address.prefix_len != PREFIX_BITS[address.family] or address.scope != RT_SCOPE_UNIVERSE:
            return None
        return AddressKey(device_family(device), device, address.address)

    def neighbour(self, message: Message) -> tuple[NeighbourKey | FdbKey, Value | None] | None:
        """A neighbour (None: no permanent one) or forwarding entry; None for those of foreign devices."""
        family_number, index, state, flags, _ = fields(NDMSG, message)
        device = self._name.get(index)
        if device is None:
            return None
        found = attributes(message.body, NDMSG.size)
        mac = found.get(NDA_LLADDR, b"").hex(":")
        destination = found.get(NDA_DST, b"")
        if family_number == AF_BRIDGE:
            if not flags & NTF_SELF:
                return None
            family = {4: 4, 16: 6}.get(len(destination))
            return FdbKey(device_family(device), device, mac), address_text(family, destination) if family else ""
        family = FAMILY.get(family_number)
        if family is None:
            return None
        key = NeighbourKey(device_family(device), device, address_text(family, destination))
        return key, mac if state & NUD_PERMANENT else None

    def route(self, message: Message) -> tuple[RouteKey, Route, bool] | None:
        """A route of the main table, and whether it is ours."""
        number, length, _, _, _, protocol, _, kind, flags = fields(RTMSG, message)
        family = FAMILY.get(number)
        found = attributes(message.body, RTMSG.size)
        if family is None or flags & RTM_F_CLONED or _number(found.get(RTA_TABLE)) != RT_TABLE_MAIN:
            return None
        destination = address_text(family, found.get(RTA_DST, bytes(PREFIX_BITS[family] // 8)))
        key = RouteKey(family, f"{destination}/{length}", _number(found.get(RTA_PRIORITY)))
        if kind == RTN_BLACKHOLE:
            return key, Route(kind="blackhole"), protocol == ROUTE_PROTOCOL
        gateway = found.get(RTA_GATEWAY)
        index = _number(found.get(RTA_OIF))
        route = Route(
            kind=ROUTE_KINDS.get(kind, str(kind)),
            via=address_text(family, gateway) if gateway else "",
            device=self._name.get(index, f"#{index}"),
            onlink=bool(flags & RTNH_F_ONLINK),
            protocol=protocol,
        )
        adopted = self._flannel and protocol == FLANNEL_PROTOCOL and index in self._name
        return key, route, (protocol == ROUTE_PROTOCOL or adopted) and bool(gateway)

    def requests(self, step: Step) -> Iterator[Request]:
        """The messages of a step below the links; none where its device is not there."""
        match step.key:
            case RouteKey():
                yield from self._route_requests(step.key, step)
            case AddressKey(family=family, device=device, address=address) if index := self._ifindex.get(device):
                make = links.delete_address if step.verb is Verb.DELETE else links.add_address
                yield make(family, index, address)
            case NeighbourKey(device=device, address=address) if index := self._ifindex.get(device):
                yield _neighbour_request(step, index, address)
            case FdbKey(device=device, mac=mac) if index := self._ifindex.get(device):
                yield _fdb_request(step, index, mac)
            case _:
                return

    def _route_requests(self, key: RouteKey, step: Step) -> Iterator[Request]:
        route = step.value
        subnet, _, length = key.subnet.partition("/")
        to = attribute(RTA_DST, address_bytes(subnet)) + u32(RTA_PRIORITY, key.metric)
        family = AF[key.family]
        if step.verb is Verb.DELETE:
            # The protocol is part of what must match, so a foreign route with the same key stays.
            protocol = route.protocol if isinstance(route, Route) else ROUTE_PROTOCOL
            header = RTMSG.pack(family, int(length), 0, 0, RT_TABLE_MAIN, protocol, RT_SCOPE_NOWHERE, 0, 0)
            yield Request(RTM_DELROUTE, 0, header + to)
        elif isinstance(route, Route):
            if route.device:
                index = self._index_of(route.device)
                if index is None:
                    return
                to += u32(RTA_OIF, index) + attribute(RTA_GATEWAY, address_bytes(route.via))
            flags = RTNH_F_ONLINK if route.onlink else 0
            kind = ROUTE_NUMBERS[route.kind]
            header = RTMSG.pack(
                family, int(length), 0, 0, RT_TABLE_MAIN, route.protocol, RT_SCOPE_UNIVERSE, kind, flags
            )
            mode = NLM_F_REPLACE if step.verb is Verb.CHANGE else NLM_F_EXCL
            request = Request(RTM_NEWROUTE, NLM_F_CREATE | mode, header + to)
            if key.family == 6 and route.onlink and step.verb is Verb.CHANGE:
                yield from _past_the_old_route(request, route.via, u32(RTA_OIF, index or 0))
            else:
                yield request

    def _index_of(self, device: str) -> int | None:
        return int(device[1:]) if device.startswith("#") else self._ifindex.get(device)

    def notice(self, message: Message) -> AnyNotice | None:
        """What a notification says; None where it is no concern of the pod network. Raises MalformedError."""
        match message.kind:
            case kind if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                entry = self.neighbour(message)
                return Notice(entry[0], entry[1] if message.kind == RTM_NEWNEIGH else None) if entry else None
            case kind if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                return self._route_notice(message)
            case links.RTM_NEWLINK | links.RTM_DELLINK:
                return self._link_notice(message)
            case links.RTM_NEWADDR | links.RTM_DELADDR:
                return self._address_notice(message)
        return None

    def _route_notice(self, message: Message) -> Notice | RouteNotice | None:
        entry = self.route(message)
        if entry is None:
            return None
        key, route, ours = entry
        if message.kind == RTM_DELROUTE:
            return Notice(key, None) if ours else foreign_route(message, present=False)
        if ours:
            return Notice(key, route)
        foreign = foreign_route(message, present=True)
        # A foreign route that replaced whatever had this key: the kernel says nothing else of ours.
        replaced = bool(message.flags & NLM_F_REPLACE)
        if foreign:
            return foreign._replace(replaced=key if replaced else None)
        return Notice(key, None) if replaced else None

    def _link_notice(self, message: Message) -> Notice | InterfaceNotice | None:
        if fields(links.IFINFO, message)[0] == AF_BRIDGE:
            return None  # a bridge speaks of its port
        link = links.read_link(message)
        gone = message.kind == links.RTM_DELLINK
        if family := family_of_device(link.name, flannel=self._flannel):
            return Notice(LinkKey(family, link.name), None if gone else links.read_vxlan(link))
        if device := self._name.get(link.index):  # ours, renamed
            return Notice(LinkKey(device_family(device), device), None)
        return InterfaceNotice(link.index, link.name, 0 if gone else link.mtu, link.up)

    def _address_notice(self, message: Message) -> Notice | AddressNotice | None:
        address = links.read_address(message)
        if address is None or address.scope != RT_SCOPE_UNIVERSE:
            return None
        present = message.kind == links.RTM_NEWADDR
        if address.index not in self._name:
            return AddressNotice(address.index, address.address, present)
        key = self.address_key(address)
        return Notice(key, "" if present else None) if key else None


def foreign_route(message: Message, *, present: bool) -> RouteNotice | None:
    """A route of the main table as the underlay's networks are made of them; None for other kinds than unicast."""
    number, length, _, _, _, _, _, kind, flags = fields(RTMSG, message)
    found = attributes(message.body, RTMSG.size)
    family = FAMILY.get(number)
    table = _number(found.get(RTA_TABLE))
    if family is None or kind != RTN_UNICAST or flags & RTM_F_CLONED or table != RT_TABLE_MAIN:
        return None
    destination = address_text(family, found.get(RTA_DST, bytes(PREFIX_BITS[family] // 8)))
    if destination.startswith("fe80:"):
        return None  # no peer has a link-local address
    connected = not found.keys() & {RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH}
    return RouteNotice(_number(found.get(RTA_OIF)), LinkRoute(f"{destination}/{length}", connected), present)


def device_family(device: str) -> int:
    """Family of a device that is known to be ours."""
    family = family_of_device(device, flannel=True)
    if family is None:
        raise ValueError(f"{device} is not a device of ours")
    return family


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "little")


def _past_the_old_route(request: Request, gateway: str, device: bytes) -> Iterator[Request]:
    """Replace an IPv6 route whose next hop lies within it, which may lead over another device until now.

    The kernel refuses an onlink next hop that it has a route to over another device (ip6_route_check_nh_onlink), and
    the old route is one: a passing route to the next hop alone goes before it. It expires should we die in between.
    """
    header = RTMSG.pack(AF[6], 128, 0, 0, RT_TABLE_MAIN, ROUTE_PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    to = attribute(RTA_DST, address_bytes(gateway)) + device
    yield Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, header + to + u32(RTA_EXPIRES, PASSING_ROUTE_S))
    yield request
    yield Request(RTM_DELROUTE, 0, header + to)


def _neighbour_request(step: Step, index: int, address: str) -> Request:
    raw = address_bytes(address)
    family = socket.AF_INET6 if len(raw) == 16 else socket.AF_INET
    body = NDMSG.pack(family, index, NUD_PERMANENT, 0, 0) + attribute(NDA_DST, raw)
    if step.verb is Verb.DELETE:
        return Request(RTM_DELNEIGH, 0, body)
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body + attribute(NDA_LLADDR, mac_bytes(str(step.value))))


def _fdb_request(step: Step, index: int, mac: str) -> Request:
    body = NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0) + attribute(NDA_LLADDR, mac_bytes(mac))
    if step.verb is Verb.DELETE:
        return Request(RTM_DELNEIGH, 0, body)
    to = attribute(NDA_DST, address_bytes(str(step.value)))
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body + to)
