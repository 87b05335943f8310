"""What the kernel tells about the node's ends of pod links: which pods' wiring somebody may have changed.

A notification is compared with what `kernel.wiring` makes; what agrees is no news. Of several about the same thing the
last one counts: our own work, whose steps are told after it is done, ends in what agrees.
"""

import contextlib
import socket
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Self

from netagent.core.cni import HOST_IFNAME, HOST_MAC
from netagent.core.network.podnet import ROUTE_PROTOCOL
from netagent.kernel import links
from netagent.kernel.entries import (
    NDA_DST,
    NDA_LLADDR,
    NDMSG,
    NUD_PERMANENT,
    RT_TABLE_MAIN,
    RTA_PRIORITY,
    RTA_TABLE,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)
from netagent.kernel.links import FAMILY, PREFIX_BITS, RTA_DST, RTA_OIF, RTMSG, address_text
from netagent.kernel.rtnetlink import MalformedError, Message, Monitor, attributes, fields, messages
from netagent.kernel.sysctl import has_link
from netagent.kernel.vethsysctls import host_sysctls
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
NETCONF_SYSCTLS = {2: "forwarding", 3: "rp_filter", 5: "proxy_arp"}
"""Of those that a notification tells; the last is proxy_ndp in IPv6, which is none of ours."""
NOTHING: tuple[Hashable, str] = ("", "")
"""Of a notification that is about none of the pods."""


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
            last = {
                about: suspect
                for datagram in datagrams
                for message in messages(datagram)
                for about, suspect in pods.suspects(message)
            }
        except MalformedError:
            return None
        return frozenset(last.values()) - {""}


class _Pods:
    """The pods, by everything that a notification may name them by."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._by_name = {endpoint.host_ifname: endpoint for endpoint in endpoints}
        self._by_ip = {ip: endpoint for endpoint in self._by_name.values() for ip in endpoint.ips}
        self._names: dict[int, str] = {}

    def _name_of(self, index: int) -> str:
        """Of a pod's link with this number; "" where it is none.

        Asked for one by one: a list of all links waits for whoever wires a pod just now, and the event loop with it.
        """
        if index not in self._names:
            name = ""
            with contextlib.suppress(OSError):
                name = socket.if_indextoname(index)
            self._names[index] = name if name in self._by_name else ""
        return self._names[index]

    def suspects(self, message: Message) -> Iterator[tuple[Hashable, str]]:
        """What the notification is about, and the pod that it says something wrong of; "": none."""
        match message.kind:
            case links.RTM_NEWLINK | links.RTM_DELLINK:
                yield from self._of_link(message)
            case kind if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                yield self._of_route(message)
            case kind if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                yield self._of_neighbour(message)
            case kind if kind == RTM_NEWNETCONF:
                yield from self._of_sysctls(message)

    def _of_link(self, message: Message) -> Iterator[tuple[Hashable, str]]:
        link = links.read_link(message)
        about = links.RTM_NEWLINK, link.index
        name = link.name if link.name in self._by_name else self._name_of(link.index)
        right = message.kind == links.RTM_NEWLINK and link.name == name and link.up and link.mac == HOST_MAC
        yield about, "" if right else name
        # One that was renamed is told under a name that nobody knows: then a pod of ours has no link of its name.
        # (A link with a name like ours is that of a pod that is being wired.)
        if not name and link.mac == HOST_MAC and not HOST_IFNAME.fullmatch(link.name):
            yield from (((*about, known), known) for known in self._by_name if not has_link(known))

    def _of_route(self, message: Message) -> tuple[Hashable, str]:
        number, length, _, _, _, protocol, _, _, _ = fields(RTMSG, message)
        family = FAMILY.get(number)
        if family is None or length != PREFIX_BITS[family]:
            return NOTHING
        found = attributes(message.body, RTMSG.size)
        ip = address_text(family, found.get(RTA_DST, b""))
        endpoint = self._by_ip.get(ip)
        if endpoint is None or int.from_bytes(found.get(RTA_TABLE, b""), "little") != RT_TABLE_MAIN:
            return NOTHING
        index = int.from_bytes(found.get(RTA_OIF, b""), "little")
        right = self._name_of(index) == endpoint.host_ifname and protocol == ROUTE_PROTOCOL
        about = RTM_NEWROUTE, ip, index, protocol, found.get(RTA_PRIORITY, b"")
        return about, "" if right and message.kind == RTM_NEWROUTE else endpoint.host_ifname

    def _of_neighbour(self, message: Message) -> tuple[Hashable, str]:
        number, index, state, _, _ = fields(NDMSG, message)
        family, name = FAMILY.get(number), self._name_of(index)
        if family is None or not name:
            return NOTHING
        found = attributes(message.body, NDMSG.size)
        ip = address_text(family, found.get(NDA_DST, b""))
        endpoint = self._by_ip.get(ip)
        if endpoint is None or endpoint.host_ifname != name:
            return NOTHING
        right = state & NUD_PERMANENT and found.get(NDA_LLADDR, b"").hex(":") == endpoint.mac
        return (RTM_NEWNEIGH, ip, index), "" if right and message.kind == RTM_NEWNEIGH else name

    def _of_sysctls(self, message: Message) -> Iterator[tuple[Hashable, str]]:
        found = attributes(message.body, NETCONFMSG_BYTES)
        index = int.from_bytes(found.get(NETCONFA_IFINDEX, b""), "little")
        family, name = FAMILY.get(message.body[0]), self._name_of(index)
        if family is None or not name:
            return
        wanted = host_sysctls(self._by_name[name])[f"ipv{family}"]
        for kind, sysctl in NETCONF_SYSCTLS.items():
            if kind in found and sysctl in wanted:
                right = int.from_bytes(found[kind], "little") == wanted[sysctl]
                yield (RTM_NEWNETCONF, family, index, kind), "" if right else name
