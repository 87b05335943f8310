"""The dataplane loop with a kernel that answers when told to: what is committed when, and what a failure does."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from netagent.agent.dataplane.admission import NotAdmittedError
from netagent.agent.dataplane.sync import UNREADY_AFTER, Dataplane
from netagent.config import PolicyConfig
from netagent.core.policy.frame import FrameSettings
from netagent.metrics import Metrics
from netagent.ports import CounterValue, NftError, SmallTransaction, TableInventory
from netagent.records import Endpoint, Key, Kind, Listed, Pod, Upserted
from support.words import namespace, pod, policy, put

KINDS = frozenset((Kind.NAMESPACE, Kind.POD, Kind.NETWORK_POLICY))
DEADLINE_S = 20.0
MANY = 4000


class Kernel:
    """Keeps the promises of ports.Nft for the loop's purposes; holds or refuses transactions when told to."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.refusing = False

    async def run(self, commands: str) -> None:
        self.runs.append(commands)
        await self.open.wait()
        if self.refusing:
            raise NftError("refused by the test")

    async def run_small(self, transaction: SmallTransaction) -> None:
        await self.run(str(transaction))

    async def inventory(self) -> TableInventory:
        return TableInventory(exists=False)

    async def counters(self) -> dict[str, CounterValue]:
        return {}

    async def text(self) -> str:
        return ""


async def no_marks(mask: int, keep: int) -> int:
    return 0


@asynccontextmanager
async def running(kernel: Kernel, admit_timeout_s: float = DEADLINE_S) -> AsyncIterator[Dataplane]:
    dataplane = Dataplane(
        kernel,
        PolicyConfig(),
        FrameSettings(),
        Metrics(),
        node_name="node-0",
        kinds=KINDS,
        clear_marks=no_marks,
        admit_timeout_s=admit_timeout_s,
    )
    loop = asyncio.create_task(dataplane.run())
    try:
        yield dataplane
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


def show_all(dataplane: Dataplane) -> None:
    for kind in KINDS:
        dataplane.apply(Listed(kind))


async def settled(dataplane: Dataplane) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await dataplane.committed()


async def until(kernel: Kernel, runs: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(kernel.runs) < runs:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.001)


async def test_nothing_is_committed_before_every_kind_and_the_old_pods_are_known() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.apply(put(namespace("x")))
        for kind in sorted(KINDS)[:-1]:
            dataplane.apply(Listed(kind))
        dataplane.restore(())
        await asyncio.sleep(0.05)
        assert kernel.runs == []
        assert "not listed yet" in dataplane.problem
        dataplane.apply(Listed(sorted(KINDS)[-1]))
        await settled(dataplane)
        assert len(kernel.runs) == 1
        assert dataplane.ready


async def test_without_word_of_the_old_pods_nothing_is_committed() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        show_all(dataplane)
        await asyncio.sleep(0.05)
        assert kernel.runs == []
        dataplane.restore(())
        await settled(dataplane)
        assert len(kernel.runs) == 1


async def test_changes_during_a_commit_become_one() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        show_all(dataplane)
        await settled(dataplane)
        kernel.open.clear()
        before = len(kernel.runs)
        dataplane.set_own_subnets(("10.0.0.0/24",))
        dataplane.set_own_subnets(())
        dataplane.distrust("test")
        await until(kernel, before + 1)
        for number in range(200):
            dataplane.apply(put(pod(f"x/p{number}", f"10.0.0.{number + 1}")))
            dataplane.distrust("test")
        kernel.open.set()
        await settled(dataplane)
        assert len(kernel.runs) - before == 2


async def test_changes_that_touch_no_rule_make_no_transaction() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        show_all(dataplane)
        await settled(dataplane)
        for number in range(20):
            dataplane.apply(put(pod(f"x/p{number}", f"10.0.0.{number + 1}")))
            await settled(dataplane)
        assert len(kernel.runs) == 1


async def test_after_refusals_the_whole_table_is_replaced_and_readiness_returns() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        show_all(dataplane)
        await settled(dataplane)
        kernel.refusing = True
        dataplane.distrust("test")
        await until(kernel, 1 + UNREADY_AFTER)
        async with asyncio.timeout(DEADLINE_S):
            while "refused by the test" not in dataplane.problem:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
        assert not dataplane.ready
        kernel.refusing = False
        await settled(dataplane)
        assert dataplane.problem == ""
        assert dataplane.transactions[-1].whole


