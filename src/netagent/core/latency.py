"""How long changes took to reach the kernel, over the last minutes, in a few kilobytes."""

from collections import deque
from statistics import median

from msgspec import Struct

BUCKET_S = 5.0
BUCKETS = 120
"""Ten minutes."""
VALUES_KEPT = 512
"""Durations of the running bucket of which the median is taken; of more, every second, fourth and so on."""


class Bucket(Struct, frozen=True, gc=False):
    """What was measured in BUCKET_S."""

    at_s: float
    """Its begin, on the clock of whoever observes."""
    count: int
    p50_s: float
    max_s: float


class LatencyRing:
    """Buckets that have something in them; the oldest go."""

    def __init__(self) -> None:
        self._closed: deque[Bucket] = deque(maxlen=BUCKETS)
        self._at = 0
        """Number of the running bucket."""
        self._count = 0
        self._max_s = 0.0
        self._values: list[float] = []
        self._stride = 1

    def observe(self, now_s: float, duration_s: float) -> None:
        """A change has arrived where it should after `duration_s`. `now_s` never goes back."""
        at = int(now_s // BUCKET_S)
        if at != self._at:
            if self._count:
                self._closed.append(self._running())
            self._at, self._count, self._max_s, self._values, self._stride = at, 0, 0.0, [], 1
        if self._count % self._stride == 0:
            self._values.append(duration_s)
            if len(self._values) >= VALUES_KEPT:
                self._values = self._values[::2]
                self._stride *= 2
        self._count += 1
        self._max_s = max(self._max_s, duration_s)

    def buckets(self, now_s: float) -> list[Bucket]:
        """Of the last BUCKETS * BUCKET_S, oldest first, the running one too; not those in which nothing came."""
        found = [*self._closed, self._running()] if self._count else list(self._closed)
        return [bucket for bucket in found if bucket.at_s > now_s - BUCKETS * BUCKET_S]

    def _running(self) -> Bucket:
        return Bucket(self._at * BUCKET_S, self._count, median(self._values), self._max_s)
