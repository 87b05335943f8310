"""The rtnetlink requests that make a pod's link."""

import socket
from errno import ENODEV
from typing import Any

from netagent.core.cni import GATEWAY_V4, GATEWAY_V6, HOST_MAC
from netagent.core.network.podnet import ROUTE_PROTOCOL
from netagent.kernel.pyroute import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)
from netagent.kernel.rtbatch import Request
from netagent.records import Endpoint

MAX_ALIAS = 254
"""IFALIASZ - 1, and the zero that pyroute2 adds."""
CREATE = NLM_F_CREATE | NLM_F_EXCL
REPLACE = NLM_F_CREATE | NLM_F_REPLACE
IFF_UP = 1
IFA_F_NODAD = 0x02
NUD_PERMANENT = 0x80
RTNH_F_ONLINK = 4
RT_TABLE_MAIN = 254
RT_SCOPE_LINK = 253
RTN_UNICAST = 1
RTPROT_BOOT = 3


def remove_link(name: str) -> Request:
    return Request(f"remove link {name}", RTM_DELLINK, 0, {}, [("IFLA_IFNAME", name)], tolerate=(ENODEV,))


def create_pair(endpoint: Endpoint, mtu: int, netns: int) -> Request:
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


def host_side(endpoint: Endpoint, index: int) -> list[Request]:
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
                    "family": family_of(ip),
                    "dst_len": bits(ip),
                    "table": RT_TABLE_MAIN,
                    "proto": ROUTE_PROTOCOL,
                    "scope": RT_SCOPE_LINK,
                    "type": RTN_UNICAST,
                },
                [("RTA_DST", ip), ("RTA_OIF", index)],
            )
        )
    return requests


def pod_side(endpoint: Endpoint, index: int) -> list[Request]:
    requests = [_up(socket.if_nametoindex("lo")), _up(index)]
    for ip in endpoint.ips:
        via = gateway(ip)
        requests.append(_address(ip, index))
        requests.append(_neighbour(via, HOST_MAC, index))
        requests.append(
            Request(
                f"add the default route via {via} in the pod",
                RTM_NEWROUTE,
                CREATE,
                {
                    "family": family_of(ip),
                    "table": RT_TABLE_MAIN,
                    "proto": RTPROT_BOOT,
                    "type": RTN_UNICAST,
                    "flags": RTNH_F_ONLINK,
                },
                [("RTA_GATEWAY", via), ("RTA_OIF", index)],
            )
        )
    requests.append(settle(index))
    return requests


def settle(index: int) -> Request:
    """A query that makes the kernel act on the new carrier at once; before that it drops what is sent there."""
    return Request(f"read link {index}", RTM_GETLINK, 0, {"index": index}, [])


def _up(index: int, attributes: list[tuple[str, Any]] | None = None) -> Request:
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return Request(f"set link {index} up", RTM_NEWLINK, 0, fields, attributes or [])


def _address(ip: str, index: int) -> Request:
    # Nobody else can have the address: duplicate detection would only hold the pod for a second.
    flags = IFA_F_NODAD if ":" in ip else 0
    fields = {"family": family_of(ip), "prefixlen": bits(ip), "flags": flags, "index": index}
    attributes = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
    return Request(f"add address {ip} in the pod", RTM_NEWADDR, CREATE, fields, attributes)


def _neighbour(ip: str, mac: str, index: int) -> Request:
    fields = {"family": family_of(ip), "ifindex": index, "state": NUD_PERMANENT}
    attributes = [("NDA_DST", ip), ("NDA_LLADDR", mac)]
    return Request(f"add neighbour {ip} at {mac}", RTM_NEWNEIGH, REPLACE, fields, attributes)


def family_of(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def bits(ip: str) -> int:
    return 128 if ":" in ip else 32


def gateway(ip: str) -> str:
    return GATEWAY_V6 if ":" in ip else GATEWAY_V4
