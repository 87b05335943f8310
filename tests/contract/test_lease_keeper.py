"""Lease keepers against API servers: what the Lease objects say is what counts."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from netagent.kube import leases
from support.leasebed import DEADLINE_S, Bed, lease_bed
from support.waiting import running, until


@pytest.fixture
async def bed(api: Any, client: Any, namespace: str) -> AsyncIterator[Bed]:
    async with lease_bed(api, client, namespace) as bed:
        yield bed


async def test_a_lease_is_created_named_after_its_subnet_and_owned_by_the_node(bed: Bed) -> None:
    uid = await bed.add_node("n1")
    kept = await bed.keeper()
    subnet = await kept.ready()
    lease = await bed.lease(subnet)
    assert lease["metadata"]["name"] == leases.name(subnet)
    assert lease["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "netagent"}
    assert lease["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": bed.name("n1"), "uid": uid}
    ]
    assert lease["spec"]["holderIdentity"] == bed.name("n1")
    assert lease["spec"]["leaseDurationSeconds"] == 60
    assert kept.told == [(subnet,)]
    assert kept.keeper.allocatable == (subnet,)


async def test_both_families(bed: Bed) -> None:
    await bed.add_node("n1")
    kept = await bed.keeper(pools=("10.244.0.0/16", "fd00:10::/48"))
    await until(lambda: len(kept.subnets) == 2, "two leases")
    assert [subnet.rpartition("/")[2] for subnet in kept.subnets] == ["24", "64"]
    assert set(await bed.leases()) == set(kept.subnets)


async def test_the_node_is_waited_for(bed: Bed) -> None:
    kept = await bed.keeper()
    await until(lambda: "does not exist" in kept.keeper.problem, "the keeper says what it waits for")
    assert await bed.leases() == {}
    await bed.add_node("n1")
    await kept.ready()


async def test_own_lease_then_previous_subnet_then_a_free_one(bed: Bed) -> None:
    for node in ("n1", "n2", "n3"):
        await bed.add_node(node)
    await bed.put("10.244.7.0/24", "n1")
    own = await bed.keeper("n1", "10.244.9.0/24")
    assert await own.ready() == "10.244.7.0/24"
    previous = await bed.keeper("n2", "10.244.7.0/24", "10.244.8.0/24")
    assert await previous.ready() == "10.244.8.0/24"
    other = await bed.keeper("n3", "10.244.8.0/24")
    assert await other.ready() not in ("10.244.7.0/24", "10.244.8.0/24")


async def test_thirty_nodes_race_for_a_pool_of_thirty_two(bed: Bed) -> None:
    await asyncio.gather(*(bed.add_node(f"n{index}") for index in range(30)))
    kept = [await bed.keeper(f"n{index}", pools=("10.244.0.0/19",)) for index in range(30)]
    held = await asyncio.gather(*(one.ready() for one in kept))
    assert len(set(held)) == 30
    found = await bed.leases()
    assert {subnet: found[subnet]["spec"]["holderIdentity"] for subnet in held} == {
        subnet: one.node for subnet, one in zip(held, kept, strict=True)
    }
    assert len(found) == 30


async def test_two_nodes_race_for_the_last_subnet(bed: Bed) -> None:
    await bed.add_node("n1")
    await bed.add_node("n2")
    both = [await bed.keeper(node, pools=("10.244.5.0/24",)) for node in ("n1", "n2")]
    await until(lambda: any(one.subnets for one in both), "one has it")
    await until(lambda: any("no free subnet" in one.keeper.problem for one in both), "the other says why not")
    assert sorted(len(one.subnets) for one in both) == [0, 1]
    winner, loser = sorted(both, key=lambda one: len(one.subnets), reverse=True)
    assert (await bed.lease("10.244.5.0/24"))["spec"]["holderIdentity"] == winner.node
    assert loser.told == []


async def test_a_subnet_created_by_another_node_after_the_list_is_left_to_it(bed: Bed) -> None:
    await bed.add_node("n1")

    async def thief() -> None:
        await bed.put("10.244.4.0/24", "thief")

    kept = await bed.keeper("n1", "10.244.4.0/24", pools=("10.244.4.0/23",), meddle=thief)
    assert await kept.ready() == "10.244.5.0/24"
    assert (await bed.lease("10.244.4.0/24"))["spec"]["holderIdentity"] == bed.name("thief")
    assert kept.told == [("10.244.5.0/24",)]


async def test_a_subnet_within_another_nodes_that_came_after_the_list_is_given_back(bed: Bed) -> None:
    """Nodes that were told another length: their leases have other names, but the same addresses."""
    await bed.add_node("n1")

    async def other() -> None:
        await bed.put("10.244.4.0/25", "other")

    kept = await bed.keeper("n1", "10.244.4.0/24", pools=("10.244.4.0/23",), meddle=other)
    assert await kept.ready() == "10.244.5.0/24"
    assert set(await bed.leases()) == {"10.244.4.0/25", "10.244.5.0/24"}
    assert kept.told == [("10.244.5.0/24",)]


async def test_an_expired_lease_renewed_after_the_list_is_left_to_its_holder(bed: Bed) -> None:
    await bed.add_node("n1")
    await bed.put("10.244.5.0/24", "slow", renewed_s=1.0)

    async def renew() -> None:
        await bed.patch("10.244.5.0/24", {"spec": {"renewTime": leases.micro_time(time.time())}})

    kept = await bed.keeper(pools=("10.244.5.0/24",), meddle=renew)
    await until(lambda: "no free subnet" in kept.keeper.problem, "it has been tried")
    assert (await bed.lease("10.244.5.0/24"))["spec"]["holderIdentity"] == bed.name("slow")
    assert kept.told == []


async def test_renewal(bed: Bed) -> None:
    await bed.add_node("n1")
    kept = await bed.keeper(duration_s=3)
    subnet = await kept.ready()
    first = await bed.lease(subnet)
    await bed.patch(subnet, {"metadata": {"annotations": {"example.org/mine": "kept"}}})
    await until(lambda: kept.keeper.held[0].renewed_s != leases.seconds(first["spec"]["renewTime"]), "a renewal")
    now = await bed.lease(subnet)
    assert now["spec"]["renewTime"] > first["spec"]["renewTime"]
    assert now["spec"]["acquireTime"] == first["spec"]["acquireTime"]
    assert now["metadata"]["annotations"]["example.org/mine"] == "kept"
    assert kept.told == [(subnet,)], "a renewal is no change"


@pytest.mark.parametrize("watched", [True, False])
async def test_a_lease_lost_to_another_node_is_given_up_and_replaced(bed: Bed, watched: bool) -> None:
    await bed.add_node("n1")
    kept = await bed.keeper(watched=watched, duration_s=600 if watched else 3)
    lost = await kept.ready()
    await bed.patch(lost, {"spec": {"holderIdentity": "thief"}})
    await until(lambda: len(kept.told) == 3, "lost, then another")
    assert kept.told[0] == (lost,)
    assert kept.told[1] == ()
    assert kept.subnets == kept.told[2] != (lost,)
    assert (await bed.lease(lost))["spec"]["holderIdentity"] == "thief"


async def test_a_deleted_lease_is_created_again_by_the_same_name(bed: Bed) -> None:
    await bed.add_node("n1")
    kept = await bed.keeper(watched=True, duration_s=600)
    subnet = await kept.ready()
    before = (await bed.lease(subnet))["metadata"]["uid"]
    assert (await bed.client.delete(f"{bed.path}/{leases.name(subnet)}")).status == 200
    await until(lambda: kept.keeper.held[0].uid != before, "a new object")
    assert (await bed.lease(subnet))["metadata"]["uid"] == kept.keeper.held[0].uid
    assert kept.told == [(subnet,)], "nobody was told to stop using the subnet"


async def test_a_deleted_lease_that_another_node_took_is_lost(bed: Bed) -> None:
    await bed.add_node("n1")
    kept = await bed.keeper(duration_s=3)
    subnet = await kept.ready()
    await bed.client.delete(f"{bed.path}/{leases.name(subnet)}")
    taken = await bed.client.post(
        bed.path,
        leases.body(subnet, bed.namespace, leases.Tenant("thief", "", 60), time.time())
        | {
            "metadata": {
                "name": leases.name(subnet),
                "labels": leases.MANAGED_BY,
                "annotations": {leases.SUBNET: subnet},
            }
        },
    )
    if taken.status == 409:
        pytest.skip("the keeper was faster: nothing was lost")
    await until(lambda: len(kept.told) == 3, "lost, then another")
    assert kept.subnets != (subnet,)


async def test_an_expired_lease_is_taken_over_only_after_the_grace(bed: Bed) -> None:
    await bed.add_node("n1")
    await bed.put("10.244.5.0/24", "gone", renewed_s=time.time() - 60 - 8)
    kept = await bed.keeper(pools=("10.244.5.0/24",), grace_s=10.0)
    await until(lambda: "no free subnet" in kept.keeper.problem, "it waits for the grace")
    await kept.ready()
    lease = await bed.lease("10.244.5.0/24")
    assert leases.seconds(lease["spec"]["acquireTime"]) >= time.time() - DEADLINE_S
    assert lease["spec"]["holderIdentity"] == bed.name("n1")
    assert lease["spec"]["leaseTransitions"] == 1


async def test_many_nodes_take_over_one_expired_lease_once(bed: Bed) -> None:
    await asyncio.gather(*(bed.add_node(f"n{index}") for index in range(8)))
    await bed.put("10.244.5.0/24", "gone", renewed_s=1.0)
    kept = [await bed.keeper(f"n{index}", pools=("10.244.5.0/24",)) for index in range(8)]
    await until(lambda: any(one.subnets for one in kept), "one has it")
    await until(lambda: all(one.subnets or "no free" in one.keeper.problem for one in kept), "all have tried")
    holders = [one.node for one in kept if one.subnets]
    assert holders == [(await bed.lease("10.244.5.0/24"))["spec"]["holderIdentity"]]


async def test_reservations_are_honoured(bed: Bed) -> None:
    await bed.add_node("n1")
    await bed.add_node("n2")
    await bed.put("10.244.4.0/24", "nobody", duration_s=None, renewed_s=1.0)
    await bed.put("10.244.5.0/24", "n1", duration_s=None, renewed_s=1.0)
    mine = await bed.keeper("n1", pools=("10.244.4.0/23",))
    assert await mine.ready() == "10.244.5.0/24"
    other = await bed.keeper("n2", pools=("10.244.4.0/23",))
    await until(lambda: "no free subnet" in other.keeper.problem, "the other finds nothing")
    lease = await bed.lease("10.244.5.0/24")
    assert "leaseDurationSeconds" not in lease["spec"]
    assert "ownerReferences" not in lease["metadata"]
    assert "leaseDurationSeconds" not in (await bed.lease("10.244.4.0/24"))["spec"]


async def test_a_subnet_that_comes_free_ends_the_wait(bed: Bed) -> None:
    await bed.add_node("n1")
    await bed.put("10.244.5.0/24", "other")
    kept = await bed.keeper(pools=("10.244.5.0/24",), watched=True)
    await until(lambda: "no free subnet" in kept.keeper.problem, "the pool is exhausted")
    await bed.client.delete(f"{bed.path}/{leases.name('10.244.5.0/24')}")
    assert await kept.ready() == "10.244.5.0/24"


async def test_what_is_advertised_is_published_and_restored(bed: Bed) -> None:
    await bed.add_node("n1")
    kept = await bed.keeper(watched=True, duration_s=600)
    subnet = await kept.ready()
    kept.keeper.advertise(subnet, backend="vxlan", vtep_mac="0A:00:00:00:00:01", public_ip="192.0.2.1")
    await until(lambda: kept.keeper.held[0].public_ip == "192.0.2.1", "published")
    published = await bed.lease(subnet)
    assert published["metadata"]["annotations"] == {
        leases.SUBNET: subnet,
        leases.BACKEND: "vxlan",
        leases.VTEP_MAC: "0a:00:00:00:00:01",
        leases.PUBLIC_IP: "192.0.2.1",
    }
    kept.keeper.advertise(subnet, backend="vxlan", vtep_mac="0a:00:00:00:00:01", public_ip="192.0.2.1")
    await asyncio.sleep(0.3)
    assert (await bed.lease(subnet))["metadata"]["resourceVersion"] == published["metadata"]["resourceVersion"]
    broken = kept.keeper.held[0].resource_version
    await bed.patch(subnet, {"metadata": {"annotations": {leases.PUBLIC_IP: None, leases.SUBNET: "garbage"}}})
    await until(lambda: kept.keeper.held[0].resource_version != broken, "noticed")
    await until(lambda: kept.keeper.held[0].public_ip == "192.0.2.1", "restored")
    assert (await bed.lease(subnet))["metadata"]["annotations"] == published["metadata"]["annotations"]


async def test_a_restarted_node_finds_its_lease_and_keeps_what_it_published(bed: Bed) -> None:
    await bed.add_node("n1")
    async with AsyncExitStack() as first_run:
        first = await bed.keeper(started=False)
        await first_run.enter_async_context(running(first.keeper.run()))
        subnet = await first.ready()
        first.keeper.advertise(subnet, backend="vxlan", vtep_mac="0a:00:00:00:00:01", public_ip="192.0.2.1")
        await until(lambda: first.keeper.held[0].vtep_mac, "published")
    second = await bed.keeper()
    assert await second.ready() == subnet
    assert second.keeper.held[0].vtep_mac == "0a:00:00:00:00:01"
    assert len(await bed.leases()) == 1
