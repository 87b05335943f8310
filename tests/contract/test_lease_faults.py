"""Bad days of leases: cut off from the server, clocks that are wrong, leases lost, pools exhausted, Nodes that go."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from netagent.agent.network.abandoned import AbandonedLeases
from netagent.agent.network.condition import Lack, NetworkCondition
from netagent.agent.network.lease import LOST
from netagent.config import NetworkConfig
from netagent.core.policy.store import Store
from netagent.kube import leases
from netagent.kube.events import EventWriter
from netagent.kube.reflector import Reflector, resources
from netagent.records import Change, Key, Kind, Node, Upserted
from support.leasebed import Bed, Kept, Line, lease_bed
from support.waiting import running, until

ONE: tuple[str, ...] = ("10.244.5.0/24",)
DURATION_S, GRACE_S = 3, 8.0


@pytest.fixture
async def bed(api: Any, client: Any, namespace: str) -> AsyncIterator[Bed]:
    async with lease_bed(api, client, namespace) as bed:
        yield bed


class World:
    """Time as the test says. A node's clock may be off; the time since boot is everybody's own."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def timing(self, off_s: float = 0.0) -> dict[str, Any]:
        return {"clock": lambda: self.now_s + off_s, "elapsed": lambda: self.now_s}


def poke(kept: Kept) -> None:
    """Whoever waits tries again at once."""
    kept.keeper.observe(Upserted(Kind.NODE, Node(key=Key("", kept.node), uid="")))


@pytest.mark.parametrize(("holder_off_s", "taker_off_s"), [(0.0, 0.0), (-1.9, 1.9), (1.9, -1.9)])
async def test_never_two_holders_when_the_server_is_away_for_longer_than_the_lease(
    bed: Bed, holder_off_s: float, taker_off_s: float
) -> None:
    """From second to second, with clocks up to half a grace apart."""
    world, line = World(), Line(bed.api)
    for node in ("holder", "taker"):
        await bed.add_node(node)
    config: Any = {"pools": ONE, "duration_s": DURATION_S, "grace_s": GRACE_S}
    holder = await bed.keeper("holder", api=line, timing=world.timing(holder_off_s), **config)
    await holder.ready()
    line.cut = True
    taker = await bed.keeper("taker", timing=world.timing(taker_off_s), **config)
    await until(lambda: taker.keeper.reason == "SubnetPoolExhausted", "the pool is exhausted")
    began_s, stopped_s, taken_s = world.now_s, 0.0, 0.0
    while not taken_s:
        world.now_s += 0.25
        assert world.now_s < began_s + 40, "never taken over"
        poke(taker)
        await asyncio.sleep(0.03)
        assert not (holder.keeper.allocatable and taker.keeper.allocatable)
        stopped_s = stopped_s or (0.0 if holder.keeper.allocatable else world.now_s)
        taken_s = world.now_s if taker.keeper.allocatable else 0.0
    assert 0 < stopped_s <= taken_s
    assert holder.keeper.reason == "SubnetLeaseExpired"
    assert holder.subnets == ONE, "the pods that run are served"
    assert taken_s - began_s >= DURATION_S + GRACE_S - 2 * 1.9 - 1
    line.cut = False
    await until(lambda: holder.losses, "the holder learns of it")
    assert "held by " + taker.node in holder.losses[0]
    assert holder.subnets == ()
    assert holder.told == [ONE, ()]


async def test_an_outage_shorter_than_the_lease_goes_unnoticed(bed: Bed) -> None:
    world, line = World(), Line(bed.api)
    await bed.add_node("n1")
    kept = await bed.keeper("n1", api=line, timing=world.timing(), pools=ONE, duration_s=DURATION_S, grace_s=GRACE_S)
    await kept.ready()
    line.cut = True
    world.now_s += DURATION_S + GRACE_S / 2 - 0.1
    assert kept.keeper.allocatable == ONE
    world.now_s += 0.2
    assert kept.keeper.allocatable == ()
    line.cut = False
    await until(lambda: kept.keeper.allocatable == ONE, "renewed")
    assert kept.losses == []
    assert kept.told == [ONE]


async def test_a_clock_that_is_set_back_gives_nobody_more_time(bed: Bed) -> None:
    """Cut off, and then the operator sets the clock back by a day: the lease still ends when it ends."""
    world, line, back_s = World(), Line(bed.api), 0.0
    await bed.add_node("n1")
    timing: Any = {"clock": lambda: world.now_s - back_s, "elapsed": lambda: world.now_s}
    kept = await bed.keeper("n1", api=line, timing=timing, pools=ONE, duration_s=DURATION_S, grace_s=GRACE_S)
    await kept.ready()
    line.cut = True
    back_s = 86400.0
    assert kept.keeper.allocatable == ONE
    world.now_s += DURATION_S + GRACE_S / 2 + 0.1
    assert kept.keeper.allocatable == ()


