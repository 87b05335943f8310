"""The cluster as questions are answered from it: the dataplane's view with its policies understood.

The compiler's own understanding is as of the last commit, which may be long ago, and only of its own kind of question.
"""

from collections.abc import Generator

from netagent.agent.dataplane.sync import Dataplane
from netagent.core.policy.meaning import Policy, compile_policy
from netagent.core.questions.parties import Cluster, cluster_of
from netagent.records import Key, NetworkPolicy


class ClusterView:
    """Makes a Cluster for each question; a policy is understood once, as long as it does not change."""

    def __init__(self, dataplane: Dataplane, node_name: str, *, overlay: bool) -> None:
        """`overlay`: nodes reach remote pods through VXLAN of ours."""
        self._dataplane = dataplane
        self._node_name = node_name
        self._overlay = overlay
        self._understood: dict[Key, tuple[NetworkPolicy, Policy]] = {}

    def cluster(self) -> Cluster:
        """The cluster now."""
        store = self._dataplane.store
        self._understood = {key: self._understand(key, source) for key, source in store.policies.items()}
        policies = (policy for _, policy in self._understood.values())
        return cluster_of(store, policies, self._node_name, overlay=self._overlay)

    def prepare(self) -> Generator[None, None, None]:
        """Understand policies in small steps, so that `cluster` has little to do."""
        for key, source in list(self._dataplane.store.policies.items()):
            self._understood[key] = self._understand(key, source)
            yield

    def _understand(self, key: Key, source: NetworkPolicy) -> tuple[NetworkPolicy, Policy]:
        known = self._understood.get(key)
        return known if known is not None and known[0] is source else (source, compile_policy(source))
