"""Leases that this release cannot read: nobody takes their subnets, whatever length they have."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from netagent.kube import leases
from support.leasebed import Bed, lease_bed
from support.waiting import until

SPOILT: dict[str, dict[str, Any]] = {
    "no annotations": {"metadata": {"annotations": None}},
    "another spelling": {"metadata": {"annotations": {leases.SUBNET: "10.244.4.0 255.255.255.128"}}},
    "public IPs": {"metadata": {"annotations": {leases.PUBLIC_IP: "192.0.2.2,fd00::2"}}},
}


@pytest.fixture
async def bed(api: Any, client: Any, namespace: str) -> AsyncIterator[Bed]:
    async with lease_bed(api, client, namespace) as bed:
        yield bed


async def state(bed: Bed, subnet: str) -> Any:
    answer = await bed.client.get(f"{bed.path}/{leases.name(subnet)}")
    assert answer.status == 200, answer
    return answer.tree


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
async def test_a_part_of_a_subnet_that_is_taken_so_is_left_alone(bed: Bed, spoilt: dict[str, Any]) -> None:
    await bed.add_node("n1")
    await bed.put("10.244.4.0/25", "other", renewed_s=1.0)
    await bed.patch("10.244.4.0/25", spoilt)
    before = await state(bed, "10.244.4.0/25")
    kept = await bed.keeper("n1", "10.244.4.0/24", pools=("10.244.4.0/23",))
    assert await kept.ready() == "10.244.5.0/24"
    assert await state(bed, "10.244.4.0/25") == before
    assert kept.told == [("10.244.5.0/24",)]


async def test_the_last_subnet_is_not_taken_from_it_either(bed: Bed) -> None:
    await bed.add_node("n1")
    await bed.put("10.244.5.0/24", "other", renewed_s=1.0)
    await bed.patch("10.244.5.0/24", SPOILT["no annotations"])
    before = await state(bed, "10.244.5.0/24")
    kept = await bed.keeper("n1", "10.244.5.0/24", pools=("10.244.5.0/24",), grace_s=0.0)
    await until(lambda: "no free subnet" in kept.keeper.problem, "it says that there is none")
    assert await state(bed, "10.244.5.0/24") == before
    assert kept.told == []


async def test_one_that_came_after_the_list_is_given_way_to(bed: Bed) -> None:
    await bed.add_node("n1")

    async def other() -> None:
        await bed.put("10.244.4.0/25", "other", renewed_s=time.time())
        await bed.patch("10.244.4.0/25", SPOILT["public IPs"])

    kept = await bed.keeper("n1", "10.244.4.0/24", pools=("10.244.4.0/23",), meddle=other)
    assert await kept.ready() == "10.244.5.0/24"
    gone = await bed.client.get(f"{bed.path}/{leases.name('10.244.4.0/24')}")
    assert gone.status == 404
    assert kept.told == [("10.244.5.0/24",)]


async def test_what_is_no_subnet_of_ours_is_nobodys(bed: Bed) -> None:
    """A Lease that carries our label for another purpose."""
    await bed.add_node("n1")
    meta = {"name": "netagent-leader", "namespace": bed.namespace, "labels": leases.MANAGED_BY}
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": {"holderIdentity": "x"}}
    assert (await bed.client.post(bed.path, body)).status == 201
    kept = await bed.keeper(pools=("10.244.5.0/24",))
    assert await kept.ready() == "10.244.5.0/24"