@pytest.mark.parametrize("off_s", [86400.0, -86400.0])
async def test_a_node_whose_clock_is_a_day_off_lives_by_the_servers(bed: Bed, off_s: float) -> None:
    """It neither takes what others hold nor loses what it has."""
    for node in ("right", "wrong"):
        await bed.add_node(node)
    config: Any = {"pools": ("10.244.4.0/23",), "duration_s": 30, "grace_s": 10.0}
    right = await bed.keeper("right", **config)
    await right.ready()
    wrong = await bed.keeper("wrong", api=Line(bed.api, lambda: time.time() + off_s), **config)
    assert await wrong.ready() != right.subnets[0]
    lease = await bed.lease(wrong.subnets[0])
    assert abs(leases.seconds(lease["spec"]["renewTime"]) - time.time()) < 30
    assert {one["spec"]["leaseTransitions"] for one in (await bed.leases()).values()} == {0}
    await bed.add_node("third")
    third = await bed.keeper("third", api=Line(bed.api, lambda: time.time() + off_s), **config)
    await until(lambda: third.keeper.reason == "SubnetPoolExhausted", "nothing is free")
    assert third.told == []


async def test_a_lease_that_the_watch_shows_gone_gives_out_nothing_until_it_is_read_again(bed: Bed) -> None:
    await bed.add_node("n1")
    line = Line(bed.api)
    kept = await bed.keeper("n1", api=line, watched=True, duration_s=600, pools=ONE)
    await kept.ready()
    line.cut = True
    assert (await bed.client.delete(f"{bed.path}/{leases.name(ONE[0])}")).status == 200
    await until(lambda: not kept.keeper.allocatable, "noticed")
    assert "is gone or another's" in kept.keeper.problem
    assert kept.subnets == ONE
    line.cut = False
    await until(lambda: kept.keeper.allocatable == ONE, "made again")
    assert kept.told == [ONE]


async def test_a_subnet_whose_holder_gives_it_up_ends_the_wait(bed: Bed) -> None:
    await bed.add_node("n1")
    await bed.put(ONE[0], "other")
    kept = await bed.keeper("n1", pools=ONE, watched=True, duration_s=600)
    await until(lambda: kept.keeper.reason == "SubnetPoolExhausted", "the pool is exhausted")
    await bed.patch(ONE[0], {"spec": {"holderIdentity": None}})
    assert await kept.ready() == ONE[0]


# What the cluster is told


async def condition_of(bed: Bed, node: str) -> tuple[str, str]:
    tree = (await bed.client.get(f"/api/v1/nodes/{bed.name(node)}")).tree
    found = [one for one in tree["status"].get("conditions") or () if one["type"] == "NetworkUnavailable"]
    return (found[0]["status"], found[0]["reason"]) if found else ("", "")


async def events_of(bed: Bed, node: str) -> list[tuple[str, str]]:
    """Reason and message, oldest first."""
    items = (await bed.client.get("/api/v1/namespaces/default/events")).tree["items"]
    mine = [one for one in items if one.get("involvedObject", {}).get("name") == bed.name(node)]
    return [
        (one["reason"], one["message"]) for one in sorted(mine, key=lambda one: int(one["metadata"]["resourceVersion"]))
    ]


async def reported(bed: Bed, kept: Kept, uid: str) -> None:
    """Keep the Node's condition as an agent does, for as long as the keeper lives."""
    keeper = kept.keeper
    writer = EventWriter(bed.api, kept.node)

    def lack() -> Lack | None:
        return Lack(keeper.problem, keeper.reason) if keeper.problem else None

    condition = NetworkCondition(bed.api, writer, kept.node, lack, patience_s=0.2)
    kept.on_loss = lambda text: condition.tell(Lack(text, LOST))
    condition.observe(Upserted(Kind.NODE, Node(key=Key("", kept.node), uid=uid)))
    await kept.life.enter_async_context(running(writer.run()))
    await kept.life.enter_async_context(running(condition.run()))


async def turns(bed: Bed, node: str, wanted: tuple[str, str]) -> None:
    deadline_s = time.monotonic() + 40
    while (now := await condition_of(bed, node)) != wanted:
        assert time.monotonic() < deadline_s, now
        await asyncio.sleep(0.05)


async def told(bed: Bed, node: str, reason: str) -> str:
    deadline_s = time.monotonic() + 40
    while True:
        found = await events_of(bed, node)
        for known, message in found:
            if known == reason:
                return message
        assert time.monotonic() < deadline_s, found
        await asyncio.sleep(0.05)


