"""Pauses between attempts."""

import random
from collections.abc import Callable

RETRY_AFTER_CAP_S = 60.0
"""Longest pause that a server may ask for: a proxy that says an hour must not keep a node from news for an hour."""


class Backoff:
    """Capped exponential backoff with jitter: each pause lies in the upper half of a limit that doubles.

    The jitter spreads the agents of a whole cluster after an outage of the API server. The lower bound is what makes
    the number of attempts in any time bounded, whatever the dice say: `most_attempts`.
    """

    def __init__(self, cap_s: float, base_s: float = 0.25, rng: Callable[[], float] = random.random) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng
        self.attempts = 0
        """Failures since the last reset."""

    def next_s(self, asked_s: float = 0.0) -> float:
        """How long to wait after one more failure; not less than the server asked for (Retry-After), plus jitter."""
        limit_s = min(self._cap_s, self._base_s * float(1 << min(self.attempts, 30)))
        self.attempts += 1
        pause_s = limit_s * (0.5 + 0.5 * self._rng())
        if asked_s > pause_s:
            pause_s = min(asked_s, RETRY_AFTER_CAP_S) + limit_s * 0.5 * self._rng()
        return pause_s

    def reset(self) -> None:
        self.attempts = 0


def most_attempts(within_s: float, cap_s: float, base_s: float = 0.25) -> int:
    """No more attempts than this fall into `within_s` seconds without a success, the first of them included."""
    attempts, left_s, limit_s = 1, within_s, min(base_s, cap_s)
    while limit_s < cap_s and left_s >= limit_s / 2:
        left_s -= limit_s / 2
        limit_s = min(cap_s, limit_s * 2)
        attempts += 1
    return attempts + int(left_s / (limit_s / 2))
