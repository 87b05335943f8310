"""Run benchmarks and write their figures down.

python -m benchmarks [NAME ...] [--quick] [--json FILE [--again]]
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.bed import ROOT

NAMES = (
    "apply",
    "convergence",
    "coldstart",
    "dataplane",
    "compiler",
    "datapath",
    "cni",
    "routes",
    "memory",
    "cpu",
    "bulk",
)
"""Modules of this package, each runnable alone with --quick and --json."""


LONGEST_S = 1800
"""None takes half of it; one that hangs is ended with all that it started."""


def main() -> int:
    """Run what is asked for, one after the other; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--again", action="store_true", help="figures of other benchmarks that FILE has stay")
    options = parser.parse_args()
    if options.again and not (options.json and Path(options.json).exists()):
        parser.error("--again needs --json with the file of an earlier run")
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    results: dict[str, Any] = {"machine": machine(), "quick": options.quick, "benchmarks": {}}
    if options.again:
        before = orjson.loads(Path(options.json).read_bytes())
        results = {**before, "failed": [name for name in before.get("failed", ()) if name not in options.names]}
    commit = machine()["commit"]
    took_s: dict[str, float] = {}
    failed = []
    for name in options.names:
        print(f"\n== {name}", flush=True)
        begin_s, load = time.monotonic(), os.getloadavg()[0]
        figures = run(name, quick=options.quick)
        took_s[name] = round(time.monotonic() - begin_s, 1)
        if figures is None:
            failed.append(name)
            results["failed"] = [*results.get("failed", ()), name]
        else:
            results["benchmarks"][name] = figures | {"commit": commit, "load_before": load, "took_s": took_s[name]}
        if options.json:  # what there is, in case that a later one never ends
            Path(options.json).write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    print("\n== took")
    for name, one_s in {**took_s, "all": sum(took_s.values())}.items():
        print(f"{name:12}{one_s:8.1f} s" + ("  failed" if name in failed else ""))
    return 1 if failed else 0


def run(name: str, *, quick: bool) -> dict[str, Any] | None:
    """One benchmark in a process of its own; None where it failed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", file.name, *(["--quick"] if quick else [])]
        try:
            subprocess.run(command, check=True, timeout=LONGEST_S)
        except subprocess.SubprocessError as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            return None
        figures: dict[str, Any] = orjson.loads(Path(file.name).read_bytes())
        return figures


def machine() -> dict[str, Any]:
    """Where and of what the figures are."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpu": model,
        "cores": sum(line.startswith("processor") for line in _lines("/proc/cpuinfo")),
        "memory_gb": round(int(memory) / 1e6, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nftables": said("nft", "--version"),
        "iptables": said("iptables", "--version"),
        "ipset": said("ipset", "--version"),
        "iperf3": said("iperf3", "--version"),
        "reference_plugins": said("dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins"),
        "kube_apiserver": said(str(Path(os.environ.get("KUBEBUILDER_ASSETS", "/")) / "kube-apiserver"), "--version"),
        "commit": said("git", "describe", "--always", "--dirty", "--exclude", "*"),
    }


def said(*command: str) -> str:
    """First line of a program's output; "none" where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return done.stdout.strip().partition("\n")[0]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


if __name__ == "__main__":
    raise SystemExit(main())
