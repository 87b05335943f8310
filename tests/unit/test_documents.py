"""Documents that are made from the code are as the code would make them."""

import subprocess
import sys
from pathlib import Path

from netagent.metrics import Metrics

ROOT = Path(__file__).parents[2]


def test_the_configuration_reference_is_current() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts/config-reference"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs/configuration.md").read_text() == made, "run: scripts/config-reference > docs/configuration.md"


def test_every_metric_is_documented_and_no_other() -> None:
    documented = {line.split("`")[1] for line in (ROOT / "docs/metrics.md").read_text().splitlines() if "| `" in line}
    suffix = {"counter": "_total", "info": "_info"}
    exposed = {metric.name + suffix.get(metric.type, "") for metric in Metrics().registry.collect()}
    assert documented == exposed
