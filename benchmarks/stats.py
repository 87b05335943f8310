"""Summaries of samples."""

import math
from collections.abc import Sequence

from msgspec import Struct

P99_SAMPLES = 100
"""Of fewer, the nearest rank of p99 is the largest sample: what is printed is the largest, and no p99."""


class Summary(Struct, frozen=True, kw_only=True):
    """Of one series, in its unit."""

    samples: int
    median: float
    p95: float
    p99: float
    max: float
    """The worst."""


def summarise(samples: Sequence[float], *, more_is_better: bool = False) -> Summary:
    """Nearest-rank percentiles from the good end on: what 95 % of the samples are as good as, or better.

    Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples, reverse=more_is_better)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Summary(samples=len(ordered), median=rank(0.5), p95=rank(0.95), p99=rank(0.99), max=ordered[-1])
