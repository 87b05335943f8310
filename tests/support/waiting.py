"""Waiting for what must come, with patience for a busy machine; tasks for the length of a test."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

DEADLINE_S = 60.0
POLL_S = 0.02


async def until(condition: Callable[[], Any], what: Any, *, deadline_s: float = DEADLINE_S) -> Any:
    """What `condition`, plain or async, returns once it is true. `what` says, or returns, what did not come."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + deadline_s
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if loop.time() > end_s:
            pytest.fail(f"not within {deadline_s:g} s: {what() if callable(what) else what}")
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    """Run a coroutine meanwhile. If it has failed by the end, so does this."""
    task = asyncio.create_task(work)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
