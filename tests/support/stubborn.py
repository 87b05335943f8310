"""A dataplane over a kernel that refuses or hangs when told to, and a clock that can be set forward."""

import asyncio
import time

from netagent.agent.dataplane.sync import Dataplane
from netagent.config import PolicyConfig
from netagent.core.policy.frame import FrameSettings
from netagent.metrics import Metrics
from netagent.ports import CounterValue, NftError, SmallTransaction, TableInventory
from netagent.records import Kind, Listed

KINDS = frozenset((Kind.NAMESPACE, Kind.POD, Kind.NETWORK_POLICY))


class Clock:
    """Real time that can be set forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class StubbornKernel:
    """Keeps the promises of ports.Nft for the loop's purposes, or refuses, or never comes back."""

    def __init__(self) -> None:
        self.hangs = False
        self.refuses = False
        self.runs = 0

    async def run(self, commands: str) -> None:
        self.runs += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.refuses:
            raise NftError("refused by the test")

    async def run_small(self, transaction: SmallTransaction) -> None:
        await self.run("")

    async def inventory(self) -> TableInventory:
        return TableInventory(exists=False)

    async def counters(self) -> dict[str, CounterValue]:
        return {}

    async def text(self) -> str:
        return ""


async def _no_marks(mask: int, keep: int) -> int:
    return 0


class StubbornNode:
    """`run` the dataplane; nothing is listed yet."""

    def __init__(self) -> None:
        self.kernel, self.clock, self.metrics = StubbornKernel(), Clock(), Metrics()
        self.dataplane = Dataplane(
            self.kernel,
            PolicyConfig(),
            FrameSettings(),
            self.metrics,
            node_name="node-0",
            kinds=KINDS,
            clock=self.clock,
            clear_marks=_no_marks,
        )

    def list_all(self) -> None:
        """The first commit may be made."""
        self.dataplane.restore(())
        for kind in KINDS:
            self.dataplane.apply(Listed(kind))
