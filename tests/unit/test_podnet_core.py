"""The pod network as values: the difference between two states, this node's ends of the tunnels."""

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from netagent.config import NetworkConfig
from netagent.core.network.nodeplan import NodePlan, plan_node
from netagent.core.network.podnet import (
    AddressKey,
    End,
    Entries,
    LinkKey,
    NeighbourKey,
    OffloadKey,
    Route,
    RouteKey,
    SysctlKey,
    Verb,
    Vtep,
    Vxlan,
    diff,
    direct_entries,
    family_of_device,
    node_entries,
    tunnel_entries,
    vtep_mac,
)
from netagent.core.network.underlay import Interface, Way, Wish, pod_mtu

LINK = Vxlan(vni=1, port=8472, local="192.0.2.1", underlay=2, mac="02:00:00:00:00:01", mtu=1450)
ETH0 = Interface(index=2, name="eth0", mtu=1500, addresses=("192.0.2.9", "192.0.2.1", "fd00::1"))
ETH1 = Interface(index=3, name="eth1", mtu=9000, addresses=("198.51.100.1",))
DUAL = NetworkConfig(pools=("10.244.0.0/16", "fd44::/48"))


def end(link: Vxlan | None = LINK, *, offload: bool = True) -> End:
    vtep = Vtep(family=4, device="netagent.1", link=link, offload=offload) if link else None
    return End(family=4, public_ip="192.0.2.1", local="192.0.2.1", underlay=2, vtep=vtep)


def whole(link: Vxlan = LINK) -> Entries:
    """One node with one peer."""
    entries = node_entries(end(link), ["10.244.1.0/24"])
    return entries | tunnel_entries(4, "netagent.1", "10.244.2.0/24", "02:00:00:00:00:02", "192.0.2.2")


def kinds(steps: tuple[object, ...]) -> list[tuple[str, str]]:
    return [(step.verb.name, type(step.key).__name__) for step in steps]  # type: ignore[attr-defined]


def test_referents_come_before_references() -> None:
    assert kinds(diff(whole(), {})) == [
        ("ADD", "LinkKey"),
        ("ADD", "OffloadKey"),
        ("ADD", "SysctlKey"),
        ("ADD", "SysctlKey"),
        ("ADD", "AddressKey"),
        ("ADD", "NeighbourKey"),
        ("ADD", "FdbKey"),
        ("ADD", "RouteKey"),
        ("ADD", "RouteKey"),
    ]


def test_removals_go_the_other_way_and_not_below_a_deleted_link() -> None:
    present = whole()
    peer = tunnel_entries(4, "netagent.1", "10.244.2.0/24", "02:00:00:00:00:02", "192.0.2.2")
    without_peer = {key: value for key, value in present.items() if key not in peer}
    assert kinds(diff(without_peer, present)) == [
        ("DELETE", "RouteKey"),
        ("DELETE", "FdbKey"),
        ("DELETE", "NeighbourKey"),
    ]
    assert kinds(diff({}, present)) == [("DELETE", "RouteKey"), ("DELETE", "LinkKey")]  # the blackhole is on no link


def test_nothing_to_do() -> None:
    assert diff(whole(), whole()) == ()


def test_device_that_must_be_remade_takes_everything_with_it() -> None:
    steps = diff(whole(), whole(Vxlan(vni=1, port=4789, local="192.0.2.1", underlay=2, mac=LINK.mac, mtu=1450)))
    assert kinds(steps)[0] == ("CHANGE", "LinkKey")
    assert {name for _, name in kinds(steps)} == {
        "LinkKey",
        "OffloadKey",
        "SysctlKey",
        "AddressKey",
        "NeighbourKey",
        "FdbKey",
        "RouteKey",
    }


def test_mtu_changes_in_place_and_a_mac_takes_the_neighbours_along() -> None:
    other_mtu = Vxlan(vni=1, port=8472, local="192.0.2.1", underlay=2, mac=LINK.mac, mtu=1400)
    assert kinds(diff(whole(), whole(other_mtu))) == [("CHANGE", "LinkKey")]
    other_mac = Vxlan(vni=1, port=8472, local="192.0.2.1", underlay=2, mac="02:00:00:00:00:09", mtu=1450)
    assert kinds(diff(whole(), whole(other_mac))) == [("CHANGE", "LinkKey"), ("ADD", "NeighbourKey")]


def test_what_was_ours_is_taken_back_and_what_was_not_is_only_added() -> None:
    key = RouteKey(4, "10.244.2.0/24", 0)
    desired: Entries = {key: Route(via="10.244.2.0", device="netagent.1", onlink=True)}
    assert diff(desired, {})[0].verb is Verb.ADD
    assert diff(desired, {}, held={key})[0].verb is Verb.CHANGE


def test_only_the_asked_keys_are_compared() -> None:
    near, far = NeighbourKey(4, "netagent.1", "10.244.2.0"), NeighbourKey(4, "netagent.1", "10.244.3.0")
    assert [step.key for step in diff({near: "a", far: "b"}, {}, keys=[near])] == [near]


