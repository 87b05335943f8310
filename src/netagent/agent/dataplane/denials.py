"""The service that counts denied packets per policy.

It samples the kernel's counters at every scrape and in between, because a counter ends with the last pod of its class.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from netagent.agent.dataplane.sync import Dataplane
from netagent.core.policy.denials import DenialTally, Share
from netagent.metrics import Metrics
from netagent.ports import CounterValue, Nft, NftError

log = logging.getLogger(__name__)

SAMPLE_S = 10.0
"""What a class counted since the last sample is lost with it."""


class DenialCounts:
    """Feeds netagent_policy_denied_packets_total."""

    def __init__(
        self, dataplane: Dataplane, nft: Nft, metrics: Metrics, cap: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`cap`: policies with series of their own."""
        self._dataplane = dataplane
        self._nft = nft
        self._metrics = metrics
        self._tally = DenialTally(cap)
        self._clock = clock

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            try:
                await self.sample()
            except NftError as error:
                log.warning("%s The counts of denied packets stand still until it works again.", error)
            await asyncio.sleep(SAMPLE_S)

    async def sample(self) -> Mapping[str, CounterValue]:
        """Take a sample; the kernel's counters. Raises NftError."""
        counters = await self._nft.counters()
        counted = self._dataplane.compiler.counted()
        shares = {
            name: Share(key.direction, tuple(policy for policy, _ in key.policies)) for name, key in counted.items()
        }
        self._tally.sample(counters, shares, self._dataplane.store.policies, self._clock())
        self._metrics.policy_denials.totals = [
            (policy.namespace, policy.name, str(direction), packets)
            for (policy, direction), packets in sorted(self._tally.totals.items())
        ]
        return counters
