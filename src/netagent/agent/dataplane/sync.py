"""The dataplane loop: one writer that keeps the kernel's table true to the view of the cluster.

wait, settle, compile a portion, take the net change, run one transaction, remember. Many kicks, one run: an idle loop
runs at once, a busy one lets changes gather, at most debounce_cap_ms. Work in bulk is done in portions, each with its
own transaction, with a rest after each; what is new or urgent goes first (`core.policy.backlog`). What the kernel holds
is known only while every transaction succeeded; after a failure it is unknown and the next run replaces the whole table
in one transaction.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator

from netagent.agent.dataplane.admission import Admissions, NotAdmittedError
from netagent.agent.dataplane.apipods import ApiPods
from netagent.agent.dataplane.causes import Batch, Causes, SlowEvent
from netagent.agent.dataplane.debounce import Debounce
from netagent.agent.dataplane.transactions import Transactions
from netagent.agent.pods.strays import Strays
from netagent.config import PolicyConfig
from netagent.core.latency import LatencyRing
from netagent.core.policy.backlog import READ_AT_ONCE, Arrival, Backlog, Portion
from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import STAMP, FrameSettings
from netagent.core.policy.generation import Stamp, must_clear, of_kernel
from netagent.core.policy.render import render, replacement, small
from netagent.core.policy.store import Dirty, Store, same_pod
from netagent.kernel import ctmarks
from netagent.kernel.conntrack import ConntrackError
from netagent.metrics import Metrics
from netagent.ports import NetagentError, Nft, NftError, SmallTransaction, StampChange, TableInventory
from netagent.records import Change, Endpoint, Kind, Listed, Pod, Upserted

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_CAP_S = 5.0
STUCK_S = 60.0
"""Longest time that an attempt may be under way: replacing 200,000 elements takes some seconds."""
REST_S = (0.001, 0.01)
"""Shortest and longest rest after a portion of work in bulk, for everything else that this process does."""
UNREADY_AFTER = 3
"""Failures in a row after which the agent is not ready."""

ClearMarks = Callable[[int, int], Awaitable[int]]
"""(mask, bits to keep) -> flows that lost an old stamp."""


class Dataplane:
    """Owns the view, the compiler and the kernel's table."""

    def __init__(
        self,
        nft: Nft,
        config: PolicyConfig,
        frame: FrameSettings,
        metrics: Metrics,
        *,
        node_name: str,
        kinds: frozenset[Kind],
        pods_from_api: bool = False,
        wired_by_others: Callable[[str], bool] | None = None,
        admit_timeout_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
        clear_marks: ClearMarks = ctmarks.clear_marks,
    ) -> None:
        """`kinds` must be listed before the kernel is touched; `pods_from_api`: no CNI of ours wires the pods;
        `wired_by_others(ip)`: nor the one with this address, though ours wires others."""
        self.store = Store()
        self.compiler = Compiler(self.store, frame, node_name)
        self.transactions = Transactions(metrics)
        self.own_subnets: tuple[str, ...] = ()
        """This node's, as the compiler knows them."""
        self.latencies = LatencyRing()
        """Of events, from their arrival to the commit that covers them; on the clock of time.monotonic."""
        self._nft = nft
        self._config = config
        self._metrics = metrics
        self._policy_on = frame.policy
        self._kinds = kinds
        followed = pods_from_api or wired_by_others is not None
        self._api_pods = ApiPods(self.store, node_name, wired_by_others) if followed else None
        self._strays = Strays(self.store, node_name)
        self._admit_timeout_s = admit_timeout_s
        self._clock = clock
        self._clear_marks = clear_marks
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._applied = False
        self._distrusts = 0
        self._distrust_cause = ""
        self._anew = False
        """Whether the next replacement deletes the table first: one that keeps the hooks has just failed."""
        self._restored = pods_from_api
        """Whether the pods of earlier runs are known: before that, a table would leave them open."""
        self._stamp: Stamp | None = None
        self._backlog = Backlog(self.compiler)
        """What changed in the view since the compiler last looked."""
        self._changes = 0
        self._covered = 0
        self._failures = 0
        self._failure = ""
        self._debounce = Debounce(config.debounce_cap_ms / 1000, clock)
        self._pending: list[Arrival] = []
        """Events that are compiled and not in the kernel."""
        self._admissions = Admissions(self.store)
        self._causes = Causes(metrics.slow_events)
        self._batch = Batch()
        self._free = asyncio.Event()
        self._free.set()
        self._under_way_s: float | None = None
        """Since when (clock) an attempt has been under way."""
        self._progress = asyncio.Condition()

    # What the other services call

    def apply(self, change: Change) -> None:
        """Take a change of the API; cheap."""
        if not isinstance(change, Listed):
            self._metrics.watch_events.labels(change.kind).inc()
        self._causes.event(change)
        dirty = self.store.apply(change)
        if isinstance(change, Upserted) and isinstance(change.record, Pod):
            self._admissions.show(change.record)
        if self._api_pods is not None and not isinstance(change, Listed) and change.kind is Kind.POD:
            key = change.record.key if isinstance(change, Upserted) else change.key
            gone, come = self._api_pods.follow(key)
            if come:
                self._backlog.hasten(come, key.namespace)
            for touched in (gone, come):
                dirty.add(touched)
        if change.kind is Kind.POD:
            dirty.add(self._strays.identify())
        received_s = 0.0 if isinstance(change, Listed) else change.received_s
        self._touch(dirty, received_s, always=isinstance(change, Listed), urgent=self._debounce.is_alone(change))

    async def admit(self, endpoint: Endpoint) -> None:
        """Return once the endpoint's policy is committed. Raises NotAdmittedError; then it is as it was before.

        Where another agent enforces policy, only its addresses are: nothing of the API is waited for.
        """
        known = self.store.sandboxes.get(endpoint.container_id)
        wired = known is not None and known.endpoint == endpoint
        try:
            async with asyncio.timeout(self._admit_timeout_s):
                if self._policy_on:
                    await self._admissions.described(endpoint)
                self._causes.local("pod", endpoint.pod, "wired")
                await self._hastened(endpoint)
        except BaseException as error:
            if not wired:
                self.withdraw(endpoint)
            if not isinstance(error, TimeoutError):
                raise
            state = "The pod goes on as it is" if wired else "The pod has no network yet"
            raise NotAdmittedError(
                f"pod {endpoint.pod} not admitted within {self._admit_timeout_s:g} s: {self.why_waiting(endpoint)}. "
                f"{state}; the kubelet tries again. If it repeats: see /readyz of the agent."
            ) from None

    def withdraw(self, endpoint: Endpoint) -> None:
        """The endpoint is gone."""
        self._causes.local("pod", endpoint.pod, "unwired")
        self._touch(self.store.withdraw(endpoint))

    def restore(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Endpoints that earlier runs of the agent wired."""
        self._restored = True
        self._causes.local(f"{len(endpoints)} pods of earlier runs", "")
        for endpoint in endpoints:
            self._touch(self.store.admit(endpoint))
        self._strays.watch(endpoints)
        self._touch(self._strays.identify(), always=True)

    def set_own_subnets(self, subnets: tuple[str, ...]) -> None:
        """This node's subnets."""
        self._causes.local("own subnets", ", ".join(subnets) or "none")
        self.own_subnets = subnets
        self.compiler.set_own_subnets(subnets)
        self._touch(Dirty(), always=True)

    async def committed(self) -> None:
        """Return once everything that was changed until now is in the kernel."""
        target = self._changes
        async with self._progress:
            await self._progress.wait_for(lambda: self._covered >= target)

    async def enforced(self) -> None:
        """Return once the kernel has the first ruleset."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._covered > 0)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No commit begins meanwhile: for a moment, by one at a time, and only where there is no other way.

        A pod that starts ends it.
        """
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def distrust(self, cause: str) -> None:
        """Somebody else changed our table, or may have: replace it whole, at once."""
        self._distrusts += 1
        self._distrust_cause = cause
        self._causes.local("drift:", cause)
        self._applied = False
        self._touch(Dirty(), always=True, urgent=True)

    def settled(self) -> TableInventory | None:
        """The names that the kernel's table must have now; None while a commit runs or the kernel is not known."""
        ruleset = self.compiler.ruleset
        if not self._applied or ruleset.changed:
            return None
        maps = frozenset(name for name, one in ruleset.sets.items() if one.decl.is_map)
        return TableInventory(
            exists=True,
            chains=frozenset(ruleset.chains),
            sets=frozenset(ruleset.sets) - maps,
            maps=maps,
            counters=frozenset(ruleset.counters),
        )

    @property
    def changes(self) -> int:
        """Changes of the view and of this node's subnets until now: equal numbers, equal views."""
        return self._changes

    @property
    def ready(self) -> bool:
        """Whether the kernel has a current table."""
        return self._covered > 0 and self._failures < UNREADY_AFTER

    @property
    def problem(self) -> str:
        """Why it is not ready."""
        missing = self._kinds - self.store.listed
        if missing:
            return f"not listed yet: {', '.join(sorted(missing))}"
        if not self._restored:
            return "the pods that earlier runs wired are not read yet"
        if self._failures >= UNREADY_AFTER:
            return self._failure
        if self._covered:
            return ""
        return "first commit not done" + (f": {self._failure}" if self._failures else "")

    @property
    def failure(self) -> str:
        """Why the last attempt failed; empty where it succeeded."""
        return self._failure if self._failures else ""

    @property
    def stuck(self) -> str:
        """Why the loop makes no progress though it has work; "" while attempts end, well or badly."""
        if self._under_way_s is None or (waited_s := self._clock() - self._under_way_s) < STUCK_S:
            return ""
        return f"a commit has been under way for {waited_s:.0f} s and has neither failed nor succeeded"

    @property
    def slow_events(self) -> list[SlowEvent]:
        """Those that took long to the kernel, oldest first."""
        return list(self._causes.slow_events)

    @property
    def generation(self) -> int | None:
        """Current value of the stamp."""
        return self._stamp.value if self._stamp else None

    @property
    def mark(self) -> str:
        """Current generation as it stands in the conntrack mark; empty before the first commit."""
        return self._stamp.mark if self._stamp else ""

    def why_waiting(self, endpoint: Endpoint) -> str:
        """What an admission waits for."""
        if self.problem:
            return self.problem
        pod = self.store.pods.get(endpoint.pod)
        if self._policy_on and pod is None:
            return "the API server has not shown the pod"
        if pod is not None and not same_pod(endpoint, pod):
            return f"the API server shows another pod of this name (UID {pod.uid}, wanted {endpoint.pod_uid})"
        return "the commit of its policy"

    # The loop

    async def run(self) -> None:
        """Keep the kernel true. Ends only by cancellation."""
        while True:
            await self._wake.wait()
            if not self._restored or not self._kinds <= self.store.listed:
                self._wake.clear()
                continue
            self._under_way_s = began_s = self._clock()
            if not self._backlog.large:
                await self._debounce.settle(self._urgent)
            self._wake.clear()
            self._urgent.clear()
            try:
                await self._round()
            except (NftError, ConntrackError) as error:
                self._under_way_s = None
                await self._back_off(error)
                continue
            self._under_way_s = None
            async with self._progress:
                self._progress.notify_all()
            if self._backlog:
                self._wake.set()
                await self._rest(self._clock() - began_s)

    async def _round(self) -> None:
        """Compile a portion and commit it."""
        portion = await self._portion()
        admissions = self._admissions.waiting()
        began_s, covers = self._clock(), self._changes
        self.compiler.update(portion.dirty)
        self._pending += portion.arrivals
        complete = not self._backlog
        self._batch = self._causes.take() if complete else self._causes.part()
        try:
            await self._commit(began_s)
        except (NftError, ConntrackError):
            if complete:
                self._causes.put_back(self._batch)
            raise
        if not self._applied:
            return
        if complete:
            self._covered = covers
        self._admissions.admit(admissions)

    async def _portion(self) -> Portion:
        """What comes next, its policies read; the first time, everything."""
        while True:
            await self._free.wait()
            first = self._stamp is None
            portion = Portion(unread=self._backlog.unread()) if first else self._backlog.take()
            if not portion.unread:
                return self._backlog.take_all() if first else portion
            for start in range(0, len(portion.unread), READ_AT_ONCE):
                self.compiler.read(portion.unread[start : start + READ_AT_ONCE])
                await asyncio.sleep(0)

    async def _rest(self, worked_s: float) -> None:
        """Leave the event loop and the threads as much time, within bounds; not while a pod waits."""
        shortest_s, longest_s = REST_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._urgent.wait(), min(max(worked_s, shortest_s), longest_s))

    async def _commit(self, began_s: float) -> None:
        compiled_s = self._clock()
        whole, distrusts = not self._applied, self._distrusts
        work, current, stamp = await self._replacement() if whole else self._change()
        if work:
            self._applied = False
            await self._forget_old_stamps(current, stamp)
            await self._run(work, stamp, whole)
            # Whoever meddled meanwhile may have done so before or after this transaction.
            self._applied = self._distrusts == distrusts
            self._stamp = stamp
            self._debounce.committed(began_s)
        if self._applied:
            self._distrust_cause = ""
        self._failures = 0
        self._observe(first=whole)
        if self._covered:  # the first commit waits for all lists
            self._causes.covered(self._batch, began_s, compiled_s)

    def _change(self) -> tuple[str | SmallTransaction, Stamp, Stamp]:
        """The script or the small transaction, the generation in force and the one that comes with them."""
        assert self._stamp is not None  # noqa: S101 - known since the first replacement
        ruleset = self.compiler.ruleset
        delta = ruleset.take()
        stamp = self._stamp.next() if delta.revokes else self._stamp
        if not delta:
            return "", self._stamp, stamp
        stamps = delta.revokes and STAMP in ruleset.chains
        quick = small(delta, StampChange(stamp.mask, stamp.bits) if stamps else None)
        return quick or render(delta, ruleset.chains, stamp.mark, new_mark=stamps), self._stamp, stamp

    async def _replacement(self) -> tuple[str, Stamp | None, Stamp]:
        """As for a change; the generation in force is None where nobody knows of any."""
        existing = await self._nft.inventory()
        kernels = of_kernel(self._config.mark_mask, existing.mark)
        stamp = self._first_of_table(kernels)
        ruleset = self.compiler.ruleset
        return (
            replacement(ruleset.whole(), stamp.mark, existing, anew=self._anew and existing.exists),
            kernels or self._stamp,
            stamp,
        )

    def _first_of_table(self, kernels: Stamp | None) -> Stamp:
        """Neither our last generation nor the one in force: a transaction that failed may have been applied."""
        known = self._stamp or kernels
        if known is None:
            return Stamp(self._config.mark_mask, 1)
        coming = known.next()
        return coming.next() if coming == kernels else coming

    async def _forget_old_stamps(self, current: Stamp | None, coming: Stamp) -> None:
        """No flow may carry a value from the last time that it was in use."""
        if must_clear(current, coming):
            cleared = await self._clear_marks(coming.mask, current.bits if current else 0)
            log.info("generation %d comes; old stamps taken off %d open flows", coming.value, cleared)

    async def _run(self, work: str | SmallTransaction, stamp: Stamp, whole: bool) -> None:
        started_s, error = self._clock(), ""
        try:
            if isinstance(work, str):
                await self._nft.run(work)
            else:
                await self._nft.run_small(work)
        except NftError as failure:
            error = str(failure)
            raise
        finally:
            # By turns: between an old hook that goes and a new one that comes a packet may slip through.
            self._anew = whole and bool(error) and not self._anew
            self.transactions.note(
                work,
                whole=whole,
                generation=stamp.value,
                duration_s=self._clock() - started_s,
                error=error,
                cause=self._distrust_cause,
                batch=self._batch,
            )

    async def _back_off(self, error: NetagentError) -> None:
        self._failures += 1
        self._failure = str(error)
        pause_s = min(RETRY_CAP_S, RETRY_FIRST_S * 2 ** min(self._failures - 1, 10))
        log.error("%s Next attempt in %.1f s (failure %d in a row).", error, pause_s, self._failures)
        await asyncio.sleep(pause_s)
        self._wake.set()

    def _observe(self, *, first: bool) -> None:
        now_s = time.monotonic()
        pending, self._pending = self._pending, []
        for arrival in () if first else pending:
            latency_s = max(0.0, now_s - arrival.received_s)
            self._metrics.convergence.labels(arrival.kind).observe(latency_s)
            self.latencies.observe(now_s, latency_s)
        metrics, ruleset = self._metrics, self.compiler.ruleset
        metrics.generation.set(self._stamp.value if self._stamp else 0)
        metrics.objects.labels("chain").set(len(ruleset.chains))
        metrics.objects.labels("set").set(len(ruleset.sets))
        metrics.endpoints.set(len(self.store.sandboxes))
        metrics.policy_problems.set(len(self.compiler.problems))

    # Inner workings

    def _touch(self, dirty: Dirty, received_s: float = 0.0, *, always: bool = False, urgent: bool = False) -> None:
        self._backlog.add(dirty, received_s)
        if dirty or always:
            self._changes += 1
            self._wake.set()
        if urgent:
            self._urgent.set()

    async def _hastened(self, endpoint: Endpoint) -> None:
        """Enter the endpoint, and until it is in the kernel with the policies of its namespace that are known now."""
        self._backlog.hasten(self.store.admit(endpoint), endpoint.pod.namespace)
        self._touch(Dirty(), always=True, urgent=True)
        self._free.set()
        await self._admissions.committed()
