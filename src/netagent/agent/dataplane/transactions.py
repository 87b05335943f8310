"""The commits of the dataplane, one after the other: how long each took, of what kind, what it was about."""

import logging
import time

from msgspec import Struct

from netagent.agent.dataplane.causes import Batch
from netagent.metrics import Metrics
from netagent.ports import SmallTransaction

log = logging.getLogger(__name__)

TRANSACTIONS_KEPT = 100


class Transaction(Struct, frozen=True, gc=False):
    """One commit, for /debug."""

    at_s: float
    """Seconds since the epoch."""
    duration_s: float
    commands: int
    """Lines of the script, or elements and objects where there was none."""
    whole: bool
    """Whether the whole table was replaced."""
    generation: int
    error: str = ""
    elements_only: bool = False
    """Whether no set, chain or counter came or went."""
    cause: str = ""
    """Of a replacement: why the table was not trusted; empty: the first one, or the one before failed."""
    causes: tuple[str, ...] = ()
    """What brought it on, the first of them."""
    causes_left_out: int = 0
    latency_s: float | None = None
    """From the arrival of the oldest API event that it covers to its end; None: it covers none."""


class Transactions(list[Transaction]):
    """The last TRANSACTIONS_KEPT, oldest first; metrics have all."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics

    def note(
        self,
        work: str | SmallTransaction,
        *,
        whole: bool,
        generation: int,
        duration_s: float,
        error: str,
        cause: str,
        batch: Batch,
    ) -> None:
        """One has ended, well or badly; `cause`: of a replacement."""
        only_elements = not isinstance(work, str) and not work.objects
        kind = "whole" if whole else "elements" if only_elements else "change"
        metrics, oldest = self._metrics, batch.oldest
        metrics.commit.observe(duration_s)
        metrics.commits.labels("error" if error else "ok", kind).inc()
        log.debug("%s in %.1f ms: %s", kind, 1000 * duration_s, error or ", ".join(batch.causes))
        if not error:
            metrics.last_commit.set_to_current_time()
        self.append(
            Transaction(
                time.time(),
                duration_s,
                work.count("\n") if isinstance(work, str) else work.elements + work.objects,
                whole,
                generation,
                error,
                only_elements,
                cause if whole else "",
                batch.causes,
                batch.left_out,
                time.monotonic() - oldest.received_s if oldest is not None and oldest.received_s else None,
            )
        )
        del self[:-TRANSACTIONS_KEPT]
