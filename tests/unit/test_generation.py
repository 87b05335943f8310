"""The generation stamp: its bits, its order, its end."""

import pytest

from netagent.core.policy.generation import Stamp, must_clear, of_kernel

MASKS = [0xFFFF0000, 0xF, 0x000FF000, 0xF0000000, 0xFFFFFFFF]


@pytest.mark.parametrize("mask", MASKS)
def test_never_zero_and_within_the_mask(mask: int) -> None:
    largest = mask >> (mask & -mask).bit_length() - 1
    for value in (1, 2, largest - 1, largest):
        stamp = Stamp(mask, value)
        assert int(stamp.mark, 16) & ~mask == 0
        assert int(stamp.mark, 16) != 0
        assert stamp.last == (value == largest)
    assert Stamp(mask, largest).next() == Stamp(mask, 1)
    assert Stamp(mask, 1).next() == Stamp(mask, 2)


def test_all_values_come_before_one_returns() -> None:
    stamp, seen = Stamp(0xF0, 1), []
    for _ in range(15):
        seen.append(stamp.mark)
        stamp = stamp.next()
    assert len(set(seen)) == 15
    assert stamp.mark == seen[0]


@pytest.mark.parametrize("mask", MASKS)
def test_what_the_kernel_accepts_is_read_from_its_mark(mask: int) -> None:
    stamp = Stamp(mask, 3)
    assert of_kernel(mask, stamp.bits) == stamp
    assert of_kernel(mask, stamp.bits | (~mask & 0xFFFFFFFF)) == stamp
    assert of_kernel(mask, None) is None
    assert of_kernel(mask, 0) is None


def test_where_nobody_knows_what_was_in_force_all_stamps_go() -> None:
    assert must_clear(None, Stamp(0xF0, 1))
    assert must_clear(None, Stamp(0xF0, 7))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_no_silent_flow_meets_its_value_again(step: int) -> None:
    """Flows stamped at every moment, and while stamps are cleared; none of them sends again for three cycles."""
    current = Stamp(0xF0, 1)
    silent: set[tuple[int, int]] = set()
    for moment in range(3 * 15):
        coming = current
        for _ in range(step):
            coming = coming.next()
        silent.add((moment, current.bits))
        if must_clear(current, coming):
            silent = {(when, bits) for when, bits in silent if bits == current.bits}
            silent.add((moment, current.bits))
        current = coming
        assert current.bits not in {bits for _, bits in silent}
