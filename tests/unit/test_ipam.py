"""The address pool, by itself and against a naive one over arbitrary histories."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.core.network.ipam import (
    MAX_FRESH,
    AddressRefusedError,
    Pool,
    SubnetFullError,
    canonical,
    valid_addresses,
)

TINY = "10.0.0.0/29"


def test_fresh_addresses_come_in_order_and_special_ones_never() -> None:
    pool = Pool()
    given_out = [pool.allocate([TINY], f"p{number}")[0] for number in range(6)]
    assert given_out == [f"10.0.0.{number}" for number in range(1, 7)]
    with pytest.raises(SubnetFullError, match="all of its 6 addresses are taken"):
        pool.allocate([TINY], "late")


def test_freed_addresses_wait_until_no_fresh_one_is_left_then_oldest_first() -> None:
    pool = Pool()
    for number in range(4):
        pool.allocate([TINY], f"p{number}")
    pool.release("p2")
    pool.release("p0")
    later = [pool.allocate([TINY], f"q{number}")[0] for number in range(4)]
    assert later == ["10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.1"]


def test_both_families_or_nothing() -> None:
    pool = Pool({f"10.0.0.{number}": "x" for number in range(1, 7)})
    with pytest.raises(SubnetFullError):
        pool.allocate(["fd00::/64", TINY], "p")
    assert pool.addresses_of("p") == ()
    pool.release("x")
    assert pool.allocate(["fd00::/64", TINY], "p") == ("10.0.0.1", "fd00::1")


def test_state_survives_as_taken_and_freed() -> None:
    pool = Pool({"10.0.0.2": "old"}, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.1"])
    assert pool.freed == ("10.0.0.3", "10.0.0.1")
    assert [pool.allocate([TINY], f"p{number}")[0] for number in range(5)] == [
        "10.0.0.4",
        "10.0.0.5",
        "10.0.0.6",
        "10.0.0.3",
        "10.0.0.1",
    ]


def test_addresses_of_an_earlier_subnet_stay_taken_and_do_not_count() -> None:
    pool = Pool({"10.9.0.1": "old"}, ["10.9.0.2"])
    for number in range(6):
        pool.allocate([TINY], f"p{number}")
    with pytest.raises(SubnetFullError):
        pool.allocate([TINY], "late")
    assert pool.release("old") == ("10.9.0.1",)
    with pytest.raises(SubnetFullError):
        pool.allocate([TINY], "late")


@pytest.mark.parametrize(
    ("requested", "words"),
    [
        (["10.1.0.1"], "outside"),
        (["10.0.0.0"], "reserved"),
        (["10.0.0.7"], "reserved"),
        (["10.0.0.3"], "taken by other"),
        (["fd00::5"], "no IPv6 subnet"),
        (["10.0.0.4", "10.0.0.5"], "at most one"),
    ],
)
def test_refused_requests(requested: list[str], words: str) -> None:
    pool = Pool({"10.0.0.3": "other"})
    with pytest.raises(AddressRefusedError, match=words):
        pool.allocate([TINY], "p", requested)
    assert pool.addresses_of("p") == ()


def test_requested_address_leaves_the_queue() -> None:
    pool = Pool(freed=["10.0.0.1", "10.0.0.2"])
    assert pool.allocate([TINY], "p", ["10.0.0.2"]) == ("10.0.0.2",)
    assert pool.freed == ("10.0.0.1",)


def test_a_huge_subnet_has_a_bounded_queue() -> None:
    freed = [str(ipaddress.ip_address("fd00::") + number) for number in range(1, MAX_FRESH)]
    pool = Pool(freed=freed)
    assert pool.allocate(["fd00::/64"], "p") == ("fd00::1:0",)
    assert pool.allocate(["fd00::/64"], "q") == ("fd00::1",)


def test_canonical_text() -> None:
    assert canonical("FD00::0:1/64") == "fd00::1"
    with pytest.raises(AddressRefusedError):
        canonical("10.0.0.256")
    assert valid_addresses(["10.0.0.1", "x", "fd00::0:1"]) == (("10.0.0.1", "fd00::1"), ("x",))


@given(st.lists(st.tuples(st.sampled_from(["add", "del", "restart"]), st.integers(0, 9)), max_size=80))
def test_every_history_keeps_one_owner_and_oldest_first(steps: list[tuple[str, int]]) -> None:
    pool = Pool()
    held: dict[str, str] = {}
    freed_order: list[str] = []
    ever: set[str] = set()
    for step, number in steps:
        owner = f"p{number}"
        if step == "add" and owner not in held:
            if len(held) == 6:
                with pytest.raises(SubnetFullError):
                    pool.allocate([TINY], owner)
                continue
            (ip,) = pool.allocate([TINY], owner)
            assert ip not in held.values()
            assert ip == (freed_order.pop(0) if len(ever) == 6 else f"10.0.0.{len(ever) + 1}")
            ever.add(ip)
            held[owner] = ip
        elif step == "del":
            released = pool.release(owner)
            assert released == ((held[owner],) if owner in held else ())
            if owner in held:
                freed_order.append(held.pop(owner))
        elif step == "restart":
            pool = Pool(dict(pool.taken), pool.freed)
