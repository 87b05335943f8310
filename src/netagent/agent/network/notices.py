"""What others did to links, addresses and routes: does it matter to the pod network, and how is it said."""

from collections.abc import Sequence

from msgspec import Struct

from netagent.config import NetworkConfig
from netagent.core.network.nodeplan import NodePlan
from netagent.core.network.podnet import Entries, LinkKey, RouteKey, contradicts
from netagent.core.network.underlay import Interface, Neighbourhood, may_be_chosen
from netagent.kernel.entries import AddressNotice, AnyNotice, InterfaceNotice, Notice, RouteNotice
from netagent.kernel.podnet import Failure

DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")


class Ours(Struct, frozen=True):
    """What this node is and has made."""

    config: NetworkConfig
    families: Sequence[int]
    plan: NodePlan
    expected: Entries
    neighbourhood: Neighbourhood
    named: Sequence[str]
    """Addresses that the Node object gives this node."""


def matters(notice: AnyNotice, ours: Ours) -> bool:
    """Whether something is not as we left it, or the underlay may be another."""
    underlay = ours.plan.underlay
    if isinstance(notice, Notice):
        off = notice.key.family in ours.families and notice.key.family not in ours.plan.ends
        return not off and contradicts(notice.key, notice.value, ours.expected)
    if underlay is None:
        return True
    link = underlay.interface
    if isinstance(notice, RouteNotice):
        return notice.replaced in ours.expected or _leads_elsewhere(notice, link.index, ours)
    if isinstance(notice, InterfaceNotice):
        if notice.ifindex == link.index:
            return (notice.mtu, notice.name, notice.up) != (link.mtu, link.name, link.up)
        return may_be_chosen(ours.config, notice.name)
    return _address_matters(notice, link, ours)


def _address_matters(notice: AddressNotice, link: Interface, ours: Ours) -> bool:
    if notice.ifindex == link.index:
        return notice.present != (notice.address in link.addresses)
    return notice.present and (notice.address in ours.named or may_be_chosen(ours.config, notice.address))


def _leads_elsewhere(notice: RouteNotice, underlay: int, ours: Ours) -> bool:
    """Whether a foreign route changes which peers are next door, or which link is the underlay."""
    if notice.ifindex == underlay and ours.neighbourhood.changes_with(notice.route, present=notice.present):
        return True
    # The way to can_reach may be another now, and without any wish the default route may decide.
    asked = ours.config.can_reach
    return notice.route.network in DEFAULT_ROUTES if not asked else notice.route.holds(asked)


def describe(key: Struct) -> str:
    """An entry of the kernel in words."""
    fields = ", ".join(str(getattr(key, name)) for name in key.__struct_fields__ if name != "family")
    return f"{type(key).__name__.removesuffix('Key').lower()} {fields}"


def name_of(notice: AnyNotice) -> str:
    """What a notice is about."""
    if isinstance(notice, Notice):
        return describe(notice.key)
    if isinstance(notice, AddressNotice):
        return f"address {notice.address}"
    if isinstance(notice, RouteNotice):
        return f"route {notice.route.network}"
    return f"interface {notice.name}"


def refused(failures: Sequence[Failure]) -> str:
    """At least one change that the kernel did not take: which, why, what to do."""
    step, reason = failures[0].step, failures[0].reason
    return (
        f"the kernel refused {len(failures)} changes, the first: {step.verb.name.lower()} {describe(step.key)}: "
        f"{reason}. {_advice(failures[0])}"
    )


def _advice(failure: Failure) -> str:
    key = failure.step.key
    rest = "Everything else is in place; netagent tries again."
    if isinstance(key, LinkKey):
        return f"{rest} If another vxlan device has this VNI and port, delete it (ip -d link show type vxlan)."
    if isinstance(key, RouteKey):
        return f"{rest} If another route has this destination (ip route show {key.subnet}), delete it."
    return rest