async def test_a_lost_lease_is_told_and_served_by_another_subnet(bed: Bed) -> None:
    uid = await bed.add_node("n1")
    kept = await bed.keeper("n1", pools=("10.244.4.0/23",), watched=True, duration_s=600)
    await kept.ready()
    await reported(bed, kept, uid)
    await turns(bed, "n1", ("False", "NetagentIsUp"))
    lost = kept.subnets[0]
    await bed.patch(lost, {"spec": {"holderIdentity": "thief"}})
    assert f"{lost} is held by thief now" in await told(bed, "n1", "SubnetLeaseLost")
    await until(lambda: kept.subnets not in ((), (lost,)), "another subnet")
    await turns(bed, "n1", ("False", "NetagentIsUp"))


async def test_a_lost_lease_that_cannot_be_replaced_makes_the_node_unavailable(bed: Bed) -> None:
    uid = await bed.add_node("n1")
    kept = await bed.keeper("n1", pools=ONE, watched=True, duration_s=600)
    await kept.ready()
    await reported(bed, kept, uid)
    await turns(bed, "n1", ("False", "NetagentIsUp"))
    await bed.patch(ONE[0], {"spec": {"holderIdentity": "thief"}})
    await turns(bed, "n1", ("True", "SubnetPoolExhausted"))
    reasons = [reason for reason, _ in await events_of(bed, "n1")]
    assert "SubnetLeaseLost" in reasons
    assert "no free subnet in 10.244.5.0/24" in await told(bed, "n1", "SubnetPoolExhausted")
    await bed.client.delete(f"{bed.path}/{leases.name(ONE[0])}")
    await turns(bed, "n1", ("False", "NetagentIsUp"))
    assert kept.subnets == ONE


# Nodes that go


Agent = tuple[AbandonedLeases, Store, World]


@asynccontextmanager
async def collectors(bed: Bed, count: int) -> AsyncIterator[list[Agent]]:
    """Collectors of as many agents, their views kept by watches, each one's time the test's."""
    network = NetworkConfig(lease_namespace=bed.namespace, takeover_grace_s=8.0)
    agents: list[Agent] = []
    for seed in range(count):
        view, world = Store(), World()
        rng = random.Random(seed)  # noqa: S311
        found = AbandonedLeases(bed.api, network, view, look_s=0.05, clock=lambda w=world: w.now_s, rng=rng)  # type: ignore[misc]
        agents.append((found, view, world))

    def tell(change: Change) -> None:
        for _, view, _ in agents:
            view.apply(change)

    catalogue = resources(bed.namespace)
    async with AsyncExitStack() as stack:
        for kind in (Kind.NODE, Kind.LEASE):
            await stack.enter_async_context(running(Reflector(bed.api, catalogue[kind], tell, bed.settings).run()))
        for collector, _, _ in agents:
            await stack.enter_async_context(running(collector.run()))
        yield agents


async def test_leases_of_nodes_that_are_gone_are_collected_once(bed: Bed) -> None:
    """Many agents, one deletion; leases of living nodes, reservations and the unowned of nobody stay."""
    await bed.add_node("alive")
    await bed.put("10.244.1.0/24", "alive")
    await bed.put("10.244.2.0/24", "gone")
    await bed.put("10.244.3.0/24", "gone", duration_s=None)
    async with collectors(bed, 12) as agents:
        for collector, _, _ in agents:
            await until(lambda: collector._cases, "the case is known")  # noqa: B023
        for _, _, world in agents:
            world.now_s += 7.9
        await asyncio.sleep(0.3)
        assert set(await bed.leases()) == {"10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"}
        for _ in range(60):
            for _, _, world in agents:
                world.now_s += 0.25
            await asyncio.sleep(0.05)
        assert set(await bed.leases()) == {"10.244.1.0/24", "10.244.3.0/24"}
        assert sum(collector.deleted for collector, _, _ in agents) == 1


async def test_a_lease_that_is_renewed_or_whose_node_comes_back_is_no_case_any_more(bed: Bed) -> None:
    await bed.put("10.244.2.0/24", "back")
    await bed.put("10.244.3.0/24", "gone")
    async with collectors(bed, 1) as ((collector, view, world),):
        await until(lambda: len(collector._cases) == 2, "both cases are known")
        world.now_s += 6
        await bed.add_node("back")
        version = view.leases[leases.key("10.244.3.0/24", bed.namespace)].resource_version
        await bed.patch("10.244.3.0/24", {"spec": {"renewTime": leases.micro_time(time.time())}})
        await until(lambda: view.leases[leases.key("10.244.3.0/24", bed.namespace)].resource_version != version, "seen")
        await until(lambda: len(collector._cases) == 1, "one case is closed")
        world.now_s += 7
        await asyncio.sleep(0.5)
        assert set(await bed.leases()) == {"10.244.2.0/24", "10.244.3.0/24"}
        world.now_s += 8
        await until(lambda: collector.deleted, "the other one is collected")
        assert set(await bed.leases()) == {"10.244.2.0/24"}
