"""docs/commands.md is what the command line says of itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_command_reference_is_current() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts/command-reference"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs/commands.md").read_text() == made, "run: scripts/command-reference > docs/commands.md"


def test_every_example_is_shown() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    examples = sorted((ROOT / "docs/examples").glob("*.txt"))
    assert examples
    assert [one.name for one in examples if f"    {one.read_text().splitlines()[0]}\n" not in page] == []
