"""Whether the agent makes progress (/livez) and whether it does its work (/readyz).

Liveness asks for what a restart can mend: an event loop that turns and a sync loop whose attempts end. An API server
that is away, or a kernel that refuses every transaction, is no reason to restart: nothing would be better afterwards.
"""

import asyncio
import faulthandler
import sys
import time
from collections.abc import Callable, Mapping

from msgspec import Struct
from prometheus_client import Histogram

Problem = Callable[[], str]
"""Why a part does not do its work; "" while it does."""

BEAT_S = 0.5
LATE_S = 15.0
"""Without a beat for so long, the event loop starves its tasks; a probe that is answered at all tells so."""
BLOCKED_S = 10.0
"""The event loop has not turned for so long: every thread's stack goes to stderr, to show what it is busy with."""


class Heartbeat:
    """A task that should wake every BEAT_S, and how late it does."""

    def __init__(self, lag: Histogram, clock: Callable[[], float] = time.monotonic) -> None:
        self._lag = lag
        self._clock = clock
        self._last_s: float | None = None

    async def run(self) -> None:
        """Beat until cancelled."""
        stderr = sys.__stderr__
        try:
            while True:
                before_s = self._last_s = self._clock()
                if stderr is not None:
                    faulthandler.dump_traceback_later(BLOCKED_S, file=stderr)
                await asyncio.sleep(BEAT_S)
                self._lag.observe(max(0.0, self._clock() - before_s - BEAT_S))
        finally:
            faulthandler.cancel_dump_traceback_later()

    def problem(self) -> str:
        """Why the event loop does not make progress; "" while it does, and before the first beat."""
        late_s = self._clock() - self._last_s if self._last_s is not None else 0.0
        if late_s < LATE_S:
            return ""
        return f"no task of the event loop ran on time for {late_s:.0f} s"


class Health(Struct, frozen=True):
    """One kind of health: parts that decide, and what is worth knowing all the same."""

    parts: Mapping[str, Problem]
    remarks: Callable[[], Mapping[str, str]] = dict
    """Subject -> what is wrong with it, though the agent does its work."""

    def problems(self) -> dict[str, str]:
        """Part -> why, of those that have a problem."""
        return {name: text for name, problem in self.parts.items() if (text := problem())}
