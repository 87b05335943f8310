"""Peers out of leases: bad ones are left out and named, and the result does not depend on how it came about."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from netagent.core.network.peers import PeerTable, Self
from netagent.core.network.podnet import FdbKey, NeighbourKey, Route, RouteKey
from netagent.core.network.underlay import LinkRoute, Neighbourhood
from netagent.records import Key, SubnetLease

NODE = Self(
    node_name="node-1",
    devices={4: "netagent.1", 6: "netagent6.1"},
    pools=("10.244.0.0/16", "fd44::/48"),
    subnets=("10.244.1.0/24", "fd44:0:0:1::/64"),
    macs=("02:00:00:00:00:01",),
    public_ips=("192.0.2.1", "fd77::1"),
)


def lease(subnet: str = "10.244.2.0/24", **fields: str) -> SubnetLease:
    named = {"holder": "node-2", "backend": "vxlan", "vtep_mac": "02:00:00:00:00:02", "public_ip": "192.0.2.2"} | fields
    return replace(SubnetLease(key=Key("kube-system", subnet), uid="", resource_version="1", subnet=subnet), **named)


GOOD = lease()


def test_a_peer_has_three_entries() -> None:
    table = PeerTable(NODE)
    dirty = table.update([GOOD])
    assert table.entries == {
        NeighbourKey(4, "netagent.1", "10.244.2.0"): "02:00:00:00:00:02",
        FdbKey(4, "netagent.1", "02:00:00:00:00:02"): "192.0.2.2",
        RouteKey(4, "10.244.2.0/24", 0): Route(via="10.244.2.0", device="netagent.1", onlink=True),
    }
    assert dirty == set(table.entries)
    assert table.count == 1
    assert not table.problems


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lease(vtep_mac=""), "no VTEP MAC"),
        (lease(public_ip=""), "public IP yet"),
        (lease(vtep_mac="02:00:00:00:00"), "unicast MAC"),
        (lease(vtep_mac="03:00:00:00:00:02"), "unicast MAC"),
        (lease(vtep_mac="00:00:00:00:00:00"), "unicast MAC"),
        (lease(vtep_mac="02:00:00:00:00:01"), "this node's own"),
        (lease(public_ip="192.0.2.1"), "this node's own"),
        (lease(public_ip="nowhere"), "not an address"),
        (lease(public_ip="fd77::2"), "unicast IPv4"),
        (lease(public_ip="224.0.0.1"), "unicast IPv4"),
        (lease(public_ip="127.0.0.1"), "unicast IPv4"),
        (lease(public_ip="10.244.7.1"), "in the pod network"),
        (lease(subnet="10.9.0.0/24"), "none of the pools"),
        (lease(subnet="10.244.0.0/23"), "overlaps this node's own"),
        (lease(subnet="10.244.2.1/24"), "host bits"),
        (lease(subnet="garbage"), "does not appear"),
        (lease(subnet="fd44:0000::/64", public_ip="fd77::2"), "not written as"),
        (lease(subnet="fd44:0:0:2::/64", public_ip="::ffff:192.0.2.2"), "unicast IPv6"),
        (lease(backend="host-gw"), "backend is host-gw"),
        (lease(backend="wireguard"), "does not have"),
    ],
)
def test_bad_data_costs_only_its_own_lease(bad: SubnetLease, why: str) -> None:
    good = lease("10.244.3.0/24", vtep_mac="02:00:00:00:00:03", public_ip="192.0.2.3")
    table = PeerTable(NODE)
    table.update([bad, good])
    assert table.count == 1
    assert why in table.problems[bad.subnet]
    assert RouteKey(4, "10.244.3.0/24", 0) in table.entries


@pytest.mark.parametrize("silent", [lease(holder=""), lease(holder="node-1"), lease(subnet="10.244.1.0/24")])
def test_what_is_no_peer_is_no_problem(silent: SubnetLease) -> None:
    table = PeerTable(NODE)
    assert not table.update([silent])
    assert not table.problems


PLAIN = RouteKey(4, "10.244.2.0/24", 0)
NEAR = Neighbourhood([LinkRoute("192.0.2.0/24", connected=True), LinkRoute("192.0.2.128/25", connected=False)])
HOST_GW = replace(NODE, devices={4: "", 6: ""}, macs=(), underlay=2, neighbourhood=NEAR)


def test_host_gw_leads_straight_to_peers_on_the_same_network() -> None:
    table = PeerTable(HOST_GW)
    far = lease("10.244.3.0/24", backend="host-gw", vtep_mac="", public_ip="192.0.2.129")
    table.update([lease(backend="host-gw", vtep_mac=""), far])
    assert table.entries == {PLAIN: Route(via="192.0.2.2", device="#2")}
    assert "not on a network" in table.problems[far.subnet]


@pytest.mark.parametrize(
    ("node", "peer"),
    [
        (HOST_GW, lease()),
        (replace(HOST_GW, devices=NODE.devices), lease(backend="host-gw", vtep_mac="")),
    ],
    ids=["we went first", "the peer went first"],
)
def test_peer_whose_backend_is_being_changed_keeps_a_way(node: Self, peer: SubnetLease) -> None:
    table = PeerTable(node)
    table.update([peer])
    assert table.entries == {PLAIN: Route(via="192.0.2.2", device="#2")}


def test_direct_routing_takes_the_tunnel_only_through_routers() -> None:
    node = replace(HOST_GW, devices=NODE.devices, direct_routing=True)
    table = PeerTable(node)
    far = lease("10.244.3.0/24", vtep_mac="02:00:00:00:00:03", public_ip="192.0.2.129")
    table.update([GOOD, far])
    assert table.entries[PLAIN] == Route(via="192.0.2.2", device="#2")
    assert table.entries[FdbKey(4, "netagent.1", far.vtep_mac)] == "192.0.2.129"
    assert len(table.entries) == 4


def test_family_that_is_off_has_no_peers() -> None:
    table = PeerTable(replace(NODE, devices={4: "netagent.1"}))
    table.update([lease("fd44:0:0:2::/64", public_ip="fd77::2")])
    assert not table.entries
    assert not table.problems


def test_renewal_changes_nothing() -> None:
    table = PeerTable(NODE)
    table.update([GOOD])
    assert table.update([replace(GOOD, resource_version="2", renewed_s=5.0)]) == set()


def test_change_and_departure_name_their_keys() -> None:
    table = PeerTable(NODE)
    other = lease("10.244.3.0/24", vtep_mac="02:00:00:00:00:03", public_ip="192.0.2.3")
    table.update([GOOD, other])
    assert table.update([replace(GOOD, public_ip="192.0.2.9"), other]) == {FdbKey(4, "netagent.1", GOOD.vtep_mac)}
    assert table.update([other]) == {
        NeighbourKey(4, "netagent.1", "10.244.2.0"),
        FdbKey(4, "netagent.1", GOOD.vtep_mac),
        RouteKey(4, "10.244.2.0/24", 0),
    }


def test_two_subnets_of_one_node_share_a_forwarding_entry() -> None:
    second = lease("10.244.4.0/24")
    table = PeerTable(NODE)
    table.update([GOOD, second])
    assert table.count == 2
    table.update([second])
    assert table.entries[FdbKey(4, "netagent.1", GOOD.vtep_mac)] == "192.0.2.2"


def test_one_mac_at_two_places_belongs_to_the_first_subnet() -> None:
    thief = lease("10.244.3.0/24", holder="node-3", public_ip="192.0.2.3")
    table = PeerTable(NODE)
    table.update([thief])
    assert table.count == 1
    table.update([thief, GOOD])
    assert table.entries[FdbKey(4, "netagent.1", GOOD.vtep_mac)] == "192.0.2.2"
    assert "10.244.2.0/24" in table.problems["10.244.3.0/24"]
    table.update([thief])
    assert table.entries[FdbKey(4, "netagent.1", GOOD.vtep_mac)] == "192.0.2.3"
    assert not table.problems


SUBNETS = [f"10.244.{number}.0/24" for number in (2, 3, 4)] + ["10.244.2.0/23", "fd44:0:0:2::/64", "10.9.0.0/24"]
LEASES = st.lists(
    st.builds(
        lambda subnet, mac, place: lease(
            subnet, vtep_mac=mac, public_ip=f"fd77::{place}" if ":" in subnet else f"192.0.2.{place}"
        ),
        st.sampled_from(SUBNETS),
        st.sampled_from(["02:00:00:00:00:02", "02:00:00:00:00:03", "bad", ""]),
        st.integers(1, 4),
    ),
    max_size=6,
    unique_by=lambda made: made.subnet,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(LEASES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_result_depends_on_the_leases_not_on_their_history(
    history: list[list[SubnetLease]], chance: random.Random
) -> None:
    table = PeerTable(NODE)
    followed = dict(table.entries)
    for state in history:
        chance.shuffle(state)
        for key in table.update(state):
            followed.pop(key, None)
            if key in table.entries:
                followed[key] = table.entries[key]
        assert followed == table.entries
    fresh = PeerTable(NODE)
    fresh.update(history[-1])
    assert table.entries == fresh.entries
    assert table.problems == fresh.problems
    assert table.count == fresh.count
