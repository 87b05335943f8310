"""CNI calls and answers as values."""

import json
from typing import Any

import pytest

from netagent.core import cni
from netagent.core.cni import Call, CniError, Code
from netagent.records import Endpoint, Key

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
}


def parse(command: str = "ADD", version: str = "1.0.0", args: str = "", **conf: Any) -> Call:
    environ = ENVIRON | {"CNI_COMMAND": command, "CNI_ARGS": f"{ENVIRON['CNI_ARGS']};{args}"}
    return cni.parse_call(
        environ, json.dumps({"cniVersion": version, "name": "n", "type": "netagent", **conf}).encode()
    )


def test_pod_of_a_call() -> None:
    assert cni.pod_of(parse()) == (Key("default", "web-0"), "u-1")


def test_names_are_within_the_kernels_limits_and_differ() -> None:
    names = {cni.host_ifname(f"container{number}", "eth0") for number in range(1000)}
    assert len(names) == 1000
    assert {len(name) for name in names} == {15}
    assert cni.host_ifname("a", "eth0") != cni.host_ifname("a", "eth1")


def test_macs_are_local_and_unicast() -> None:
    for number in range(200):
        first = int(cni.pod_mac(f"c{number}", "eth0")[:2], 16)
        assert first & 0b11 == 0b10


@pytest.mark.parametrize(("command", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_commands_need_their_version(command: str, since: str) -> None:
    for version in cni.VERSIONS:
        if cni.VERSIONS.index(version) >= cni.VERSIONS.index(since):
            assert parse(command, version).command == command
        else:
            with pytest.raises(CniError, match=f"needs cniVersion {since}") as caught:
                parse(command, version)
            assert caught.value.code == Code.INCOMPATIBLE_VERSION


def test_requested_addresses_and_their_precedence() -> None:
    in_args: dict[str, Any] = {"args": {"cni": {"ips": ["10.0.0.2"]}}}
    runtime = {"runtimeConfig": {"ips": ["10.0.0.3/24", "FD00::0003/64"]}}
    environ = ENVIRON | {"CNI_ARGS": ENVIRON["CNI_ARGS"] + ";IP=10.0.0.1,fd00::1"}

    def wanted(conf: dict[str, Any]) -> tuple[str, ...]:
        return cni.requested_ips(cni.parse_call(environ, json.dumps({"cniVersion": "1.0.0", **conf}).encode()))

    assert wanted({}) == ("10.0.0.1", "fd00::1")
    assert wanted(in_args) == ("10.0.0.2",)
    assert wanted(in_args | runtime) == ("10.0.0.3", "fd00::3")


def test_null_previous_result_is_none_at_all() -> None:
    assert not parse(prevResult=None).conf.has_prev_result
    assert parse("DEL", prevResult={"ips": []}).conf.has_prev_result


@pytest.mark.parametrize(
    ("version", "host", "ips"),
    [
        ("0.4.0", set(), {"version": "6", "address": "fd00::1/128", "interface": 1}),
        ("1.0.0", set(), {"address": "fd00::1/128", "interface": 1}),
        ("1.1.0", {"mtu"}, {"address": "fd00::1/128", "interface": 1}),
    ],
)
def test_result_shapes(version: str, host: set[str], ips: dict[str, Any]) -> None:
    endpoint = Endpoint(
        pod=Key("default", "web-0"),
        pod_uid="",
        container_id="c0ffee",
        ifname="eth0",
        host_ifname="nap0",
        ips=("fd00::1",),
        netns="/run/netns/x",
        mac="02:00:00:00:00:01",
    )
    result = cni.render_result(version, endpoint, 1450)
    assert set(result["interfaces"][0]) - {"name", "mac"} == host
    assert result["ips"] == [ips]
    assert result["routes"] == [{"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"}]
    assert result["dns"] == {}


def test_error_object() -> None:
    error = cni.render_error("0.4.0", CniError(Code.TRY_AGAIN, "away", "more"))
    assert error == {"cniVersion": "0.4.0", "code": 11, "msg": "netagent: away", "details": "more"}