def test_settings_are_never_deleted() -> None:
    assert diff({}, {SysctlKey(4, "net/ipv4/ip_forward"): "1", OffloadKey(4, "netagent.1"): "off"}) == ()


def test_tunnel_gives_way_to_a_plain_route_without_a_gap() -> None:
    """The route is changed in place before what it needed goes, and the device goes last."""
    plain = node_entries(end(None), ["10.244.1.0/24"]) | direct_entries(4, 2, "10.244.2.0/24", "192.0.2.2")
    steps = diff(plain, whole())
    assert kinds(steps) == [("CHANGE", "RouteKey"), ("DELETE", "LinkKey")]
    assert steps[0].value == Route(via="192.0.2.2", device="#2")
    assert kinds(diff(whole(), plain))[-1] == ("CHANGE", "RouteKey")
    assert kinds(diff(whole(), plain))[0] == ("ADD", "LinkKey")


def test_stale_device_goes_before_a_new_one_of_its_family_comes() -> None:
    stale: Entries = {LinkKey(4, "netagent.7"): Vxlan(vni=7, port=8472, local="", underlay=2, mac="", mtu=1450)}
    assert kinds(diff(whole(), stale))[:2] == [("DELETE", "LinkKey"), ("ADD", "LinkKey")]
    assert kinds(diff(whole(), {**whole(), **stale})) == [("DELETE", "LinkKey")]


def test_checksum_offload_is_set_both_ways() -> None:
    assert node_entries(end(), [])[OffloadKey(4, "netagent.1")] == "on"
    assert node_entries(end(offload=False), [])[OffloadKey(4, "netagent.1")] == "off"


def test_own_device_names() -> None:
    assert family_of_device("netagent.1") == 4
    assert family_of_device("netagent6.42") == 6
    assert [family_of_device(name) for name in ("netagent.", "netagent.x", "netagent", "flannel.1", "eth0")] == [
        None
    ] * 5


def test_vtep_mac_is_stable_unicast_and_local() -> None:
    macs = {vtep_mac(f"node-{number}", family) for number in range(500) for family in (4, 6)}
    assert len(macs) == 1000
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)
    assert vtep_mac("node-1", 4) == vtep_mac("node-1", 4)


@pytest.mark.parametrize(
    ("underlay", "families", "wanted", "mtu", "problem"),
    [
        (1500, (4,), 0, 1450, ""),
        (1500, (4, 6), 0, 1430, ""),
        (9000, (4,), 1400, 1400, ""),
        (1500, (4,), 1500, 1450, "does not fit"),
        (1300, (4, 6), 0, 1230, "carries no IPv6"),
    ],
)
def test_pod_mtu(underlay: int, families: tuple[int, ...], wanted: int, mtu: int, problem: str) -> None:
    found, said = pod_mtu(underlay, families, wanted)
    assert found == mtu
    assert problem in said
    assert bool(said) == bool(problem)


def planned(
    config: NetworkConfig = DUAL, interface: Interface = ETH0, overrides: Mapping[int, str] | None = None
) -> NodePlan:
    return plan_node(
        Wish(config=config, node_addresses=("192.0.2.1",), overrides=overrides or {}),
        "node-1",
        interfaces=(interface, ETH1),
        subnets=("10.244.1.0/24",),
        default=Way(3, ""),
    )


def test_host_gw_has_no_tunnels_and_the_whole_mtu() -> None:
    plan = planned(replace(DUAL, backend="host-gw"))
    assert plan.ends[4].vtep is None
    assert plan.ends[4].mac == ""
    assert plan.mtu == 1500


def test_host_gw_waits_for_an_interface_that_is_down() -> None:
    """The kernel takes no route over it; tunnels may be set up all the same."""
    down = replace(ETH0, up=False)
    plan = planned(replace(DUAL, backend="host-gw"), down)
    assert not plan.ends
    assert "eth0 is down" in plan.problems[0]
    assert list(planned(interface=down).ends) == [4]


def test_override_is_published_and_the_tunnel_keeps_the_nodes_own_address() -> None:
    plan = planned(overrides={4: "203.0.113.5", 6: "rubbish"})
    assert (plan.ends[4].public_ip, plan.ends[4].local) == ("203.0.113.5", "192.0.2.1")
    assert plan.ends[4].vtep is not None
    assert plan.ends[4].vtep.link.local == "192.0.2.1"
    assert "'rubbish'" in plan.problems[0]


def test_families_stand_by_themselves() -> None:
    plan = planned()
    assert list(plan.ends) == [4]
    assert plan.ends[4].public_ip == "192.0.2.1"
    assert plan.ends[4].vtep is not None
    assert plan.ends[4].vtep.link.local == "192.0.2.1"
    assert plan.mtu == 1430
    assert "no IPv6 subnet is leased" in plan.problems[0]


def test_node_entries_name_device_address_and_blackhole() -> None:
    entries = node_entries(end(), ["10.244.1.0/24"])
    assert entries[LinkKey(4, "netagent.1")] == LINK
    assert AddressKey(4, "netagent.1", "10.244.1.0") in entries
    assert entries[RouteKey(4, "10.244.1.0/24", 65535)] == Route(kind="blackhole")
