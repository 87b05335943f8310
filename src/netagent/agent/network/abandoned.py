"""Deletes leases whose holder's Node is gone, where the cluster's garbage collector has not.

Normally nothing is left to do: a lease is owned by its Node and collected with it. This is for clusters whose collector
is off or behind, and for leases without an owner (made by hand, restored from a backup). Every agent looks; each waits,
besides the grace, for a time of its own that grows with the cluster, so that one of thousands acts and the others see
the lease gone. The deletion names the object as it was read: a lease that changed meanwhile stays.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Never

from msgspec import Struct

from netagent.config import NetworkConfig
from netagent.core.network.lease import abandoned
from netagent.core.policy.store import Store
from netagent.kube.client import ApiClient, ApiError, Unreachable
from netagent.kube.leasestore import LeaseStore
from netagent.records import Key, Kind, SubnetLease

LOOK_S = 10.0
"""Between two looks; one at 5,000 leases takes a millisecond."""
SPREAD_PER_NODE_S = 0.5
"""On average one agent acts in such a time: longer than the others need to hear of it."""
SPREAD_MIN_S = 5.0

log = logging.getLogger(__name__)


class _Case(Struct, frozen=True):
    resource_version: str
    due_s: float


class AbandonedLeases:
    """Watches the view of nodes and leases. `clock` counts seconds that nobody sets."""

    def __init__(
        self,
        api: ApiClient,
        network: NetworkConfig,
        view: Store,
        *,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._leases = LeaseStore(api, network.lease_namespace)
        self._grace_s = network.takeover_grace_s
        self._view = view
        self._look_s = look_s
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads nodes, guards nothing
        self._cases: dict[Key, _Case] = {}
        self.deleted = 0

    async def run(self) -> Never:
        """Until cancelled. No failure of the API server ends it."""
        while True:
            for lease in self.due():
                try:
                    await self._delete(lease)
                except (ApiError, Unreachable) as error:
                    log.warning("lease of %s, whose node %s is gone: %s", lease.subnet, lease.holder, error)
            await asyncio.sleep(self._look_s)

    def due(self) -> list[SubnetLease]:
        """Leases that this agent is to delete now. A Node that comes back, or a renewal, ends a case."""
        if not {Kind.NODE, Kind.LEASE} <= self._view.listed:
            return []
        now_s = self._clock()
        found = abandoned(self._view.leases.values(), self._view.nodes)
        before, self._cases = self._cases, {}
        for lease in found:
            case = before.get(lease.key)
            if case is None or case.resource_version != lease.resource_version:
                case = _Case(lease.resource_version, now_s + self._grace_s + self._own_delay_s())
            self._cases[lease.key] = case
        return [lease for lease in found if now_s >= self._cases[lease.key].due_s]

    def _own_delay_s(self) -> float:
        return self._rng.uniform(0, max(SPREAD_MIN_S, SPREAD_PER_NODE_S * len(self._view.nodes)))

    async def _delete(self, lease: SubnetLease) -> None:
        """What the view says is asked for again: the watch of nodes may be behind."""
        if await self._leases.node_uid(lease.holder) is not None:
            return
        try:
            await self._leases.delete(lease)
        except ApiError as error:
            if error.status in (404, 409):
                return  # another agent was first, or it was renewed
            raise
        self.deleted += 1
        log.warning("lease of %s is deleted: its holder's Node %s is gone.", lease.subnet, lease.holder)
