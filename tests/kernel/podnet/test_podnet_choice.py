"""The interface and address between nodes, on a node with two of them, as they come, go and change."""

import pytest

from support.podnetbed import Cluster, Node, Until, sh

pytestmark = pytest.mark.kernel


def add_second_link(node: Node, *, address: str = "192.168.77.101") -> None:
    """eth1, on the same network, so that peers can use it."""
    # The end of an earlier test's pair goes with its namespace, which the kernel takes its time for.
    sh(f"ip link delete second{node.number}", check=False)
    sh(f"ip link add second{node.number} type veth peer name eth1 netns {node.netns}")
    sh(f"ip link set second{node.number} master bridge up")
    node.ip("link set eth1 up")
    node.ip(f"address add {address}/24 dev eth1 noprefixroute")
    node.ip("address add fd77::101/64 dev eth1 nodad noprefixroute")


@pytest.fixture
def two_links(pair: Cluster) -> Cluster:
    """Node 1 has eth1 beside eth0."""
    for name in ("all", "default"):
        sh(f"ip netns exec node1 sysctl -qw net.ipv4.conf.{name}.rp_filter=0")
    add_second_link(pair.nodes[0])
    return pair


@pytest.mark.parametrize(
    "options",
    [
        {"interface": "eth1"},
        {"interface_regex": "^eth[1-9]$"},
        {"interface_cidr": ("192.168.77.96/27",)},
        {"can_reach": "198.51.100.7"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_each_option_leads_to_the_second_link(
    two_links: Cluster, until: Until, options: dict[str, str | tuple[str, ...]]
) -> None:
    one, two = two_links.nodes
    one.ip("route add 198.51.100.0/24 via 192.168.77.2 dev eth1 src 192.168.77.101 onlink")
    one.start()
    one.update(())
    until(lambda: one.status.interface == "eth0")
    until(one.has_told)
    one.restart((), **options)
    until(lambda: {ip for _, ip in one.told.values()} == {"192.168.77.101", "fd77::101"})
    assert one.status.interface == "eth1"
    assert "local 192.168.77.101 dev eth1" in one.ip("-d link show netagent.1")
    two.start()
    two.update(one.published())
    until(two.has_told)
    one.update(two.published())
    until(lambda: one.status.peers == two.status.peers == 2)
    for address in two.pod_ips():
        until.reaches(one, address)


def test_way_to_can_reach_is_followed(two_links: Cluster, until: Until) -> None:
    one = two_links.nodes[0]
    one.restart((), can_reach="198.51.100.7")
    until(lambda: "can_reach" in one.status.problem)
    one.ip("route add 198.51.100.0/24 via 192.168.77.2")
    until(lambda: one.status.interface == "eth0")
    one.ip("route add 198.51.100.0/28 dev eth1")
    until(lambda: one.status.interface == "eth1")
    one.ip("route delete 198.51.100.0/28 dev eth1")
    until(lambda: one.status.interface == "eth0")


def test_default_route_is_followed_where_nothing_else_decides(two_links: Cluster, until: Until) -> None:
    one = two_links.nodes[0]
    one.ip("route add default via 192.168.77.2")
    one.start()
    one.update((), ())
    until(lambda: one.status.interface == "eth0")
    one.ip("route replace default dev eth1")
    until(lambda: one.status.interface == "eth1")


def test_named_interface_that_comes_late_is_taken(pair: Cluster, until: Until) -> None:
    one = pair.nodes[0]
    one.restart((), interface_regex="^eth1$")
    until(lambda: "interface_regex" in one.status.problem)
    add_second_link(one)
    until(lambda: one.status.interface == "eth1")
    until(one.has_told)


def test_address_of_the_node_that_moves_to_another_link_is_followed(two_links: Cluster, until: Until) -> None:
    one, two = two_links.nodes
    two_links.join()
    one.ip("link set eth0 down")
    one.ip("address flush dev eth0")
    one.ip("address flush dev eth1 scope global")  # a second address of a network would make no route
    until(lambda: one.status.interface != "eth0" or one.status.problem)
    one.ip("address add 192.168.77.1/24 dev eth1")
    one.ip("address add fd77::1/64 dev eth1 nodad")
    until(lambda: one.status.interface == "eth1")
    until(lambda: one.status.public_ips == ("192.168.77.1", "fd77::1"))
    two.ip("neighbour flush dev eth0")  # they last for some seconds more
    for address in two.pod_ips():
        until.reaches(one, address)


def test_annotated_address_of_a_link_chooses_it_and_its_removal_goes_back(two_links: Cluster, until: Until) -> None:
    one, two = two_links.nodes
    two_links.join()
    one.overrides = {4: "192.168.77.101", 6: "fd77::101"}
    two_links.sync()
    until(lambda: one.status.interface == "eth1")
    until(lambda: {ip for _, ip in one.told.values()} == {"192.168.77.101", "fd77::101"})
    two_links.sync()
    for address in two.pod_ips():
        until.reaches(one, address)
    one.overrides = {}
    two_links.sync()
    until(lambda: {ip for _, ip in one.told.values()} == {"192.168.77.1", "fd77::1"})
    two_links.sync()
    for address in two.pod_ips():
        until.reaches(one, address)


def test_annotated_address_of_no_link_is_published_only(cluster: Cluster, until: Until) -> None:
    """As behind address translation: peers send there, this node's tunnels stay where they are."""
    one, two, _ = cluster.nodes
    before = one.ip("-d -o link show netagent.1")
    one.overrides = {4: "203.0.113.1", 6: "nonsense"}
    cluster.sync()
    until(lambda: one.told["10.244.1.0/24"][1] == "203.0.113.1")
    cluster.sync()
    until(lambda: "dst 203.0.113.1" in two.ours())
    assert one.told["fd44:0:0:1::/64"][1] == "fd77::1"
    assert one.ip("-d -o link show netagent.1") == before
    assert any("'nonsense'" in problem for problem in one.status.problems)
    assert one.reaches(two.pod_ips()[1])
