"""A pod's link to its node: a veth pair, routed, without bridge and without ARP.

    pod:  eth0, <ip>/32; default via 169.254.1.1 (fe80::ecee:eeff:feee:eeee) onlink, its permanent neighbour
          entry is the node end's MAC ee:ee:ee:ee:ee:ee
    node: nap<hash>, no address; route <ip>/32 scope link proto 78, permanent neighbour entry <ip> with the pod's MAC

Ours is recognisable: links by the name `nap` + 12 hex digits, routes by their protocol number. Routes and neighbours
go with the link, so removing the link removes everything.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from errno import ENODEV, ETIMEDOUT
from typing import TypeVar

from netagent.core.cni import HOST_IFNAME
from netagent.core.network.podnet import ROUTE_PROTOCOL
from netagent.kernel import rtbatch, vethchecks, vethrequests, vethsysctls
from netagent.kernel.netns import open_netns, run_in_netns
from netagent.kernel.pyroute import RTM_GETROUTE, IPRoute, NetlinkError
from netagent.kernel.rtbatch import Request, RtnetlinkError
from netagent.kernel.sysctl import has_link
from netagent.records import Endpoint

T = TypeVar("T")

WIRERS = 4
"""Threads that wire. The kernel does one such thing at a time (RTNL); more threads would only wait."""
REMOVERS = 16
"""Threads that remove links: they wait longest where RTNL is not held, until nobody uses the link."""
LOCAL_ROUTE_TIMEOUT_S = 10.0
LOCAL_ROUTE_POLL_S = 0.0005

RTM_TYPE_OFFSET = 16 + 7
"""Of rtm_type in an answer: after nlmsghdr and seven bytes of rtmsg."""
RTN_LOCAL = 2

SIOCGIFMTU, SIOCSIFMTU = 0x8921, 0x8922
IFREQ_MTU = struct.Struct("16si20x")
"""struct ifreq of netdevice(7): name and MTU."""


class Wiring:
    """Wires pods in worker threads, several at a time. The caller sees to it that it is one at a time for one pod."""

    def __init__(self) -> None:
        self._wirers = ThreadPoolExecutor(WIRERS, thread_name_prefix="wiring")
        self._removers = ThreadPoolExecutor(REMOVERS, thread_name_prefix="unwiring")

    async def wire(self, endpoint: Endpoint, mtu: int) -> None:
        """Make the link, addresses, routes and neighbours. Raises NetagentError; then none of it is left."""
        await self._run(lambda: wire(endpoint, mtu))

    async def unwire(self, host_ifname: str) -> None:
        """Remove the link and all that hangs on it; done where there is none. Raises RtnetlinkError."""
        await self._run(lambda: unwire(host_ifname), self._removers)

    async def check(self, endpoint: Endpoint) -> tuple[str, ...]:
        """What differs from what `wire` made; empty: nothing. Raises NetnsError where the pod has none."""
        return await self._run(lambda: check(endpoint))

    async def check_host_side(self, endpoint: Endpoint) -> tuple[str, ...]:
        """The same of the node's end alone. Raises RtnetlinkError."""
        return await self._run(lambda: check_host_side(endpoint))

    async def mend(self, endpoint: Endpoint, mtu: int) -> None:
        """Put the node's end right as it stands, or make the link anew where there is none. Raises NetagentError."""
        await self._run(lambda: mend(endpoint, mtu))

    async def links(self) -> frozenset[str]:
        """Names of the host ends that exist."""
        return await self._run(links)

    async def routed(self, names: frozenset[str]) -> dict[str, str]:
        """Address -> name, for the addresses that our routes lead to these links."""
        return await self._run(lambda: routed(names)) if names else {}

    async def mtus(self, names: frozenset[str]) -> dict[str, int]:
        """MTU in bytes by name, of those links that exist."""
        return await self._run(lambda: mtus(names))

    async def set_mtu(self, endpoint: Endpoint, mtu: int) -> None:
        """Give both ends of a pod's link another MTU; done where the link is gone. Raises NetagentError."""
        await self._run(lambda: set_mtu(endpoint, mtu))

    def close(self) -> None:
        """No more work is accepted."""
        self._wirers.shutdown(wait=False)
        self._removers.shutdown(wait=False)

    async def _run(self, work: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool or self._wirers, work)
        except NetlinkError as error:
            raise RtnetlinkError("answer a query", error.code, "") from error


def wire(endpoint: Endpoint, mtu: int) -> None:
    """See Wiring.wire. Blocks for some milliseconds."""
    with open_netns(endpoint.netns) as netns, rtbatch.open_socket() as netlink:
        rtbatch.run(
            netlink, [vethrequests.remove_link(endpoint.host_ifname), vethrequests.create_pair(endpoint, mtu, netns)]
        )
        try:
            vethsysctls.set_host_sysctls(endpoint)
            index = socket.if_nametoindex(endpoint.host_ifname)
            rtbatch.run(netlink, vethrequests.host_side(endpoint, index))
            run_in_netns(netns, lambda: _wire_pod_side(endpoint))
            rtbatch.run(netlink, [vethrequests.settle(index)])
        except BaseException:
            with contextlib.suppress(RtnetlinkError):
                rtbatch.run(netlink, [vethrequests.remove_link(endpoint.host_ifname)])
            raise


