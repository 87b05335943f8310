"""Where traffic of a lab starts and ends: pods, nodes and externals, by name."""

import os
from collections.abc import Mapping

from msgspec import Struct

from netagent.lab import pods
from netagent.lab.client import Object
from netagent.lab.plan import family_of
from netagent.lab.processes import LabError
from netagent.lab.runtime import netns_path


class Place(Struct, frozen=True, kw_only=True):
    """One endpoint."""

    name: str
    """`namespace/pod`, `node:K` or `external:ADDRESS`."""
    net: str
    """Path of its network namespace, good in the supervisor's /proc while it exists."""
    ips: tuple[str, ...]
    node_pid: int = 0
    """A process in the mount namespace of its node; 0: none."""
    binds: bool = False
    """Probes from here must choose their source address: there are several."""

    def ip(self, family: int = 4) -> str:
        """Its address of a family. Raises LabError."""
        for ip in self.ips:
            if family_of(ip) == family:
                return ip
        raise LabError(f"{self.name} has no IPv{family} address (it has {', '.join(self.ips) or 'none'})")

    def open(self) -> int:
        """A file descriptor of its network namespace; the caller closes it. Raises LabError."""
        try:
            return os.open(self.net, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LabError(f"{self.name} has no network namespace now ({error.strerror}); is it running?") from None


def pod_place(pod: Object, nodes: Mapping[str, tuple[int, Place]]) -> Place | None:
    """A pod's place; None while it has none. `nodes`: node name -> (PID of its holder, its place)."""
    pid, node = nodes.get(pod["spec"].get("nodeName") or "", (0, None))
    if node is None:
        return None
    if pods.is_host_network(pod):
        return Place(name=pods.full_name(pod), net=node.net, ips=node.ips, node_pid=pid, binds=True)
    net = f"/proc/{pid}/root{netns_path(pod['metadata']['uid'])}"
    return Place(name=pods.full_name(pod), net=net, ips=pods.ips(pod), node_pid=pid)
