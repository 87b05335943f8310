"""Hundreds of lease keepers race for one pool. Judged by everything that happened, not by how it ended."""

import asyncio
import contextlib
import ipaddress
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from netagent.kube import leases
from netagent.kube.reflector import Reflector, resources
from netagent.records import Change, Kind
from support.leasebed import Bed, Kept, lease_bed
from support.waiting import running

NODES = 220
DEADLINE_S = 240.0
PARALLEL = 20
"""Requests at a time when a test prepares."""
LASTING_S = 3600
"""No lease expires while a test runs."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def bed(api: Any, client: Any, namespace: str) -> AsyncIterator[Bed]:
    async with lease_bed(api, client, namespace) as bed:
        yield bed


class History:
    """What the API server says that happened to the leases of a namespace, and who thought that he held which."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, str, str]] = []
        """Type of the event, subnet, holder."""
        self.claims: dict[str, str] = {}
        """Subnet -> the node that would give out its addresses."""
        self.clashes: list[str] = []
        self.watched: list[Kept] = []

    async def look(self) -> None:
        """Ask every keeper, over and over, what it would give out."""
        while True:
            claims: dict[str, str] = {}
            for kept in self.watched:
                for subnet in kept.keeper.allocatable:
                    if subnet in claims:
                        self.clashes.append(f"{subnet}: {claims[subnet]} and {kept.node}")
                    claims[subnet] = kept.node
            self.claims = claims
            await asyncio.sleep(0.01)

    async def record(self, bed: Bed, version: str) -> None:
        async with bed.client.watch(f"{bed.path}?watch=1&resourceVersion={version}") as following:
            while True:
                try:
                    event = await following()
                except TimeoutError:
                    continue
                if event is None:
                    return
                self.note(event["type"], event["object"])

    def note(self, kind: str, body: Any) -> None:
        subnet = body["metadata"]["annotations"][leases.SUBNET]
        self.frames.append((kind, subnet, body["spec"].get("holderIdentity") or ""))

    def changes_of_holder(self) -> Counter[str]:
        """Subnet -> how often the holder of its existing lease became another one."""
        found: Counter[str] = Counter()
        now: dict[str, str] = {}
        for kind, subnet, holder in self.frames:
            if kind == "ADDED":
                assert subnet not in now, f"two objects for {subnet}"
            elif now[subnet] != holder:
                found[subnet] += 1
            now[subnet] = holder
            if kind == "DELETED":
                del now[subnet]
        return found


@contextlib.asynccontextmanager
async def followed(bed: Bed) -> AsyncIterator[tuple[History, list[Kept]]]:
    """A history from now on, and a list: keepers that are put there are told by one watch what happens."""
    history, keepers = History(), []  # type: ignore[var-annotated]

    def tell(change: Change) -> None:
        for kept in keepers:
            kept.keeper.observe(change)

    before = (await bed.client.get(bed.path)).tree
    for body in before["items"]:
        history.note("ADDED", body)
    version = before["metadata"]["resourceVersion"]
    watch = Reflector(bed.api, resources(bed.namespace)[Kind.LEASE], tell, bed.settings)
    async with running(watch.run()), running(history.record(bed, version)), running(history.look()):
        yield history, keepers


