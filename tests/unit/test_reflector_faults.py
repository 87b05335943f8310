"""The reflector when the API server fails again and again, is slow, or was set back to an older state."""

import asyncio
import contextlib
import itertools
import json
import random
import time
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from netagent.agent.http.apistate import remark
from netagent.config import ApiConfig
from netagent.kube.backoff import RETRY_AFTER_CAP_S, Backoff, most_attempts
from netagent.kube.client import ApiError, TooLarge, Unreachable, connect
from netagent.kube.events import EventWriter, Note
from netagent.kube.reflector import Reflector, ReflectorStatus, resources
from netagent.records import Key, Kind
from support.scriptedapi import (
    ScriptedServer,
    failure,
    frame,
    listening,
    page,
    pod,
    reflecting,
    until,
    write_kubeconfig,
)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    async with listening(server):
        yield server


# Pauses


def test_pauses_double_up_to_the_cap_and_keep_their_lower_half() -> None:
    shortest, longest = (Backoff(10.0, rng=lambda dice=dice: dice) for dice in (0.0, 1.0))  # type: ignore[misc]
    limits = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert [longest.next_s() for _ in limits] == limits
    assert [shortest.next_s() for _ in limits] == [limit / 2 for limit in limits]


@pytest.mark.parametrize("within_s", [0.1, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("cap_s", [0.1, 0.5, 10.0])
def test_no_dice_make_more_attempts_than_the_bound(within_s: float, cap_s: float) -> None:
    for dice in (lambda: 0.0, random.Random(1).random):  # noqa: S311
        backoff = Backoff(cap_s, rng=dice)
        moments = itertools.accumulate((backoff.next_s() for _ in itertools.count()), initial=0.0)
        attempts = sum(1 for _ in itertools.takewhile(lambda moment: moment <= within_s, moments))
        assert attempts <= most_attempts(within_s, cap_s)
    assert most_attempts(100.0, 10.0) <= 27


def test_what_the_server_asks_for_is_waited_for_within_reason() -> None:
    backoff = Backoff(0.5, rng=lambda: 1.0)
    assert 3.0 <= backoff.next_s(3.0) <= 3.25
    assert RETRY_AFTER_CAP_S <= backoff.next_s(86_400.0) <= RETRY_AFTER_CAP_S + 0.5


async def test_a_retry_after_may_be_a_moment(server: ScriptedServer, tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        moment = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT", "Retry-After": "Thu, 01 Jan 2026 00:00:07 GMT"}
        return web.json_response(failure(503, "Busy"), status=503, headers=moment)

    server.watches = [refuse]
    async with connect(ApiConfig(kubeconfig=write_kubeconfig(tmp_path, server.port))) as api:
        with pytest.raises(ApiError) as caught:
            await api.get_json("/api/v1/pods", dict, watch="true")
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize("fault", ["away", "500", "429", "closed", "garbage", "expired watch", "expired page"])
async def test_in_an_hour_of_failures_the_server_is_asked_seldom(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """An hour in which pauses take no time; the default configuration."""
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        if pause_s > 0:
            pauses.append(pause_s)
        await asyncio.sleep(0)

    server.watches = [
        {
            "500": server.refuse(500, "InternalError"),
            "429": server.refuse(429, "TooManyRequests"),
            "closed": server.send(),
            "garbage": server.send(b"garbage\n"),
            "expired watch": server.refuse(410, "Gone"),
            "expired page": server.refuse(410, "Gone"),
        }.get(fault, server.hold())
    ]
    half = page("5", pod("a", "1"), token="t")
    if fault == "expired page":
        server.lists = [lambda query: failure(410, "Expired") if "limit" not in query or "continue" in query else half]
    config = ApiConfig(kubeconfig=write_kubeconfig(tmp_path, 1 if fault == "away" else server.port))
    async with connect(config) as api:
        reflector = Reflector(api, resources("kube-system")[Kind.POD], lambda _: None, config)
        clockless = types.SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
        monkeypatch.setattr("netagent.kube.reflector.asyncio", clockless)
        task = asyncio.create_task(reflector.run())
        try:
            deadline_s = time.monotonic() + 60
            while sum(pauses) < 3600:
                assert time.monotonic() < deadline_s, pauses
                await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        asked = sum(api.answers.values())
    assert max(pauses) <= 10.0
    assert len(pauses) <= most_attempts(3600, 10.0)
    assert asked <= 3 * (len(pauses) + 1), "a list of two pages and a watch per attempt"


# Slow and large answers


async def test_a_collection_too_large_for_one_answer_is_listed_though_tokens_expire_early(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [pod(f"p{index:02}", "1", padding="x" * 100) for index in range(32)]
    monkeypatch.setattr("netagent.kube.client.MAX_ANSWER_BYTES", len(json.dumps(page("9", *everything))) - 1)
    served = itertools.count()

    def forgetful(query: dict[str, str]) -> Any:
        """A snapshot is remembered for four pages."""
        nonlocal served
        start = int(query.get("continue", "0"))
        served = itertools.count() if not start else served
        if next(served) >= 4:
            return failure(410, "Expired")
        limit = int(query.get("limit", len(everything)))
        left = len(everything) > start + limit
        return page("9", *everything[start : start + limit], token=str(start + limit) if left else "")

    server.lists = [forgetful]
    async with reflecting(server, tmp_path, page_size=4, backoff_cap_s=0.05) as observed:
        await until(lambda: "listed" in observed.said(), lambda: str(server.list_queries))
    assert len([query for query in server.list_queries if "limit" not in query]) <= 1, "in vain, and dear"
    assert {f"+{one['metadata']['name']}" for one in everything} <= set(observed.said())


async def test_a_page_that_takes_too_long_is_asked_for_in_smaller_ones(server: ScriptedServer, tmp_path: Path) -> None:
    everything = [pod(f"p{index:02}", "1") for index in range(8)]

    async def slowly(query: dict[str, str]) -> Any:
        limit, start = int(query["limit"]), int(query.get("continue", "0"))
        await asyncio.sleep(0.06 * limit)
        left = len(everything) > start + limit
        return page("9", *everything[start : start + limit], token=str(start + limit) if left else "")

    server.lists = [slowly]
    async with reflecting(server, tmp_path, page_size=8, request_timeout_s=0.3, backoff_cap_s=0.05) as observed:
        await observed.until(*(f"+p{index:02}" for index in range(8)), "listed")
    assert [query["limit"] for query in server.list_queries[:2]] == ["8", "4"]


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_end_is_refused_before_it_fills_the_memory(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("netagent.kube.client.MAX_ANSWER_BYTES", 1 << 20)
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65536)
                sent += 65536
        return response

    server.watches = [flood]
    async with connect(ApiConfig(kubeconfig=write_kubeconfig(tmp_path, server.port))) as api:
        with pytest.raises(ApiError) as caught:
            await api.get_json("/api/v1/pods", dict, watch="true")
    if status == 200:
        assert isinstance(caught.value, TooLarge)
        assert "more than 1048576 bytes" in str(caught.value)
    assert sent < 16 << 20


async def test_a_tls_handshake_without_an_answer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host accepts connections, and that is all."""
    monkeypatch.setattr("netagent.kube.client.CONNECT_TIMEOUT_S", 0.2)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    path = Path(write_kubeconfig(tmp_path, silent.sockets[0].getsockname()[1]))
    path.write_text(path.read_text().replace("http:", "https:"))  # noqa: ASYNC240
    async with connect(ApiConfig(kubeconfig=str(path))) as api:
        with pytest.raises(Unreachable):
            await anext(api.stream("/api/v1/pods", silence_s=600.0, watch="true"))
    silent.close()
    await asyncio.sleep(0.1)


# An API server that was set back to an older state


async def test_a_server_that_was_set_back_is_noticed_in_the_silence(server: ScriptedServer, tmp_path: Path) -> None:
    """It accepts a watch from a resourceVersion that it has not reached yet, and says nothing."""
    server.lists = [
        page("900", pod("kept", "5"), pod("reused", "50"), pod("lost", "800")),
        page("60", pod("kept", "5"), pod("reused", "50")),
    ]
    server.watches = [server.hold(), server.send(frame("ADDED", pod("new", "61")), hold=True)]
    async with reflecting(server, tmp_path, watch_silence_s=0.3) as observed:
        first = ["+kept", "+reused", "+lost", "listed"]
        # The numbers are those of the list before, and say nothing: everything is delivered anew.
        await observed.until(*first, "+kept", "+reused", "-lost", "+new")
    assert [query["limit"] for query in server.list_queries] == ["500", "1", "500"]
    assert [query["resourceVersion"] for query in server.watch_queries[:2]] == ["900", "60"]


async def test_a_watch_that_goes_back_costs_a_list(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [page("900", pod("a", "5")), page("60", pod("a", "50"))]
    server.watches = [server.send(frame("ADDED", pod("b", "61")), hold=True), server.hold()]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "listed", "+a")
        assert observed.reflector is not None
        await until(lambda: server.watch_queries[-1]["resourceVersion"] == "60")


async def test_a_resource_version_too_large_costs_a_list(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [page("900", pod("a", "5")), page("60", pod("a", "50"))]
    server.watches = [server.refuse(504, "Timeout"), server.hold()]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "listed", "+a")
        await until(lambda: server.watch_queries[-1]["resourceVersion"] == "60")


async def test_a_page_that_leads_to_itself_ends_the_list(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [page("5", pod("a", "1"), token="t"), page("5", token="t"), page("6")]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "-a", "listed")
    assert [query.get("continue", "") for query in server.list_queries] == ["", "t", ""]


async def test_silence_alone_costs_one_small_question(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [page("900", pod("a", "5")), page("901")]
    async with reflecting(server, tmp_path, watch_silence_s=0.2) as observed:
        await until(lambda: len(server.watch_queries) == 4)
        assert observed.said() == ["+a", "listed"]
    assert {query["limit"] for query in server.list_queries[1:]} == {"1"}


@pytest.mark.parametrize("kind", ["ServiceList", "Table", "Status", ""])
async def test_a_list_of_another_kind_is_no_empty_cluster(server: ScriptedServer, tmp_path: Path, kind: str) -> None:
    server.lists = [page("3", pod("a", "1")), {**page("5"), "kind": kind}, page("6", pod("a", "1"), pod("b", "6"))]
    server.watches = [server.refuse(410, "Gone"), server.hold()]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "listed", "+b")


# What it says


async def test_a_failure_is_told_until_a_watch_works(server: ScriptedServer, tmp_path: Path) -> None:
    """A watch that only opens, and soon ends, is no recovery."""
    server.watches = [server.send(*[b"\n"] * 20)]
    async with reflecting(server, tmp_path) as observed:
        reflector = observed.reflector
        assert reflector is not None
        await until(lambda: "ended the watch after" in reflector.status.last_error)
        for _ in range(50):
            assert reflector.status.last_error
            await asyncio.sleep(0.01)
        assert reflector.status.failing_s >= 0.5
        server.watches = [server.hold()]
        await until(lambda: reflector.status.last_error == "")
        assert reflector.status.failing_s == 0
        assert reflector.status.failures >= 2


def test_remarks_say_what_is_wrong_and_what_holds() -> None:
    status = ReflectorStatus(
        kind=Kind.POD,
        listed=True,
        connected=True,
        last_error="",
        failing_s=0.0,
        failures=0,
        lists=1,
        relists=0,
        unreadable=0,
        objects=1,
        resource_version="7",
        silent_s=60.0,
    )
    assert remark(status, 80.0) == ""
    assert remark(status, 50.0) == "nothing is heard. What was known 60 s ago stays in force; news wait."


async def test_events_wait_for_a_server_that_sheds_load(server: ScriptedServer, tmp_path: Path) -> None:
    answers = [503, 429, 201]
    bodies: list[Any] = []

    async def take(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return web.json_response(failure(answers[0], "Busy"), status=answers.pop(0) if len(answers) > 1 else answers[0])

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with connect(ApiConfig(kubeconfig=write_kubeconfig(tmp_path, runner.addresses[0][1]))) as api:
        writer = EventWriter(api, "n1")
        task = asyncio.create_task(writer.run())
        writer.post(Note(Kind.POD, Key("ns", "p"), "u", "Reason", "message"))
        await until(lambda: len(bodies) == 3)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await runner.cleanup()
    assert writer.dropped == 0
    assert len(bodies) == 3
