"""Findings as text and as an exit status, and judgements of what no test bed can build."""

import pytest

from netagent.config import Config, NetworkConfig
from netagent.core.doctor import clusterchecks, firewallchecks, hostchecks, placechecks
from netagent.core.doctor.findings import LEVELS, Finding, Level, exit_status, text, worst
from netagent.core.doctor.hostchecks import Device
from netagent.records import Key, Node


def findings(*levels: Level) -> list[Finding]:
    return [Finding(f"x.{level}", level, "found", "means", "todo") for level in levels]


@pytest.mark.parametrize(
    ("levels", "status"),
    [
        ((), 0),
        (("ok", "info"), 0),
        (("ok", "unknown"), 1),
        (("warning", "ok"), 1),
        (("warning", "error", "ok"), 2),
    ],
)
def test_the_worst_level_decides_the_exit_status(levels: tuple[Level, ...], status: int) -> None:
    assert exit_status(findings(*levels)) == status


def test_text_is_ordered_by_level() -> None:
    found = findings(*LEVELS)
    assert worst(found) == "error"
    lines = text(found, every=True).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")][:-1] == list(reversed(LEVELS))
    assert lines[-1] == "1 error, 1 warning, 1 unknown, 1 info, 1 ok"
    assert "x.ok" not in text(found)


def test_a_driver_that_is_known_for_wrong_checksums() -> None:
    def found(driver: str, *, offload: bool) -> list[tuple[str, Level]]:
        config = Config(network=NetworkConfig(vxlan_tx_checksum=offload))
        return [(one.id, one.level) for one in hostchecks.checksums([], driver, config)]

    assert found("vmxnet3", offload=True) == [("checksum.driver", "warning")]
    assert found("vmxnet3", offload=False) == [("checksum.device", "ok")]
    assert found("virtio_net", offload=True) == [("checksum.device", "ok")]


def test_a_kernel_without_ipv6() -> None:
    levels = {one.id: one.level for one in hostchecks.forwarding({4: "1", 6: ""}, running=False)}
    assert levels == {"sysctl.forwarding4": "ok", "sysctl.forwarding6": "error"}


@pytest.mark.parametrize(
    ("version", "level"), [("1.0.6", "ok"), ("1.1.0", "ok"), ("2.0", "ok"), ("0.9.8", "warning"), ("?", "warning")]
)
def test_a_library_that_is_too_old(version: str, level: Level) -> None:
    assert placechecks.libnftables(version).level == level


@pytest.mark.parametrize(
    ("ahead_s", "level"), [(0.4, "ok"), (-2.0, "ok"), (5.0, "warning"), (-59.0, "warning"), (60.0, "error")]
)
def test_clocks(ahead_s: float, level: Level) -> None:
    assert clusterchecks.clock(ahead_s).level == level


def test_a_node_that_has_no_address_yet() -> None:
    def levels(*addresses: str) -> list[tuple[str, Level]]:
        node = Node(key=Key("", "n"), uid="u", addresses=addresses)
        return [(one.id, one.level) for one in clusterchecks.node_object(node, "n", Config())]

    assert levels() == [("node.object", "warning")]
    assert levels("192.0.2.1") == [("node.object", "ok")]


def test_devices_that_only_look_alike_are_nobodys() -> None:
    devices = [Device(name=name) for name in ("eth0", "tunl0", "lo", "napX", "netagent.1", "docker0")]
    assert [one.level for one in hostchecks.other_networks(devices, Config())] == ["ok"]
    assert [one.level for one in hostchecks.other_networks([Device(name="tunl0", up=True)], Config())] == ["warning"]


@pytest.mark.parametrize(
    ("names", "policy", "level"),
    [(("eth0", "kube-ipvs0"), True, "error"), (("eth0", "kube-ipvs0"), False, "info"), (("eth0", "ipvs0"), True, "ok")],
)
def test_ipvs_goes_around_policy(names: tuple[str, ...], policy: bool, level: str) -> None:
    found = hostchecks.service_proxy([Device(name=name) for name in names], policy=policy)
    assert (found.id, found.level) == ("links.ipvs", level)


def test_a_port_is_found_as_a_whole_number_only() -> None:
    rule = {"rule": {"expr": [{"match": {"left": {"payload": {"field": "dport"}}, "right": 84720}}]}}
    assert [one.level for one in firewallchecks.input_chains({"ip f": [rule]}, 8472)] == ["warning"]
    rule["rule"]["expr"][0]["match"]["right"] = 8472
    assert [one.level for one in firewallchecks.input_chains({"ip f": [rule]}, 8472)] == ["ok"]


@pytest.mark.parametrize(
    ("content", "types"),
    [
        (b'{"plugins": [{"type": "a"}, {"type": "b"}]}', ("a", "b")),
        (b'{"type": "bridge"}', ("bridge",)),
        (b"{}", ()),
        (b"[]", None),
        (b"\xff", None),
        (b'{"plugins": 3}', None),
    ],
)
def test_cni_configurations_of_any_form(content: bytes, types: tuple[str, ...] | None) -> None:
    assert placechecks.plugins(content) == types
