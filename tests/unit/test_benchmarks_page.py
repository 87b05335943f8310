"""The page of benchmarks is made of the figures beside it, and every promise is judged by one of them."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, made anew."""
    directory = tmp_path_factory.mktemp("page")
    command = [sys.executable, "-m", "benchmarks.report", str(DOCS / "benchmarks.json"), str(directory)]
    subprocess.run(command, cwd=ROOT, check=True)
    return directory


def test_the_page_is_current(made: Path) -> None:
    assert (DOCS / "benchmarks.md").read_text() == (made / "benchmarks.md").read_text(), (
        "run: python -m benchmarks.report docs/benchmarks.json"
    )
    assert names(DOCS / "plots") == names(made / "plots")


def test_every_promise_was_measured(made: Path) -> None:
    assert "not measured" not in (made / "benchmarks.md").read_text()


def test_a_page_in_docs_is_of_a_whole_run_only(tmp_path: Path) -> None:
    results = orjson.loads((DOCS / "benchmarks.json").read_bytes())
    del results["benchmarks"]["routes"]
    (tmp_path / "part.json").write_bytes(orjson.dumps(results))
    before = (DOCS / "benchmarks.md").stat().st_mtime_ns
    command = [sys.executable, "-m", "benchmarks.report", str(tmp_path / "part.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "lacks routes: docs/ is as it was" in done.stderr
    assert (DOCS / "benchmarks.md").stat().st_mtime_ns == before


def names(directory: Path) -> list[str]:
    """Of its files."""
    return sorted(path.name for path in directory.iterdir())
