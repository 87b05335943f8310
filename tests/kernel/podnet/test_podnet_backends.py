"""Plain routes between nodes, beside tunnels and instead of them, with packets of both families."""

import functools
import itertools
import socket

import pytest
from msgspec.structs import replace

from netagent.kernel import links
from support.podnetbed import Cluster, Node, Until, in_netns

pytestmark = pytest.mark.kernel

DAMAGE = {
    "routes removed": ("route delete 10.244.2.0/24", "route delete fd44:0:0:2::/64 metric 1024"),
    "all routes flushed": ("route flush proto 78 via 192.168.77.2", "-6 route flush proto 78 via fd77::2"),
    "routes replaced by foreign ones": (
        "route replace 10.244.2.0/24 via 192.168.77.3",
        "route replace unreachable fd44:0:0:2::/64",
    ),
    "routes with another next hop": (
        "route replace 10.244.2.0/24 via 192.168.77.3 proto 78",
        "route replace fd44:0:0:2::/64 via fd77::3 proto 78 metric 1024",
    ),
    "stale routes added": (
        "route add 10.244.9.0/24 via 192.168.77.3 proto 78",
        "route add fd44:0:0:9::/64 via fd77::3 proto 78",
    ),
    "blackhole removed": ("route delete blackhole 10.244.1.0/24",),
}


def reach_all(cluster: Cluster, until: Until) -> None:
    for here, there in itertools.permutations(cluster.nodes, 2):
        for address in there.pod_ips():
            until.reaches(here, address)


def ways(node: Node) -> tuple[str, str]:
    """By family: the device on which the node sends to pods of node 2."""
    found = []
    for address in ("10.244.2.10", "fd44:0:0:2::10"):
        words = node.ip(f"route get {address}", check=False).split()
        found.append(words[words.index("dev") + 1] if "dev" in words else "")
    return found[0], found[1]


def offload(node: Node, device: str, value: str = "") -> str:
    """Whether the device may leave checksums to the card: on, off; set it first where a value is given."""

    def ask() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if value:
                links.write_offload(control, device, value)
            return links.read_offload(control, device)

    return in_netns(node.netns, ask)


def test_host_gw_carries_both_families_without_tunnels(flat: Cluster, until: Until) -> None:
    reach_all(flat, until)
    one, two, _ = flat.nodes
    assert ways(one) == ("eth0", "eth0")
    assert "vxlan" not in one.ip("-d link")
    assert one.mtu() == 1500
    assert one.reaches(two.pod_ips()[0], size_bytes=1500 - 28)
    assert one.reaches(two.pod_ips()[1], size_bytes=1500 - 48)
    assert one.told == {"10.244.1.0/24": ("", "192.168.77.1"), "fd44:0:0:1::/64": ("", "fd77::1")}
    assert "blackhole 10.244.1.0/24" in one.ours()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_plain_routes_are_repaired(flat: Cluster, until: Until, damage: tuple[str, ...]) -> None:
    one, two, _ = flat.nodes
    before, read_backs = until.steady(one.ours), one.status.read_backs
    one.harm(damage)
    until(lambda: one.status.read_backs > read_backs)
    until.equal(one.ours, before)
    for address in two.pod_ips():
        until.reaches(one, address)


def test_underlay_down_and_up_brings_the_plain_routes_back(flat: Cluster, until: Until) -> None:
    """The kernel takes them along without a word about IPv4."""
    one, two, _ = flat.nodes
    before = until.steady(one.ours)
    one.ip("link set eth0 down")
    until(lambda: "eth0 is down" in " ".join(one.status.problems))
    assert one.state is not None
    one.ip("link set eth0 up")
    one.ip("address replace fd77::1/64 dev eth0 nodad")
    until.equal(one.ours, before)
    for address in two.pod_ips():
        until.reaches(one, address)
    assert one.status.problems == ()


def test_underlay_deleted_and_made_again_under_plain_routes(flat: Cluster, until: Until) -> None:
    one, two, _ = flat.nodes
    before = until.steady(one.ours)
    one.ip("link delete eth0")
    until(lambda: "no interface" in one.status.problem)
    one.plug()
    until.equal(one.ours, before)
    for address in two.pod_ips():
        until.reaches(one, address)


def test_peer_behind_a_router_is_reported(flat: Cluster, until: Until) -> None:
    one, two, three = flat.nodes
    one.ip("route add 192.168.77.2/32 via 192.168.77.3")
    until(lambda: "not on a network" in " ".join(one.status.problems))
    assert "10.244.2.0/24" not in one.ours()
    until.reaches(one, two.pod_ips()[1])
    until.reaches(one, three.pod_ips()[0])
    one.ip("route delete 192.168.77.2/32 via 192.168.77.3")
    until.reaches(one, two.pod_ips()[0])


