"""Pauses between attempts."""

import random
from collections.abc import Callable


class Backoff:
    """Capped exponential backoff with full jitter: each pause is uniform between 0 and a limit that doubles.

    Full jitter spreads the agents of a whole cluster after an outage of the API server.
    """

    def __init__(self, cap_s: float, base_s: float = 0.25, rng: Callable[[], float] = random.random) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng
        self.attempts = 0
        """Failures since the last reset."""

    def next_s(self) -> float:
        """How long to wait after one more failure."""
        limit_s = min(self._cap_s, self._base_s * float(1 << min(self.attempts, 30)))
        self.attempts += 1
        return limit_s * self._rng()

    def reset(self) -> None:
        self.attempts = 0