async def within(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what()
        await asyncio.sleep(0.05)


async def prepared(work: list[Any]) -> None:
    gate = asyncio.Semaphore(PARALLEL)

    async def one(item: Any) -> None:
        async with gate:
            await item

    await asyncio.gather(*map(one, work))


async def race(bed: Bed, history: History, keepers: list[Kept], **config: Any) -> None:
    await prepared([bed.add_node(f"n{index}") for index in range(NODES)])
    for index in range(NODES):
        kept = await bed.keeper(f"n{index}", duration_s=LASTING_S, **config)
        keepers.append(kept)
        history.watched.append(kept)


def unserved(keepers: list[Kept]) -> list[Kept]:
    return [kept for kept in keepers if not kept.subnets]


async def test_more_nodes_than_subnets(bed: Bed) -> None:
    """192 subnets in two pools; what is reserved is nobody's; who got none says so, and gets one as soon as it can."""
    pools, reserved = ("10.60.0.0/17", "10.61.0.0/18"), ("10.60.4.0/22",)
    count = 128 + 64 - 4
    async with followed(bed) as (history, keepers):
        await race(bed, history, keepers, pools=pools, reserved=reserved)
        await within(
            lambda: (
                len(unserved(keepers)) == NODES - count
                and all(kept.keeper.reason == "SubnetPoolExhausted" for kept in unserved(keepers))
            ),
            lambda: str(Counter(kept.keeper.problem for kept in keepers)),
        )
        assert all("no free subnet in 10.60.0.0/17" in kept.keeper.problem for kept in unserved(keepers))
        losers, winners = unserved(keepers), [kept for kept in keepers if kept.subnets]
        held = {kept.subnets[0]: kept.node for kept in winners}
        assert len(held) == count
        assert not [subnet for subnet in held if subnet.startswith(tuple(f"10.60.{part}." for part in range(4, 8)))]
        assert {subnet: lease["spec"]["holderIdentity"] for subnet, lease in (await bed.leases()).items()} == held

        for kept in winners[: len(losers)]:
            await kept.stop()
            keepers.remove(kept)
            freed = kept.subnets[0]
            history.watched.remove(kept)
            assert (await bed.client.delete(f"{bed.path}/{leases.name(freed)}")).status == 200
        await within(lambda: not unserved(keepers), lambda: f"{len(unserved(keepers))} of {len(losers)} got none")
        final = {subnet: lease["spec"]["holderIdentity"] for subnet, lease in (await bed.leases()).items()}
        assert final == {kept.subnets[0]: kept.node for kept in keepers}
        await within(lambda: len(history.claims) == count, lambda: f"{len(history.claims)} of {count} claimed")
        await within(
            lambda: sum(kind == "DELETED" for kind, _, _ in history.frames) == len(losers), lambda: "history ends"
        )
        assert history.changes_of_holder() == {}
        assert history.clashes == []
        assert all(kept.told == [kept.subnets] for kept in keepers)


async def test_expired_leases_are_taken_over_once_each(bed: Bed) -> None:
    """As many dead nodes' leases as the pool has, some reserved, some not old enough; all others race for them."""
    subnets = [f"10.62.{number}.0/24" for number in range(64)]
    now_s = time.time()
    await prepared(
        [
            *(bed.put(subnet, f"dead-{subnet}", renewed_s=now_s - 5000) for subnet in subnets[:48]),
            *(bed.put(subnet, f"late-{subnet}", renewed_s=now_s - 600) for subnet in subnets[48:56]),
            *(bed.put(subnet, f"kept-{subnet}", renewed_s=1.0, duration_s=None) for subnet in subnets[56:]),
        ]
    )
    async with followed(bed) as (history, keepers):
        await race(bed, history, keepers, pools=("10.62.0.0/18",), grace_s=3600.0)
        await within(
            lambda: (
                len(unserved(keepers)) == NODES - 48
                and all(kept.keeper.reason == "SubnetPoolExhausted" for kept in unserved(keepers))
            ),
            lambda: str(Counter(kept.keeper.problem for kept in keepers)),
        )
        await within(lambda: len(history.claims) == 48, lambda: f"{len(history.claims)} of 48 claimed")
        found = await bed.leases()
        assert {subnet: found[subnet]["spec"]["holderIdentity"] for subnet in subnets[:48]} == history.claims
        assert {found[subnet]["spec"]["leaseTransitions"] for subnet in subnets[:48]} == {1}
        assert {found[subnet]["spec"].get("leaseTransitions") for subnet in subnets[48:]} == {0}
        await within(lambda: len(history.changes_of_holder()) == 48, lambda: json.dumps(history.changes_of_holder()))
        assert set(history.changes_of_holder().values()) == {1}
        assert history.clashes == []


async def test_subnets_of_two_lengths_never_overlap(bed: Bed) -> None:
    """The configured length is being changed: half of the nodes ask for /24s, half for /26s, of one small pool."""
    count = 40
    await prepared([bed.add_node(f"n{index}") for index in range(count)])
    networks: list[Any] = []
    overlaps: list[str] = []
    async with followed(bed) as (history, keepers):
        for index in range(count):
            kept = await bed.keeper(
                f"n{index}", duration_s=30, grace_s=60.0, pools=("10.63.0.0/19",), subnet_len=24 + 2 * (index % 2)
            )
            keepers.append(kept)
            history.watched.append(kept)

        def settled() -> bool:
            networks[:] = [ipaddress.ip_network(subnet) for kept in keepers for subnet in kept.keeper.allocatable]
            pairs = itertools.combinations(networks, 2)
            overlaps.extend(f"{one} and {other}" for one, other in pairs if one.overlaps(other))
            return all(kept.subnets or kept.keeper.reason == "SubnetPoolExhausted" for kept in keepers)

        await within(settled, lambda: str(Counter(kept.keeper.problem for kept in keepers)))
        assert overlaps == []
        assert {network.prefixlen for network in networks} == {24, 26}
        assert history.clashes == []
