"""Questions about a cluster of many policies let everybody else go on."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from netagent.agent.http import clusterview as module
from netagent.core.policy.meaning import compile_policy
from support.debugbed import DebugBed
from support.waiting import until
from support.words import policy

pytestmark = pytest.mark.kernel

POLICIES = 200
PROPOSED = b"""{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
"metadata": {"name": "n", "namespace": "x"}, "spec": {"podSelector": {}}}"""


@pytest.mark.parametrize("asked", ["explain", "simulate"])
async def test_policies_are_understood_in_slices(bed: DebugBed, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    await bed.put(*(policy(f"y/p{number}") for number in range(POLICIES)))
    understood = 0

    def slowly(source: Any) -> Any:
        nonlocal understood
        understood += 1
        time.sleep(0.001)
        return compile_policy(source)

    monkeypatch.setattr(module, "compile_policy", slowly)
    at_once: list[int] = []

    async def turns() -> None:
        while True:
            before = understood
            await asyncio.sleep(0)
            at_once.append(understood - before)

    ticker = asyncio.create_task(turns())
    async with aiohttp.ClientSession() as session:
        if asked == "explain":
            request = session.get(f"{bed.url}/debug/explain?from=x/b&to=x/a&port=80")
        else:
            request = session.post(f"{bed.url}/debug/simulate", data=PROPOSED)
        async with request as response:
            assert response.status == 200, await response.text()
    await until(lambda: understood > POLICIES, "all policies understood")
    ticker.cancel()
    assert max(at_once) < 20
