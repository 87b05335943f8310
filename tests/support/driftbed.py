"""A node whose agent also watches its table, and other people who change it."""

import asyncio
import contextlib
import re
import subprocess
import time

from netagent.agent.dataplane.drift import DriftWatch
from netagent.kernel.nft import TABLE_NAME
from netagent.metrics import Metrics
from support.podbed import Bed


class WatchedBed(Bed):
    """With a drift watch beside the dataplane."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = Metrics()
        self.drift: DriftWatch
        self._drift_task: asyncio.Task[None] | None = None

    async def watch(self, audit_s: float = 3600.0) -> None:
        """Start watching (again)."""
        await self.unwatch()
        self.drift = DriftWatch(self.dataplane, self.nft, self.metrics, table=TABLE_NAME, audit_s=audit_s)
        self._drift_task = asyncio.create_task(self.drift.run(), name="drift")
        await self.until("watching", lambda: self.drift.watching)

    async def unwatch(self) -> None:
        """Stop watching."""
        if self._drift_task is not None:
            self._drift_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._drift_task
            self._drift_task = None

    async def ruleset(self) -> str:
        """The table without what differs from one writing to the next: order of objects, counts, the generation."""
        blocks = re.split(r"\n\t}\n", await self.nft.text())
        return "\n\n".join(sorted(map(_settled, blocks)))

    async def meddle(self, *commands: str) -> None:
        """Somebody runs nft."""
        for command in commands:
            await asyncio.to_thread(subprocess.run, ["nft", command], check=True, timeout=60)

    async def repaired(self, wanted: str, timeout_s: float = 5.0) -> float:
        """Until the table is as wanted; how long it took (s)."""
        started_s = time.monotonic()
        while await self.ruleset() != wanted:
            assert time.monotonic() - started_s < timeout_s, await self.nft.text()
            await asyncio.sleep(0.01)
        return time.monotonic() - started_s

    def repairs(self, cause: str = "seen") -> float:
        """How often the whole table was replaced because of others."""
        return self.metrics.registry.get_sample_value("netagent_drift_repairs_total", {"cause": cause}) or 0.0

    @property
    def replacements(self) -> int:
        """Whole replacements so far, for whatever reason."""
        return sum(one.whole for one in self.dataplane.transactions)


def _settled(block: str) -> str:
    lines = [
        line.strip()
        for line in block.splitlines()
        if "packets" not in line and "ct mark" not in line and "elements = { 0x" not in line
    ]
    if any("elements = " in line for line in lines):
        return " ".join(sorted(re.split(r"[,\s]+", " ".join(lines))))
    return "\n".join(line for line in lines if line not in ("", "}", "table inet netagent {"))
