"""What others break is put right within a second, what is stale goes, what is foreign stays."""

import functools
import time
from pathlib import Path

import msgspec
import pytest

from support.podnetbed import Cluster, Until, in_netns

pytestmark = pytest.mark.kernel

DAMAGE = {
    "device deleted": ("link delete netagent.1", "link delete netagent6.1"),
    "device down": ("link set netagent.1 down", "link set netagent6.1 down"),
    "device down and up": ("link set netagent.1 down", "link set netagent.1 up", "link set netagent6.1 down"),
    "device with another MAC": (
        "link set netagent.1 address 02:00:00:00:00:77",
        "link set netagent6.1 address 02:00:00:00:00:78",
    ),
    "device with another MTU": ("link set netagent.1 mtu 1300", "link set netagent6.1 mtu 1290"),
    "device of another kind": ("link delete netagent.1", "link add netagent.1 type bridge"),
    "device with another VNI": (
        "link delete netagent.1",
        "link add netagent.1 type vxlan id 9 local 192.168.77.1 dev eth0 dstport 8472 nolearning",
    ),
    "device that learns": (
        "link delete netagent.1",
        "link add netagent.1 type vxlan id 1 local 192.168.77.1 dev eth0 dstport 8472 learning",
    ),
    "addresses removed": (
        "address delete 10.244.1.0/32 dev netagent.1",
        "address delete fd44:0:0:1::/128 dev netagent6.1",
    ),
    "addresses flushed": ("address flush dev netagent.1", "address flush dev netagent6.1"),
    "routes removed": ("route delete 10.244.2.0/24", "route delete fd44:0:0:2::/64 metric 1024"),
    "all routes flushed": ("route flush dev netagent.1", "-6 route flush dev netagent6.1"),
    "route replaced by a foreign one": (
        "route replace 10.244.2.0/24 via 192.168.77.3",
        "route replace unreachable fd44:0:0:2::/64",
    ),
    "blackhole removed": (
        "route delete blackhole 10.244.1.0/24",
        "route delete blackhole fd44:0:0:1::/64 metric 65535",
    ),
    "neighbours removed": (
        "neighbour delete 10.244.2.0 dev netagent.1",
        "neighbour delete fd44:0:0:2:: dev netagent6.1",
    ),
    "neighbours changed": (
        "neighbour replace 10.244.2.0 lladdr 02:00:00:00:00:66 dev netagent.1",
        "neighbour replace fd44:0:0:2:: lladdr 02:00:00:00:00:66 dev netagent6.1 nud permanent",
    ),
    "stale entries added": (
        "address add 10.244.8.0/32 dev netagent.1",
        "route add 10.244.9.0/24 via 10.244.9.0 dev netagent.1 onlink proto 78",
        "neighbour add 10.244.9.0 lladdr 02:00:00:00:00:55 dev netagent.1 nud permanent",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_repaired(cluster: Cluster, until: Until, damage: tuple[str, ...]) -> None:
    one, two, _ = cluster.nodes
    before, read_backs = until.steady(one.ours), one.status.read_backs
    one.harm(damage)
    until(lambda: one.status.read_backs > read_backs)
    until.equal(one.ours, before)
    for address in two.pod_ips():
        until.reaches(one, address)
    assert one.status.repairs > 0


def write_sysctl(path: str, value: str) -> str:
    (Path("/proc/sys/net") / path).write_text(value)
    return value


def test_sysctls_are_repaired_by_the_audit(cluster: Cluster, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells nobody of these."""
    one, two, three = cluster.nodes
    monkeypatch.setattr("netagent.agent.network.podnetwork.AUDIT_S", 0.2)
    one.ip("link set netagent.1 mtu 1400")  # a read-back, after which the next audit is due soon
    until(lambda: one.status.repairs > 0)
    for path, value in (
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/netagent.1/rp_filter", "1"),
        ("ipv6/conf/all/forwarding", "0"),
    ):
        in_netns(one.netns, functools.partial(write_sysctl, path, value))
    for address in (*two.pod_ips(), *three.pod_ips()):
        until.reaches(one, address)
    until(lambda: in_netns(one.netns, Path("/proc/sys/net/ipv4/conf/netagent.1/rp_filter").read_text) == "2\n")


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_peer_with_another_mac_in_one_family_only(cluster: Cluster, until: Until, family: int) -> None:
    one, two, _ = cluster.nodes
    before = until.steady(one.ours)
    device, mac = ("netagent.1", "netagent6.1")[family], "02:00:00:00:00:99"
    two.stop()
    index = two.ip(f"-o link show {device}").split(":")[0]
    two.ip(f"link set {device} address {mac}")
    assert two.ip(f"-o link show {device}").split(":")[0] == index
    leases = list(two.published())
    leases[family] = msgspec.structs.replace(leases[family], vtep_mac=mac)
    one.update(tuple(leases))
    until(lambda: one.ours().count(mac) == 2)
    other = two.told[leases[1 - family].subnet][0]
    assert one.ours().count(other) == before.count(other)
    assert one.reaches(two.pod_ips()[1 - family])


def test_underlay_down_and_up(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    before = until.steady(one.ours)
    one.ip("link set eth0 down")
    until(lambda: not one.reaches(two.pod_ips()[0]))
    one.ip("link set eth0 up")
    one.ip("address replace fd77::1/64 dev eth0 nodad")
    for address in two.pod_ips():
        until.reaches(one, address)
    until.equal(one.ours, before)
    until(lambda: one.status.problems == ())


def test_underlay_renamed(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    one.ip("link set eth0 down")
    one.ip("link set eth0 name wan0")
    one.ip("link set wan0 up")
    one.ip("address replace fd77::1/64 dev wan0 nodad")
    until(lambda: one.status.interface == "wan0")
    for address in two.pod_ips():
        until.reaches(one, address)


def test_forwarding_entries_are_repaired(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    mac, public_ip = two.told["10.244.2.0/24"]
    mac6, public_ip6 = two.told["fd44:0:0:2::/64"]
    before = until.steady(one.ours)
    for command in (
        f"fdb delete {mac} dev netagent.1",
        f"fdb replace {mac} dev netagent.1 dst 192.168.77.3 self permanent",
        f"fdb delete {mac6} dev netagent6.1 dst {public_ip6}",
        "fdb add 02:00:00:00:00:44 dev netagent.1 dst 192.168.77.9 self permanent",
        f"fdb append 00:00:00:00:00:00 dev netagent.1 dst {public_ip} self permanent",
        "fdb append 00:00:00:00:00:00 dev netagent.1 dst 192.168.77.9 self permanent",
    ):
        one.bridge(command)
        until.equal(one.ours, before)


def test_repair_settles(cluster: Cluster, until: Until) -> None:
    """Our own changes are not taken for somebody else's."""
    one = cluster.nodes[0]
    one.ip("link delete netagent.1")
    until(lambda: one.reaches(cluster.nodes[1].pod_ips()[0]))
    counts = [one.status.read_backs]

    def quiet() -> bool:
        time.sleep(1.0)
        counts.append(one.status.read_backs)
        return counts[-1] == counts[-2]

    until(quiet)


def test_parent_deleted_and_made_again(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    before = until.steady(one.ours)
    one.ip("link delete eth0")
    until(lambda: "no interface" in one.status.problem)
    assert one.state is not None
    one.plug()
    until.equal(one.ours, before)
    for address in two.pod_ips():
        until.reaches(one, address)


def test_underlay_mtu_is_followed(cluster: Cluster, until: Until) -> None:
    one = cluster.nodes[0]
    one.ip("link set eth0 mtu 1400")
    until(lambda: one.mtu() == 1330)
    assert "mtu 1330" in one.ip("link show netagent.1")
    assert "mtu 1330" in one.ip("link show netagent6.1")


def test_one_family_lost_is_no_loss_to_the_other(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    one.ip("address delete fd77::1/64 dev eth0")
    until(lambda: "no IPv6 address" in one.status.problem)
    assert one.reaches(two.pod_ips()[0])
    assert "fd44:0:0:2::/64" in one.ours()
    one.ip("route delete 10.244.2.0/24")
    until(lambda: one.reaches(two.pod_ips()[0]))
    one.ip("address add fd77::1/64 dev eth0 nodad")
    until(lambda: one.reaches(two.pod_ips()[1]))


def test_stale_state_of_an_earlier_run_goes(pair: Cluster, until: Until) -> None:
    one, two = pair.nodes
    for command in (
        "link add netagent.7 type vxlan id 7 local 192.168.77.1 dev eth0 dstport 8472",
        "link add netagent.1 address 02:00:00:00:00:11 type vxlan id 1 local 192.168.77.99 dev eth0 dstport 8472",
        "link set netagent.1 up",
        "address add 10.244.8.0/32 dev netagent.1",
        "route add 10.244.9.0/24 via 10.244.9.0 dev netagent.1 onlink proto 78",
        "route add blackhole 10.244.8.0/24 metric 65535 proto 78",
        "neighbour add 10.244.9.0 lladdr 02:00:00:00:00:55 dev netagent.1 nud permanent",
    ):
        one.ip(command)
    one.bridge("fdb add 02:00:00:00:00:55 dev netagent.1 dst 192.168.77.9 self permanent")
    pair.join()
    assert one.reaches(two.pod_ips()[0])
    assert "netagent.7" not in one.ip("link")
    assert "10.244.8." not in one.ours()
    assert "10.244.9." not in one.ours()
    assert "02:00:00:00:00:55" not in one.ours()


def test_restart_changes_nothing_and_loses_nothing(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    before, told = one.ours(), dict(one.told)
    index = one.ip("-o link show netagent.1").split(":")[0]
    one.stop()
    one.ip("route add 10.244.9.0/24 via 10.244.9.0 dev netagent.1 onlink proto 78")
    one.told.clear()
    one.start()
    cluster.sync()
    until(lambda: one.told == told)
    cluster.sync()
    until.equal(one.ours, before)
    assert one.ip("-o link show netagent.1").split(":")[0] == index
    assert one.reaches(two.pod_ips()[0])


def test_without_leases_nothing_is_touched(cluster: Cluster, until: Until) -> None:
    """An agent that has not got its lease back yet keeps the way to running pods."""
    one = cluster.nodes[0]
    before = until.steady(one.ours)
    one.stop()
    one.start()
    leases, one.leases = one.leases, ()
    one.update(())
    until(lambda: one.status.read_backs > 0)
    assert one.ours() == before
    assert one.state is None
    assert "no IPv4 subnet is leased" in one.status.problem
    one.leases = leases
    cluster.sync()
    until(lambda: one.state is not None)


def test_foreign_state_is_left_alone(pair: Cluster, until: Until) -> None:
    one, _ = pair.nodes
    foreign = (
        "link add other type vxlan id 5 local 192.168.77.1 dev eth0 dstport 4789",
        "link set other up",
        "address add 10.99.0.1/24 dev other",
        "neighbour add 10.99.0.2 lladdr 02:00:00:00:00:31 dev other nud permanent",
        "route add 10.98.0.0/16 via 192.168.77.200",
        "route add blackhole 10.97.0.0/16",
        "-6 route add fd98::/64 via fd77::200",
        "route add 10.244.1.77/32 dev nap0 proto 78 scope link",
        "neighbour add 192.168.77.201 lladdr 02:00:00:00:00:32 dev eth0 nud permanent",
    )
    for command in foreign:
        one.ip(command)
    one.bridge("fdb add 02:00:00:00:00:33 dev other dst 192.168.77.9 self permanent")

    def theirs() -> str:
        return "\n".join(
            line
            for text in (
                one.ip("route"),
                one.ip("-6 route"),
                one.ip("neighbour show nud permanent"),
                one.ip("-o address"),
                one.bridge("fdb show dev other"),
            )
            for line in text.splitlines()
            if "netagent" not in line and "10.244.1.0/24" not in line and "fd44:0:0:1::/64" not in line
        )

    before = theirs()
    pair.join()
    one.ip("link delete netagent.1")
    until(lambda: one.status.repairs > 0)
    assert theirs() == before
    pair.nodes[0].update(())
    until(lambda: one.status.peers == 0)
    assert theirs() == before


def test_foreign_route_in_the_way_is_reported_not_overwritten(pair: Cluster, until: Until) -> None:
    one, two = pair.nodes
    one.ip("route add 10.244.2.0/24 via 192.168.77.200")
    pair.join()
    until(lambda: "10.244.2.0/24" in one.status.problem)
    assert "via 192.168.77.200" in one.ip("route show 10.244.2.0/24")
    assert one.reaches(two.pod_ips()[1])
    one.ip("route delete 10.244.2.0/24 via 192.168.77.200")
    until(lambda: one.reaches(two.pod_ips()[0]))
    until(lambda: one.status.problem == "")


def test_foreign_route_in_the_way_does_not_keep_the_node_from_joining(cluster: Cluster, until: Until) -> None:
    one, two, three = cluster.nodes
    one.stop()
    one.ip("link delete netagent.1")
    one.ip("route add 10.244.2.0/24 via 192.168.77.200")
    one.start()
    cluster.sync()
    until(lambda: one.state is not None)
    until(lambda: one.status.failures >= 3)
    assert one.status.ready
    until.reaches(one, three.pod_ips()[0])
    assert not one.reaches(two.pod_ips()[0])


def test_foreign_vxlan_device_with_our_vni_is_named(pair: Cluster, until: Until) -> None:
    one, two = pair.nodes
    one.ip("link add flannel.1 type vxlan id 1 local 192.168.77.1 dev eth0 dstport 8472")
    for node in pair.nodes:
        node.start()
        node.update(())
    until(lambda: "vxlan" in one.status.problem)
    assert one.state is None
    assert list(one.told) == ["fd44:0:0:1::/64"]
    one.ip("link delete flannel.1")
    until(one.has_told)
    until(two.has_told)
    pair.sync()
    until.reaches(one, two.pod_ips()[0])


def test_another_own_subnet_replaces_the_old_one(cluster: Cluster, until: Until) -> None:
    one, two, _ = cluster.nodes
    one.leases = (one.lease("10.244.50.0/24"), one.leases[1])
    cluster.sync()
    until(lambda: one.state is not None and "10.244.50.0/24" in one.state.subnets)
    until(lambda: "10.244.50.0/24" in one.told)
    cluster.sync()
    until(lambda: "10.244.50.0/24" in two.ours())
    assert "blackhole 10.244.50.0/24" in one.ours()
    assert "10.244.1.0/24" not in one.ours()
    assert "10.244.1.0" not in two.ours()
