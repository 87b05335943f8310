"""The API server's clock: the one that all nodes of a cluster can read, so that none has to trust another's.

Each answer says in its Date header what time it is there, to the second. Where that agrees with this node's clock the
node's clock is taken as it is; where it does not, the header's time is. From then on time is counted by a clock that
nobody can set: between two answers, or while the API server is away, setting this node's clock changes nothing.
"""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

AGREES_S = (-0.5, 2.0)
"""This node's clock minus the header's time, where they agree: the header's second has just begun or is over, and the
answer was on its way for a while. So the clocks of two nodes differ by 3.5 s at most, noticed or not."""


def since_boot_s() -> float:
    """Runs on while the machine sleeps, and nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServerClock:
    """Seconds since the epoch as the API server counts them; this node's own until it has answered."""

    def __init__(self, local: Callable[[], float] = time.time, elapsed: Callable[[], float] = since_boot_s) -> None:
        self._local = local
        self._elapsed = elapsed
        self._zero_s: float | None = None
        """When `elapsed` was 0, by the server."""

    @property
    def offset_s(self) -> float:
        """What must be added to this node's clock; 0 where they agree, to the millisecond."""
        offset_s = self.now_s() - self._local()
        return round(offset_s, 3) if abs(offset_s) >= AGREES_S[1] else 0.0

    def note(self, date: str | None) -> None:
        """An answer with this Date header has just arrived; text that is no date says nothing."""
        try:
            server_s = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, OverflowError):
            return
        local_s, elapsed_s = self._local(), self._elapsed()
        if _agree(local_s, server_s):
            self._zero_s = local_s - elapsed_s
        elif self._zero_s is None or not _agree(self._zero_s + elapsed_s, server_s):
            self._zero_s = server_s + 0.5 - elapsed_s

    def now_s(self) -> float:
        """The time there, now."""
        return self._local() if self._zero_s is None else self._zero_s + self._elapsed()


def _agree(here_s: float, header_s: float) -> bool:
    return AGREES_S[0] <= here_s - header_s <= AGREES_S[1]
