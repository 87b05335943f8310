"""Documents that are made from the code are as the code would make them."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

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


def test_every_alert_has_a_section_in_the_runbook_and_no_other() -> None:
    rules = yaml.safe_load((ROOT / "manifests/monitoring/alerts.yaml").read_text())
    alerts = [rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    sections = [line[4:] for line in (ROOT / "docs/operate.md").read_text().splitlines() if line.startswith("### ")]
    assert sections == alerts


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())]
    local = [(page, link) for page, link in links if "://" not in link]
    assert local
    assert [f"{page.name}: {link}" for page, link in local if not (page.parent / link).exists()] == []
