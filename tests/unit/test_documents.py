"""Documents that are made from the code are as the code would make them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_configuration_reference_is_current() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts/config-reference"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs/configuration.md").read_text() == made, "run: scripts/config-reference > docs/configuration.md"
