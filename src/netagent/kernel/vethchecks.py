"""What of a pod's link is not as it was made, in words. Empty: all is there."""

import contextlib
from errno import ENODEV
from typing import Any

from netagent.core.cni import HOST_MAC
from netagent.kernel import sysctl
from netagent.kernel.pyroute import IPRoute, NetlinkError
from netagent.kernel.vethrequests import IFF_UP, bits, family_of, gateway
from netagent.kernel.vethsysctls import host_sysctls
from netagent.records import Endpoint

RTM_F_FIB_MATCH = 0x2000


def sysctl_problems(endpoint: Endpoint) -> list[str]:
    problems = []
    for family, values in host_sysctls(endpoint).items():
        for name, value in values.items():
            path = sysctl.NET / family / "conf" / endpoint.host_ifname / name
            with contextlib.suppress(OSError):
                if int(path.read_text()) != value:
                    problems.append(f"net.{family}.conf.{endpoint.host_ifname}.{name} is not {value}")
    return problems


def host_problems(endpoint: Endpoint) -> list[str]:
    with IPRoute() as rtnetlink:
        link = _link(rtnetlink, endpoint.host_ifname)
        if link is None:
            return [f"link {endpoint.host_ifname} is missing or down"]
        index, problems = link["index"], []
        if link.get("IFLA_ADDRESS") != HOST_MAC:
            problems.append(f"link {endpoint.host_ifname} has another MAC than {HOST_MAC}")
        for ip in endpoint.ips:
            if not _has_route(rtnetlink, ip, index):
                problems.append(f"route {ip} dev {endpoint.host_ifname} is missing")
            if not _has_neighbour(rtnetlink, ip, endpoint.mac, index):
                problems.append(f"neighbour {ip} at {endpoint.mac} on {endpoint.host_ifname} is missing")
        return problems


def pod_problems(endpoint: Endpoint) -> list[str]:
    with IPRoute() as rtnetlink:
        link = _link(rtnetlink, endpoint.ifname)
        if link is None:
            return [f"link {endpoint.ifname} in the pod is missing or down"]
        index, problems = link["index"], []
        held = {message.get("IFA_ADDRESS") for message in rtnetlink.get_addr(index=index)}
        for ip in endpoint.ips:
            via = gateway(ip)
            if ip not in held:
                problems.append(f"address {ip} in the pod is missing")
            routes = rtnetlink.get_default_routes(family=family_of(ip))
            if not any(r.get("RTA_OIF") == index and r.get("RTA_GATEWAY") == via for r in routes):
                problems.append(f"default route via {via} in the pod is missing")
            if not _has_neighbour(rtnetlink, via, HOST_MAC, index):
                problems.append(f"neighbour {via} at {HOST_MAC} in the pod is missing")
        return problems


def _link(rtnetlink: IPRoute, name: str) -> Any:
    """The link of that name if it is up. Asked for alone: a dump takes milliseconds on a full node.

    The kernel answers with one that has it as an alternative name too, which rules for its name do not match.
    """
    try:
        (link,) = rtnetlink.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == ENODEV:
            return None
        raise
    return link if link["flags"] & IFF_UP and link.get("IFLA_IFNAME") == name else None


def _has_route(rtnetlink: IPRoute, ip: str, index: int) -> bool:
    """Whether the routing table's best match is the pod's own entry."""
    try:
        (route,) = rtnetlink.route("get", family=family_of(ip), dst=ip, flags=RTM_F_FIB_MATCH)
    except NetlinkError:  # unreachable, or a blackhole
        return False
    return bool(route["dst_len"] == bits(ip) and route.get("RTA_OIF") == index)


def _has_neighbour(rtnetlink: IPRoute, ip: str, mac: str, index: int) -> bool:
    entries = rtnetlink.get_neighbours(family=family_of(ip), ifindex=index)
    return any(entry.get("NDA_DST") == ip and entry.get("NDA_LLADDR") == mac for entry in entries)