def unwire(host_ifname: str) -> None:
    """See Wiring.unwire. Takes about 20 ms: the kernel waits until nobody uses the link."""
    with rtbatch.open_socket() as netlink:
        rtbatch.run(netlink, [vethrequests.remove_link(host_ifname)])


def links() -> frozenset[str]:
    """See Wiring.links."""
    return frozenset(name for _, name in socket.if_nameindex() if HOST_IFNAME.fullmatch(name))


def routed(names: frozenset[str]) -> dict[str, str]:
    """See Wiring.routed."""
    indexes = {index: name for index, name in socket.if_nameindex() if name in names}
    with IPRoute() as rtnetlink:
        return {
            route.get("RTA_DST"): indexes[route.get("RTA_OIF")]
            for family in (socket.AF_INET, socket.AF_INET6)
            for route in rtnetlink.get_routes(family=family, proto=ROUTE_PROTOCOL)
            if route.get("RTA_OIF") in indexes
        }


def check(endpoint: Endpoint) -> tuple[str, ...]:
    """See Wiring.check."""
    with open_netns(endpoint.netns) as netns:
        return (*vethchecks.host_problems(endpoint), *run_in_netns(netns, lambda: vethchecks.pod_problems(endpoint)))


def check_host_side(endpoint: Endpoint) -> tuple[str, ...]:
    """See Wiring.check_host_side."""
    return (*vethchecks.host_problems(endpoint), *vethchecks.sysctl_problems(endpoint))


def mend(endpoint: Endpoint, mtu: int) -> None:
    """See Wiring.mend."""
    index = _index_of(endpoint.host_ifname)
    if index is None:
        with open_netns(endpoint.netns) as netns:
            run_in_netns(netns, lambda: _remove_pod_end(endpoint))
        wire(endpoint, mtu)
        return
    vethsysctls.set_host_sysctls(endpoint)
    with rtbatch.open_socket() as netlink:
        rtbatch.run(netlink, [*vethrequests.host_side(endpoint, index), vethrequests.settle(index)])


def _index_of(name: str) -> int | None:
    with contextlib.suppress(OSError):  # the link went
        return socket.if_nametoindex(name) if has_link(name) else None
    return None


def _remove_pod_end(endpoint: Endpoint) -> None:
    """Of a link whose node end has another name now, or lives elsewhere: both go with it."""
    with IPRoute() as rtnetlink:
        for message in rtnetlink.get_links():
            if (message.get("IFLA_IFNAME"), message.get("IFLA_ADDRESS")) == (endpoint.ifname, endpoint.mac):
                rtnetlink.link("del", index=message["index"])


def mtus(names: frozenset[str]) -> dict[str, int]:
    """See Wiring.mtus."""
    found: dict[str, int] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for name in names:
            with contextlib.suppress(OSError):  # the link went
                answer = fcntl.ioctl(control, SIOCGIFMTU, IFREQ_MTU.pack(name.encode(), 0))
                found[name] = IFREQ_MTU.unpack(answer)[1]
    return found


def set_mtu(endpoint: Endpoint, mtu: int) -> None:
    """See Wiring.set_mtu."""
    before = mtus(frozenset({endpoint.host_ifname})).get(endpoint.host_ifname)
    if before is None:
        return
    with open_netns(endpoint.netns) as netns:
        # An end drops what is larger than its MTU, so the end that may send more goes last.
        if mtu > before:
            _set_link_mtu(endpoint.host_ifname, mtu)
        run_in_netns(netns, lambda: _set_link_mtu(endpoint.ifname, mtu))
    if mtu < before:
        _set_link_mtu(endpoint.host_ifname, mtu)


def _set_link_mtu(name: str, mtu: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, SIOCSIFMTU, IFREQ_MTU.pack(name.encode(), mtu))
        except OSError as error:
            if error.errno != ENODEV:
                raise RtnetlinkError(f"set the MTU of {name} to {mtu}", error.errno or 0, "") from error


def _wire_pod_side(endpoint: Endpoint) -> None:
    if any(":" in ip for ip in endpoint.ips):
        # Container runtimes switch it off in some pods.
        vethsysctls.set_sysctls("ipv6", endpoint.ifname, disable_ipv6=0)
        vethsysctls.set_sysctls("ipv6", "lo", disable_ipv6=0)
    with rtbatch.open_socket() as netlink:
        rtbatch.run(netlink, vethrequests.pod_side(endpoint, socket.if_nametoindex(endpoint.ifname)))
        for ip in endpoint.ips:
            _await_local(netlink, ip)


def _await_local(netlink: socket.socket, ip: str) -> None:
    """Wait until packets to the address are taken in.

    The kernel answers "done" for an IPv6 address before a workqueue has made its local route (addrconf_dad_work, also
    without duplicate detection). On a busy node a pod's first packets would be lost.
    """
    header = {"family": vethrequests.family_of(ip), "dst_len": vethrequests.bits(ip)}
    query = Request(f"look up {ip}", RTM_GETROUTE, 0, header, [("RTA_DST", ip)])
    deadline_s = time.monotonic() + LOCAL_ROUTE_TIMEOUT_S
    while True:
        answer = rtbatch.ask(netlink, query)
        if answer and answer[RTM_TYPE_OFFSET] == RTN_LOCAL:
            return
        if time.monotonic() > deadline_s:
            raise RtnetlinkError(f"take in packets to {ip} within {LOCAL_ROUTE_TIMEOUT_S:g} s", ETIMEDOUT, "")
        time.sleep(LOCAL_ROUTE_POLL_S)
