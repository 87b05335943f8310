"""Runs NetworkPolicy cases with real connections: `make netpol DIR=<directory> [CASES=<id or tag>]`.

The directory holds `clusters.json` and `cases/*.json`. Several labs run in parallel, each plays one case
after the other.
The last line is `N passed, N failed, N skipped`.
"""

import argparse
import asyncio
import sys
import time
import traceback
from pathlib import Path

from netagent.lab.cluster import Lab
from netagent.lab.plan import Settings
from netpol.model import Object, load, node_count
from netpol.player import Outcome, Player

JOBS = 4
"""Labs at once; each waits most of the time, for denied connections to stay unanswered."""


LEFT_OUT = {
    "anp": "AdminNetworkPolicy is not enforced yet",
    "cnp": "ClusterNetworkPolicy is not enforced yet",
}
"""Tag -> why such a case is not played."""


class Run:
    """Cases waiting, and what became of the others."""

    def __init__(self, cases: list[Object]) -> None:
        self.waiting = sorted(cases, key=lambda case: len(case["cluster"].get("families", [4])))
        self.nodes = max([2, *(node_count(case["cluster"], case["steps"]) for case in cases)])
        self.passed = self.failed = self.skipped = self.probes = 0

    async def work(self) -> None:
        """One lab after the other, each as long as cases fit it."""
        while self.waiting:
            families = _families(self.waiting[0])
            async with Lab(Settings(nodes=self.nodes, families=families)) as lab:
                while self.waiting and _families(self.waiting[0]) == families:
                    case = self.waiting.pop(0)
                    if not await self._play(lab, case):
                        break

    async def _play(self, lab: Lab, case: Object) -> bool:
        """Play one; whether the lab is good for another."""
        for tag, reason in LEFT_OUT.items():
            if tag in case["tags"]:
                self.skipped += 1
                print(f"skipped {case['id']}: {reason}")
                return True
        begin_s = time.monotonic()
        try:
            outcome = await Player(lab, case).play()
        except Exception:
            self.failed += 1
            print(f"FAILED  {case['id']}: could not be played\n{traceback.format_exc()}", flush=True)
            return False
        self.probes += outcome.probes
        self._report(case, outcome, time.monotonic() - begin_s)
        return True

    def _report(self, case: Object, outcome: Outcome, took_s: float) -> None:
        if not outcome.mismatches:
            self.passed += 1
            print(f"passed  {case['id']} ({outcome.probes} probes, {took_s:.1f} s)", flush=True)
            return
        self.failed += 1
        print(f"FAILED  {case['id']}: {case['title']}")
        for wrong in outcome.mismatches:
            expected = "allowed" if wrong.cell.allowed else "denied"
            print(f"  step {wrong.step}: {wrong.cell}: expected {expected}, got {wrong.got}")
            for line in wrong.explanation.splitlines():
                print(f"    | {line}")
        sys.stdout.flush()


def _families(case: Object) -> tuple[int, ...]:
    return tuple(case["cluster"].get("families", [4]))


async def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cases", default="", help="an id or a tag")
    parser.add_argument("--jobs", type=int, default=JOBS)
    options = parser.parse_args()
    cases = load(options.directory, options.cases)
    run, begin_s = Run(cases), time.monotonic()
    await asyncio.gather(*(run.work() for _ in range(min(options.jobs, len(cases)))))
    print(f"{len(cases)} cases, {run.probes} probes in {time.monotonic() - begin_s:.0f} s")
    print(f"{run.passed} passed, {run.failed} failed, {run.skipped} skipped")
    return 1 if run.failed or not run.passed + run.skipped else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
