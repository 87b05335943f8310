"""Plans of the migration: whose configuration, which rules."""

import json
from pathlib import Path

import pytest

from netagent.core.network import migrate
from netagent.core.network.ipam import AddressRefusedError, Pool, SubnetFullError
from netagent.disk.hostlocal import HostLocal


def test_configurations_of_flannels_plugin() -> None:
    conflist = {"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}
    assert migrate.flannel_network(json.dumps(conflist).encode()) == "cbr0"
    assert migrate.flannel_network(b'{"name": "one", "type": "flannel"}') == "one"
    assert migrate.flannel_network(b'{"name": "x", "plugins": [{"type": "bridge"}]}') is None
    assert migrate.flannel_network(b"not json") is None
    assert migrate.flannel_network(b"") is None


def rule(chain: str, handle: int, *expr: object, table: str = "nat") -> dict[str, object]:
    return {"rule": {"family": "ip", "table": table, "chain": chain, "handle": handle, "expr": list(expr)}}


def chain(name: str, table: str = "nat") -> dict[str, object]:
    return {"chain": {"family": "ip", "table": table, "name": name, "handle": 1}}


def test_only_flannels_rules_go_and_jumps_go_first() -> None:
    listing: list[dict[str, object]] = [
        {"metainfo": {}},
        chain("FLANNEL-POSTRTG"),
        chain("POSTROUTING"),
        chain("FLANNEL-FWD-CUSTOM"),
        rule("FLANNEL-POSTRTG", 4, {"xt": None}, {"return": None}),
        rule("POSTROUTING", 3, {"xt": {"type": "match"}}, {"jump": {"target": "FLANNEL-POSTRTG"}}),
        rule("POSTROUTING", 8, {"jump": {"target": "KUBE-POSTROUTING"}}),
        rule("POSTROUTING", 9, {"goto": {"target": "FLANNEL-POSTRTG"}}),
    ]
    assert migrate.rule_removals(listing) == [
        "delete rule ip nat POSTROUTING handle 3",
        "delete rule ip nat POSTROUTING handle 9",
        "flush chain ip nat FLANNEL-POSTRTG",
        "delete chain ip nat FLANNEL-POSTRTG",
    ]
    assert migrate.rule_removals([chain("POSTROUTING")]) == []


def test_legacy_tables() -> None:
    saved = """# Generated
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -j RETURN
COMMIT
*mangle
:FORWARD ACCEPT [0:0]
COMMIT
*filter
:FORWARD DROP [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -j ACCEPT
COMMIT
"""
    assert migrate.legacy_removal(saved).splitlines() == [
        "*nat",
        '-D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        "-F FLANNEL-POSTRTG",
        "-X FLANNEL-POSTRTG",
        "COMMIT",
        "*filter",
        '-D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
        "-F FLANNEL-FWD",
        "-X FLANNEL-FWD",
        "COMMIT",
    ]
    assert migrate.legacy_removal("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n") == ""


def test_host_locals_reservations(tmp_path: Path) -> None:
    network = tmp_path / "cbr0"
    network.mkdir()
    (network / "10.244.1.7").write_text("aaa\r\neth0")
    (network / "fd44::7").write_text("aaa\r\neth0")
    (network / "10.244.1.8").write_text("bbb")
    (network / "last_reserved_ip.0").write_text("10.244.1.8")
    (network / "lock").touch()
    local = HostLocal(tmp_path)
    assert local.addresses() == {"10.244.1.7", "10.244.1.8", "fd44::7"}
    assert local.holds("fd44::7")
    assert not local.holds("10.244.1.9")
    assert [(one.ip, one.container_id, one.ifname) for one in local.reservations()] == [
        ("10.244.1.7", "aaa", "eth0"),
        ("10.244.1.8", "bbb", ""),
        ("fd44::7", "aaa", "eth0"),
    ]
    assert sorted(local.release("aaa")) == ["10.244.1.7", "fd44::7"]
    assert local.release("aaa") == ()
    assert local.reserve("cbr0", "10.244.1.9", "ccc", "eth0")
    assert not local.reserve("cbr0", "10.244.1.9", "ddd", "eth0")
    assert (network / "10.244.1.9").read_bytes() == b"ccc\r\neth0"
    assert local.addresses() == {"10.244.1.8", "10.244.1.9"}
    assert HostLocal(tmp_path / "absent").addresses() == frozenset()


def test_addresses_of_others_are_not_handed_out() -> None:
    pool = Pool()
    others = {"10.0.0.1", "10.0.0.2", "10.0.0.4"}
    assert pool.allocate(["10.0.0.0/29"], "a", others=others) == ("10.0.0.3",)
    assert pool.allocate(["10.0.0.0/29"], "b", others=others) == ("10.0.0.5",)
    assert pool.allocate(["10.0.0.0/29"], "c", others=others) == ("10.0.0.6",)
    with pytest.raises(SubnetFullError):
        pool.allocate(["10.0.0.0/29"], "d", others=others)
    with pytest.raises(AddressRefusedError, match="another plugin"):
        pool.allocate(["10.0.0.0/29"], "d", ["10.0.0.4"], others=others)
    others.discard("10.0.0.4")  # its pod is gone
    assert pool.allocate(["10.0.0.0/29"], "d", others=others) == ("10.0.0.4",)
