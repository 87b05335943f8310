"""The pod network as values: the difference between two states, this node's ends of the tunnels."""

import pytest

from netagent.config import NetworkConfig
from netagent.core.nodeplan import plan_node
from netagent.core.podnet import (
    AddressKey,
    Entries,
    LinkKey,
    NeighbourKey,
    Route,
    RouteKey,
    SysctlKey,
    Verb,
    Vtep,
    Vxlan,
    diff,
    family_of_device,
    node_entries,
    peer_entries,
    vtep_mac,
)
from netagent.core.underlay import Interface, choose_underlay, pod_mtu

LINK = Vxlan(vni=1, port=8472, local="192.0.2.1", underlay=2, mac="02:00:00:00:00:01", mtu=1450)
ETH0 = Interface(index=2, name="eth0", mtu=1500, addresses=("192.0.2.9", "192.0.2.1", "fd00::1"))
ETH1 = Interface(index=3, name="eth1", mtu=9000, addresses=("198.51.100.1",))
LO = Interface(index=1, name="lo", mtu=65536, loopback=True, addresses=("192.0.2.77",))


def whole(link: Vxlan = LINK) -> Entries:
    """One node with one peer."""
    vtep = Vtep(family=4, device="netagent.1", link=link)
    entries = node_entries(vtep, ["10.244.1.0/24"])
    return entries | peer_entries(4, "netagent.1", "10.244.2.0/24", "02:00:00:00:00:02", "192.0.2.2")


def kinds(steps: tuple[object, ...]) -> list[tuple[str, str]]:
    return [(step.verb.name, type(step.key).__name__) for step in steps]  # type: ignore[attr-defined]


def test_referents_come_before_references() -> None:
    assert kinds(diff(whole(), {})) == [
        ("ADD", "LinkKey"),
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
    peer = peer_entries(4, "netagent.1", "10.244.2.0/24", "02:00:00:00:00:02", "192.0.2.2")
    without_peer = {key: value for key, value in present.items() if key not in peer}
    assert kinds(diff(without_peer, present)) == [
        ("DELETE", "RouteKey"),
        ("DELETE", "FdbKey"),
        ("DELETE", "NeighbourKey"),
    ]
    assert kinds(diff({}, present)) == [("DELETE", "LinkKey"), ("DELETE", "RouteKey")]  # the blackhole is on no link


def test_nothing_to_do() -> None:
    assert diff(whole(), whole()) == ()


def test_device_that_must_be_remade_takes_everything_with_it() -> None:
    steps = diff(whole(), whole(Vxlan(vni=1, port=8472, local="192.0.2.99", underlay=2, mac=LINK.mac, mtu=1450)))
    assert kinds(steps)[0] == ("CHANGE", "LinkKey")
    assert {name for _, name in kinds(steps)} == {
        "LinkKey",
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


def test_sysctls_are_never_deleted() -> None:
    assert diff({}, {SysctlKey(4, "net/ipv4/ip_forward"): "1"}) == ()


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


def test_underlay_is_the_link_with_the_nodes_address() -> None:
    chosen = choose_underlay((LO, ETH1, ETH0), wanted="", node_addresses=("192.0.2.1",), default_index=3)
    assert not isinstance(chosen, str)
    assert chosen.interface is ETH0
    assert (chosen.public_ip(4), chosen.public_ip(6)) == ("192.0.2.1", "fd00::1")


def test_underlay_by_name_and_by_default_route() -> None:
    by_name = choose_underlay((ETH0, ETH1), wanted="eth1", node_addresses=("192.0.2.1",), default_index=2)
    by_default = choose_underlay((LO, ETH0, ETH1), wanted="", node_addresses=("192.0.2.77",), default_index=3)
    for chosen in (by_name, by_default):
        assert not isinstance(chosen, str)
        assert chosen.interface is ETH1
        assert (chosen.public_ip(4), chosen.public_ip(6)) == ("198.51.100.1", "")


@pytest.mark.parametrize("wanted", ["eth7", ""])
def test_no_underlay_says_why(wanted: str) -> None:
    reason = choose_underlay((LO,), wanted=wanted, node_addresses=(), default_index=None)
    assert isinstance(reason, str)
    assert "network.interface" in reason


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


def test_families_stand_by_themselves() -> None:
    plan = plan_node(
        NetworkConfig(pools=("10.244.0.0/16", "fd44::/48")),
        "node-1",
        interfaces=(ETH0, ETH1),
        default_index=3,
        subnets=("10.244.1.0/24",),
        node_addresses=("192.0.2.1",),
    )
    assert list(plan.vteps) == [4]
    assert plan.vteps[4].link.local == "192.0.2.1"
    assert plan.mtu == 1430
    assert "no IPv6 subnet is leased" in plan.problems[0]


def test_node_entries_name_device_address_and_blackhole() -> None:
    entries = node_entries(Vtep(family=4, device="netagent.1", link=LINK), ["10.244.1.0/24"])
    assert entries[LinkKey(4, "netagent.1")] == LINK
    assert AddressKey(4, "netagent.1", "10.244.1.0") in entries
    assert entries[RouteKey(4, "10.244.1.0/24", 65535)] == Route(kind="blackhole")
