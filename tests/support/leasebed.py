"""A namespace of leases on an API server, with the keepers that a test starts in it."""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from netagent.agent.network.lease import LeaseKeeper
from netagent.config import ApiConfig, NetworkConfig
from netagent.kube import leases
from netagent.kube.client import ApiClient, Unreachable, connect
from netagent.kube.clock import ServerClock
from netagent.kube.reflector import Reflector, resources
from netagent.records import Kind, SubnetLease
from support.waiting import running, until

DEADLINE_S = 40.0
T = TypeVar("T")


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


class Line(ApiClient):
    """An API client that can be cut off from the server, and may have a clock of its own."""

    def __init__(self, api: ApiClient, local: Callable[[], float] = time.time) -> None:
        self.__dict__.update(api.__dict__)
        self.clock = ServerClock(local)
        self.cut = False

    async def get_json(self, path: str, into: type[T], **params: str | int) -> T:
        self._check()
        return await super().get_json(path, into, **params)

    async def create(self, path: str, body: Any, into: type[T]) -> T:
        self._check()
        return await super().create(path, body, into)

    async def update(self, path: str, body: Any, into: type[T]) -> T:
        self._check()
        return await super().update(path, body, into)

    def _check(self) -> None:
        if self.cut:
            raise Unreachable("the line is cut.")


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
        api: ApiClient | None = None,
        timing: dict[str, Callable[[], float]] | None = None,
        **config: Any,
    ) -> "Kept":
        """`timing`: the keeper's `clock` and `elapsed`. Without `watched` it is told nothing but by `observe`."""
        network = NetworkConfig(
            pools=pools,
            lease_namespace=self.namespace,
            lease_duration_s=duration_s,
            takeover_grace_s=grace_s,
            **config,
        )
        api = api or (self.api if meddle is None else Meddled(self.api, meddle))
        kept = Kept(api, network, self.name(node), previous, timing or {})
        await self._stack.enter_async_context(kept.life)
        if started:
            await kept.life.enter_async_context(running(kept.keeper.run()))
        if watched:
            resource = resources(self.namespace)[Kind.LEASE]
            reflector = Reflector(self.api, resource, kept.keeper.observe, self.settings)
            await kept.life.enter_async_context(running(reflector.run()))
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

    def __init__(
        self,
        api: ApiClient,
        network: NetworkConfig,
        node: str,
        previous: tuple[str, ...],
        timing: dict[str, Callable[[], float]],
    ) -> None:
        self.told: list[tuple[str, ...]] = []
        self.losses: list[str] = []
        self.on_loss: Callable[[str], None] = lambda _: None
        self.node = node
        self.life = AsyncExitStack()
        rng = random.Random(node)  # noqa: S311
        self.keeper = LeaseKeeper(
            api, network, node, previous, on_change=self._note, on_loss=self._lose, rng=rng, **timing
        )

    def _note(self, held: tuple[SubnetLease, ...]) -> None:
        self.told.append(tuple(lease.subnet for lease in held))

    def _lose(self, text: str) -> None:
        self.losses.append(text)
        self.on_loss(text)

    async def stop(self) -> None:
        """The agent dies; what it holds stays as it is."""
        await self.life.aclose()

    @property
    def subnets(self) -> tuple[str, ...]:
        return tuple(lease.subnet for lease in self.keeper.held)

    async def ready(self) -> str:
        await until(lambda: self.subnets and not self.keeper.problem, f"{self.node} holds a lease")
        return self.subnets[0]


@asynccontextmanager
async def lease_bed(api: Any, client: Any, namespace: str) -> AsyncIterator[Bed]:
    """`api` and `client`: an API server and an HTTP client of it, as the fixtures of the contract tests give them."""
    settings = ApiConfig(kubeconfig=str(api.kubeconfig), backoff_cap_s=0.5)
    async with connect(settings) as access:
        async with AsyncExitStack() as stack:
            bed = Bed(client, access, settings, namespace, stack)
            yield bed
        await bed.remove_nodes()
