"""Which link and address the pod network uses, and which peers are on the same network."""

from typing import Any

import pytest

from netagent.config import ConfigError, NetworkConfig, check, decode
from netagent.core.network.underlay import (
    Interface,
    LinkRoute,
    Neighbourhood,
    Underlay,
    Way,
    Wish,
    choose_underlay,
    may_be_chosen,
    public_ip_overrides,
)

LO = Interface(index=1, name="lo", mtu=65536, loopback=True, addresses=("192.0.2.77",))
ETH0 = Interface(index=2, name="eth0", mtu=1500, addresses=("192.0.2.9", "192.0.2.1", "fd00::1"))
ETH1 = Interface(index=3, name="eth1", mtu=9000, addresses=("198.51.100.1", "198.51.100.2", "fd01::1"))
BARE = Interface(index=4, name="eth2", mtu=1500)
POD = Interface(index=5, name="nap0123456789ab", mtu=1500, addresses=("203.0.113.1",))
LINKS = (LO, BARE, POD, ETH0, ETH1)


def chosen(
    node_addresses: tuple[str, ...] = ("192.0.2.1",),
    overrides: dict[int, str] | None = None,
    *,
    default: Way | None = None,
    reach: Way | None = None,
    **options: str | tuple[str, ...],
) -> Underlay | str:
    config = decode({"network": options}, "test").network
    wish = Wish(config=config, node_addresses=node_addresses, overrides=overrides or {})
    return choose_underlay(LINKS, wish, default=default, reach=reach)


@pytest.mark.parametrize(
    ("found", "name", "addresses"),
    [
        (chosen(), "eth0", ("192.0.2.1", "fd00::1")),
        (chosen(("192.0.2.77",), default=Way(3, "")), "eth1", ("198.51.100.1", "fd01::1")),
        (chosen(interface="eth1"), "eth1", ("198.51.100.1", "fd01::1")),
        (chosen(interface_regex="^eth[1-9]"), "eth1", ("198.51.100.1", "fd01::1")),
        (chosen(interface_regex="^198[.]"), "eth1", ("198.51.100.1", "fd01::1")),
        (chosen(interface_regex="."), "eth0", ("192.0.2.1", "fd00::1")),
        (chosen(interface_cidr=("198.51.100.2/31",)), "eth1", ("198.51.100.2", "fd01::1")),
        (chosen(interface_cidr=("fd01::/64",)), "eth1", ("198.51.100.1", "fd01::1")),
        (chosen(can_reach="1.1.1.1", reach=Way(3, "198.51.100.2")), "eth1", ("198.51.100.2", "fd01::1")),
        (chosen(overrides={4: "198.51.100.2"}), "eth1", ("198.51.100.2", "fd01::1")),
        (chosen(overrides={4: "203.0.113.9"}), "eth0", ("192.0.2.1", "fd00::1")),
        (chosen(overrides={6: "fd01::1"}, interface="eth0"), "eth1", ("198.51.100.1", "fd01::1")),
    ],
    ids=[
        "InternalIP",
        "default route",
        "name",
        "regex finds name",
        "regex finds address",
        "regex finds no loopback, no pod, no link without address",
        "CIDR picks the address too",
        "CIDR of one family",
        "can reach picks the source address too",
        "annotation with an address of a link",
        "annotation with an address of somebody who translates",
        "annotation goes before the name",
    ],
)
def test_choice(found: Underlay | str, name: str, addresses: tuple[str, str]) -> None:
    assert not isinstance(found, str), found
    assert (found.interface.name, found.address(4), found.address(6)) == (name, *addresses)


def test_options_go_before_each_other_in_the_documented_order() -> None:
    every: dict[str, Any] = {
        "interface": "eth0",
        "interface_regex": "eth1",
        "interface_cidr": ("192.0.2.0/24",),
        "can_reach": "1.1.1.1",
    }
    names = []
    for option in ("", "interface", "interface_regex", "interface_cidr"):
        every.pop(option, None)
        found = chosen(("192.0.2.1",), reach=Way(3, ""), **every)
        assert not isinstance(found, str)
        names.append(found.interface.name)
    assert names == ["eth0", "eth1", "eth0", "eth1"]


@pytest.mark.parametrize(
    "found",
    [
        chosen(interface="eth7"),
        chosen(interface_regex="^wlan"),
        chosen(interface_cidr=("10.0.0.0/8",)),
        chosen(can_reach="1.1.1.1"),
        chosen(()),
    ],
)
def test_no_underlay_says_why_and_nothing_else_is_tried(found: Underlay | str) -> None:
    assert isinstance(found, str)
    assert "network.interface" in found or "network.can_reach" in found
    assert "stay as they are" in found


@pytest.mark.parametrize(
    ("options", "said"),
    [({"interface_regex": "("}, "regular expression"), ({"can_reach": "gateway"}, "IPv4 or IPv6 address")],
)
def test_impossible_option_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(decode({"network": options}, "test"))


def test_links_that_come_later_are_looked_at_only_where_an_option_asks_for_them() -> None:
    assert may_be_chosen(NetworkConfig(interface="eth1"), "eth1")
    assert not may_be_chosen(NetworkConfig(interface="eth1"), "eth10")
    assert may_be_chosen(NetworkConfig(interface_regex="^eth"), "eth10")
    assert may_be_chosen(NetworkConfig(interface_cidr=("10.0.0.0/8",)), "10.1.2.3")
    assert not may_be_chosen(NetworkConfig(interface_cidr=("10.0.0.0/8",)), "veth1")
    assert not may_be_chosen(NetworkConfig(), "veth1")


def test_longest_match_decides_who_is_next_door() -> None:
    near = Neighbourhood(
        [
            LinkRoute("0.0.0.0/0", connected=False),
            LinkRoute("192.0.2.0/24", connected=True),
            LinkRoute("192.0.2.64/26", connected=False),
            LinkRoute("192.0.2.65/32", connected=True),
            LinkRoute("fd00::/64", connected=True),
        ]
    )
    answers = {address: address in near for address in ("192.0.2.1", "192.0.2.70", "192.0.2.65", "198.51.100.1")}
    assert answers == {"192.0.2.1": True, "192.0.2.70": False, "192.0.2.65": True, "198.51.100.1": False}
    assert "fd00::5" in near
    assert "fd01::5" not in near


@pytest.mark.parametrize(
    ("network", "connected", "present", "changes"),
    [
        ("192.0.2.0/24", True, True, False),
        ("192.0.2.0/24", True, False, True),
        ("198.51.100.0/24", True, True, True),
        ("198.51.100.0/24", True, False, False),
        ("192.0.2.128/25", False, True, True),
        ("198.51.100.0/24", False, True, False),
        ("0.0.0.0/0", False, True, False),
    ],
)
def test_only_routes_that_matter_matter(network: str, connected: bool, present: bool, changes: bool) -> None:
    near = Neighbourhood([LinkRoute("192.0.2.0/24", connected=True)])
    assert near.changes_with(LinkRoute(network, connected), present=present) is changes


def test_annotations_by_family() -> None:
    annotations = {"netagent.io/public-ip": "203.0.113.1", "netagent.io/public-ipv6": "", "other": "x"}
    assert public_ip_overrides(annotations) == {4: "203.0.113.1"}
