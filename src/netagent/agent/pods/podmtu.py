"""Running pods follow the MTU of the pod network: both ends of their links, and with the pod's end its routes.

Pods are wired with the MTU of that moment. When the underlay gets another one, or the backend changes, larger packets
than the network carries would be dropped, or smaller ones sent than it could carry, until each pod is made anew.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from netagent.kernel.wiring import Wiring
from netagent.ports import NetagentError, PodNet
from netagent.records import Endpoint

log = logging.getLogger(__name__)

AUDIT_S = 10.0
"""Between two looks, for a pod that was being wired while the MTU changed. A look costs microseconds per pod."""


class PodMtu:
    """Service; `run` is its one task."""

    def __init__(self, pod_net: PodNet, endpoints: Callable[[], tuple[Endpoint, ...]]) -> None:
        """`endpoints()`: the pods that are wired."""
        self._pod_net = pod_net
        self._endpoints = endpoints
        self._wake = asyncio.Event()
        self._problems: dict[str, str] = {}

    def kick(self) -> None:
        """The pod network's state has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        wiring = Wiring()
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(AUDIT_S):
                        await self._wake.wait()
                self._wake.clear()
                if state := self._pod_net.state():
                    await self._follow(wiring, state.mtu)
        finally:
            wiring.close()

    async def _follow(self, wiring: Wiring, mtu: int) -> None:
        """Only pods whose node end differs: what a chained plugin set at the pod's end alone stays."""
        pods = {endpoint.host_ifname: endpoint for endpoint in self._endpoints()}
        problems: dict[str, str] = {}
        for name, have in (await wiring.mtus(frozenset(pods))).items():
            if have == mtu:
                continue
            try:
                await wiring.set_mtu(pods[name], mtu)
            except NetagentError as error:
                problems[name] = str(error)
                if self._problems.get(name) != str(error):
                    log.warning("%s keeps its MTU of %d: %s netagent tries again.", pods[name].pod, have, error)
            else:
                log.info("%s: MTU %d instead of %d", pods[name].pod, mtu, have)
        self._problems = problems
