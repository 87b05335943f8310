"""Bridges that other CNI plugins made for this node's subnet, and the neighbour proxies on them."""

import ipaddress
from collections.abc import Collection, Iterable
from struct import Struct as Layout
from typing import Self

from netagent.kernel import links
from netagent.kernel.links import AF, address_bytes
from netagent.kernel.rtnetlink import NLM_F_CREATE, NLM_F_REPLACE, Request, Rtnetlink, attribute, attributes

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NDA_DST = 1
NTF_PROXY = 0x08
NDMSG = Layout("=BxxxiHBB")


class BridgeProxy:
    """The bridges of the network namespace in which this was made. Used by one task."""

    def __init__(self) -> None:
        self._netlink = Rtnetlink()
        self._served: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.__exit__()

    async def serve(self, subnets: Iterable[str], ips: Collection[str]) -> list[str]:
        """Have each bridge that is on one of the subnets answer for these addresses, and for no others.

        Returns the names of bridges that were not served before. Raises RtnetlinkError, OSError.
        """
        bridges = await self._find([ipaddress.ip_network(subnet) for subnet in subnets])
        for name, index in bridges.items():
            _set(f"net/ipv4/conf/{name}/proxy_arp", "1")
            _set(f"net/ipv4/neigh/{name}/proxy_delay", "0")
            _set(f"net/ipv6/conf/{name}/proxy_ndp", "1")
            await self._proxy(index, {ip for ip in ips if ":" in ip})
        fresh = sorted(bridges.keys() - self._served)
        self._served = set(bridges)
        return fresh

    async def _find(self, subnets: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> dict[str, int]:
        """Bridges with an address in one of the subnets: name -> ifindex."""
        if not subnets:
            return {}
        bridges = {link.index: link.name for link in await links.list_links(self._netlink) if link.kind == "bridge"}
        if not bridges:
            return {}
        return {
            bridges[address.index]: address.index
            for address in await links.list_addresses(self._netlink)
            if address.index in bridges and any(ipaddress.ip_address(address.address) in subnet for subnet in subnets)
        }

    async def _proxy(self, index: int, wanted: set[str]) -> None:
        body = NDMSG.pack(AF[6], 0, 0, NTF_PROXY, 0)
        there: set[str] = set()
        for message in await self._netlink.dump(RTM_GETNEIGH, body):
            _, ifindex, _, flags, _ = NDMSG.unpack_from(message.body)
            if ifindex == index and flags & NTF_PROXY:
                there.add(links.address_text(6, attributes(message.body, NDMSG.size)[NDA_DST]))
        header = NDMSG.pack(AF[6], index, 0, NTF_PROXY, 0)
        await self._netlink.batch(
            [
                Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, header + attribute(NDA_DST, address_bytes(ip)))
                for ip in sorted(wanted - there)
            ]
            + [
                Request(RTM_DELNEIGH, 0, header + attribute(NDA_DST, address_bytes(ip)))
                for ip in sorted(there - wanted)
            ]
        )


def _set(path: str, value: str) -> None:
    """Set a sysctl that may be missing (a kernel without IPv6)."""
    if links.read_sysctl(path) not in (value, ""):
        links.write_sysctl(path, value)
