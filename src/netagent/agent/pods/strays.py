"""Pod links of which no readable record is left: closed, or under the policies of the pod seen at their address.

A pod outlives its state file. Without an entry in the kernel's maps it would not be isolated, so a stand-in takes its
place: an endpoint of an unknown pod, which is closed in both directions. Where the view has exactly one pod with all
of the link's addresses, and that pod is of this node and has no sandbox here with others, both of them name each other
and the stand-in becomes that pod's. It stays so until the link goes, as any sandbox does.
"""

import logging
from collections.abc import Iterable, Mapping

from msgspec import structs

from netagent.core.policy.store import Dirty, Store
from netagent.records import Endpoint, Key, Kind, Pod

STRAY_SANDBOX = "stray:"
"""Prefix of the container ID of a link whose container is not known."""

log = logging.getLogger(__name__)


def stand_ins(owners: Mapping[str, str], links: Iterable[str]) -> dict[str, Endpoint]:
    """An endpoint of an unknown pod for each of the links that owns addresses, by name. `owners`: address -> link."""
    return {
        name: Endpoint(
            pod=Key("", name), pod_uid="", container_id=f"{STRAY_SANDBOX}{name}", ifname="", host_ifname=name, ips=ips
        )
        for name in sorted(set(owners.values()) & set(links))
        if (ips := tuple(ip for ip, owner in owners.items() if owner == name))
    }


class Strays:
    """Finds out whose links these are."""

    def __init__(self, store: Store, node_name: str) -> None:
        self._store = store
        self._node_name = node_name
        self._unknown: tuple[Endpoint, ...] = ()

    def watch(self, endpoints: Iterable[Endpoint]) -> None:
        """The stand-ins among the endpoints that the view has been given."""
        self._unknown = tuple(one for one in endpoints if one.container_id.startswith(STRAY_SANDBOX))
        for stray in self._unknown:
            ips = ", ".join(stray.ips)
            log.warning("%s has no readable record: closed unless the API shows its pod at %s", stray.host_ifname, ips)

    def identify(self) -> Dirty:
        """The view's pods have changed. What that touches."""
        found = Dirty()
        if not self._unknown or Kind.POD not in self._store.listed:
            return found
        unknown = []
        for stray in self._unknown:
            if stray.container_id not in self._store.sandboxes:
                continue
            pod = self._pod_at(stray)
            if pod is None:
                unknown.append(stray)
                continue
            log.info("%s is that of %s: its policies apply", stray.host_ifname, pod.key)
            found.add(self._store.admit(structs.replace(stray, pod=pod.key, pod_uid=pod.uid)))
        self._unknown = tuple(unknown)
        return found

    def _pod_at(self, stray: Endpoint) -> Pod | None:
        """The one pod of this node that the API shows at all of its addresses."""
        seen = {key for ip in stray.ips for key in self._store.claimants(ip)} - {stray.pod}
        if len(seen) != 1:
            return None
        pod = self._store.pods.get(seen.pop())
        here = pod is not None and pod.node == self._node_name and set(stray.ips) <= set(pod.ips)
        return pod if here else None
