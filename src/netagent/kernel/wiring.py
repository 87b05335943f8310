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
import re
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from errno import ENODEV, ETIMEDOUT
from typing import Any, TypeVar

from netagent.core.cni import GATEWAY_V4, GATEWAY_V6, HOST_MAC
from netagent.kernel import rtbatch, sysctl
from netagent.kernel.netns import open_netns, run_in_netns
from netagent.kernel.pyroute import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    IPRoute,
    NetlinkError,
)
from netagent.kernel.rtbatch import Request, RtnetlinkError
from netagent.records import Endpoint

T = TypeVar("T")

ROUTE_PROTOCOL = 0x4E
"""Marks our routes; 78 is free in iproute2's rt_protos."""
LINK_NAME = re.compile(r"nap[0-9a-f]{12}")
WORKERS = 4
"""Threads that wire. The kernel does one such thing at a time (RTNL); more threads would only wait."""
LOCAL_ROUTE_TIMEOUT_S = 10.0
LOCAL_ROUTE_POLL_S = 0.0005
MAX_ALIAS = 254
"""IFALIASZ - 1, and the zero that pyroute2 adds."""

CREATE = NLM_F_CREATE | NLM_F_EXCL
REPLACE = NLM_F_CREATE | NLM_F_REPLACE
IFF_UP = 1
IFA_F_NODAD = 0x02
NUD_PERMANENT = 0x80
RTNH_F_ONLINK = 4
RTM_F_FIB_MATCH = 0x2000
RT_TABLE_MAIN = 254
RT_SCOPE_LINK = 253
RTM_TYPE_OFFSET = 16 + 7
"""Of rtm_type in an answer: after nlmsghdr and seven bytes of rtmsg."""
RTN_UNICAST = 1
RTN_LOCAL = 2
RTPROT_BOOT = 3

SIOCGIFMTU, SIOCSIFMTU = 0x8921, 0x8922
IFREQ_MTU = struct.Struct("16si20x")
"""struct ifreq of netdevice(7): name and MTU."""


class Wiring:
    """Wires pods in worker threads, several at a time. The caller sees to it that it is one at a time for one pod."""

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="wiring")

    async def wire(self, endpoint: Endpoint, mtu: int) -> None:
        """Make the link, addresses, routes and neighbours. Raises NetagentError; then none of it is left."""
        await self._run(lambda: wire(endpoint, mtu))

    async def unwire(self, host_ifname: str) -> None:
        """Remove the link and all that hangs on it; done where there is none. Raises RtnetlinkError."""
        await self._run(lambda: unwire(host_ifname))

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
        self._workers.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)
        except NetlinkError as error:
            raise RtnetlinkError("answer a query", error.code, "") from error


def wire(endpoint: Endpoint, mtu: int) -> None:
    """See Wiring.wire. Blocks for some milliseconds."""
    with open_netns(endpoint.netns) as netns, rtbatch.open_socket() as netlink:
        rtbatch.run(netlink, [_remove_link(endpoint.host_ifname), _create_pair(endpoint, mtu, netns)])
        try:
            _set_host_sysctls(endpoint)
            index = socket.if_nametoindex(endpoint.host_ifname)
            rtbatch.run(netlink, _host_side(endpoint, index))
            run_in_netns(netns, lambda: _wire_pod_side(endpoint))
            rtbatch.run(netlink, [_settle(index)])
        except BaseException:
            with contextlib.suppress(RtnetlinkError):
                rtbatch.run(netlink, [_remove_link(endpoint.host_ifname)])
            raise


def unwire(host_ifname: str) -> None:
    """See Wiring.unwire. Takes about 20 ms: the kernel waits until nobody uses the link."""
    with rtbatch.open_socket() as netlink:
        rtbatch.run(netlink, [_remove_link(host_ifname)])


def links() -> frozenset[str]:
    """See Wiring.links."""
    return frozenset(name for _, name in socket.if_nameindex() if LINK_NAME.fullmatch(name))


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
        return (*_check_host_side(endpoint), *run_in_netns(netns, lambda: _check_pod_side(endpoint)))


def check_host_side(endpoint: Endpoint) -> tuple[str, ...]:
    """See Wiring.check_host_side."""
    return (*_check_host_side(endpoint), *_check_host_sysctls(endpoint))


def mend(endpoint: Endpoint, mtu: int) -> None:
    """See Wiring.mend."""
    try:
        index = socket.if_nametoindex(endpoint.host_ifname)
    except OSError:
        with open_netns(endpoint.netns) as netns:
            run_in_netns(netns, lambda: _remove_pod_end(endpoint))
        wire(endpoint, mtu)
        return
    _set_host_sysctls(endpoint)
    with rtbatch.open_socket() as netlink:
        rtbatch.run(netlink, [*_host_side(endpoint, index), _settle(index)])


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


# --- requests -------------------------------------------------------------------------------------------------------


def _remove_link(name: str) -> Request:
    return Request(f"remove link {name}", RTM_DELLINK, 0, {}, [("IFLA_IFNAME", name)], tolerate=(ENODEV,))


