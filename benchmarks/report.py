"""docs/benchmarks.md and its plots from the JSON of a run.

python -m benchmarks.report FILE
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from benchmarks.bed import ROOT
from benchmarks.svg import Bar, bars, short

DOCS = ROOT / "docs"
Figures = dict[str, Any]
"""Of one benchmark, as it writes them."""
LAB = "lab API server, 10000 pods"
HEAD = """# Benchmarks

Written by `make bench JSON=FILE` and `python -m benchmarks.report FILE`; every figure is of this one run. One of them:
`make bench NAME=convergence`; all in a few minutes, on smaller clusters: `make bench QUICK=1`. Each runs in network
namespaces of its own and leaves nothing behind.
"""


class Budget(Struct, frozen=True):
    """One line of what is promised."""

    what: str
    under: str
    bound: str
    measured: Callable[[dict[str, Figures]], tuple[str, bool]]
    """The figure as text, and whether it is within the bound. Raises KeyError where the run does not have it."""


def main() -> int:
    """Write everything; the exit status."""
    results = orjson.loads(Path(sys.argv[1]).read_bytes())
    plots = DOCS / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for old in plots.glob("*.svg"):
        old.unlink()
    names: dict[str, tuple[str, str]] = {}
    for name, figures in results["benchmarks"].items():
        for title, unit, rows in charts(name, figures):
            file = f"{name}-{len(names)}.svg"
            (plots / file).write_text(bars(title, unit, rows))
            names[file] = (name, title)
    (DOCS / "benchmarks.md").write_text("\n".join(page(results, names)))
    return 0


def page(results: dict[str, Any], plots: dict[str, tuple[str, str]]) -> Iterator[str]:
    """The lines of the document."""
    yield HEAD
    yield "## Machine\n"
    yield "| | |\n| --- | --- |"
    for name, value in results["machine"].items():
        yield f"| {name.replace('_', ' ')} | {value} |"
    yield "\n## Budgets\n"
    yield "| what | under | budget | measured | |\n| --- | --- | --- | --- | --- |"
    for budget in BUDGETS:
        yield verdict(budget, results["benchmarks"])
    for name, figures in results["benchmarks"].items():
        yield f"\n## {name}\n"
        yield about(name)
        yield from (f"![{title}](plots/{file})\n" for file, (of, title) in plots.items() if of == name)
        yield from tables(figures)
        yield f"\nTook {figures.get('took_s', 0):.0f} s."
    yield ""


def verdict(budget: Budget, benchmarks: dict[str, Figures]) -> str:
    """One line of the table of budgets."""
    try:
        text, met = budget.measured(benchmarks)
    except KeyError:
        text, outcome = "not measured in this run", ""
    else:
        outcome = "met" if met else "**missed**"
    return f"| {budget.what} | {budget.under} | {budget.bound} | {text} | {outcome} |"


def about(name: str) -> str:
    """The text at the top of a benchmark's module, without its usage."""
    text = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
    paragraphs = [part for part in text.strip().split("\n\n") if "benchmarks" not in part]
    return "\n\n".join(paragraphs) + "\n"


def tables(figures: Figures) -> Iterator[str]:
    """Everything that a benchmark wrote, as tables."""
    if "series" in figures:
        yield f"| {figures['unit']} | median | p95 | p99 | max | n |\n| --- | --: | --: | --: | --: | --: |"
        for name, one in figures["series"].items():
            cells = " | ".join(short(one[key]) for key in ("median", "p95", "p99", "max"))
            yield f"| {name} | {cells} | {one['samples']:.0f} |"
    for name, value in figures.items():
        if name in ("series", "unit", "units", "took_s"):
            continue
        title = name.replace("_", " ")
        if isinstance(value, dict) and value and all(isinstance(one, dict) for one in value.values()):
            yield f"\n**{title}**\n"
            yield from table([{"": key, **one} for key, one in value.items()])
        elif isinstance(value, dict):
            yield f"\n| {title} | |\n| --- | --: |"
            yield from (f"| {key} | {cell(one)} |" for key, one in value.items())
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"\n**{title}**\n"
            yield from table(value)
        elif isinstance(value, list):
            yield f"\n{title}: {', '.join(cell(one) for one in value)}"
        else:
            yield f"\n{title}: {cell(value)}"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Rows of plain data."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    yield "| " + " | ".join(key.replace("_", " ") for key in columns) + " |"
    yield "| " + " | ".join("---" for _ in columns) + " |"
    for row in rows:
        yield "| " + " | ".join(cell(row.get(key)) for key in columns) + " |"


def cell(value: Any) -> str:
    """Plain data, short."""
    if value is None:
        return ""
    if isinstance(value, float):
        return short(value) if value >= 0 else f"-{short(-value)}"
    return str(value)


def charts(name: str, figures: Figures) -> Iterator[tuple[str, str, list[Bar]]]:
    """What is drawn of a benchmark: title, unit, bars. A heading before a colon in names makes a chart."""
    series: dict[str, Any] = figures.get("series", {})
    groups: dict[str, list[Bar]] = {}
    for label, one in series.items():
        title, text = split(name, label)
        if title:
            groups.setdefault(title, []).append(Bar(text, one["median"], one["p99"]))
    for title, rows in groups.items():
        if any(row.value > 0 for row in rows):
            yield title, figures.get("units", {}).get(title, figures["unit"]), rows


def split(name: str, label: str) -> tuple[str, str]:
    """Chart and bar of a series; an empty chart for what is not drawn."""
    first, _, second = label.partition(": ")
    if not second:
        parts = label.split(", of it")
        return (name, label) if len(parts) == 1 else ("", "")
    return (first, second) if name == "datapath" else (second, first)


