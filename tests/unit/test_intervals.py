"""ipBlock arithmetic against counting addresses one by one."""

import ipaddress
import itertools

from hypothesis import given
from hypothesis import strategies as st

from netagent.core.policy.intervals import block_ranges, holds, range_text, united, without
from netagent.core.policy.meaning import BlockPeer

ROOM = 40
RANGES = st.tuples(st.integers(0, ROOM), st.integers(0, ROOM)).map(lambda pair: (min(pair), max(pair)))


def members(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def in_order_and_apart(ranges: list[tuple[int, int]]) -> bool:
    return all(a[1] + 1 < b[0] for a, b in itertools.pairwise(ranges)) and all(a <= b for a, b in ranges)


@given(st.lists(RANGES, max_size=8))
def test_united(ranges: list[tuple[int, int]]) -> None:
    found = united(ranges)
    assert members(found) == members(ranges)
    assert in_order_and_apart(found)


@given(RANGES, st.lists(RANGES, max_size=8))
def test_without(whole: tuple[int, int], holes: list[tuple[int, int]]) -> None:
    found = without(whole, holes)
    assert members(found) == members([whole]) - members(holes)
    assert in_order_and_apart(found)


def blocks(version: int) -> st.SearchStrategy[BlockPeer]:
    bits = 32 if version == 4 else 128
    base = int(ipaddress.ip_address("10.0.0.0" if version == 4 else "fd00::"))
    network = st.builds(
        lambda offset, size: str(ipaddress.ip_network((base + offset, bits - size), strict=False)),
        st.integers(0, 31),
        st.integers(0, 6),
    )
    return st.builds(BlockPeer, network, st.lists(network, max_size=4).map(lambda some: tuple(sorted(set(some)))))


@given(st.integers(0, 1).flatmap(lambda six: st.tuples(st.just(6 if six else 4), st.lists(blocks(6 if six else 4)))))
def test_block_ranges_hold_what_the_blocks_hold(drawn: tuple[int, list[BlockPeer]]) -> None:
    version, some = drawn
    ranges = block_ranges(some, version)
    assert in_order_and_apart(ranges)
    base = int(ipaddress.ip_address("10.0.0.0" if version == 4 else "fd00::"))
    for number in range(base - 2, base + 100):
        address = ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)
        expected = any(
            address in ipaddress.ip_network(one.cidr)
            and not any(address in ipaddress.ip_network(hole) for hole in one.excepts)
            for one in some
        )
        assert any(first <= number <= last for first, last in ranges) == expected
        assert any(holds(one, str(address)) for one in some) == expected


def test_the_other_version_holds_nothing() -> None:
    four, six = BlockPeer("0.0.0.0/0", ()), BlockPeer("::/0", ())
    assert block_ranges([four], 6) == []
    assert block_ranges([six], 4) == []
    assert not holds(four, "::1")
    assert not holds(six, "1.2.3.4")


def test_the_ends_of_the_address_space() -> None:
    whole = 2**32 - 1
    assert block_ranges([BlockPeer("0.0.0.0/0", ())], 4) == [(0, whole)]
    assert block_ranges([BlockPeer("0.0.0.0/0", ("0.0.0.0/32", "255.255.255.255/32"))], 4) == [(1, whole - 1)]
    assert block_ranges([BlockPeer("0.0.0.0/1", ()), BlockPeer("128.0.0.0/1", ())], 4) == [(0, whole)]
    assert block_ranges([BlockPeer("10.0.0.0/8", ("10.0.0.0/8",))], 4) == []


def test_text() -> None:
    assert range_text((10, 10), 4) == "0.0.0.10"
    assert range_text((0, 255), 4) == "0.0.0.0-0.0.0.255"
    assert range_text((2**127, 2**127 + 1), 6) == "8000::-8000::1"