async def test_a_slow_event_tells_where_its_time_went_and_a_start_is_none() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        long_ago_s = time.monotonic() - 60
        dataplane.apply(Upserted(Kind.NAMESPACE, namespace("x"), long_ago_s))
        show_all(dataplane)
        await settled(dataplane)
        assert dataplane.slow_events == []
        kernel.refusing = True
        dataplane.apply(Upserted(Kind.POD, pod("x/a", "10.0.0.1"), time.monotonic() - 5))
        dataplane.distrust("test")
        await until(kernel, 2)
        kernel.refusing = False
        dataplane.apply(Upserted(Kind.POD, pod("x/b", "10.0.0.2"), time.monotonic()))
        await settled(dataplane)
        (slow,) = dataplane.slow_events
        assert (slow.kind, slow.object) == (Kind.POD, "x/a")
        assert slow.total_s >= slow.view_s >= 5
        assert abs(slow.total_s - slow.view_s - slow.wait_s - slow.compile_s - slow.kernel_s) < 1e-6
        failed, done = dataplane.transactions[-2:]
        assert (bool(failed.error), bool(done.error)) == (True, False)
        assert set(done.causes) >= set(failed.causes) >= {"Pod x/a", "drift: test"}
        assert done.latency_s is not None
        assert done.latency_s > 5


async def test_causes_are_named_up_to_a_number_and_counted_beyond() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        show_all(dataplane)
        await settled(dataplane)
        for number in range(1000):
            dataplane.apply(put(pod(f"x/p{number}", f"10.0.{number // 250}.{number % 250}")))
        dataplane.distrust("test")
        await settled(dataplane)
        last = dataplane.transactions[-1]
        assert last.causes == tuple(f"Pod x/p{number}" for number in range(10))
        assert last.causes_left_out == 991


async def test_a_pod_starts_and_a_policy_changes_while_much_is_still_to_compile() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        show_all(dataplane)
        await settled(dataplane)
        starting = pod("x/start", "10.9.9.9", labels={"app": "a"})
        dataplane.apply(put(starting))
        await settled(dataplane)
        for number in range(MANY):
            dataplane.apply(put(pod(f"y/p{number}", f"10.0.{number // 250}.{number % 250}")))
        # Neither among the oldest nor among the newest.
        bulk = [policy(f"ns{number // 10}/p{number}") for number in range(MANY // 10)]
        for one in (*bulk[:200], policy("x/close", ingress=[]), *bulk[200:]):
            dataplane.apply(put(one))
        async with asyncio.timeout(DEADLINE_S):
            await dataplane.admit(endpoint(starting))
        assert dataplane._backlog.large
        assert any("goto in_" in text for text in kernel.runs[-1].splitlines() if "10.9.9.9" in text)
        compiled = dataplane.compiler.policy
        dataplane.apply(put(policy("z/new")))
        async with asyncio.timeout(DEADLINE_S):
            while compiled(Key("z", "new")) is None:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        assert dataplane._backlog.large
        await settled(dataplane)
        assert not dataplane._backlog
        assert set(dataplane.compiler._policies) == set(dataplane.store.policies)


async def test_the_first_commit_is_of_everything() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        for number in range(MANY):
            dataplane.apply(put(policy(f"ns{number % 7}/p{number}")))
        show_all(dataplane)
        await until(kernel, 1)
        assert len(dataplane.compiler._policies) == MANY
        await settled(dataplane)


async def test_a_pod_is_admitted_by_the_commit_after_one_that_failed() -> None:
    kernel = Kernel()
    async with running(kernel) as dataplane:
        dataplane.restore(())
        show_all(dataplane)
        await settled(dataplane)
        starting = pod("x/start", "10.9.9.9")
        dataplane.apply(put(starting))
        await settled(dataplane)
        kernel.refusing = True
        before = len(kernel.runs)
        admitted = asyncio.create_task(dataplane.admit(endpoint(starting)))
        await until(kernel, before + 2)
        assert not admitted.done()
        kernel.refusing = False
        async with asyncio.timeout(DEADLINE_S):
            await admitted
        assert "10.9.9.9" in kernel.runs[-1]


async def test_a_call_that_is_repeated_in_vain_leaves_a_wired_pod_as_it_is() -> None:
    """The runtime may ask again for a pod that runs; that it gets no answer in time must not cut the pod off."""
    kernel = Kernel()
    async with running(kernel, admit_timeout_s=0.05) as dataplane:
        dataplane.restore(())
        show_all(dataplane)
        runs, starts = pod("x/runs", "10.9.9.9"), pod("x/starts", "10.9.9.8")
        for one in (runs, starts):
            dataplane.apply(put(one))
        await dataplane.admit(endpoint(runs))
        kernel.refusing = True
        for one, state in ((starts, "has no network"), (runs, "goes on")):
            with pytest.raises(NotAdmittedError, match=state):
                await dataplane.admit(endpoint(one))
        assert [one.endpoint for one in dataplane.store.sandboxes.values()] == [endpoint(runs)]


def endpoint(one: Pod) -> Endpoint:
    """The sandbox of a pod."""
    return Endpoint(pod=one.key, pod_uid=one.uid, container_id=one.uid, ifname="eth0", host_ifname="nap0", ips=one.ips)
