"""Liveness: what a restart can mend makes the agent not alive, and nothing else does."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from netagent.agent.dataplane.sync import STUCK_S
from netagent.agent.http.health import BEAT_S, LATE_S, Health, Heartbeat
from netagent.agent.http.server import HttpServer
from netagent.config import HttpConfig
from netagent.metrics import Metrics
from netagent.records import Kind, Listed
from support.stubborn import KINDS, StubbornNode
from support.waiting import running, until
from support.words import namespace, put


class Site(StubbornNode):
    """A dataplane and the health that is asked over HTTP."""

    def __init__(self) -> None:
        super().__init__()
        self.heartbeat = Heartbeat(self.metrics.loop_lag, self.clock)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.remarks: dict[str, str] = {}
        self.server = HttpServer(
            HttpConfig(address="127.0.0.1", port=self.port),
            alive=Health({"event loop": self.heartbeat.problem, "dataplane": lambda: self.dataplane.stuck}),
            ready=Health({"dataplane": lambda: self.dataplane.problem}, lambda: self.remarks),
            registry=self.metrics.registry,
            before_scrape=self._nothing,
            debug=None,
        )

    async def _nothing(self) -> None:
        pass

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}", headers=headers) as response,
        ):
            return response.status, await response.text()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    async with running(made.dataplane.run()), running(made.server.run()), running(made.heartbeat.run()):
        await until(lambda: listens(made.port), "the listener")
        yield made


async def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True
    return False


async def test_a_transaction_that_never_ends_is_no_life(site: Site) -> None:
    site.list_all()
    await until(lambda: site.dataplane.ready, "the first commit")
    site.kernel.hangs = True
    site.dataplane.distrust("test")
    await until(lambda: site.kernel.runs == 2, "the transaction that hangs")
    assert (await site.get("/livez"))[0] == 200
    site.clock.ahead_s = STUCK_S
    await until(lambda: not site.heartbeat.problem(), "the next beat")
    status, text = await site.get("/livez")
    assert status == 503
    assert "[+] event loop\n[-] dataplane: a commit has been under way for 6" in text
    status, text = await site.get("/livez", Accept="application/json")
    answer = json.loads(text)
    assert (status, answer["alive"], answer["parts"]["event loop"]) == (503, False, "")


async def test_refusals_and_an_api_server_that_is_away_are_life(site: Site) -> None:
    """For hours: nothing is listed, then everything is refused."""
    site.dataplane.apply(put(namespace("x")))
    site.clock.ahead_s += 7200
    assert not site.dataplane.stuck
    site.kernel.refuses = True
    site.list_all()
    await until(lambda: site.kernel.runs >= 4, "several attempts")
    site.clock.ahead_s += 7200
    assert not site.dataplane.stuck
    await until(lambda: not site.heartbeat.problem(), "the next beat")
    assert (await site.get("/livez")) == (200, "[+] event loop\n[+] dataplane\n")
    status, text = await site.get("/readyz")
    assert (status, text) == (503, "[-] dataplane: refused by the test\n")
    site.kernel.refuses = False
    await until(lambda: site.dataplane.ready, "the recovery")
    assert (await site.get("/readyz")) == (200, "[+] dataplane\n")


async def test_tasks_that_starve_are_no_life(site: Site) -> None:
    await until(lambda: site.metrics.registry.get_sample_value("netagent_event_loop_lag_seconds_count"), "a beat")
    site.clock.ahead_s += LATE_S + BEAT_S
    assert "no task of the event loop ran on time for 1" in site.heartbeat.problem()


async def test_every_phase_of_the_start_says_what_it_waits_for(site: Site) -> None:
    async def why() -> str:
        status, text = await site.get("/readyz", Accept="application/json")
        answer = json.loads(text)
        assert (status == 200) is answer["ready"]
        return str(answer["parts"]["dataplane"])

    assert await why() == "not listed yet: Namespace, NetworkPolicy, Pod"
    site.dataplane.apply(Listed(Kind.POD))
    assert await why() == "not listed yet: Namespace, NetworkPolicy"
    site.kernel.refuses = True
    for kind in KINDS:
        site.dataplane.apply(Listed(kind))
    assert await why() == "the pods that earlier runs wired are not read yet"
    site.dataplane.restore(())
    await until(lambda: site.kernel.runs, "the first attempt")
    assert (await why()).startswith(("first commit not done: refused by the test", "refused by the test"))
    site.kernel.refuses = False
    await until(lambda: site.dataplane.ready, "the first commit")
    assert await why() == ""


async def test_remarks_are_told_and_change_nothing(site: Site) -> None:
    site.list_all()
    await until(lambda: site.dataplane.ready, "the first commit")
    site.remarks["watch Pod"] = "fails for 9 s"
    assert await site.get("/readyz") == (200, "[+] dataplane\n[!] watch Pod: fails for 9 s\n")
    _, text = await site.get("/readyz", Accept="application/json")
    assert json.loads(text)["remarks"] == {"watch Pod": "fails for 9 s"}


async def test_a_blocked_event_loop_shows_its_stack(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("netagent.agent.http.health.BLOCKED_S", 0.05)
    async with running(Heartbeat(Metrics().loop_lag).run()):
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251 - the point of it
    assert "test_a_blocked_event_loop_shows_its_stack" in capfd.readouterr().err
