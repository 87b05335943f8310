"""An agent process whose API server has bad days: what it enforces, what it asks, what it says."""

import asyncio
import itertools
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import Struct

from netagent.kube.backoff import most_attempts
from support.cnibed import sh
from support.faultbed import BACKOFF_CAP_S, SILENCE_S, Site, until
from support.faultyapi import (
    Fault,
    answer,
    both,
    closed_after,
    cut,
    endless,
    expired,
    late,
    only,
    refuse,
)

pytestmark = [pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

HELD_S = 1.0
"""How long a fault lasts at least: a client that spins would ask thousands of times."""
MEMORY_BYTES = 512 << 20
"""The DaemonSet's limit; beyond it the agent would be killed."""
WATCHED = ("pods", "namespaces", "nodes", "networkpolicies", "leases")
HTML = b"<html><body>Bad gateway, but with status 200</body></html>\n"
OTHER = b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}\n'


class Start(Struct):
    """What was seen of an agent that was started without an API server."""

    remarks: dict[str, str]
    parts: dict[str, str]
    status: int
    added: tuple[int, object]
    deleted: tuple[int, object]
    asked: int
    """Connections that were tried, by the agent's own count."""
    lasted_s: float
    forbidden: tuple[int, dict[str, dict[str, str]]] = (0, {})
    """/readyz once the server was there and refused one kind."""


