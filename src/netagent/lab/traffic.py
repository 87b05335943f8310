"""Traffic of a running lab: endpoints by name, probes, matrices, flows."""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

from netagent.lab import pods
from netagent.lab.client import Object
from netagent.lab.flow import Flow
from netagent.lab.namespaces import Sockets
from netagent.lab.nodes import LabNode
from netagent.lab.places import Place, pod_place
from netagent.lab.plan import family_of
from netagent.lab.probe import TIMEOUT_S, Target, Verdict, probe
from netagent.lab.processes import LabError

PROBES_AT_ONCE = 500

Matrix = dict[tuple[str, str], Verdict]
"""(source, destination) -> what happened."""


class Traffic(ABC):
    """The part of a lab that sends packets."""

    nodes: list[LabNode]
    externals: dict[str, Place]
    sockets: Sockets

    @abstractmethod
    async def pods(self) -> list[Object]:
        """All pods."""

    async def places(self) -> dict[str, Place]:
        """Every endpoint of this moment by name: nodes, externals, pods that are not finished and have an address."""
        found = {place.name: place for place in (*(node.place for node in self.nodes), *self.externals.values())}
        by_name = {node.plan.name: (node.holder.pid, node.place) for node in self.nodes}
        for pod in await self.pods():
            place = pod_place(pod, by_name)
            if place is not None and place.ips and pods.phase(pod) not in pods.FINISHED:
                found[place.name] = place
        return found

    async def place(self, name: str) -> Place:
        """One endpoint: `namespace/pod`, `node:K`, `external:ADDRESS`. Raises LabError."""
        found = await self.places()
        if name not in found:
            raise LabError(f"no endpoint {name!r}. There are: {', '.join(sorted(found))}.")
        return found[name]

    async def probe(
        self,
        source: str,
        destination: str,
        port: int,
        protocol: str = "TCP",
        *,
        family: int = 4,
        timeout_s: float = TIMEOUT_S,
    ) -> Verdict:
        """Can `source` reach `destination`? Raises LabError for unknown endpoints."""
        begin, end = await self.place(source), await self.place(destination)
        return await self.probe_from(begin, Target(end.ip(family), port, protocol), timeout_s=timeout_s)

    async def probe_from(self, source: Place, target: Target, *, timeout_s: float = TIMEOUT_S) -> Verdict:
        """Can `source` reach an address?"""
        netns = source.open()
        source_ip = source.ip(family_of(target.ip)) if source.binds else ""
        try:
            return await probe(self.sockets, netns, target, timeout_s=timeout_s, source_ip=source_ip)
        finally:
            os.close(netns)

    async def matrix(
        self,
        sources: Sequence[str],
        destinations: Sequence[str],
        port: int,
        protocol: str = "TCP",
        *,
        family: int = 4,
        timeout_s: float = TIMEOUT_S,
    ) -> Matrix:
        """Every source to every destination, all at once, without those to themselves. Raises LabError."""
        found = await self.places()
        for name in (*sources, *destinations):
            if name not in found:
                raise LabError(f"no endpoint {name!r}. There are: {', '.join(sorted(found))}.")
        cells = [(begin, end) for begin in sources for end in destinations if begin != end]
        gate = asyncio.Semaphore(PROBES_AT_ONCE)

        async def one(begin: str, end: str) -> Verdict:
            async with gate:
                target = Target(found[end].ip(family), port, protocol)
                return await self.probe_from(found[begin], target, timeout_s=timeout_s)

        verdicts = await asyncio.gather(*(one(*cell) for cell in cells))
        return dict(zip(cells, verdicts, strict=True))

    async def flow(
        self,
        source: str,
        destination: str,
        port: int,
        protocol: str = "TCP",
        *,
        family: int = 4,
        interval_ms: float = 1.0,
    ) -> Flow:
        """Start a continuous exchange; the caller stops it. Raises LabError, OSError, TimeoutError."""
        begin, end = await self.place(source), await self.place(destination)
        netns = begin.open()
        try:
            flow = Flow(self.sockets, netns, Target(end.ip(family), port, protocol), interval_ms=interval_ms)
            await flow.start()
        finally:
            os.close(netns)
        return flow
