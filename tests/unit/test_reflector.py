"""The reflector against a scripted server that does what real ones do only on bad days."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netagent.records import Kind, Listed, NetworkPolicy, Undecodable, Upserted
from support.scriptedapi import (
    DEADLINE_S,
    ScriptedServer,
    describe,
    failure,
    frame,
    listening,
    page,
    pod,
    reflecting,
    until,
)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    async with listening(server):
        yield server


async def test_pages_are_followed_to_the_end_and_listed_comes_once(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [
        page("7", pod("a", "1"), token="t1"),
        page("7", pod("b", "2"), token="t2"),
        page("7", pod("c", "3")),
    ]
    async with reflecting(server, tmp_path, page_size=1) as observed:
        await observed.until("+a", "+b", "+c", "listed")
        await until(lambda: len(server.watch_queries) == 1)
    assert [(q["limit"], q.get("continue", "")) for q in server.list_queries] == [("1", ""), ("1", "t1"), ("1", "t2")]
    assert server.watch_queries[0]["resourceVersion"] == "7"
    assert server.watch_queries[0]["allowWatchBookmarks"] == "true"


async def test_events_arrive_across_chunk_borders(server: ScriptedServer, tmp_path: Path) -> None:
    text = frame("ADDED", pod("a", "2")) + frame("MODIFIED", pod("a", "3")) + frame("DELETED", pod("a", "4"))
    server.watches = [server.send(text[:40], text[40:100], text[100:], hold=True)]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("listed", "+a", "+a", "-a")
        assert observed.reflector is not None
        status = observed.reflector.status
    assert status.listed
    assert status.connected
    assert status.last_error == ""
    assert status.resource_version == "4"
    assert [change.received_s > 0 for change in observed.changes if not isinstance(change, Listed)] == [True] * 3


async def test_a_watch_that_ends_resumes_at_the_last_bookmark_without_a_list(
    server: ScriptedServer, tmp_path: Path
) -> None:
    bookmark = {"kind": "Pod", "metadata": {"resourceVersion": "50"}}
    server.watches = [
        server.send(frame("ADDED", pod("a", "2")), frame("BOOKMARK", bookmark)),
        server.send(frame("ADDED", pod("b", "51")), hold=True),
    ]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("listed", "+a", "+b")
    assert [q["resourceVersion"] for q in server.watch_queries] == ["1", "50"]
    assert len(server.list_queries) == 1


@pytest.mark.parametrize("how", ["http", "event"])
async def test_410_is_delivered_as_the_difference(server: ScriptedServer, tmp_path: Path, how: str) -> None:
    gone = {
        "http": server.refuse(410, "Gone"),
        "event": server.send(frame("ERROR", failure(410, "Expired"))),
    }[how]
    server.lists = [
        page("10", pod("same", "1"), pod("changed", "2"), pod("vanished", "3")),
        page("90", pod("same", "1"), pod("changed", "80"), pod("new", "81")),
    ]
    server.watches = [gone, server.hold()]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+same", "+changed", "+vanished", "listed", "+changed", "+new", "-vanished")
        await until(lambda: len(server.watch_queries) == 2)
        assert observed.reflector is not None
        assert observed.reflector.status.relists == 1
    assert [q["resourceVersion"] for q in server.watch_queries] == ["10", "90"]


async def test_an_expired_continue_token_lists_again_without_pages(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [
        page("5", pod("a", "1"), pod("deleted-meanwhile", "2"), token="old"),
        failure(410, "Expired"),
        page("9", pod("a", "1"), pod("b", "8")),
    ]
    async with reflecting(server, tmp_path, page_size=2) as observed:
        await observed.until("+a", "+deleted-meanwhile", "+b", "-deleted-meanwhile", "listed")
    assert "limit" not in server.list_queries[2]
    assert "continue" not in server.list_queries[2]


async def test_a_frame_cut_off_is_not_used_and_the_watch_resumes_before_it(
    server: ScriptedServer, tmp_path: Path
) -> None:
    whole, half = frame("ADDED", pod("a", "2")), frame("ADDED", pod("b", "3"))
    server.watches = [server.send(whole, half[:50], cut=True), server.send(half, hold=True)]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("listed", "+a", "+b")
    assert [q["resourceVersion"] for q in server.watch_queries] == ["1", "2"]
    assert len(server.list_queries) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>a proxy's error page</html>\n",
        b'{"type": "ADDED", "object": {"metadata": {}}}\n',
        b'{"type": "SURPRISE", "object": {}}\n',
        b'{"type": "BOOKMARK", "object": 7}\n',
        b'{"type": "ERROR", "object": []}\n',
        b"\xff\xfe\x00\n",
    ],
)
async def test_garbage_costs_a_list_and_nothing_else(server: ScriptedServer, tmp_path: Path, garbage: bytes) -> None:
    server.lists = [page("1", pod("a", "1")), page("5", pod("a", "1"), pod("b", "5"))]
    server.watches = [server.send(garbage, hold=True), server.send(frame("DELETED", pod("a", "6")), hold=True)]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "listed", "+b", "-a")


async def test_a_frame_longer_than_allowed_costs_a_list(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netagent.kube.client.MAX_LINE_BYTES", 1000)
    server.lists = [page("1"), page("5", pod("b", "5"))]
    server.watches = [server.send(b"x" * 2000, hold=True), server.hold()]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("listed", "+b")


async def test_a_silent_watch_is_given_up_and_resumed(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [page("1"), page("2", pod("a", "2"))]
    server.watches = [server.send(frame("ADDED", pod("a", "2")), hold=True), server.send(frame("ADDED", pod("b", "3")))]
    async with reflecting(server, tmp_path, watch_silence_s=0.3) as observed:
        await until(lambda: "+b" in observed.said())
    assert server.watch_queries[1]["resourceVersion"] == "2"
    assert [query["limit"] for query in server.list_queries] == ["500", "1"], "only asks where the server is"


async def test_a_server_away_at_the_start_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = ScriptedServer()
    async with listening(server):
        pass
    async with reflecting(server, tmp_path) as observed:
        reflector = observed.reflector
        assert reflector is not None
        await until(lambda: reflector.status.last_error != "")
        assert not reflector.status.listed
        server.lists = [page("3", pod("a", "1"))]
        async with listening(server, server.port):
            await observed.until("+a", "listed")
            await until(lambda: reflector.status.last_error == "")
    assert "s3cret" not in caplog.text


async def test_a_server_that_goes_away_changes_nothing_until_it_is_back(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [page("3", pod("a", "1"))]
    server.watches = [server.refuse(503, "ServiceUnavailable")] * 3 + [
        server.send(frame("DELETED", pod("a", "4")), hold=True)
    ]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "listed", "-a")
    assert [q["resourceVersion"] for q in server.watch_queries] == ["3"] * 4
    assert len(server.list_queries) == 1


async def test_a_watch_that_closes_at_once_does_not_spin(server: ScriptedServer, tmp_path: Path) -> None:
    server.watches = [server.send()]
    async with reflecting(server, tmp_path, backoff_cap_s=10.0):
        await asyncio.sleep(2.0)
    assert 2 <= len(server.watch_queries) <= 20


async def test_retry_after_is_honoured(server: ScriptedServer, tmp_path: Path) -> None:
    server.watches = [server.refuse(429, "TooManyRequests", **{"Retry-After": "1"})]
    async with reflecting(server, tmp_path, backoff_cap_s=1.0):
        await until(lambda: len(server.watch_queries) == 1)
        await asyncio.sleep(0.5)
        assert len(server.watch_queries) == 1
        await until(lambda: len(server.watch_queries) == 2)


async def test_an_unreadable_object_costs_only_itself(server: ScriptedServer, tmp_path: Path) -> None:
    broken = pod("broken", "2", status={"podIPs": [{"ip": "300.1.1.1"}]})
    nameless = {"metadata": {"resourceVersion": "1"}}
    server.lists = [page("9", pod("a", "1"), broken, nameless, pod("c", "3"))]
    mended = pod("broken", "10", status={"podIPs": [{"ip": "10.0.0.1"}]})
    server.watches = [server.send(frame("MODIFIED", {**broken, "metadata": mended["metadata"]}), hold=True)]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "?broken", "+c", "listed", "?broken")
        assert observed.reflector is not None
        assert observed.reflector.status.unreadable == 3
    error = next(change for change in observed.changes if isinstance(change, Undecodable))
    assert "300.1.1.1" in error.error


async def test_a_policy_that_reads_only_in_part_is_delivered_closed(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [
        page("9", pod("p", "1", spec={"podSelector": {}, "ingress": "everything"}), kind="NetworkPolicyList")
    ]
    async with reflecting(server, tmp_path, Kind.NETWORK_POLICY) as observed:
        await observed.until("+p", "listed")
    change = observed.changes[0]
    assert isinstance(change, Upserted)
    assert isinstance(change.record, NetworkPolicy)
    assert change.record.problem


async def test_other_tasks_run_while_a_big_page_is_decoded(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [page("9", *[pod(f"p{index}", "1") for index in range(2000)])]
    turns: list[int] = []
    async with reflecting(server, tmp_path) as observed:

        async def count() -> None:
            while "listed" not in map(describe, observed.changes[-1:]):
                turns.append(len(observed.changes))
                await asyncio.sleep(0)

        await asyncio.wait_for(count(), DEADLINE_S)
    between = {count for count in turns if 0 < count < 2000}
    assert len(between) >= 10


async def test_a_list_that_is_no_list_is_a_failure_not_an_empty_cluster(server: ScriptedServer, tmp_path: Path) -> None:
    server.lists = [
        page("3", pod("a", "1")),
        b"{}",
        b"",
        b"[1, 2",
        page("5", pod("a", "1"), pod("b", "5")),
    ]
    server.watches = [server.refuse(410, "Gone"), server.hold()]
    async with reflecting(server, tmp_path) as observed:
        await observed.until("+a", "listed", "+b")
    assert len(server.list_queries) == 5