@pytest.fixture(scope="module")
def clock_skew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets a process have a clock of its own."""
    source = Path(__file__).parents[1] / "support/clockskew.c"
    built = tmp_path_factory.mktemp("skew") / "clockskew.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(built), str(source)], check=True)
    return built


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory, clock_skew: Path) -> AsyncIterator[tuple[Site, Start]]:
    """An agent that had to wait for its API server, and two pods."""
    site = Site(tmp_path_factory.mktemp("site"), clock_skew)
    try:
        await site.open()
        await site.proxy.stop()
        site.start()
        began_s = time.monotonic()
        start = await without_a_server(site, began_s)
        site.proxy.fault = only(refuse(403, "Forbidden"), kind="networkpolicies")
        await site.proxy.start()
        start.forbidden = await without_policies(site)
        site.proxy.fault = None
        await site.ready()
        await site.add("client")
        await site.add("server")
        await site.follows(allowed=False)
        yield site, start
    finally:
        await site.close()


async def without_a_server(site: Site, began_s: float) -> Start:
    async def serves() -> bool:
        assert site.running, site.log()
        return len((await site.readiness())[1]["remarks"]) == len(WATCHED)

    await until(serves, site.log)
    added = await site.call("ADD", "early", "u-early")
    deleted = await site.call("DEL", "early")
    status, shown = await site.readiness()
    asked = await site.metric("netagent_api_requests_total", verb="list", code="unreachable")
    return Start(shown["remarks"], shown["parts"], status, added, deleted, int(asked), time.monotonic() - began_s)


async def without_policies(site: Site) -> tuple[int, dict[str, dict[str, str]]]:
    last: list[tuple[int, dict[str, dict[str, str]]]] = []

    async def others_are_listed() -> bool:
        last[:] = [await site.readiness()]
        _, shown = last[0]
        return list(shown["remarks"]) == ["watch NetworkPolicy"] and not shown["parts"]["lease"]

    await until(others_are_listed, lambda: last)
    return last[0]


@pytest_asyncio.fixture(loop_scope="module")
async def site(started: tuple[Site, Start]) -> AsyncIterator[Site]:
    """With everything in order again after each test, however it ended."""
    site = started[0]
    yield site
    site.proxy.fault = None
    site.proxy.thawed.set()
    site.write_clock(0)
    await site.proxy.start()


async def test_an_agent_without_a_server_says_so_and_serves_what_it_can(started: tuple[Site, Start]) -> None:
    start = started[1]
    assert start.status == 503, "it has never enforced anything"
    assert "not listed yet" in start.parts["dataplane"]
    assert all("Connection refused" in text or "Connect call failed" in text for text in start.remarks.values())
    assert all("Nothing is known yet" in text for text in start.remarks.values())
    assert start.added[0] == 1
    assert "no pod subnet yet" in str(start.added[1])
    assert start.deleted == (0, None)
    assert start.asked <= len(WATCHED) * most_attempts(start.lasted_s, BACKOFF_CAP_S)


async def test_without_policies_nothing_is_enforced_and_no_node_is_ready(started: tuple[Site, Start]) -> None:
    status, shown = started[1].forbidden
    assert status == 503
    assert shown["parts"]["dataplane"] == "not listed yet: NetworkPolicy"
    assert "403 Forbidden" in shown["remarks"]["watch NetworkPolicy"]
    assert "Nothing is known yet" in shown["remarks"]["watch NetworkPolicy"]


class Case(Struct, frozen=True):
    """A fault; its remark as a pattern; whether news come through all the same."""

    fault: Fault
    says: str
    passes: bool = False


CASES = {
    "500": Case(refuse(500, "InternalError"), "500 InternalError"),
    "503 of a proxy": Case(refuse(503), "503 Service Unavailable: upstream connect error"),
    "429": Case(refuse(429, "TooManyRequests"), "429 TooManyRequests"),
    "HTML": Case(answer(HTML, "text/html"), "malformed|no watch frame"),
    "another kind": Case(answer(OTHER), "not a PodList: kind 'ServiceList'|no watch frame"),
    "garbage frames": Case(only(answer(b'\x00\xff{"type":\n'), verb="watch"), "no watch frame", passes=True),
    "garbage lists": Case(
        both(only(answer(b'{"kind":"PodList","items":[{,}'), verb="list"), expired(continued=False)), "malformed"
    ),
    "frames cut off": Case(only(cut(20), verb="watch"), "stream broke", passes=True),
    "lists cut off": Case(both(only(cut(50), verb="list"), expired(continued=False)), "broke off"),
    "watches closed at once": Case(closed_after(0.0), "ended the watch after 0.0", passes=True),
    "watches closed every second": Case(closed_after(1.05), "", passes=True),
    "410 on every watch": Case(expired(continued=False), "410 Expired", passes=True),
    "410 on every page": Case(both(expired(continued=False), expired(continued=True)), "410 Expired", passes=True),
    "slow": Case(late(0.5, piece_bytes=200, pause_s=0.01), "", passes=True),
    "403 on policies": Case(only(refuse(403, "Forbidden"), kind="networkpolicies"), "NetworkPolicy: .*403 Forbidden"),
    "401": Case(refuse(401, "Unauthorized"), "401 Unauthorized"),
    "giant lines": Case(
        only(endless(b"x" * 65536), verb="watch", kind="networkpolicies"), "line of more than", passes=True
    ),
    "giant lists": Case(
        both(only(endless(b" " * (1 << 20)), verb="list"), expired(continued=False)), "TooLarge: more than"
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_the_agent_outlives(site: Site, name: str) -> None:
    case = CASES[name]
    before = await site.reaches()
    site.proxy.fault = case.fault
    site.proxy.break_off()
    began_s = time.monotonic()
    site.allow(not before)
    if case.says:
        remarks = await site.remarks(case.says)
        assert all(" stays in force" in text for text in remarks.values()), remarks
    if case.passes:
        await site.follows(not before)
    await asyncio.sleep(max(0.0, began_s + HELD_S - time.monotonic()))
    assert_bounded(site, began_s)
    if not case.passes:
        assert await site.reaches() is before, "the last known state stays in force"
        assert await site.metric("netagent_watch_stale_seconds", kind="NetworkPolicy") > 0.5
    assert await site.metric("netagent_watch_failures_total") > 0
    site.proxy.fault = None
    await site.follows(not before)
    assert site.peak_bytes() < MEMORY_BYTES


def assert_bounded(site: Site, since_s: float) -> None:
    """No more lists, and no more watches, of a kind than the backoff allows whatever the dice say."""
    lasted_s = time.monotonic() - since_s
    bound = most_attempts(lasted_s, BACKOFF_CAP_S) + 2
    pages = len(site.places) + 2
    for (verb, kind), count in site.proxy.counts(since_s).items():
        allowed = bound * pages if verb == "list" else bound
        assert count <= allowed, f"{verb} {kind}: {count} in {lasted_s:.1f} s, {allowed} allowed"


async def test_retry_after_is_waited_for(site: Site) -> None:
    site.proxy.fault = refuse(429, "TooManyRequests", Retry_After="1")
    site.proxy.break_off()
    began_s = time.monotonic()
    await asyncio.sleep(2.5)
    site.proxy.fault = None
    for kind in WATCHED:
        times = [
            one.at_s for one in site.proxy.asked if one.at_s >= began_s and (one.verb, one.kind) == ("watch", kind)
        ]
        assert len(times) <= 3
        assert all(second - first >= 1.0 for first, second in itertools.pairwise(times)), (kind, times)
    await site.ready()


async def test_a_server_that_is_away_for_long(site: Site) -> None:
    """The kernel goes on, pods that were known can start, others wait with a reason, all can go."""
    before = await site.reaches()
    pods = await site.metric("netagent_watch_events_total", kind="Pod")
    known = site.create_pod("known")

    async def is_known() -> bool:
        return await site.metric("netagent_watch_events_total", kind="Pod") > pods

    await until(is_known, site.log)
    await site.proxy.stop()
    began_s = time.monotonic()
    failed = await site.metric("netagent_api_requests_total", code="unreachable")
    remarks = await site.remarks("NetworkPolicy: fails for [2-9] s: .*no answer from the API server")
    assert set(remarks) == {f"watch {kind}" for kind in ("Pod", "Namespace", "Node", "NetworkPolicy", "Lease")}
    sh("ip", "netns", "add", "known")
    assert (await site.call("ADD", "known", known))[0] == 0, "the API showed it in time"
    assert await site.call("DEL", "known") == (0, None)
    sh("ip", "netns", "del", "known")
    uid = site.create_pod("late")
    status, refusal = await site.call("ADD", "late", uid)
    assert status == 1
    assert "the API server has not shown the pod" in refusal["msg"] + refusal.get("details", "")
    assert await site.call("DEL", "late") == (0, None)
    assert await site.reaches() is before
    tried = await site.metric("netagent_api_requests_total", code="unreachable") - failed
    bound = most_attempts(time.monotonic() - began_s, BACKOFF_CAP_S) + 2
    assert 0 < tried <= bound * (len(WATCHED) + 2), "five watches, the lease and the condition"
    assert await site.metric("netagent_watch_stale_seconds", kind="Pod") >= 2
    assert await site.metric("netagent_watch_connected") == 0
    site.allow(not before)
    for name in ("late", "known"):
        site.cluster.delete("pods", "default", name)
    await site.proxy.start()
    await site.follows(not before)
    await site.ready()


async def test_half_open_connections_are_noticed(site: Site) -> None:
    """Everything stays connected and nothing comes any more: no answer, no frame, no bookmark."""
    before = await site.reaches()
    await site.ready()
    site.proxy.thawed.clear()
    began_s = time.monotonic()
    site.allow(not before)
    remarks = await site.remarks("watch NetworkPolicy: .*(no byte for|timed out|TimeoutError|no answer)")
    assert time.monotonic() - began_s < 10 * SILENCE_S
    assert "stays in force" in remarks["watch NetworkPolicy"]
    assert_bounded(site, began_s)
    site.proxy.break_off()
    site.proxy.thawed.set()
    await site.follows(not before)
    await site.ready()


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
async def test_a_wall_clock_that_is_set(site: Site, jump_s: int) -> None:
    """A day forward, a day back: leases, pauses and watches go on."""
    before = await site.reaches()
    renewed = len([one for one in site.proxy.asked if (one.verb, one.kind) == ("put", "leases")])
    began_s = time.monotonic()
    site.write_clock(jump_s)
    site.allow(not before)
    await site.follows(not before)
    await site.add("now")
    await site.delete("now")

    async def is_renewed() -> bool:
        return len([one for one in site.proxy.asked if (one.verb, one.kind) == ("put", "leases")]) > renewed

    await until(is_renewed, site.log)
    status, shown = await site.readiness()
    assert status == 200, shown
    assert abs(await site.metric("netagent_api_clock_offset_seconds") + jump_s) < 3
    lasted_s = time.monotonic() - began_s
    assert all(count < 5 + 2 * lasted_s for count in site.proxy.counts(began_s).values())
    site.write_clock(0)
    await site.ready()


async def test_a_server_that_was_set_back_to_a_backup(site: Site) -> None:
    """The state of the backup is the truth, though its numbers are below those that the agent knows."""
    allowed = await site.reaches()
    backup = site.cluster.copy()
    await backup.start()
    site.allow(not allowed)
    await site.follows(not allowed)
    assert backup.server.store.revision < site.cluster.server.store.revision
    began_s = time.monotonic()
    await site.replace(backup)
    await site.follows(allowed)
    await site.ready()
    assert "went back to an older state" in site.log()
    assert_bounded(site, began_s)
    site.allow(not allowed)
    await site.follows(not allowed)
