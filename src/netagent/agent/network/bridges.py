"""Pods of another plugin on a bridge reach ours on the same node.

A pod that the bridge plugin wired takes the whole subnet of the node for its own link and asks there, by ARP or
neighbour discovery, for our pods' addresses. The bridge answers in their stead: IPv4 by proxy_arp, which goes by the
routing table; IPv6 by one proxy entry for each address. Without such a bridge there is nothing to do.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Never

from netagent.kernel.bridge import BridgeProxy
from netagent.kernel.rtnetlink import RtnetlinkError
from netagent.records import Endpoint

LOOK_S = 1.0
"""Between two looks at the pods; a new pod's first packet goes out from it, so nobody asks for it earlier."""
AUDIT_LOOKS = 10
"""The kernel is read again after so many looks without a change."""

log = logging.getLogger(__name__)


class OthersBridges:
    """Service; `run` is its one task."""

    def __init__(self, subnets: Callable[[], tuple[str, ...]], endpoints: Callable[[], tuple[Endpoint, ...]]) -> None:
        """`subnets`: this node's; `endpoints`: the pods that are ours."""
        self._subnets = subnets
        self._endpoints = endpoints

    async def run(self) -> Never:
        """Until cancelled."""
        done: tuple[tuple[str, ...], tuple[Endpoint, ...]] = ((), ())
        looks = 0
        with BridgeProxy() as proxy:
            while True:
                now = self._subnets(), self._endpoints()
                looks += 1
                if now != done or looks >= AUDIT_LOOKS:
                    looks = 0
                    try:
                        for bridge in await proxy.serve(now[0], [ip for one in now[1] for ip in one.ips]):
                            log.info("bridge %s answers for netagent's pods to those of another plugin", bridge)
                        done = now
                    except (RtnetlinkError, OSError) as error:
                        log.warning("pods on a bridge may not reach netagent's on this node: %s", error)
                await asyncio.sleep(LOOK_S)
