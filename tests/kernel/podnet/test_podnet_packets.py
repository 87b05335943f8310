"""Pods of different nodes reach each other, and stop to when they should: real packets through real tunnels."""

import itertools
import re

import msgspec
import pytest

from support.podnetbed import Cluster, Until

pytestmark = pytest.mark.kernel


def test_pods_reach_each_other_over_both_families(cluster: Cluster) -> None:
    for here, there in itertools.permutations(cluster.nodes, 2):
        for address in there.pod_ips():
            assert here.reaches(address)


def test_pods_get_the_largest_mtu_that_needs_no_fragments(cluster: Cluster) -> None:
    one, two, _ = cluster.nodes
    state = one.state
    assert state
    assert state.subnets == ("10.244.1.0/24", "fd44:0:0:1::/64")
    assert state.mtu == 1500 - 70
    assert one.reaches(two.pod_ips()[0], size_bytes=state.mtu - 28)
    assert one.reaches(two.pod_ips()[1], size_bytes=state.mtu - 48)


def test_published_mac_is_the_devices(cluster: Cluster) -> None:
    for node in cluster.nodes:
        for lease, device in zip(node.leases, ("netagent.1", "netagent6.1"), strict=True):
            mac, _ = node.told[lease.subnet]
            assert f"link/ether {mac} " in node.ip(f"link show {device}")
        assert [ip for _, ip in node.told.values()] == list(node.addresses)


def test_peer_that_leaves_leaves_nothing_behind(cluster: Cluster, until: Until) -> None:
    one, two, three = cluster.nodes
    one.update(two.published())
    until(lambda: one.status.peers == 2)
    until(lambda: not re.search(r"10\.244\.3\.|fd44:0:0:3:|192\.168\.77\.3|fd77::3", one.ours()))
    assert one.reaches(two.pod_ips()[0])
    assert not one.reaches(three.pod_ips()[0])


def test_one_family_of_a_peer_can_leave(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    one.update((two.published()[1],))
    until(lambda: one.status.peers == 1)
    assert not one.reaches(two.pod_ips()[0])
    assert one.reaches(two.pod_ips()[1])


def test_peer_with_another_mac(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    new_mac = "02:00:00:00:00:99"
    leases = tuple(msgspec.structs.replace(lease, vtep_mac=new_mac) for lease in two.published())
    two.stop()
    for device in ("netagent.1", "netagent6.1"):
        two.ip(f"link set {device} address {new_mac}")  # flushes its neighbours, so only one way is asked for below
    one.update(leases)
    until(lambda: one.ours().count(new_mac) == 4)
    assert two.told["10.244.2.0/24"][0] not in one.ours()


def test_peer_with_another_public_ip(cluster: Cluster, until: Until) -> None:
    one, two, three = cluster.nodes
    two.ip("address add 192.168.77.22/24 dev eth0")
    two.ip("address delete 192.168.77.2/24 dev eth0")
    two.ip("address add 192.168.77.22/24 dev eth0", check=False)
    two.addresses = ("192.168.77.22", "fd77::2")
    cluster.sync()
    until(lambda: two.told["10.244.2.0/24"][1] == "192.168.77.22")
    cluster.sync()
    until(lambda: "192.168.77.22" in one.ours() and "192.168.77.22" in three.ours())
    for address in two.pod_ips():
        until.reaches(one, address)
        until.reaches(three, address)
    assert "192.168.77.2 " not in one.ours()


def test_packets_for_a_pod_that_is_gone_end_here(cluster: Cluster) -> None:
    """Without the blackhole they would follow the default route, and come back from a gateway that knows our subnet."""
    one, two, _ = cluster.nodes
    two.ip("route add default via 192.168.77.1")
    two.ip("-6 route add default via fd77::1")
    for address in ("10.244.2.99", "fd44:0:0:2::99"):
        assert "Invalid argument" in two.ip_error(f"route get {address}")
        assert not one.reaches(address)


def test_agent_that_stops_leaves_the_network_in_place(cluster: Cluster) -> None:
    before = [node.ours() for node in cluster.nodes]
    for node in cluster.nodes:
        node.stop()
    assert [node.ours() for node in cluster.nodes] == before
    assert cluster.nodes[0].reaches(cluster.nodes[1].pod_ips()[0])


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_tcp_carries_bulk_both_ways(cluster: Cluster, family: int) -> None:
    """Segments of full size: a wrong MTU or a broken checksum shows here."""
    one, two, _ = cluster.nodes
    assert one.exchanges(two, two.pod_ips()[family], 1 << 20)
