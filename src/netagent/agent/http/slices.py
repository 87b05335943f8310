"""Long work on the event loop, in slices, so that nobody waits for it."""

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

SLICE_S = 0.002
"""Longest time at a stretch, if the steps of the work are short: a fraction of a commit."""
REST = 3.0
"""Pauses in lengths of the slice before: a quarter of one core at most."""


async def in_slices(work: Generator[None, None, T]) -> T:
    """Run a generator to its end with pauses; what it returns."""
    while True:
        began_s = time.monotonic()
        try:
            while time.monotonic() - began_s < SLICE_S:
                next(work)
        except StopIteration as done:
            result: T = done.value
            return result
        await asyncio.sleep(REST * (time.monotonic() - began_s))
