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

    @property
    def bits(self) -> int:
        """As it stands in a mark."""
        return self.value << self._shift

    def next(self) -> "Stamp":
        """The generation after this one."""
        return Stamp(self.mask, 1 if self.last else self.value + 1)

    @property
    def _shift(self) -> int:
        return (self.mask & -self.mask).bit_length() - 1


def of_kernel(mask: int, mark: int | None) -> Stamp | None:
    """The generation that the kernel accepts; None where it accepts none."""
    if mark is None or not mark & mask:
        return None
    return Stamp(mask, (mark & mask) // (mask & -mask))


def must_clear(current: Stamp | None, coming: Stamp) -> bool:
    """Whether open flows must lose all stamps but the current one before the coming one is in force.

    So twice in a cycle, once at its start and once in the middle: what is spared the one time, being current, is not
    current the other time. Where nobody knows what was in force, any stamp may be an old one.
    """
    if current is None or coming.value < current.value:
        return True
    middle = (1 + (coming.mask // (coming.mask & -coming.mask))) // 2
    return current.value < middle <= coming.value
