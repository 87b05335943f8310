"""Bar charts as SVG text, without a library."""

from collections.abc import Iterator, Sequence
from html import escape

from msgspec import Struct

WIDTH, ROW, LABELS, VALUES, HEAD = 860, 24, 380, 90, 44
"""Pixels: of the picture, of a bar's row, of the column of labels, of that of values, of the heading."""
BAR, TAIL = "#3b6ea5", "#9bb9d6"


class Bar(Struct, frozen=True):
    """One series."""

    label: str
    value: float
    """The median."""
    tail: float
    """Its p99, drawn behind the bar where it is longer."""


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """A picture of horizontal bars from zero; those of p99 that are far longer than any median are cut off."""
    room = WIDTH - LABELS - VALUES
    longest = max(row.value for row in rows)
    end = min(max(max(row.value, row.tail) for row in rows), 2.5 * longest) or 1.0
    height = HEAD + ROW * len(rows) + 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="8" y="18" font-size="14" font-weight="bold">{escape(title)}</text>'
        f'<text x="8" y="35" fill="#555">{escape(unit)}; dark: median, light: p99 (of few samples, the largest)</text>'
    )
    return head + "".join(_rows(rows, room / end, room)) + "</svg>\n"


def _rows(rows: Sequence[Bar], scale: float, room: float) -> Iterator[str]:
    for index, row in enumerate(rows):
        top = HEAD + index * ROW
        yield f'<text x="{LABELS - 8}" y="{top + 15}" text-anchor="end">{escape(row.label)}</text>'
        for colour, value, inset in ((TAIL, row.tail, 6), (BAR, row.value, 3)):
            length = min(room, value * scale)
            yield (
                f'<rect x="{LABELS}" y="{top + inset}" width="{length:.1f}" height="{ROW - 2 * inset}" '
                f'fill="{colour}"/>'
            )
        yield f'<text x="{WIDTH - VALUES + 8}" y="{top + 15}">{short(row.value)}</text>'


def short(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
