"""What `netagent doctor` finds in settings, links and packet filters that really are so."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

from netagent.kernel import features, legacy
from support.doctorbed import ADDRESS, UPLINK, DoctorBed, has, nft, sh

pytestmark = pytest.mark.kernel


def test_nothing_is_to_do_on_a_good_node(bed: DoctorBed) -> None:
    status, found = bed.examine()
    assert {one["level"] for many in found.values() for one in many} <= {"ok", "info"}
    assert status == 0
    assert found["links.underlay"][0]["found"] == f"{UPLINK}: {ADDRESS}"
    assert {"kernel.vxlan4", "kernel.table", "firewall.forward", "state.space"} <= found.keys()


def test_nothing_is_changed(bed: DoctorBed) -> None:
    def everything() -> str:
        parts = [sh("nft list ruleset", "ip -d link", "ip address", "ip route show table all", "ip neigh"), ""]
        parts += [sh(f"find {bed.home} -printf %p%m%u%s%T@\\n"), str(legacy.tables(4))]
        parts += [path.read_text() for path in sorted(Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"))]
        return re.sub(r"(valid_lft|preferred_lft|expires) \S+", "", "".join(parts))

    assert bed.config
    nft("add table inet mine")
    bed.until(lambda: "tentative" not in sh("ip address"), "addresses are settled")
    before = everything()
    bed.examine()
    assert everything() == before


def test_a_forward_chain_that_drops_is_named(bed: DoctorBed) -> None:
    nft(
        "add table inet fw",
        "add chain inet fw out { type filter hook forward priority 0; policy drop; }",
    )
    assert bed.one("firewall.forward")["level"] == "info"
    with bed.serving():
        found = bed.one("firewall.forward")
        assert found["level"] == "error"
        assert "inet fw out" in found["found"]
        for field in ("saddr", "daddr"):
            nft(f'insert rule inet fw out ip {field} 10.244.0.0/16 counter accept comment "netagent"')
        assert bed.one("firewall.forward")["level"] == "ok"
    nft("flush chain inet fw out")
    bed.set("network", forward_accept=False)
    assert bed.one("firewall.forward")["level"] == "error"


def test_a_last_rule_that_rejects_counts_as_dropping(bed: DoctorBed) -> None:
    nft(
        "add table inet firewalld",
        "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }",
        "add rule inet firewalld filter_FORWARD ct state established accept",
        "add rule inet firewalld filter_FORWARD reject with icmpx type admin-prohibited",
    )
    with bed.serving():
        assert bed.levels()["firewall.forward"] == "error"


def test_an_input_chain_that_drops_needs_a_word_about_the_tunnels(bed: DoctorBed) -> None:
    nft(
        "add table ip guard",
        "add chain ip guard in { type filter hook input priority 0; policy drop; }",
        "add rule ip guard in iifname lo accept",
    )
    assert bed.levels() == {"firewall.input": "warning"}
    bed.set("network", backend="host-gw")
    assert bed.levels() == {}
    bed.set("network", backend="vxlan", vxlan_port=4789)
    nft("add rule ip guard in udp dport { 53, 4789 } accept")
    assert bed.levels() == {}


def test_two_policy_engines_on_one_node(bed: DoctorBed) -> None:
    nft("add table ip calico", "add chain ip calico cali-x")
    assert bed.levels() == {"firewall.engines": "warning"}
    bed.set("policy", enabled=False)
    assert bed.levels() == {}


@has("iptables-legacy")
def test_legacy_iptables(bed: DoctorBed) -> None:
    sh("iptables-legacy -A FORWARD -s 192.0.2.1 -j ACCEPT")
    assert bed.one("firewall.legacy")["level"] == "info"
    sh("ip6tables-legacy -A FORWARD -s 2001:db8::1 -j ACCEPT", "ip6tables-legacy -P FORWARD DROP")
    found = bed.one("firewall.legacy")
    assert (found["level"], "(IPv6)" in found["found"]) == ("warning", True)
    sh("iptables-nft -A FORWARD -s 192.0.2.1 -j ACCEPT")
    assert bed.levels() == {"firewall.legacy": "warning", "firewall.legacy_and_nft": "warning"}


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ("id 1 dstport 8472", "error"),
        ("external dstport 8472", "error"),
        ("id 7 dstport 8472", None),
        ("id 1 dstport 4789", None),
    ],
)
def test_somebody_elses_vxlan_device(bed: DoctorBed, options: str, level: str | None) -> None:
    dev = "" if "external" in options else f"dev {UPLINK}"
    sh(f"ip link add vx0 type vxlan {options} {dev}")
    assert bed.levels().get("links.vxlan") == level
    own = subprocess.run(
        f"ip link add netagent.1 type vxlan id 1 dstport 8472 dev {UPLINK}".split(), capture_output=True, check=False
    )
    assert (own.returncode != 0) is ("id 1 dstport 8472" in options), own.stderr


def test_a_program_on_the_port_of_the_tunnels(bed: DoctorBed) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 8472))
        assert bed.levels() == {"links.vxlan": "error"}
        assert features.probe([features.Feature("vxlan", "", features.vxlan(1, 8472, "127.0.0.1"))]) == {"vxlan": ""}
    assert bed.levels() == {}


def test_a_default_route_that_forwarding_will_cost(bed: DoctorBed) -> None:
    bed.set("network", pools=["10.244.0.0/16", "fd00:10:244::/48"])
    bed.sysctl("net/ipv6/conf/all/forwarding", "1")
    bed.sysctl(f"net/ipv6/conf/{UPLINK}/accept_ra", "1")
    assert bed.levels() == {}
    sh(f"ip -6 route add default via fe80::1 dev {UPLINK} proto ra")
    assert bed.levels() == {"sysctl.accept_ra": "warning"}
    bed.sysctl(f"net/ipv6/conf/{UPLINK}/accept_ra", "2")
    assert bed.levels() == {}


def test_our_own_vxlan_device_is_no_conflict(bed: DoctorBed) -> None:
    sh(f"ip link add netagent.1 mtu 1450 type vxlan id 1 dstport 8472 dev {UPLINK}")
    assert bed.levels() == {}
    bed.set("network", mode="node")
    assert bed.levels()["links.vxlan"] == "error"


@pytest.mark.parametrize(("decided", "level"), [("", None), ("node", None), ("lease", "error")])
def test_flannels_device_where_the_mode_finds_itself(bed: DoctorBed, decided: str, level: str | None) -> None:
    bed.set("network", mode="auto")
    sh(f"ip link add flannel.1 mtu 1450 type vxlan id 1 dstport 8472 dev {UPLINK}")
    if decided:
        (bed.home / "state/network-mode").write_text(f"{decided}\n")
    assert bed.levels().get("links.vxlan") == level


def test_devices_of_another_pod_network(bed: DoctorBed) -> None:
    sh("ip link add cali123 type veth peer name cali124", "ip link add flannel.7 type veth peer name x1")
    _, found = bed.examine()
    assert [(one["level"], one["found"]) for one in found["links.others"]] == [
        ("warning", "devices of Calico: cali123, cali124"),
        ("warning", "devices of flannel: flannel.7"),
    ]
    bed.set("network", mode="node")
    assert sorted(one["level"] for one in bed.examine()[1]["links.others"]) == ["info", "warning"]
    bed.set("network", mode="off")
    bed.set("cni", enabled=False)
    assert {one["level"] for one in bed.examine()[1]["links.others"]} == {"info"}


def test_a_network_of_the_node_within_a_pool(bed: DoctorBed) -> None:
    sh("ip link add lan0 type veth peer name lan1", "ip address add 10.244.7.1/24 dev lan0")
    found = bed.one("network.overlap")
    assert found["level"] == "error"
    assert "lan0" in found["found"]


def test_forwarding_that_somebody_switched_off(bed: DoctorBed) -> None:
    bed.sysctl("net/ipv4/ip_forward", "0")
    assert bed.one("sysctl.forwarding4")["level"] == "info"
    with bed.serving():
        assert bed.levels()["sysctl.forwarding4"] == "error"


def test_strict_reverse_path_with_two_uplinks(bed: DoctorBed) -> None:
    bed.set("network", direct_routing=True)
    bed.sysctl("net/ipv4/conf/all/rp_filter", "1")
    assert bed.levels() == {}
    sh("ip link add up1 type veth peer name wire1", "ip address add 10.8.0.1/24 dev up1", "ip link set up1 up")
    assert bed.levels() == {"sysctl.rp_filter": "warning"}
    bed.sysctl(f"net/ipv4/conf/{UPLINK}/rp_filter", "2")
    assert bed.levels() == {}


def test_pods_on_a_bridge_whose_packets_no_chain_sees(bed: DoctorBed) -> None:
    sh(
        "ip link add cni0 type bridge",
        "ip link add port0 type veth peer name port1",
        "ip link set port0 master cni0",
    )
    bed.set("network", mode="off")
    bed.set("cni", enabled=False)
    bed.conf("10-bridge.conflist", "bridge")
    sees = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if sees.exists():
        sees.write_text("0")
    assert bed.levels() == {"sysctl.bridge_nf": "error"}
    bed.set("policy", enabled=False)
    assert bed.levels() == {}


def test_a_conntrack_table_that_is_full(bed: DoctorBed) -> None:
    nft(
        "add table inet t",
        "add chain inet t c { type filter hook output priority 0; }",
        "add rule inet t c ct state new counter",
    )
    assert bed.one("conntrack.table")["level"] == "ok"
    limit = bed.home / "limit"
    for entries, level in ((40, "error"), (47, "warning"), (4000, "ok")):
        limit.write_text(f"{entries}\n")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((ADDRESS, 29999))  # the same 40 flows each time, none of them about to expire
            for port in range(30000, 30040):
                sender.sendto(b"x", (ADDRESS, port))
        sh(f"mount --bind {limit} /proc/sys/net/netfilter/nf_conntrack_max")
        try:
            assert bed.one("conntrack.table")["level"] == level
        finally:
            sh("umount /proc/sys/net/netfilter/nf_conntrack_max")


def test_packets_that_are_too_large(bed: DoctorBed) -> None:
    sh("ip link add nap0123456789ab mtu 1500 type veth peer name pod")
    found = bed.one("mtu.links")
    assert found["level"] == "warning"
    assert "nap0123456789ab (1500)" in found["found"]
    sh("ip link set nap0123456789ab mtu 1450")
    assert bed.one("mtu.links")["level"] == "ok"
    bed.set("network", mtu=1480)
    assert bed.levels() == {"mtu.option": "warning"}


def test_checksum_offload_that_is_not_as_configured(bed: DoctorBed) -> None:
    sh(f"ip link add netagent.1 mtu 1450 type vxlan id 1 dstport 8472 dev {UPLINK}")
    assert bed.levels() == {}
    bed.set("network", vxlan_tx_checksum=False)
    assert bed.levels() == {"checksum.device": "warning"}


def test_no_way_out(bed: DoctorBed) -> None:
    sh("ip route del default")
    assert bed.levels()["links.underlay"] == "error"
    bed.set("network", interface=UPLINK)
    assert bed.levels() == {}


def test_what_a_kernel_has_not_is_told_with_its_reason() -> None:
    trials = [
        features.Feature("good", "", features.link("veth")),
        features.Feature("kind", "", features.link("nosuchkind")),
        features.Feature("script", "", features.script("add rule inet probe absent accept")),
    ]
    reasons = features.probe(trials)
    assert reasons["good"] == ""
    assert "not supported" in reasons["kind"]
    assert "No such file" in reasons["script"]
    assert features.probe(trials[:1]) == {"good": ""}, "each probe has a namespace of its own"


def test_a_missing_feature_counts_only_where_it_is_needed(bed: DoctorBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "vxlan", lambda *_: features.link("nosuchkind"))
    assert bed.levels() == {"kernel.vxlan4": "error"}
    bed.set("network", backend="host-gw")
    assert bed.levels() == {}


def test_an_ipv6_pool_asks_for_ipv6(bed: DoctorBed) -> None:
    bed.set("network", pools=["10.244.0.0/16", "fd00:10:244::/48"])
    bed.sysctl("net/ipv6/conf/all/forwarding", "0")
    with bed.serving():
        assert bed.levels()["sysctl.forwarding6"] == "error"
        bed.sysctl("net/ipv6/conf/all/forwarding", "1")
        assert "sysctl.forwarding6" not in bed.levels()
