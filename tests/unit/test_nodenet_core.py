"""Nodes as leases: what stands for which node, and what changes when a Node does."""

from msgspec.structs import replace

from netagent.core.network import flannel
from netagent.core.network.flannel import End
from netagent.core.network.nodenet import NodeLeases, leases_of, missing_families, waits_for
from netagent.records import Key, Kind, Node, Removed, Undecodable, Upserted

NAMES = flannel.names(flannel.DEFAULT_PREFIX)
MAC4, MAC6 = "12:c6:65:89:04:02", "12:c6:65:89:06:02"


def node(name: str = "n2", **fields: object) -> Node:
    ends = {4: End(MAC4, "192.0.2.2"), 6: End(MAC6, "fd77::2")}
    made = Node(
        key=Key("", name),
        uid=f"uid-{name}",
        annotations=flannel.annotations(NAMES, backend="vxlan", vni=1, ends=ends),
        addresses=("192.0.2.2", "fd77::2"),
        pod_cidrs=("10.244.2.0/24", "fd44:0:0:2::/64"),
    )
    return replace(made, **fields)


def up(made: Node) -> Upserted:
    return Upserted(Kind.NODE, made)


def annotated(made: Node, **changes: str) -> Node:
    added = {flannel.DEFAULT_PREFIX + "/" + name.replace("_", "-"): text for name, text in changes.items()}
    return replace(made, annotations={**made.annotations, **added})


def test_a_node_is_one_lease_per_family() -> None:
    four, six = leases_of(node(), NAMES)
    assert (four.subnet, four.holder, four.vtep_mac, four.public_ip) == ("10.244.2.0/24", "n2", MAC4, "192.0.2.2")
    assert (six.subnet, six.holder, six.vtep_mac, six.public_ip) == ("fd44:0:0:2::/64", "n2", MAC6, "fd77::2")
    assert (four.backend, four.duration_s, four.sources, six.sources) == ("vxlan", None, ("192.0.2.2",), ("fd77::2",))


def test_only_the_first_cidr_of_a_family_counts() -> None:
    found = leases_of(node(pod_cidrs=("fd44:0:0:2::/64", "10.244.2.0/24", "10.244.9.0/24")), NAMES)
    assert [lease.subnet for lease in found] == ["10.244.2.0/24", "fd44:0:0:2::/64"]


def test_a_public_ip_that_is_none_is_left_out() -> None:
    for text in ("nonsense", "fd77::2", "fe80::1%eth0", "192.0.2.300"):
        assert leases_of(annotated(node(), public_ip=text), NAMES)[0].public_ip == ""
    assert leases_of(annotated(node(), public_ipv6="FD77::0002"), NAMES)[1].public_ip == "fd77::2"


def test_peers_are_nodes_that_take_part() -> None:
    leases = NodeLeases(NAMES, "n1")
    assert leases.follow(up(node(annotations={}))) == []
    assert leases.follow(up(annotated(node(), kube_subnet_manager="false"))) == []
    assert leases.follow(up(node(pod_cidrs=()))) == []
    assert len(leases.follow(up(node()))) == 2
    assert len(leases.follow(up(node("n1", annotations={})))) == 2
    assert [lease.holder for lease in leases.of("n1")] == ["n1", "n1"]


def test_one_family_changes_and_the_other_stays_the_same_object() -> None:
    leases = NodeLeases(NAMES, "n1")
    leases.follow(up(node()))
    four, six = leases.of("n2")
    assert leases.follow(up(replace(node(), labels={"new": "label"}))) == []
    changes = leases.follow(up(annotated(node(), backend_v6_data='{"VNI":1,"VtepMAC":"12:c6:65:89:06:77"}')))
    assert [(type(change), change.kind) for change in changes] == [(Upserted, Kind.LEASE)]
    assert leases.of("n2")[0] is four
    assert leases.of("n2")[1].vtep_mac == "12:c6:65:89:06:77"
    assert six.key == leases.of("n2")[1].key


def test_what_goes_is_told() -> None:
    leases = NodeLeases(NAMES, "n1")
    leases.follow(up(node()))
    assert leases.follow(up(node(pod_cidrs=("10.244.2.0/24",)))) == [Removed(Kind.LEASE, Key("", "n2.ipv6"))]
    assert leases.follow(Removed(Kind.NODE, Key("", "n2"))) == [Removed(Kind.LEASE, Key("", "n2.ipv4"))]
    assert leases.of("n2") == ()
    assert leases.follow(Removed(Kind.NODE, Key("", "n2"))) == []


def test_an_unreadable_node_keeps_its_way() -> None:
    leases = NodeLeases(NAMES, "n1")
    leases.follow(up(node()))
    assert leases.follow(Undecodable(Kind.NODE, Key("", "n2"), "bad")) == []
    assert len(leases.of("n2")) == 2


def test_what_a_node_waits_for() -> None:
    pools = ("10.244.0.0/16", "fd44::/48")
    assert missing_families(pools, leases_of(node(), NAMES)) == ()
    assert missing_families(pools, leases_of(node(pod_cidrs=("10.244.2.0/24",)), NAMES)) == (6,)
    assert missing_families(pools, ()) == (4, 6)
    assert waits_for("n1", node(), ()) == ""
    assert "Node n1 does not exist yet" in waits_for("n1", None, (4,))
    assert "spec.podCIDRs of Node n1 is empty: no IPv4 and IPv6 subnet" in waits_for("n1", node(pod_cidrs=()), (4, 6))
