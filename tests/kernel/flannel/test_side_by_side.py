"""A node that runs netagent in node mode and one that is as flannel makes it: packets both ways, devices taken over."""

import functools
import re

import pytest

from netagent.core.network.nodenet import leases_of
from support.flannelbed import DEVICES, NAMES, FlannelNode, as_peer, device_mac, flow
from support.podnetbed import Until

pytestmark = pytest.mark.kernel
Pair = tuple[FlannelNode, FlannelNode]


def join(ours: FlannelNode, theirs: FlannelNode, until: Until) -> None:
    """netagent on a fresh node, flannel on the other; each knows of the other by annotations alone."""
    theirs.become_flannel()
    ours.start()
    ours.update(tuple(leases_of(theirs.record(), NAMES)))
    until(ours.has_told)
    until(functools.partial(ours.has_peers, 2))
    theirs.learn(ours.told_record())


def test_traffic_both_ways_on_both_families(pair: Pair, until: Until) -> None:
    ours, theirs = pair
    join(ours, theirs, until)
    for address in theirs.pod_ips():
        until.reaches(ours, address)
    for address in ours.pod_ips():
        until.reaches(theirs, address)


def test_what_netagent_publishes_is_what_flannel_would(pair: Pair, until: Until) -> None:
    ours, theirs = pair
    join(ours, theirs, until)
    mac4, mac6 = (re.findall(r"link/ether (\S+)", ours.ip(f"link show {device}"))[0] for device in DEVICES.values())
    assert ours.told_record().annotations == {
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": f'{{"VNI":1,"VtepMAC":"{mac4}"}}',
        "flannel.alpha.coreos.com/backend-v6-data": f'{{"VNI":1,"VtepMAC":"{mac6}"}}',
        "flannel.alpha.coreos.com/public-ip": "192.168.77.1",
        "flannel.alpha.coreos.com/public-ipv6": "fd77::1",
    }


def test_a_new_mac_in_one_family_reaches_us(pair: Pair, until: Until) -> None:
    ours, theirs = pair
    join(ours, theirs, until)
    theirs.ip("link set flannel-v6.1 address 12:c6:65:89:06:77")
    theirs.learn(ours.told_record())  # the kernel flushes neighbours with the MAC
    four, six = leases_of(theirs.record(), NAMES)
    ours.update((four, as_peer(six, vtep_mac="12:c6:65:89:06:77")))
    until.reaches(ours, theirs.pod_ips()[1])
    until.reaches(ours, theirs.pod_ips()[0])


@pytest.mark.parametrize("index", [0, 1], ids=["ipv4", "ipv6"])
def test_takeover_of_a_flannel_node_loses_no_packet(pair: Pair, until: Until, index: int) -> None:
    one, other = pair
    for node, peer in ((one, other), (other, one)):
        node.become_flannel()
        node.learn(peer.record())
    until.reaches(one, other.pod_ips()[index])
    before = one.flannel_state()
    with flow(one.pod, other.pod_ips()[index]) as ours, flow(other.pod, one.pod_ips()[index]) as theirs:
        until(lambda: len(ours.back) > 200 and len(theirs.back) > 200)
        one.start()
        one.take_over(other.record())
        until(one.has_told)
        until(functools.partial(one.has_peers, 2))
        mark = ours.sent
        until(lambda: ours.sent > mark + 500)
        one.stop()
        one.start()  # an agent that is upgraded
        one.take_over(other.record())
        until(functools.partial(one.has_peers, 2))
        mark = ours.sent
        until(lambda: ours.sent > mark + 500)
    assert ours.lost() == []
    assert theirs.lost() == []
    assert one.flannel_state() == before
    routes = one.ip("-4 route show dev flannel.1") + one.ip("-6 route show dev flannel-v6.1 via fd44:0:0:2::")
    assert routes.count("proto 78") == 2
    assert {subnet: mac for subnet, (mac, _) in one.told.items()} == {
        "10.244.1.0/24": device_mac(1, 4),
        "fd44:0:0:1::/64": device_mac(1, 6),
    }


def test_a_device_that_is_gone_comes_back_with_the_mac_that_peers_know(pair: Pair, until: Until) -> None:
    one, other = pair
    one.start()
    one.take_over(other.record())
    until(one.has_told)
    assert device_mac(1, 4) in one.ip("link show flannel.1")
    one.ip("link set flannel.1 address 02:00:00:00:00:99")
    until(lambda: device_mac(1, 4) in one.ip("link show flannel.1"))


def test_stale_routes_of_flannel_go_and_foreign_ones_stay(pair: Pair, until: Until) -> None:
    one, other = pair
    one.become_flannel()
    one.learn(other.record())
    one.ip("route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink")
    one.ip("route add 10.99.0.0/24 via 192.168.77.2")
    one.start()
    one.take_over(other.record())
    until(lambda: "10.244.9.0" not in one.ip("route show"))
    assert "10.99.0.0/24 via 192.168.77.2" in one.ip("route show")
    assert "10.244.1.0/24 dev cni0" in one.ip("route show")


def test_wrong_attributes_are_put_right_in_place(pair: Pair, until: Until) -> None:
    one, other = pair
    one.ip("link add flannel.1 type vxlan id 1 dev lo local 192.168.77.99 dstport 8472 learning")
    one.ip(f"link set flannel.1 address {device_mac(1, 4)} mtu 1300")
    index = one.ip("-o link show flannel.1").split(":")[0]
    one.start()
    one.take_over(other.record())
    until(one.has_told)
    found = one.ip("-d -o link show flannel.1")
    assert found.split(":")[0] == index
    assert "local 192.168.77.1 dev eth0 " in found
    assert "nolearning" in found
    assert "mtu 1450" in found
    assert device_mac(1, 4) in found


@pytest.mark.parametrize("wrong", ["id 9 dstport 8472", "id 1 dstport 4789"])
def test_a_device_of_another_network_is_made_anew(pair: Pair, until: Until, wrong: str) -> None:
    one, other = pair
    one.ip(f"link add flannel.1 type vxlan {wrong} dev eth0 local 192.168.77.1 nolearning")
    one.ip(f"link set flannel.1 address {device_mac(1, 4)} up")
    one.start()
    one.take_over(other.record())
    until(one.has_told)
    assert "vxlan id 1 local 192.168.77.1 dev eth0 srcport 0 0 dstport 8472" in one.ip("-d -o link show flannel.1")
    assert device_mac(1, 4) in one.ip("link show flannel.1")
