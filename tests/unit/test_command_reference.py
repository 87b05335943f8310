"""docs/commands.md is what the command line says of itself."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
AREAS = (
    *("agent", "api", "checksum", "clock", "cni", "config", "conntrack", "firewall", "kernel", "libnftables"),
    *("links", "mtu", "network", "node", "process", "state", "sysctl"),
)
"""What the ids of findings begin with."""


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


def test_every_finding_of_doctor_is_documented_and_no_other() -> None:
    named = re.compile(r'[^\w"]f?"((?:' + "|".join(AREAS) + r')\.[\w{}]+)"')
    sources = [*(ROOT / "src/netagent/core").rglob("*checks.py"), *(ROOT / "src/netagent/commands/doctor").glob("*.py")]
    used = {name for source in sources for name in named.findall(source.read_text())}
    used |= {"kernel.*", "sysctl.forwarding4", "sysctl.forwarding6"}
    used -= {"kernel.{name}", "kernel.features", "sysctl.forwarding{family}"}
    table = (ROOT / "docs/doctor.md").read_text().partition("| id |")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([^`]+)`", "".join(rows))) == used