def _create_pair(endpoint: Endpoint, mtu: int, netns: int) -> Request:
    peer = [
        ("IFLA_IFNAME", endpoint.ifname),
        ("IFLA_ADDRESS", endpoint.mac),
        ("IFLA_MTU", mtu),
        ("IFLA_NET_NS_FD", netns),
    ]
    attributes = [
        ("IFLA_IFNAME", endpoint.host_ifname),
        ("IFLA_ADDRESS", HOST_MAC),
        ("IFLA_MTU", mtu),
        (
            "IFLA_LINKINFO",
            {
                "attrs": [
                    ("IFLA_INFO_KIND", "veth"),
                    ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}),
                ]
            },
        ),
    ]
    what = f"create the veth pair {endpoint.host_ifname} and {endpoint.ifname} in {endpoint.netns}"
    return Request(what, RTM_NEWLINK, CREATE, {}, attributes)


def _host_side(endpoint: Endpoint, index: int) -> list[Request]:
    alias = f"pod {endpoint.pod}"[:MAX_ALIAS]
    requests = [_up(index, [("IFLA_IFALIAS", alias), ("IFLA_ADDRESS", HOST_MAC)])]
    for ip in endpoint.ips:
        requests.append(_neighbour(ip, endpoint.mac, index))
        requests.append(
            Request(
                f"add route {ip} dev {endpoint.host_ifname}",
                RTM_NEWROUTE,
                REPLACE,
                {
                    "family": _family(ip),
                    "dst_len": _bits(ip),
                    "table": RT_TABLE_MAIN,
                    "proto": ROUTE_PROTOCOL,
                    "scope": RT_SCOPE_LINK,
                    "type": RTN_UNICAST,
                },
                [("RTA_DST", ip), ("RTA_OIF", index)],
            )
        )
    return requests


def _pod_side(endpoint: Endpoint, index: int) -> list[Request]:
    requests = [_up(socket.if_nametoindex("lo")), _up(index)]
    for ip in endpoint.ips:
        gateway = _gateway(ip)
        requests.append(_address(ip, index))
        requests.append(_neighbour(gateway, HOST_MAC, index))
        requests.append(
            Request(
                f"add the default route via {gateway} in the pod",
                RTM_NEWROUTE,
                CREATE,
                {
                    "family": _family(ip),
                    "table": RT_TABLE_MAIN,
                    "proto": RTPROT_BOOT,
                    "type": RTN_UNICAST,
                    "flags": RTNH_F_ONLINK,
                },
                [("RTA_GATEWAY", gateway), ("RTA_OIF", index)],
            )
        )
    requests.append(_settle(index))
    return requests


def _settle(index: int) -> Request:
    """A query that makes the kernel act on the new carrier at once; before that it drops what is sent there."""
    return Request(f"read link {index}", RTM_GETLINK, 0, {"index": index}, [])


def _up(index: int, attributes: list[tuple[str, Any]] | None = None) -> Request:
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return Request(f"set link {index} up", RTM_NEWLINK, 0, fields, attributes or [])


def _address(ip: str, index: int) -> Request:
    # Nobody else can have the address: duplicate detection would only hold the pod for a second.
    flags = IFA_F_NODAD if ":" in ip else 0
    fields = {"family": _family(ip), "prefixlen": _bits(ip), "flags": flags, "index": index}
    attributes = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
    return Request(f"add address {ip} in the pod", RTM_NEWADDR, CREATE, fields, attributes)


def _neighbour(ip: str, mac: str, index: int) -> Request:
    fields = {"family": _family(ip), "ifindex": index, "state": NUD_PERMANENT}
    attributes = [("NDA_DST", ip), ("NDA_LLADDR", mac)]
    return Request(f"add neighbour {ip} at {mac}", RTM_NEWNEIGH, REPLACE, fields, attributes)


# --- sides ----------------------------------------------------------------------------------------------------------


def _host_sysctls(endpoint: Endpoint) -> dict[str, dict[str, int]]:
    # Loose: the ruleset drops spoofed sources, with a counter; strict filtering would hide them from it.
    wanted = {"ipv4": {"rp_filter": 2, "forwarding": 1, "proxy_arp": 0}}
    # No link-local address: it would be announced, and nobody talks to it.
    wanted["ipv6"] = {"addr_gen_mode": 1}
    if any(":" in ip for ip in endpoint.ips):
        wanted["ipv6"] |= {"disable_ipv6": 0, "accept_ra": 0, "forwarding": 1}
    return wanted


def _set_host_sysctls(endpoint: Endpoint) -> None:
    for family, values in _host_sysctls(endpoint).items():
        _set(family, endpoint.host_ifname, **values)


def _check_host_sysctls(endpoint: Endpoint) -> list[str]:
    problems = []
    for family, values in _host_sysctls(endpoint).items():
        for name, value in values.items():
            path = sysctl.NET / family / "conf" / endpoint.host_ifname / name
            with contextlib.suppress(OSError):
                if int(path.read_text()) != value:
                    problems.append(f"net.{family}.conf.{endpoint.host_ifname}.{name} is not {value}")
    return problems


