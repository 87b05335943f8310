"""What this node offers by its pod network: subnets to new pods here, and its address and MAC to other nodes."""

from collections.abc import Callable, Iterable, Sequence

from netagent.core.network.nodeplan import NodePlan, family_of
from netagent.ports import PodNetState
from netagent.records import SubnetLease

OnVtep = Callable[[str, str, str], None]
"""Called with subnet, MAC ("" where there are no tunnels) and public IP."""


class Offer:
    """Tells each thing once, and again when it has changed."""

    def __init__(self, families: Sequence[int], on_vtep: OnVtep, on_state: Callable[[], None] | None) -> None:
        self.joined: dict[int, tuple[str, ...]] = {}
        """Family -> this node's subnets when it last was seen to work."""
        self.state: PodNetState | None = None
        """None until every family has its lease here and is joined."""
        self._families = families
        self._on_vtep = on_vtep
        self._on_state = on_state
        self._told: dict[str, tuple[str, str, str]] = {}
        """Subnet -> MAC, public IP, and the version of the lease that they were told for."""

    def tell(self, own: Iterable[SubnetLease], plan: NodePlan) -> None:
        """Tell what has changed."""
        own = tuple(own)
        for lease in own:
            self._tell_nodes(lease, plan)
        state = self._new_state(own, plan.mtu)
        if state != self.state:
            self.state = state
            if self._on_state:
                self._on_state()

    def _tell_nodes(self, lease: SubnetLease, plan: NodePlan) -> None:
        family = family_of(lease.subnet)
        end = plan.ends.get(family)
        if end is None or lease.subnet not in self.joined.get(family, ()):
            return
        news = (end.mac, end.public_ip)
        told = self._told.get(lease.subnet)
        # Tell once, and again when the lease's object says otherwise in a newer version.
        contradicted = (lease.vtep_mac, lease.public_ip) != news
        if told is None or told[:2] != news or (contradicted and told[2] != lease.resource_version):
            self._told[lease.subnet] = (*news, lease.resource_version)
            self._on_vtep(lease.subnet, *news)

    def _new_state(self, own: Iterable[SubnetLease], mtu: int) -> PodNetState | None:
        """A family that has been joined counts until its lease goes: pods wired meanwhile have their way back soon."""
        offered: list[str] = []
        for family in self._families:
            subnets = [subnet for subnet in of_family(own, family) if subnet in self.joined.get(family, ())]
            if not subnets:
                return None
            offered.append(subnets[0])
        return PodNetState(subnets=tuple(offered), mtu=mtu)


def of_family(own: Iterable[SubnetLease], family: int) -> list[str]:
    """Subnets of one IP version."""
    return [lease.subnet for lease in own if family_of(lease.subnet) == family]
