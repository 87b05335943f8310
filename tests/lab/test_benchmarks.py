"""Benchmarks run, and a page is made of what they write."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("compiler", "bulk")
"""One without a kernel; one with an API server, a whole agent and its pods."""
PAGE_TITLES = ("# Benchmarks", "## Machine", "## Budgets", *(f"## {name}" for name in NAMES))

pytestmark = pytest.mark.lab


def module(name: str, *arguments: str) -> str:
    """Output of a module of the benchmarks."""
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    output = module("benchmarks", *NAMES, "--quick", "--json", str(file))
    assert "== took" in output
    return file


def test_each_writes_its_series(figures: Path) -> None:
    results: dict[str, Any] = orjson.loads(figures.read_bytes())
    assert results["quick"] is True
    assert results["machine"]["cores"] >= 1
    assert set(results["benchmarks"]) == set(NAMES)
    for name, one in results["benchmarks"].items():
        assert one["series"], name
        for label, found in one["series"].items():
            assert found["samples"] > 0, label
            assert 0 <= found["median"] <= found["p95"] <= found["max"], label
            assert found["median"] > 0 or label.endswith("stall"), label


def test_the_page_has_all_of_it(figures: Path, tmp_path: Path) -> None:
    module("benchmarks.report", str(figures), str(tmp_path))
    page = (tmp_path / "benchmarks.md").read_text()
    lines = page.splitlines()
    assert all(title in lines for title in PAGE_TITLES)
    (policies,) = (line for line in lines if line.startswith("| policy change → commit beside bulk work |"))
    assert policies.split("|")[5].strip().startswith(("met", "**missed**"))
    (datapath,) = (line for line in lines if line.startswith("| new connections/s |"))
    assert "not measured in this run" in datapath
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn
    assert all(f"(plots/{name})" in page for name in drawn)
    assert page.count("![") == len(drawn)


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nosuch"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no benchmark nosuch; there are" in done.stderr
