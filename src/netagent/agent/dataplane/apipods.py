"""Pods of this node that no CNI of ours wires: they are endpoints from what the API says of them."""

from collections.abc import Callable

from netagent.core.policy.store import FINISHED, Dirty, Store
from netagent.records import Endpoint, Key, Pod

API_SANDBOX = "api:"
"""Prefix of the container ID of a pod that we know from the API alone (policy-only mode; pods of another plugin)."""


class ApiPods:
    """Keeps the view's sandboxes of such pods true to the view's pods."""

    def __init__(self, store: Store, node_name: str, wired_by_others: Callable[[str], bool] | None) -> None:
        """`wired_by_others(ip)`: whether another plugin gave out an address; None: ours wires no pod."""
        self._store = store
        self._node_name = node_name
        self._wired_by_others = wired_by_others

    def follow(self, key: Key) -> tuple[Dirty, Dirty]:
        """A pod has changed in the view. What that touches by sandboxes that go, and by one that comes."""
        gone, come = Dirty(), Dirty()
        wanted = self._wanted(self._store.pods.get(key))
        for sandbox in self._store.sandboxes_of(key):
            container = sandbox.endpoint.container_id
            if container.startswith(API_SANDBOX) and (wanted is None or container != wanted.container_id):
                gone.add(self._store.withdraw(sandbox.endpoint))
        if wanted is not None and wanted not in (one.endpoint for one in self._store.sandboxes_of(key)):
            come = self._store.admit(wanted)
        return gone, come

    def _wanted(self, pod: Pod | None) -> Endpoint | None:
        """A live pod of this node with an address is an endpoint where no CNI of ours has wired it."""
        if pod is None or pod.node != self._node_name or not _has_network(pod) or not self._is_of_others(pod):
            return None
        container = f"{API_SANDBOX}{pod.uid}"
        return Endpoint(pod=pod.key, pod_uid=pod.uid, container_id=container, ifname="", host_ifname="", ips=pod.ips)

    def _is_of_others(self, pod: Pod) -> bool:
        if self._wired_by_others is None:
            return True
        sandboxes = self._store.sandboxes_of(pod.key)
        ours = any(not one.endpoint.container_id.startswith(API_SANDBOX) for one in sandboxes)
        return not ours and any(map(self._wired_by_others, pod.ips))


def _has_network(pod: Pod) -> bool:
    return bool(pod.ips) and not pod.host_network and pod.phase not in FINISHED
