"""A state directory that a newer agent has taken over: nothing is restored, served or changed, and /readyz says why."""

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from netagent.agent.network import mode
from netagent.agent.pods import cni as module
from netagent.config import Config, HttpConfig, NetworkConfig
from netagent.disk.state import ModeMemory
from netagent.kube.client import ApiClient
from support.cnibed import DEADLINE_S, Bed, Netns, addresses, has_link, until

pytestmark = pytest.mark.kernel


async def test_the_agent_waits_until_it_is_gone(bed: Bed, pod_netns: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    pod_netns("one")
    answer = await bed.add("one")
    await bed.stop()
    sign = bed.root / "state" / "format"
    sign.write_text("2\n")
    claims = list((bed.root / "state" / "endpoints").iterdir())
    (bed.root / "state" / "freed.log").write_text("in words of tomorrow\n")
    server = bed.new_server()
    bed.task = asyncio.create_task(server.run())
    await until(lambda: bool(server.status.problems))
    assert "a newer netagent keeps its state here (format 2" in server.status.problems[0]
    assert not server.status.serving
    assert list((bed.root / "state" / "endpoints").iterdir()) == claims
    assert (bed.root / "state" / "freed.log").read_text() == "in words of tomorrow\n"
    assert has_link(answer["interfaces"][0]["name"])
    sign.unlink()
    await until(lambda: server.status.serving)
    assert [one.ips for one in bed.gate.restored] == [tuple(addresses(answer))]


async def test_no_mode_is_chosen_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "RETRY_S", 0.02)
    ModeMemory(tmp_path).save("node")
    (tmp_path / "format").write_text("2\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = Config(
        state_dir=str(tmp_path), network=NetworkConfig(mode="auto"), http=HttpConfig(address="127.0.0.1", port=port)
    )
    nobody = cast(ApiClient, None)  # is not asked
    resolving = asyncio.create_task(mode.resolve_mode(config, nobody, asyncio.Event()))
    try:
        async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
            while "a newer netagent" not in (text := await _readyz(session, port)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert json.loads(text)["parts"]["mode"].startswith(f"{tmp_path}/format: a newer netagent keeps its state here")
        (tmp_path / "format").unlink()
        async with asyncio.timeout(DEADLINE_S):
            resolved = await resolving
        assert resolved is not None
        assert resolved.network.mode == "node"
    finally:
        resolving.cancel()
        with suppress(asyncio.CancelledError):
            await resolving


async def _readyz(session: aiohttp.ClientSession, port: int) -> str:
    with suppress(aiohttp.ClientError):
        async with session.get(f"http://127.0.0.1:{port}/readyz", headers={"Accept": "application/json"}) as answer:
            return await answer.text()
    return ""
