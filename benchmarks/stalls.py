"""The traced agent with meters of its event loop and of bulk work: `python -m benchmarks.stalls FILE agent ...`.

A task wakes each millisecond; how much later than that it runs is how long nothing else could have run either. Turns
that were late by STALL_MS or more go to FILE.stalls, a line each: when the turn was over (monotonic seconds), by how
much it was late (ms). To FILE.bulk goes a line (monotonic seconds) for each slice of a list that is delivered, and for
each portion of work that is not the last.
"""

import asyncio
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.traced import Stopwatches
from netagent import cli
from netagent.agent.dataplane import sync
from netagent.app import Agent
from netagent.kube.reflector import LIST_SLICE, Reflector

PERIOD_S = 0.001
STALL_MS = 1.0


async def meter(path: Path) -> None:
    """Until cancelled."""
    with path.open("ab", buffering=0) as output:
        while True:
            due_s = time.monotonic() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            now_s = time.monotonic()
            late_ms = (now_s - due_s) * 1e3
            if late_ms >= STALL_MS:
                output.write(b"%.6f %.3f\n" % (now_s, late_ms))


def attach_bulk(output: BinaryIO) -> None:
    """Bulk work tells of itself."""
    give_way, round_ = Reflector._give_way, sync.Dataplane._round

    async def giving_way(reflector: Reflector, index: int) -> None:
        if index % LIST_SLICE == LIST_SLICE - 1:
            output.write(b"%.6f\n" % time.monotonic())
        await give_way(reflector, index)

    async def rounding(plane: sync.Dataplane) -> None:
        await round_(plane)
        if plane._backlog:
            output.write(b"%.6f\n" % time.monotonic())

    setattr(Reflector, "_give_way", giving_way)  # noqa: B010
    setattr(sync.Dataplane, "_round", rounding)  # noqa: B010


def attach(path: Path) -> None:
    """Every agent of this process runs the meter too."""
    tasks = Agent.tasks

    def metered(agent: Agent) -> dict[str, Coroutine[Any, Any, Any]]:
        return {**tasks(agent), "stall meter": meter(path)}

    Agent.tasks = metered  # type: ignore[assignment, method-assign]


def main() -> int:
    """Run the agent with stopwatches and meter."""
    path, *arguments = sys.argv[1:]
    with open(path, "ab", buffering=0) as output, open(f"{path}.bulk", "ab", buffering=0) as bulk:
        Stopwatches(output).attach()
        attach(Path(f"{path}.stalls"))
        attach_bulk(bulk)
        return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
