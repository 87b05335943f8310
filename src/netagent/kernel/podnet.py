"""The pod network in the kernel: read back, changed, listened to. Which entries are ours: see `kernel.entries`."""

import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Self

from msgspec import Struct

from netagent.core.network.podnet import (
    FLANNEL_PROTOCOL,
    ROUTE_PROTOCOL,
    Entries,
    LinkKey,
    OffloadKey,
    Step,
    SysctlKey,
    Verb,
    Vxlan,
    needs_new_device,
)
from netagent.core.network.underlay import Interface, LinkRoute, Way
from netagent.kernel import links
from netagent.kernel.entries import (
    AF_BRIDGE,
    NDMSG,
    RT_TABLE_MAIN,
    AnyNotice,
    Devices,
    Notice,
    device_family,
    foreign_route,
)
from netagent.kernel.links import AF, RTA_OIF, RTMSG
from netagent.kernel.rtnetlink import (
    MalformedError,
    Message,
    Monitor,
    Refusal,
    Request,
    Rtnetlink,
    fields,
    messages,
    u32,
)

RTM_GETROUTE, RTM_GETNEIGH = 26, 30
RTNLGRP_LINK, RTNLGRP_NEIGH = 1, 3
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE = 5, 7, 9, 11
GROUPS = (
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
)
NDA_IFINDEX = 8
GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})
"""What the kernel answers when the entry to delete is not there."""


class Snapshot(Struct, frozen=True, kw_only=True):
    """The node's links, and what of the pod network is there."""

    interfaces: tuple[Interface, ...]
    """Foreign ones: those that can be the underlay."""
    default: Way | None
    """The default route's."""
    reach: Way | None
    """The way to the address that was asked for."""
    entries: Entries


class Failure(Struct, frozen=True):
    """A step that the kernel refused. The entry is as it was before."""

    step: Step
    errno: int
    reason: str