# Budgets


def series(name: str, label: str, key: str) -> Callable[[dict[str, Figures]], float]:
    """One figure."""
    return lambda benchmarks: float(benchmarks[name]["series"][label][key])


def below(
    unit: str, *parts: tuple[float, str, Callable[[dict[str, Figures]], float]]
) -> Callable[[dict[str, Figures]], tuple[str, bool]]:
    """All figures (bound, word, figure) within their bounds."""

    def measured(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
        found = [(limit, word, figure(benchmarks)) for limit, word, figure in parts]
        text = ", ".join(f"{word} {short(value)} {unit}".strip() for _, word, value in found)
        return text, all(value <= limit for limit, _, value in found)

    return measured


def cni(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
    """Ours beside the reference's, medians."""
    found = benchmarks["cni"]["series"]
    ours, theirs = (
        min(one["median"] for name, one in found.items() if name.startswith(plugin) and "ADD" in name)
        for plugin in ("netagent", "ptp")
    )
    return f"{ours:.1f} ms; ptp+host-local {theirs:.1f} ms", ours <= theirs


def throughput(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
    """Of bare forwarding."""
    found = benchmarks["datapath"]["ratios"]
    ratio = found["TCP throughput: netagent, 10000 policies"]["median"]
    chance = found["TCP throughput: no rules, again"]["median"]
    return f"{ratio:.1%} (bare forwarding again: {chance:.1%})", ratio >= 0.97


def connections(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
    """Of bare forwarding, and the spread over the numbers of policies."""
    found = benchmarks["datapath"]["ratios"]
    ratios = [found[f"TCP connections: netagent, {count} policies"]["median"] for count in (1, 100, 1000, 10_000)]
    tracking, chance = (found[f"TCP connections: {name}"]["median"] for name in ("conntrack only", "no rules, again"))
    spread = 1 - min(ratios) / max(ratios)
    text = f"{min(ratios):.1%} of bare, spread {spread:.1%} (conntrack alone {tracking:.1%}, bare again {chance:.1%})"
    return text, min(ratios) >= 0.9 and spread <= 0.05


def one_member(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
    """Of the largest grid."""
    one = benchmarks["dataplane"]["series"]["2000x100/2000x10 one member: netagent"]
    return f"p50 {one['median']:.3f} ms, p99 {one['p99']:.3f} ms", one["median"] <= 0.2


def routes(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
    """From empty, and one peer in."""
    rows = {row["work"]: row for row in benchmarks["routes"]["routes"] if row["peers"] == 5000}
    empty, one = rows["from empty"], rows["one in"]
    text = f"{empty['median_ms'] / 1e3:.2f} s ({empty['cpu_median_ms'] / 1e3:.2f} s CPU) / {one['median_ms']:.1f} ms"
    return text, empty["median_ms"] <= 1000 and one["median_ms"] <= 20


def restart(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
    """Packets lost and leaked over all restarts."""
    found = benchmarks["coldstart"]["restart"].values()
    lost, leaked = (sum(one[word] for one in found) for word in ("lost", "leaked"))
    return f"{lost} lost, {leaked} leaked", not lost and not leaked


def growth(benchmarks: dict[str, Figures]) -> tuple[str, bool]:
    """Over the cycles after warm-up."""
    value = benchmarks["memory"]["growth_percent"]
    return f"{value:.2f} %", value < 2


def at(label: str, key: str) -> Callable[[dict[str, Figures]], float]:
    """One figure of convergence at 10k pods."""
    return series("convergence", f"{LAB}, {label}", key)


COMMIT, PACKET = "watch event -> commit", "API answer -> first packet"
SIZE = "10k pods, 1k policies, 110 local pods"
BUDGETS = (
    Budget(
        "watch event → kernel commit",
        f"{SIZE}, idle",
        "p50 5 ms, p99 25 ms",
        below("ms", (5, "p50", at(f"idle: {COMMIT}", "median")), (25, "p99", at(f"idle: {COMMIT}", "p99"))),
    ),
    Budget(
        "the same",
        "under 200 pod events/s",
        "p99 100 ms",
        below("ms", (100, "p99", at(f"200 events/s: {COMMIT}", "p99"))),
    ),
    Budget(
        "API write → first packet obeys",
        f"{SIZE}, idle",
        "p99 50 ms",
        below("ms", (50, "p99", at(f"idle: {PACKET}", "p99"))),
    ),
    Budget("one set member", "2000 sets x 100, 2000 chains x 10 rules", "0.2 ms", one_member),
    Budget(
        "start → synced and enforced",
        "10k pods, 1k policies",
        "2 s",
        below("ms", (2000, "", series("coldstart", "10000 pods, start -> first packet obeys", "median"))),
    ),
    Budget("packets lost or leaked by a restart", "1k to 50k pods", "none", restart),
    Budget(
        "memory (RSS)",
        "10k / 100k pods",
        "120 MB / 300 MB",
        below(
            "MB",
            (120, "", series("memory", "10000 pods", "median")),
            (300, "", series("memory", "100000 pods", "median")),
        ),
    ),
    Budget("growth of memory", "20 cycles of 10k pods", "< 2 %", growth),
    Budget("CNI ADD", "110 pods on the node", "ptp+host-local, same run", cni),
    Budget("TCP throughput, established", "10k policies, of bare forwarding", ">= 97 %", throughput),
    Budget("new connections/s", "1 to 10k policies", "flat within 5 %, >= 90 % of bare", connections),
    Budget("routes", "5k peers from empty / one peer", "1 s / 20 ms", routes),
)


if __name__ == "__main__":
    sys.exit(main())
