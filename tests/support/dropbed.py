"""A node whose agent logs and counts denied packets."""

import asyncio
import contextlib
import logging
from typing import Any, Self

from netagent.agent.dataplane.denials import DenialCounts
from netagent.agent.dataplane.droplog import DropLog
from netagent.config import PolicyConfig
from netagent.metrics import Metrics
from support.podbed import Bed

GROUP = 78


class Lines(logging.Handler):
    """The records of the drop log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def fields(self) -> list[dict[str, Any]]:
        """Of each line."""
        return [record.__dict__["fields"] for record in self.records]

    def having(self, **wanted: object) -> list[dict[str, Any]]:
        """Fields of the lines that have these."""
        return [one for one in self.fields() if all(one.get(name) == value for name, value in wanted.items())]

    def text(self) -> str:
        """The messages."""
        return "\n".join(record.getMessage() for record in self.records)


class LoggedBed(Bed):
    """With a drop log beside the dataplane."""

    def __init__(self, rate: float = 1000.0) -> None:
        config = PolicyConfig(drop_log=True, drop_log_group=GROUP, drop_log_rate=rate)
        super().__init__(config=config)
        self.config = config
        self.metrics = Metrics()
        self.lines = Lines()
        self.drop_log: DropLog
        self.counts: DenialCounts
        self._log_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        logger = logging.getLogger("netagent.drops")
        logger.addHandler(self.lines)
        logger.setLevel(logging.INFO)
        self.counts = DenialCounts(self.dataplane, self.nft, self.metrics, cap=100)
        await self.counts.sample()
        self.drop_log = DropLog(self.config, self.dataplane, self.metrics)
        self._log_task = asyncio.create_task(self.drop_log.run(), name="drop log")
        await self.until("the group is bound", lambda: self.drop_log.problem != "not started yet")
        return self

    async def __aexit__(self, *error: Any) -> None:
        logging.getLogger("netagent.drops").removeHandler(self.lines)
        if self._log_task is not None:
            self._log_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._log_task
        await super().__aexit__(*error)

    async def line(self, **wanted: object) -> dict[str, Any]:
        """The fields of a line that has these, once it is there."""
        await self.until(f"a line with {wanted}", lambda: self.lines.having(**wanted), 10.0)
        return self.lines.having(**wanted)[0]

    def packets(self, result: str) -> float:
        """netagent_drop_log_packets_total."""
        return self.metrics.registry.get_sample_value("netagent_drop_log_packets_total", {"result": result}) or 0.0

    async def denied(self, policy: str, direction: str = "ingress") -> float | None:
        """netagent_policy_denied_packets_total as a scrape would find it; None: no such series."""
        await self.counts.sample()
        namespace, _, name = policy.partition("/")
        labels = {"namespace": namespace, "policy": name, "direction": direction}
        return self.metrics.registry.get_sample_value("netagent_policy_denied_packets_total", labels)
