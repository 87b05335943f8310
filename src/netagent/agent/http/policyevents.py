"""Events for what the operator must act on in policy: a kernel that refuses rules, policies not honoured wholly.

A policy that has a problem has it on every node. So that a cluster says it once, the agent speaks whose node runs the
first pod (by key) that the policy selects; one that selects no pod does no harm yet and nobody speaks.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Never

from netagent.agent.dataplane.sync import Dataplane
from netagent.core.policy.selectors import Selector
from netagent.core.policy.store import FINISHED
from netagent.kube.events import Note
from netagent.records import Key, Kind

LOOK_S = 1.0
PATIENCE_S = 5.0
"""A failure is told only after it has lasted so long."""
STALE, CURRENT = "NetagentRulesNotUpdated", "NetagentRulesUpdated"
PROBLEM = "NetagentPolicyProblem"
POLICIES_PER_LOOK = 20
"""Policies with a problem that are looked at in one go: each costs a look at the pods of its namespace."""


class PolicyEvents:
    """Looks at the dataplane now and then and posts Events."""

    def __init__(
        self,
        dataplane: Dataplane,
        post: Callable[[Note], None],
        node_name: str,
        *,
        patience_s: float = PATIENCE_S,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dataplane = dataplane
        self._post = post
        self._node_name = node_name
        self._patience_s = patience_s
        self._look_s = look_s
        self._clock = clock
        self._failing_since_s: float | None = None
        self._told_stale = False
        self._told: dict[Key, tuple[str, ...]] = {}
        """Policies whose problems were told."""
        self._looked = 0

    async def run(self) -> Never:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._look_s)

    def look(self) -> None:
        """Post what is new."""
        self._look_at_commits()
        problems = self._dataplane.compiler.problems
        for key in self._told.keys() - problems.keys():
            del self._told[key]
        news = [key for key, texts in problems.items() if self._told.get(key) != texts]
        for key in self._turn(news):
            if self._speaks_for(key):
                self._told[key] = problems[key]
                self._post_policy(key, problems[key])

    # Commits

    def _look_at_commits(self) -> None:
        failure = self._dataplane.failure
        if not failure:
            self._failing_since_s = None
            if self._told_stale:
                self._told_stale = False
                self._post_node(CURRENT, "The rules of this node are up to date again.", "Normal")
            return
        now_s = self._clock()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if not self._told_stale and now_s - self._failing_since_s >= self._patience_s:
            self._told_stale = True
            self._post_node(STALE, f"New policies and pods wait on this node. {failure}", "Warning")

    def _post_node(self, reason: str, message: str, type_: str) -> None:
        node = self._dataplane.store.nodes.get(self._node_name)
        # Without a watch on Nodes there is no UID; the kubelet writes the name there too.
        uid = node.uid if node is not None else self._node_name
        self._post(Note(Kind.NODE, Key("", self._node_name), uid, reason, message, type_))

    # Policies

    def _turn(self, keys: list[Key]) -> list[Key]:
        """Those that are looked at now: all come round."""
        self._looked = self._looked + POLICIES_PER_LOOK if self._looked < len(keys) else 0
        return keys[self._looked : self._looked + POLICIES_PER_LOOK]

    def _speaks_for(self, key: Key) -> bool:
        policy = self._dataplane.compiler.policy(key)
        if policy is None:
            return False
        selected = min(self._selected(key.namespace, policy.selects), default=None)
        return selected is not None and self._dataplane.store.pods[selected].node == self._node_name

    def _selected(self, namespace: str, selects: Selector) -> Iterator[Key]:
        store = self._dataplane.store
        for key in store.pods_matching(selects, namespace):
            pod = store.pods[key]
            if pod.node and not pod.host_network and pod.phase not in FINISHED:
                yield key

    def _post_policy(self, key: Key, texts: tuple[str, ...]) -> None:
        source = self._dataplane.store.policies.get(key)
        message = f"netagent cannot honour this policy wholly; what it cannot read allows nothing: {'; '.join(texts)}"
        self._post(Note(Kind.NETWORK_POLICY, key, source.uid if source else "", PROBLEM, message))
