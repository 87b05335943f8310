"""What the kernel tells about the node's ends of pod links: which pods' wiring somebody may have changed.

A notification is compared with what `kernel.wiring` makes; what agrees (our own work, mostly) is no news.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Self

from netagent.core.cni import HOST_MAC
from netagent.core.network.podnet import ROUTE_PROTOCOL
from netagent.kernel import links
from netagent.kernel.entries import (
    NDA_DST,
    NDA_LLADDR,
    NDMSG,
    NUD_PERMANENT,
    RT_TABLE_MAIN,
    RTA_TABLE,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)
from netagent.kernel.links import FAMILY, PREFIX_BITS, RTA_DST, RTA_OIF, RTMSG, address_text
from netagent.kernel.rtnetlink import MalformedError, Message, Monitor, attributes, fields, messages
from netagent.records import Endpoint

RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE = 1, 3, 7, 11
RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF = 24, 25
GROUPS = (
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV6_NETCONF,
)
RTM_NEWNETCONF = 80
NETCONFMSG_BYTES = 4
NETCONFA_IFINDEX = 1


class PodLinkNews:
    """Notifications of the network namespace in which this was made."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called in the event loop when something has arrived."""
        self._monitor = Monitor(GROUPS, wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor.__exit__()

    def suspects(self, endpoints: Iterable[Endpoint]) -> frozenset[str] | None:
        """host_ifname of the pods whose wiring is not as it was made, as far as told; None: anything may be."""
        datagrams, lost = self._monitor.take()
        if lost:
            return None
        if not datagrams:
            return frozenset()
        pods = _Pods(endpoints)
        try:
            found = {pods.suspect(message) for datagram in datagrams for message in messages(datagram)}
        except MalformedError:
            return None
        return frozenset(found - {""})


class _Pods:
    """The pods, by everything that a notification may name them by."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._by_name = {endpoint.host_ifname: endpoint for endpoint in endpoints}
        self._by_ip = {ip: endpoint for endpoint in self._by_name.values() for ip in endpoint.ips}
        self._index = {name: index for index, name in socket.if_nameindex() if name in self._by_name}
        self._name = {index: name for name, index in self._index.items()}

    def suspect(self, message: Message) -> str:
        """The pod that the notification says something wrong of; "": none."""
        match message.kind:
            case links.RTM_NEWLINK | links.RTM_DELLINK:
                return self._of_link(message)
            case kind if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                return self._of_route(message)
            case kind if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                return self._of_neighbour(message)
            case kind if kind == RTM_NEWNETCONF:
                raw = attributes(message.body, NETCONFMSG_BYTES).get(NETCONFA_IFINDEX, b"")
                return self._name.get(int.from_bytes(raw, "little"), "")
        return ""

    def _of_link(self, message: Message) -> str:
        link = links.read_link(message)
        name = link.name if link.name in self._by_name else self._name.get(link.index, "")
        right = message.kind == links.RTM_NEWLINK and link.name == name and link.up and link.mac == HOST_MAC
        # One that was renamed is told under a name that nobody knows: then a pod of ours has no link of its name.
        if not name and link.mac == HOST_MAC:
            return next((known for known in self._by_name if known not in self._index), "")
        return "" if right else name

    def _of_route(self, message: Message) -> str:
        number, length, _, _, _, protocol, _, _, _ = fields(RTMSG, message)
        family = FAMILY.get(number)
        if family is None or length != PREFIX_BITS[family]:
            return ""
        found = attributes(message.body, RTMSG.size)
        endpoint = self._by_ip.get(address_text(family, found.get(RTA_DST, b"")))
        if endpoint is None or int.from_bytes(found.get(RTA_TABLE, b""), "little") != RT_TABLE_MAIN:
            return ""
        index = int.from_bytes(found.get(RTA_OIF, b""), "little")
        right = index == self._index.get(endpoint.host_ifname) and protocol == ROUTE_PROTOCOL
        return "" if right and message.kind == RTM_NEWROUTE else endpoint.host_ifname

    def _of_neighbour(self, message: Message) -> str:
        number, index, state, _, _ = fields(NDMSG, message)
        family, name = FAMILY.get(number), self._name.get(index)
        if family is None or name is None:
            return ""
        found = attributes(message.body, NDMSG.size)
        ip = address_text(family, found.get(NDA_DST, b""))
        endpoint = self._by_ip.get(ip)
        if endpoint is None or endpoint.host_ifname != name:
            return ""
        right = state & NUD_PERMANENT and found.get(NDA_LLADDR, b"").hex(":") == endpoint.mac
        return "" if right and message.kind == RTM_NEWNEIGH else name
