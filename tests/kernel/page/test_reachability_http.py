"""`GET /debug/reachability` beside packets and beside explain, for every pair that it has a cell for."""

import asyncio
from typing import Any

import aiohttp
import pytest

from netagent.core.questions.openings import Openings
from netagent.core.questions.parties import ICMP
from netagent.records import Endpoint
from support import words
from support.pagebed import PageBed
from support.podbed import SERVED
from support.probes import Probe

pytestmark = pytest.mark.kernel

OUTSIDE = "192.0.2.1"
ASKED = (*((port, protocol) for port, protocol in SERVED if protocol != "SCTP"), (0, ICMP))


def verdict(matrix: Any, source: str, destination: str) -> dict[str, Any]:
    """The verdict of a cell."""
    found = matrix["reachability"]
    names = [end["name"] for end in found["ends"]]
    verdict: dict[str, Any] = found["verdicts"][found["cells"][names.index(source)][names.index(destination)]]
    return verdict


def opened(one: dict[str, Any], version: int) -> Openings:
    found = one["by_version"][str(version)]
    return Openings(tuple(tuple(tuple(part) for part in ranges) for ranges in found["ports"]), found["icmp"])


async def town(bed: PageBed) -> list[str]:
    """Pods here and elsewhere, somebody outside, and policies of several kinds; names as rows have them."""
    for name, app in (("x/web", "web"), ("x/db", "db"), ("x/cage", "cage"), ("y/guest", "web")):
        await bed.pod(name, app=app, ports=[("http", 81, "TCP")])
    await bed.pod("x/far", remote=True, app="web")
    bed.outside(OUTSIDE)
    await bed.put(
        words.policy(
            "x/db",
            words.selector(app="db"),
            ingress=[
                words.rule([words.pods(app="web")], [words.port("http"), words.port(80, "UDP")]),
                words.rule([words.block("192.0.2.0/24", "192.0.2.128/25")], [words.port(80)]),
            ],
        ),
        words.policy(
            "x/cage",
            words.selector(app="cage"),
            egress=[words.rule([words.pods(app="web")]), words.rule(None, [words.port(80, end=81)])],
            types=["Egress"],
        ),
        words.policy("y/closed", ingress=[]),
    )
    return ["x/web", "x/db", "x/cage", "y/guest", "x/far", OUTSIDE]


async def test_every_cell_is_what_packets_do(bed: PageBed) -> None:
    names = await town(bed)
    matrix = await bed.json("/debug/reachability")
    wanted = []
    for version in (4, 6):
        for source in names:
            for destination in names:
                if source == destination or {source, destination} <= {"x/far", OUTSIDE}:
                    continue
                if version == 6 and OUTSIDE in (source, destination):
                    continue
                known = opened(verdict(matrix, source, destination), version)
                for port, protocol in ASKED:
                    probe = Probe(bed.places[source], bed.places[destination].ip(version), port, protocol)
                    wanted.append((probe, known.holds(protocol, port or None)))
    assert len(wanted) > 200
    assert {allowed for _, allowed in wanted} == {True, False}
    assert not await bed.ask(wanted)


async def test_every_cell_is_what_explain_and_the_kernel_say(bed: PageBed) -> None:
    await town(bed)
    matrix = await bed.json("/debug/reachability")
    ends = [end["name"] for end in matrix["reachability"]["ends"]]
    asked = 0
    for at, source in enumerate(ends):
        for beside, destination in enumerate(ends):
            number = matrix["reachability"]["cells"][at][beside]
            one = matrix["reachability"]["verdicts"][number] if number is not None else None
            if one is None or one["kind"] in ("itself", "unasked"):
                continue
            answer = await bed.json(f"/debug/explain?from={source}&to={destination}&port=81")
            said = {each["version"]: each["allowed"] for each in answer["answers"]}
            assert said == {int(version): opened(one, int(version)).holds("TCP", 81) for version in one["by_version"]}
            assert answer["agree"] is True
            asked += 1
    assert asked > 30


async def test_it_follows_the_view_and_says_when_nothing_has_changed(bed: PageBed) -> None:
    await bed.pod("x/a")
    await bed.pod("x/b", app="b")
    async with aiohttp.ClientSession() as session:

        async def ask(tag: str = "") -> tuple[int, str, Any]:
            headers = {"If-None-Match": tag} if tag else {}
            async with session.get(f"{bed.url}/debug/reachability", headers=headers) as response:
                return (
                    response.status,
                    response.headers["ETag"],
                    await response.json() if response.status == 200 else {},
                )

        status, tag, matrix = await ask()
        assert (status, verdict(matrix, "x/a", "x/b")["text"]) == (200, "all")
        assert (await ask(tag))[0] == 304
        await bed.put(words.policy("x/b", words.selector(app="b"), ingress=[words.rule(None, [words.port(53, "UDP")])]))
        status, tag, matrix = await ask(tag)
        assert (status, verdict(matrix, "x/a", "x/b")["text"]) == (200, "UDP 53")
        assert matrix["view"] == tag.strip('"') == (await bed.json("/debug/status"))["view"]


async def test_others_run_while_a_large_node_is_judged(bed: PageBed) -> None:
    """110 pods that all differ: the event loop turns many times meanwhile."""
    for number in range(110):
        name, ip = f"x/p{number}", f"10.244.0.{number + 1}"
        bed.dataplane.apply(words.put(words.pod(name, ip, labels={"app": str(number)})))
        endpoint = Endpoint(
            pod=words.key(name), pod_uid="", container_id=name, ifname="eth0", host_ifname="", ips=(ip,)
        )
        bed.dataplane.restore((endpoint,))
        peers = [words.rule([words.pods(app=str((number + 1) % 110))])]
        bed.dataplane.apply(words.put(words.policy(f"x/p{number}", words.selector(app=str(number)), ingress=peers)))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    await bed.settled()
    turning = asyncio.create_task(turn())
    matrix = await bed.page.matrix()
    turning.cancel()
    assert turns > 20
    kinds = [
        matrix.reachability.verdicts[number or 0].kind
        for row in matrix.reachability.cells[:110]
        for number in row[:110]
    ]
    assert (kinds.count("all"), kinds.count("none"), kinds.count("itself")) == (110, 110 * 108, 110)


async def test_requests_at_once_are_answered_by_one_run(bed: PageBed, monkeypatch: pytest.MonkeyPatch) -> None:
    await bed.pod("x/a")
    runs = 0
    judged = bed.page._judged

    async def counted() -> Any:
        nonlocal runs
        runs += 1
        return await judged()

    monkeypatch.setattr(bed.page, "_judged", counted)
    answers = await asyncio.gather(*(bed.json("/debug/reachability") for _ in range(8)))
    assert runs == 1
    assert len({answer["view"] for answer in answers}) == 1
