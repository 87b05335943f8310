"""The API server's clock: the one that all nodes of a cluster can read, so that none has to trust another's.

Each answer says in its Date header what time it is there, to the second. Where that agrees with this node's clock the
node's clock is taken as it is; where it does not, the difference is added to it. An answer that never came changes
nothing: time goes on by the node's own clock.
"""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

AGREES_S = (-0.5, 2.0)
"""This node's clock minus the header's time, where they agree: the header's second has just begun or is over, and the
answer was on its way for a while. So the clocks of two nodes differ by 3.5 s at most, noticed or not."""


class ServerClock:
    """Seconds since the epoch as the API server counts them."""

    def __init__(self, local: Callable[[], float] = time.time) -> None:
        self._local = local
        self.offset_s = 0.0
        """What must be added to this node's clock."""

    def note(self, date: str | None) -> None:
        """An answer with this Date header has just arrived; text that is no date says nothing."""
        try:
            server_s = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, OverflowError):
            return
        ahead_s = self._local() - server_s
        if AGREES_S[0] <= ahead_s <= AGREES_S[1]:
            self.offset_s = 0.0
        elif not AGREES_S[0] <= ahead_s + self.offset_s <= AGREES_S[1]:
            self.offset_s = 0.5 - ahead_s

    def now_s(self) -> float:
        """The time there, now."""
        return self._local() + self.offset_s
