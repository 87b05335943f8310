"""Lease keepers against API servers: what the Lease objects say is what counts."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import pytest

from netagent.agent.lease import LeaseKeeper
from netagent.config import ApiConfig, NetworkConfig
from netagent.kube import leases
from netagent.kube.client import ApiClient, connect
from netagent.kube.reflector import Reflector, resources
from netagent.records import Kind, SubnetLease

DEADLINE_S = 40.0
T = TypeVar("T")


async def until(condition: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - any condition
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S} s: {what}")


class Meddled(ApiClient):
    """An API client that lets somebody else act once, right after its first list."""

    def __init__(self, api: ApiClient, act: Callable[[], Awaitable[Any]]) -> None:
        self.__dict__.update(api.__dict__)
        self._act: Callable[[], Awaitable[Any]] | None = act

    async def get_json(self, path: str, into: type[T], **params: str | int) -> T:
        answer = await super().get_json(path, into, **params)
        act, self._act = (self._act, None) if "labelSelector" in params else (None, self._act)
        if act is not None:
            await act()
        return answer


class Bed:
    """One namespace of one API server, with the keepers that a test starts in it."""

    def __init__(self, client: Any, api: ApiClient, settings: ApiConfig, namespace: str, stack: AsyncExitStack) -> None:
        self.client = client
        self.api = api
        self.settings = settings
        self.namespace = namespace
        self.path = leases.collection(namespace)
        self._stack = stack
        self._nodes: set[str] = set()

    def name(self, node: str) -> str:
        """Nodes have no namespace: each test has its own."""
        return f"{self.namespace}-{node}"

    async def add_node(self, node: str) -> str:
        answer = await self.client.post("/api/v1/nodes", {"metadata": {"name": self.name(node)}})
        assert answer.status == 201, answer
        self._nodes.add(self.name(node))
        uid: str = answer.tree["metadata"]["uid"]
        return uid

    async def remove_nodes(self) -> None:
        for name in self._nodes:
            await self.client.delete(f"/api/v1/nodes/{name}")

    async def keeper(
        self,
        node: str = "n1",
        *previous: str,
        pools: tuple[str, ...] = ("10.244.0.0/16",),
        duration_s: int = 60,
        grace_s: float = 600.0,
        watched: bool = False,
        started: bool = True,
        meddle: Callable[[], Awaitable[Any]] | None = None,
        **config: Any,
    ) -> "Kept":
        network = NetworkConfig(
            pools=pools,
            lease_namespace=self.namespace,
            lease_duration_s=duration_s,
            takeover_grace_s=grace_s,
            **config,
        )
        api = self.api if meddle is None else Meddled(self.api, meddle)
        kept = Kept(api, network, self.name(node), previous)
        if started:
            await self._stack.enter_async_context(_running(kept.keeper.run()))
        if watched:
            resource = resources(self.namespace)[Kind.LEASE]
            reflector = Reflector(self.api, resource, kept.keeper.observe, self.settings)
            await self._stack.enter_async_context(_running(reflector.run()))
            await until(lambda: reflector.status.connected, "the watch of leases is open")
        return kept

    async def leases(self) -> dict[str, Any]:
        """The Lease objects by subnet."""
        answer = await self.client.get(self.path)
        return {item["metadata"]["annotations"][leases.SUBNET]: item for item in answer.tree["items"]}

    async def lease(self, subnet: str) -> Any:
        return (await self.leases())[subnet]

    async def put(
        self, subnet: str, holder: str, *, renewed_s: float | None = None, duration_s: int | None = 60
    ) -> Any:
        """A Lease as some other node, or an operator, would have made it."""
        body = leases.body(subnet, self.namespace, leases.Tenant(self.name(holder), "", 60), renewed_s or time.time())
        del body["metadata"]["ownerReferences"]
        if duration_s is None:
            del body["spec"]["leaseDurationSeconds"]
        answer = await self.client.post(self.path, body)
        assert answer.status == 201, answer
        return answer.tree

    async def patch(self, subnet: str, patch: Any) -> None:
        answer = await self.client.patch(f"{self.path}/{leases.name(subnet)}", patch)
        assert answer.status == 200, answer


class Kept:
    """A keeper and what it has reported."""

    def __init__(self, api: ApiClient, network: NetworkConfig, node: str, previous: tuple[str, ...]) -> None:
        self.told: list[tuple[str, ...]] = []
        self.node = node
        self.keeper = LeaseKeeper(api, network, node, previous, on_change=self._note, rng=random.Random(node))  # noqa: S311

    def _note(self, held: tuple[SubnetLease, ...]) -> None:
        self.told.append(tuple(lease.subnet for lease in held))

    @property
    def subnets(self) -> tuple[str, ...]:
        return tuple(lease.subnet for lease in self.keeper.held)

    async def ready(self) -> str:
        await until(lambda: self.subnets and not self.keeper.problem, f"{self.node} holds a lease")
        return self.subnets[0]


@asynccontextmanager
async def _running(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def bed(api: Any, client: Any, namespace: str) -> AsyncIterator[Bed]:
    settings = ApiConfig(kubeconfig=str(api.kubeconfig), backoff_cap_s=0.5)
    async with connect(settings) as access:
        async with AsyncExitStack() as stack:
            bed = Bed(client, access, settings, namespace, stack)
            yield bed
        await bed.remove_nodes()


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
        await first_run.enter_async_context(_running(first.keeper.run()))
        subnet = await first.ready()
        first.keeper.advertise(subnet, backend="vxlan", vtep_mac="0a:00:00:00:00:01", public_ip="192.0.2.1")
        await until(lambda: first.keeper.held[0].vtep_mac, "published")
    second = await bed.keeper()
    assert await second.ready() == subnet
    assert second.keeper.held[0].vtep_mac == "0a:00:00:00:00:01"
    assert len(await bed.leases()) == 1
