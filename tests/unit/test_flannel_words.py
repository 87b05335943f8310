"""flannel's annotations and subnet.env, byte for byte."""

import pytest

from netagent.core.network import flannel
from netagent.core.network.flannel import End

NAMES = flannel.names(flannel.DEFAULT_PREFIX)
PREFIX = "flannel.alpha.coreos.com/"
MAC = "12:c6:65:89:b4:e3"


def test_annotations_of_a_vxlan_node_are_flannels_bytes() -> None:
    ends = {6: End("AA:00:00:00:00:06", "fd77::1"), 4: End(MAC, "192.0.2.1")}
    assert flannel.annotations(NAMES, backend="vxlan", vni=1, ends=ends) == {
        PREFIX + "kube-subnet-manager": "true",
        PREFIX + "backend-type": "vxlan",
        PREFIX + "backend-data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}',
        PREFIX + "public-ip": "192.0.2.1",
        PREFIX + "backend-v6-data": '{"VNI":1,"VtepMAC":"aa:00:00:00:00:06"}',
        PREFIX + "public-ipv6": "fd77::1",
    }


def test_a_family_without_an_end_is_not_mentioned() -> None:
    wanted = flannel.annotations(NAMES, backend="vxlan", vni=7, ends={4: End(MAC, "192.0.2.1")})
    assert sorted(wanted) == [PREFIX + n for n in ("backend-data", "backend-type", "kube-subnet-manager", "public-ip")]
    assert wanted[PREFIX + "backend-data"] == f'{{"VNI":7,"VtepMAC":"{MAC}"}}'


def test_host_gw_has_no_data() -> None:
    wanted = flannel.annotations(NAMES, backend="host-gw", vni=1, ends={4: End("", "192.0.2.1")})
    assert wanted[PREFIX + "backend-data"] == "null"
    assert wanted[PREFIX + "backend-type"] == "host-gw"


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ('{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}', MAC),
        ('{"VtepMAC":"12:c6:65:89:b4:e3"}', MAC),
        ('{"VtepMAC":"12-C6-65-89-B4-E3","VNI":4096,"Other":[]}', MAC),
        ("null", ""),
        ("", ""),
        ('{"VNI":1}', ""),
        ("{not json", "{not json"),
        ('{"VtepMAC":7}', '{"VtepMAC":7}'),
        ("[" * 100, "[" * 64),
    ],
)
def test_backend_data_of_others(text: str, mac: str) -> None:
    assert flannel.read_backend_data(text) == mac


def test_only_what_differs_is_written() -> None:
    wanted = flannel.annotations(NAMES, backend="vxlan", vni=1, ends={4: End(MAC, "192.0.2.1"), 6: End(MAC, "fd77::1")})
    there = {**wanted, "other": "kept"}
    assert flannel.changed(wanted, there) == {}
    there[PREFIX + "backend-v6-data"] = '{"VNI":1, "VtepMAC":"12:c6:65:89:b4:e3"}'  # a space: not flannel's bytes
    assert flannel.changed(wanted, there) == {PREFIX + "backend-v6-data": wanted[PREFIX + "backend-v6-data"]}


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"),
        ("example.com/net", "example.com/net-public-ip"),
        ("example.com/net-", "example.com/net-public-ip"),
        ("example.com/", "example.com/public-ip"),
    ],
)
def test_prefixes(prefix: str, name: str) -> None:
    assert flannel.names(prefix).public_ip(4) == name


def test_wished_public_ip() -> None:
    overwrite, node = PREFIX + "public-ip-overwrite", PREFIX + "node-public-ip"
    assert NAMES.wishes(4) == (overwrite, node)
    assert NAMES.wishes(6) == (PREFIX + "public-ipv6-overwrite", PREFIX + "node-public-ipv6")
    assert flannel.wished_public_ip(NAMES, {}, 4) == ("", "")
    assert flannel.wished_public_ip(NAMES, {overwrite: "203.0.113.1", node: "203.0.113.2"}, 4) == ("203.0.113.1", "")
    assert flannel.wished_public_ip(NAMES, {node: "203.0.113.2"}, 4) == ("203.0.113.2", "")
    assert flannel.wished_public_ip(NAMES, {PREFIX + "node-public-ipv6": "2001:DB8::1"}, 6) == ("2001:db8::1", "")
    address, problem = flannel.wished_public_ip(NAMES, {overwrite: "fd00::1", node: "203.0.113.2"}, 4)
    assert address == "203.0.113.2"
    assert "public-ip-overwrite = 'fd00::1' is not an IPv4 address" in problem


def test_subnet_env() -> None:
    pools = ("10.244.0.0/16", "fd44::/48")
    both = flannel.render_subnet_env(
        pools=pools, subnets=("10.244.3.0/24", "fd44:0:0:3::/64"), mtu=1430, masquerade=False
    )
    assert both == (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd44::/48\nFLANNEL_IPV6_SUBNET=fd44:0:0:3::1/64\n"
        "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
    )
    one = flannel.render_subnet_env(
        pools=("10.0.0.0/16", "10.1.0.0/16"), subnets=("10.1.4.0/22",), mtu=1450, masquerade=True
    )
    assert one == "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.4.1/22\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
