"""The generation stamp: its bits, its order, its end."""

import pytest

from netagent.core.generation import Stamp, after_kernel

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
def test_a_new_run_goes_on_after_what_the_kernel_accepts(mask: int) -> None:
    stamp = Stamp(mask, 3)
    assert after_kernel(mask, int(stamp.mark, 16), chosen=0) == stamp.next()
    assert after_kernel(mask, int(stamp.mark, 16) | (~mask & 0xFFFFFFFF), chosen=0) == stamp.next()
    largest = mask >> (mask & -mask).bit_length() - 1
    assert after_kernel(mask, int(Stamp(mask, largest).mark, 16), chosen=5) == Stamp(mask, 1)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mark", [None, 0])
def test_without_a_table_the_chosen_value_is_used_and_never_zero(mask: int, mark: int | None) -> None:
    largest = mask >> (mask & -mask).bit_length() - 1
    for chosen in (0, 1, largest - 1, largest, largest + 1, 2**70):
        assert 1 <= after_kernel(mask, mark, chosen).value <= largest
    assert after_kernel(mask, mark, 0) != after_kernel(mask, mark, 1)