class PodNetKernel:
    """The pod network of the network namespace in which this was made. Used by one task."""

    def __init__(self, wake: Callable[[], None], *, flannel: bool = False) -> None:
        """`wake` is called in the event loop when there are notices; `flannel`: its devices are ours."""
        self._wake = wake
        self._netlink = Rtnetlink()
        try:
            self._monitor = Monitor(GROUPS, wake)
        except BaseException:
            self._netlink.__exit__()
            raise
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._devices = Devices(flannel=flannel)
        self._put_off: list[AnyNotice] = []
        """Notices that were read but not handed out."""
        self._lost = False
        self._protocols = (ROUTE_PROTOCOL, FLANNEL_PROTOCOL)[: 1 + flannel]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._monitor.__exit__()
        self._netlink.__exit__()

    async def read(self, sysctls: Iterable[SysctlKey] = (), *, reach: str = "") -> Snapshot:
        """Read everything back, these sysctls, and the way to the address `reach`. Raises RtnetlinkError."""
        found = await links.list_links(self._netlink)
        ours = {link.index: link for link in found if self._devices.owns(link.name)}
        self._devices.know(ours.values())
        entries: Entries = {
            LinkKey(device_family(link.name), link.name): links.read_vxlan(link) for link in ours.values()
        }
        for link in ours.values():
            if link.kind == "vxlan":
                entries[OffloadKey(device_family(link.name), link.name)] = links.read_offload(self._control, link.name)
        global_addresses: dict[int, list[str]] = {}
        for address in sorted(await links.list_addresses(self._netlink), key=_is_passing):
            if address.index not in ours and address.scope == links.RT_SCOPE_UNIVERSE:
                global_addresses.setdefault(address.index, []).append(address.address)
            elif key := self._devices.address_key(address):
                entries[key] = ""
        for link in ours.values():
            entries.update(await self._read_neighbours(link))
        entries.update(await self._read_routes())
        entries.update({key: text for key in sysctls if (text := links.read_sysctl(key.path))})
        return Snapshot(
            interfaces=tuple(
                _interface(link, global_addresses.get(link.index, ())) for link in found if link.index not in ours
            ),
            default=await links.default_way(self._netlink),
            reach=await links.way_to(self._netlink, reach) if reach else None,
            entries=entries,
        )

    async def read_device(self, device: str) -> Vxlan | None:
        """One device as it is now. Raises RtnetlinkError."""
        link = await links.find_link(self._netlink, device)
        return links.read_vxlan(link) if link else None

    async def link_routes(self, ifindex: int) -> tuple[LinkRoute, ...]:
        """The foreign routes over a link. Raises RtnetlinkError."""
        found: list[LinkRoute] = []
        for family in AF.values():
            body = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0) + u32(RTA_OIF, ifindex)
            for message in await self._netlink.dump(RTM_GETROUTE, body):
                protocol = fields(RTMSG, message)[5]
                if protocol != ROUTE_PROTOCOL and (notice := foreign_route(message, present=True)):
                    found.append(notice.route)
        return tuple(found)

    async def apply(self, steps: Sequence[Step]) -> list[Failure]:
        """Take the steps in order; what is refused does not stop the rest, except on a device that is not there.

        Raises RtnetlinkError; what is in the kernel is then unknown.
        """
        failures: list[Failure] = []
        first = leading_links(steps)
        if first:
            failures += await self._apply_links(first)
        requests: list[Request] = []
        causes: list[Step] = []
        for step in steps:
            if isinstance(step.key, SysctlKey | OffloadKey):
                failures += self._apply_setting(step.key, step)
            elif not isinstance(step.key, LinkKey):
                for request in self._devices.requests(step):
                    requests.append(request)
                    causes.append(step)
        for index, refusal in (await self._netlink.batch(requests)).items():
            if causes[index].verb is not Verb.DELETE or refusal.errno not in GONE:
                failures.append(Failure(causes[index], *refusal))
        if last := [step for step in steps[len(first) :] if isinstance(step.key, LinkKey)]:
            failures += await self._apply_links(last)
        return failures

    def notices(self) -> tuple[list[AnyNotice], bool]:
        """What others did since the last call, and whether anything was missed.

        Some of the kernel's messages do not say who caused them (links, forwarding entries): those tell of our own
        changes too.
        """
        datagrams, lost = self._monitor.take()
        found, self._put_off = self._put_off, []
        for datagram in datagrams:
            try:
                self._understand(datagram, found)
            except MalformedError:
                lost = True
        lost, self._lost = lost or self._lost, False
        return found, lost

    def _understand(self, datagram: bytes, found: list[AnyNotice]) -> None:
        """Add what a datagram says to `found`. Raises MalformedError; what came before it is added."""
        for message in messages(datagram):
            if message.port != self._netlink.port and (notice := self._devices.notice(message)):
                found.append(notice)
                if isinstance(notice, Notice) and isinstance(notice.key, LinkKey) and notice.value:
                    # Sent for a changed offload too, which it does not tell.
                    device = notice.key.device
                    key = OffloadKey(notice.key.family, device)
                    found.append(Notice(key, links.read_offload(self._control, device)))

    def discard_device_notices(self) -> None:
        """Forget what is said of our devices until now; for a caller that reads them back."""
        found, lost = self.notices()
        self._put_off = [
            notice
            for notice in found
            if not (isinstance(notice, Notice) and isinstance(notice.key, LinkKey | OffloadKey))
        ]
        self._lost |= lost
        if self._put_off or self._lost:
            self._wake()

    async def _read_neighbours(self, link: links.Link) -> Entries:
        """Neighbours and forwarding entries of one device of ours."""
        entries: Entries = {}
        family = AF[device_family(link.name)]
        found: list[Message] = await self._netlink.dump(
            RTM_GETNEIGH, NDMSG.pack(family, 0, 0, 0, 0) + u32(NDA_IFINDEX, link.index)
        )
        if link.kind == "vxlan":
            found += await self._netlink.dump(RTM_GETNEIGH, NDMSG.pack(AF_BRIDGE, link.index, 0, 0, 0))
        for message in found:
            entry = self._devices.neighbour(message)
            if entry and entry[1] is not None:
                entries[entry[0]] = entry[1]
        return entries

    async def _read_routes(self) -> Entries:
        entries: Entries = {}
        for family, protocol in product(AF.values(), self._protocols):
            header = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0)
            for message in await self._netlink.dump(RTM_GETROUTE, header):
                entry = self._devices.route(message)
                if entry and entry[2]:
                    entries[entry[0]] = entry[1]
        return entries

    async def _apply_links(self, steps: Sequence[Step]) -> list[Failure]:
        failures: list[Failure] = []
        for step in steps:
            if isinstance(step.key, LinkKey) and (refusal := await self._apply_link(step.key.device, step)):
                failures.append(Failure(step, *refusal))
        self._devices.know(link for link in await links.list_links(self._netlink) if self._devices.owns(link.name))
        return failures

    async def _apply_link(self, device: str, step: Step) -> Refusal | None:
        if step.verb is Verb.DELETE:
            refusal = await self._run(links.delete_link(device))
            return None if refusal and refusal.errno in GONE else refusal
        if not isinstance(step.value, Vxlan):
            return None
        have = await self.read_device(device)
        if have and not needs_new_device(step.value, have):
            changed = await self._netlink.batch(links.change_link(device, step.value, have))
            return next(iter(changed.values()), None)
        if have and (refusal := await self._run(links.delete_link(device))):
            return refusal
        refusals = await self._netlink.batch(links.add_vxlan(device, step.value))
        return refusals.get(0) or refusals.get(2)  # 1 is refused where the kernel has no IPv6

    def _apply_setting(self, key: SysctlKey | OffloadKey, step: Step) -> list[Failure]:
        try:
            if isinstance(key, OffloadKey):
                links.write_offload(self._control, key.device, str(step.value))
            else:
                links.write_sysctl(key.path, str(step.value))
        except OSError as error:
            return [Failure(step, error.errno or 0, error.strerror or os.strerror(error.errno or 0))]
        return []

    async def _run(self, request: Request) -> Refusal | None:
        return (await self._netlink.batch([request])).get(0)


def _interface(link: links.Link, addresses: Iterable[str]) -> Interface:
    return Interface(
        index=link.index,
        name=link.name,
        mtu=link.mtu,
        loopback=bool(link.flags & links.IFF_LOOPBACK),
        up=link.up,
        addresses=tuple(addresses),
    )


def _is_passing(address: links.Address) -> bool:
    """Whether the address is not made to last: others of its link are better for peers to know."""
    return bool(address.flags & (links.IFA_F_SECONDARY | links.IFA_F_DEPRECATED | links.IFA_F_DADFAILED))


def leading_links(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps on links that come before all others."""
    count = next((index for index, step in enumerate(steps) if not isinstance(step.key, LinkKey)), len(steps))
    return steps[:count]