def test_plain_routes_follow_a_peers_address_in_one_family(flat: Cluster, until: Until) -> None:
    one, two, _ = flat.nodes
    two.ip("address add 192.168.77.22/24 dev eth0")
    two.ip("address delete 192.168.77.2/24 dev eth0")
    two.ip("address add 192.168.77.22/24 dev eth0", check=False)
    two.addresses = ("192.168.77.22", "fd77::2")
    flat.sync()
    until(lambda: two.told["10.244.2.0/24"] == ("", "192.168.77.22"))
    flat.sync()
    until(lambda: "10.244.2.0/24 via 192.168.77.22" in one.ours())
    assert "via fd77::2 " in one.ours()
    for address in two.pod_ips():
        until.reaches(one, address)


def test_direct_routing_follows_the_routes_each_family_by_itself(cluster: Cluster, until: Until) -> None:
    one = cluster.nodes[0]
    one.restart(tuple(lease for node in cluster.nodes[1:] for lease in node.published()), direct_routing=True)
    until(lambda: ways(one) == ("eth0", "eth0"))
    reach_all(cluster, until)
    assert "lladdr" not in one.ip("neighbour show dev netagent.1 nud permanent")
    assert one.mtu() == 1430
    one.ip("route add 192.168.77.2/32 via 192.168.77.3")
    until(lambda: ways(one) == ("netagent.1", "eth0"))
    reach_all(cluster, until)
    one.ip("-6 route add fd77::2/128 via fd77::3")
    until(lambda: ways(one) == ("netagent.1", "netagent6.1"))
    reach_all(cluster, until)
    one.ip("route delete 192.168.77.2/32 via 192.168.77.3")
    one.ip("-6 route delete fd77::2/128 via fd77::3")
    until(lambda: ways(one) == ("eth0", "eth0"))
    one.ip("route delete 10.244.2.0/24")
    until(lambda: ways(one) == ("eth0", "eth0"))
    reach_all(cluster, until)


@pytest.mark.parametrize("backends", [("vxlan", "host-gw"), ("host-gw", "vxlan")], ids=lambda pair: pair[1])
def test_backend_is_changed_node_by_node_without_losing_a_packet(
    pair: Cluster, until: Until, monkeypatch: pytest.MonkeyPatch, backends: tuple[str, str]
) -> None:
    monkeypatch.setattr("netagent.agent.network.podnetwork.RETIRE_S", 2.0)
    before, after = backends
    one, two = pair.nodes
    for node in pair.nodes:
        node.config = replace(node.config, backend=before)
        node.leases = tuple(node.lease(lease.subnet) for lease in node.leases)
    pair.join()
    reach_all(pair, until)
    with one.stream(two.pod_ips()[0]) as four, one.stream(two.pod_ips()[1]) as six:
        for node, other in ((one, two), (two, one)):
            until(lambda: four.passed() > 20)
            node.told.clear()
            node.restart(other.published(), backend=after)
            until(node.has_told)
            node.leases = node.published()
            pair.sync()
            until(functools.partial(other.has_peers, 2))
            for stream in (four, six):
                until(functools.partial(stream.has_passed, stream.passed() + 50))
        if after == "host-gw":
            until(lambda: "netagent" not in one.ip("link") + two.ip("link"))
        else:
            until(lambda: ways(one) == ("netagent.1", "netagent6.1"))
        assert (four.lost(), six.lost()) == (0, 0)
    assert ways(one) == (("eth0", "eth0") if after == "host-gw" else ("netagent.1", "netagent6.1"))
    reach_all(pair, until)


def test_checksum_offload_of_the_tunnels_is_what_the_option_says(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    assert all(offload(one, device) == "on" for device in ("netagent.1", "netagent6.1"))
    one.restart(tuple(lease for node in cluster.nodes[1:] for lease in node.published()), vxlan_tx_checksum=False)
    until(lambda: all(offload(one, device) == "off" for device in ("netagent.1", "netagent6.1")))
    for address in two.pod_ips():
        until.reaches(one, address)
        assert one.exchanges(two, address, 1 << 18)
    offload(one, "netagent.1", "on")
    until(lambda: offload(one, "netagent.1") == "off")
    one.ip("link delete netagent6.1")
    until(lambda: offload(one, "netagent6.1") == "off")