def _wire_pod_side(endpoint: Endpoint) -> None:
    if any(":" in ip for ip in endpoint.ips):
        # Container runtimes switch it off in some pods.
        _set("ipv6", endpoint.ifname, disable_ipv6=0)
        _set("ipv6", "lo", disable_ipv6=0)
    with rtbatch.open_socket() as netlink:
        rtbatch.run(netlink, _pod_side(endpoint, socket.if_nametoindex(endpoint.ifname)))
        for ip in endpoint.ips:
            _await_local(netlink, ip)


def _await_local(netlink: socket.socket, ip: str) -> None:
    """Wait until packets to the address are taken in.

    The kernel answers "done" for an IPv6 address before a workqueue has made its local route (addrconf_dad_work, also
    without duplicate detection). On a busy node a pod's first packets would be lost.
    """
    query = Request(f"look up {ip}", RTM_GETROUTE, 0, {"family": _family(ip), "dst_len": _bits(ip)}, [("RTA_DST", ip)])
    deadline_s = time.monotonic() + LOCAL_ROUTE_TIMEOUT_S
    while True:
        answer = rtbatch.ask(netlink, query)
        if answer and answer[RTM_TYPE_OFFSET] == RTN_LOCAL:
            return
        if time.monotonic() > deadline_s:
            raise RtnetlinkError(f"take in packets to {ip} within {LOCAL_ROUTE_TIMEOUT_S:g} s", ETIMEDOUT, "")
        time.sleep(LOCAL_ROUTE_POLL_S)


def _set(family: str, link: str, **values: int) -> None:
    """Set per-link sysctls of the calling thread's namespace. A kernel without the family has none to set."""
    directory = sysctl.NET / family / "conf" / link
    for name, value in values.items():
        with contextlib.suppress(FileNotFoundError), (directory / name).open("wb", buffering=0) as file:
            file.write(b"%d" % value)


def _check_host_side(endpoint: Endpoint) -> list[str]:
    with IPRoute() as rtnetlink:
        index = _index(rtnetlink, endpoint.host_ifname)
        if index is None:
            return [f"link {endpoint.host_ifname} is missing or down"]
        problems = []
        if not any(link.get("IFLA_ADDRESS") == HOST_MAC for link in rtnetlink.get_links(index)):
            problems.append(f"link {endpoint.host_ifname} has another MAC than {HOST_MAC}")
        for ip in endpoint.ips:
            if not _has_route(rtnetlink, ip, index):
                problems.append(f"route {ip} dev {endpoint.host_ifname} is missing")
            if not _has_neighbour(rtnetlink, ip, endpoint.mac, index):
                problems.append(f"neighbour {ip} at {endpoint.mac} on {endpoint.host_ifname} is missing")
        return problems


def _check_pod_side(endpoint: Endpoint) -> list[str]:
    with IPRoute() as rtnetlink:
        index = _index(rtnetlink, endpoint.ifname)
        if index is None:
            return [f"link {endpoint.ifname} in the pod is missing or down"]
        problems = []
        held = {message.get("IFA_ADDRESS") for message in rtnetlink.get_addr(index=index)}
        for ip in endpoint.ips:
            gateway = _gateway(ip)
            if ip not in held:
                problems.append(f"address {ip} in the pod is missing")
            routes = rtnetlink.get_default_routes(family=_family(ip))
            if not any(r.get("RTA_OIF") == index and r.get("RTA_GATEWAY") == gateway for r in routes):
                problems.append(f"default route via {gateway} in the pod is missing")
            if not _has_neighbour(rtnetlink, gateway, HOST_MAC, index):
                problems.append(f"neighbour {gateway} at {HOST_MAC} in the pod is missing")
        return problems


def _index(rtnetlink: IPRoute, name: str) -> int | None:
    """Index of the link of that name if it is up."""
    for message in rtnetlink.get_links(ifname=name):
        if message["flags"] & IFF_UP:
            return int(message["index"])
    return None


def _has_route(rtnetlink: IPRoute, ip: str, index: int) -> bool:
    """Whether the routing table's best match is the pod's own entry."""
    try:
        (route,) = rtnetlink.route("get", family=_family(ip), dst=ip, flags=RTM_F_FIB_MATCH)
    except NetlinkError:  # unreachable, or a blackhole
        return False
    return bool(route["dst_len"] == _bits(ip) and route.get("RTA_OIF") == index)


def _has_neighbour(rtnetlink: IPRoute, ip: str, mac: str, index: int) -> bool:
    entries = rtnetlink.get_neighbours(family=_family(ip), ifindex=index)
    return any(entry.get("NDA_DST") == ip and entry.get("NDA_LLADDR") == mac for entry in entries)


def _family(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _bits(ip: str) -> int:
    return 128 if ":" in ip else 32


def _gateway(ip: str) -> str:
    return GATEWAY_V6 if ":" in ip else GATEWAY_V4
