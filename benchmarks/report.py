"""docs/benchmarks.md, its plots and its JSON from the JSON of a whole run; of any run where a directory is named.

python -m benchmarks.report FILE [DIRECTORY]
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from benchmarks.__main__ import NAMES
from benchmarks.bed import ROOT
from benchmarks.budgets import BUDGETS, LAB, Budget, Figures, Run
from benchmarks.stats import P99_SAMPLES
from benchmarks.svg import Bar, bars, short

DOCS = ROOT / "docs"
HEAD = """# Benchmarks

Written by `make bench JSON=FILE` and `python -m benchmarks.report FILE`; every figure is of this one run (a benchmark
that was run again, with `--again`, tells its own commit), and stands in [benchmarks.json](benchmarks.json) too. One of
them: `make bench NAME=convergence`; all in about three minutes, on smaller clusters: `make bench QUICK=1`. Each runs in
namespaces of its own and leaves nothing behind. Where `KUBEBUILDER_ASSETS` names the directory of kube-apiserver and
etcd, they are measured against too. Of fewer than 100 samples no p99 is told, only the largest.
"""
QUICK = """Of a quick run: smaller clusters than the table of budgets says, few samples.
"""
FOLDED = 12
"""Tables of more rows are folded."""


def main() -> int:
    """Write everything; the exit status."""
    results = orjson.loads(Path(sys.argv[1]).read_bytes())
    docs = Path(sys.argv[2]) if len(sys.argv) > 2 else DOCS
    missing = sorted(set(NAMES) - set(results["benchmarks"]))
    if docs == DOCS and (missing or results["quick"]):
        what = f"lacks {', '.join(missing)}" if missing else "is of a quick run"
        raise SystemExit(f"{sys.argv[1]} {what}: docs/ is as it was. Name a directory for a page of it.")
    plots = docs / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for old in plots.glob("*.svg"):
        old.unlink()
    names: dict[str, tuple[str, str]] = {}
    for name, figures in in_order(results["benchmarks"]):
        for number, (title, unit, rows) in enumerate(charts(name, figures)):
            file = f"{name}-{number}.svg"
            (plots / file).write_text(bars(title, unit, rows))
            names[file] = (name, title)
    (docs / "benchmarks.md").write_text("\n".join(page(results, names)))
    (docs / "benchmarks.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def page(results: dict[str, Any], plots: dict[str, tuple[str, str]]) -> Iterator[str]:
    """The lines of the document."""
    yield HEAD
    if results.get("quick"):
        yield QUICK
    if results.get("failed"):
        yield f"Failed in this run: {', '.join(results['failed'])}.\n"
    yield "## Machine\n"
    yield "| | |\n| --- | --- |"
    for name, value in results["machine"].items():
        yield f"| {name.replace('_', ' ')} | {value} |"
    yield "\n## Budgets\n"
    yield "| what | under | budget | measured | |\n| --- | --- | --- | --- | --- |"
    for budget in BUDGETS:
        yield verdict(budget, results["benchmarks"])
    for name, figures in in_order(results["benchmarks"]):
        yield f"\n## {name}\n"
        yield about(name)
        yield from (f"![{title}](plots/{file})\n" for file, (of, title) in plots.items() if of == name)
        yield from tables(figures)
        took_s, load = figures.get("took_s", 0), figures.get("load_before", 0)
        yield f"\nTook {took_s:.0f} s at commit {figures.get('commit', '?')}; load of the machine before it {load:.1f}."
    yield ""


def in_order(run: Run) -> list[tuple[str, Figures]]:
    """By name, in the order in which all of them run."""
    return [(name, run[name]) for name in NAMES if name in run]


def verdict(budget: Budget, run: Run) -> str:
    """One line of the table of budgets."""
    try:
        text, met = budget.measured(run)
    except KeyError:
        text, outcome = "not measured in this run", ""
    else:
        outcome = "met" if met else f"**missed**. {budget.why(run) if budget.why else ''}"
    return f"| {budget.what} | {budget.under} | {budget.bound} | {text} | {outcome.strip()} |"


def about(name: str) -> str:
    """The text at the top of a benchmark's module, without its usage."""
    text = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
    paragraphs = [part for part in text.strip().split("\n\n") if "benchmarks" not in part]
    return "\n\n".join(paragraphs) + "\n"


def tables(figures: Figures) -> Iterator[str]:
    """Everything that a benchmark wrote, as tables."""
    if "series" in figures:
        yield from folded(list(summaries(figures)), len(figures["series"]))
    for name, value in figures.items():
        if name in ("series", "unit", "units", "took_s", "load_before", "commit"):
            continue
        title = name.replace("_", " ")
        if isinstance(value, dict) and value and all(isinstance(one, dict) for one in value.values()):
            yield f"\n**{title}**\n"
            yield from folded(list(table([{"": key, **one} for key, one in value.items()])), len(value))
        elif isinstance(value, dict):
            yield ""
            head = f"| {title} | |\n| --- | --: |"
            yield from folded([head, *(f"| {key} | {cell(one)} |" for key, one in value.items())], len(value))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"\n**{title}**\n"
            yield from folded(list(table(value)), len(value))
        elif isinstance(value, list):
            yield f"\n{title}: {', '.join(cell(one) for one in value)}"
        else:
            yield f"\n{title}: {cell(value)}"


def summaries(figures: Figures) -> Iterator[str]:
    """A row for each series; p99 only of samples enough."""
    yield f"| {figures['unit']} | median | p95 | p99 | max | n |\n| --- | --: | --: | --: | --: | --: |"
    for name, one in figures["series"].items():
        known = one if one["samples"] >= P99_SAMPLES else {**one, "p99": None}
        cells = " | ".join(cell(known[key]) for key in ("median", "p95", "p99", "max"))
        yield f"| {name} | {cells} | {one['samples']:.0f} |"


def folded(lines: list[str], rows: int) -> Iterator[str]:
    """A table, to be opened where it is long."""
    if rows <= FOLDED:
        yield from lines
    else:
        yield f"<details><summary>All figures: {rows} rows</summary>\n"
        yield from lines
        yield "\n</details>"


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
    if name == "datapath":
        return first, second
    if name == "dataplane":
        size, _, work = first.partition(" ")
        return ("", "") if second.endswith("CPU") else (work, f"{size} {second}")
    if name == "convergence" and first.count(", ") > 2:
        where, _, change = first.rpartition(", ")
        return (f"{second}, by change, {where}", change) if where == f"{LAB}, idle" else ("", "")
    return second, first


if __name__ == "__main__":
    sys.exit(main())
