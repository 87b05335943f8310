"""The generation stamp in the conntrack mark: which bits, which value, what comes next.

Value 0 means never judged. A flow whose mark carries the current value passes without a look at the rules; any other
value means that it is judged again.
"""

from msgspec import Struct


class Stamp(Struct, frozen=True, gc=False):
    """A generation as it stands in the masked bits of a mark."""

    mask: int
    value: int
    """1 to the largest the mask holds."""

    @property
    def mark(self) -> str:
        """As a rule writes it."""
        return f"{self.value << self._shift:#010x}"

    @property
    def last(self) -> bool:
        """Whether the next one starts over: marks of long ago must be gone by then."""
        return self.value >= self.mask >> self._shift

    def next(self) -> "Stamp":
        """The generation after this one."""
        return Stamp(self.mask, 1 if self.last else self.value + 1)

    @property
    def _shift(self) -> int:
        return (self.mask & -self.mask).bit_length() - 1


def after_kernel(mask: int, mark: int | None, chosen: int) -> Stamp:
    """The first generation of a run: the one after what the kernel accepts, or `chosen` where it has none.

    A table that was deleted leaves its marks in conntrack, so `chosen` should not be the same in every run.
    """
    shift = (mask & -mask).bit_length() - 1
    largest = mask >> shift
    if mark is not None and mark & mask:
        return Stamp(mask, (mark & mask) >> shift).next()
    return Stamp(mask, 1 + chosen % largest)
