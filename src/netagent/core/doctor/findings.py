"""What an examination of a node found: one finding per question, with what it means and what to do."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from netagent.printable import one_line

Level = Literal["ok", "info", "unknown", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "info", "unknown", "warning", "error")
"""From good to bad. info: worth knowing, nothing to do; unknown: it could not be looked at."""
EXIT_STATUS = {"ok": 0, "info": 0, "unknown": 1, "warning": 1, "error": 2}
"""By the worst level that was found."""


class Finding(Struct, frozen=True, gc=False):
    """The answer to one question."""

    id: str
    """Stable, e.g. `kernel.vxlan`: the part before the dot is the area."""
    level: Level
    found: str
    """What is there."""
    means: str = ""
    """What follows from it for pods and policy; empty where all is well."""
    todo: str = ""
    """What to do; empty where there is nothing."""


def unknown(name: str, found: str, todo: str) -> Finding:
    """A question that could not be answered."""
    return Finding(name, "unknown", found, "Whether all is well there is not known.", todo)


def worst(findings: Iterable[Finding]) -> Level:
    """Of all levels that occur."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def exit_status(findings: Iterable[Finding]) -> int:
    """0: nothing to do. 1: warnings, or something could not be looked at. 2: errors."""
    return EXIT_STATUS[worst(findings)]


def text(findings: Iterable[Finding], *, every: bool = False) -> str:
    """Worst first, with what to do; `every`: those that are well too, one line each."""
    found = sorted(findings, key=lambda one: -LEVELS.index(one.level))
    shown = [one for one in found if every or one.level != "ok"]
    counts = [f"{number} {level}" for level in reversed(LEVELS) if (number := _count(found, level))]
    return "".join(map(_lines, shown)) + ", ".join(counts) + "\n"


def _count(findings: Iterable[Finding], level: Level) -> int:
    return sum(one.level == level for one in findings)


def _lines(one: Finding) -> str:
    rest = "".join(f"{'':9}{one_line(line)}\n" for line in (one.means, f"-> {one.todo}" if one.todo else "") if line)
    return one_line(f"{one.level:<8} {one.id}: {one.found}") + f"\n{rest}"
