"""The agent with stopwatches: `python -m benchmarks.traced FILE agent ...` is `netagent agent ...`, a line per commit.

A commit is described by the seconds that its parts took (`decode`, `store`, `compile` since the commit before it, of
all changes; `diff`, `commit` of its own), by when its transaction began and when it ended (`running_s`, `done_s`,
monotonic) and by the changes it covers whose object is named `probe...`: kind, name, when its bytes had arrived, when
it was in the store; one of the whole table also by what it holds. Commits without a transaction are written down only
where they cover such a change.
"""

import functools
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO

import orjson

from netagent import cli
from netagent.agent.dataplane import sync
from netagent.core.policy.compiler import Compiler
from netagent.core.policy.ruleset import Ruleset
from netagent.kube import decode
from netagent.records import Change, Kind, Listed, Upserted

MARKED = "probe"
Spent = defaultdict[str, float]


class Stopwatches:
    """Time spent since the last commit, by stage."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._spent: Spent = defaultdict(float)
        self._marks: list[dict[str, Any]] = []
        self._whole = False
        self._transactions = 0
        self._compiling_s = 0.0
        self._running_s = 0.0

    def attach(self) -> None:
        """Wrap the agent's functions."""
        decode.record = self._timed("decode", decode.record)
        Compiler.update = self._compile(Compiler.update)  # type: ignore[method-assign]
        setattr(Compiler, "read", self._timed("compile", Compiler.read))  # noqa: B010
        for name in ("take", "whole"):
            setattr(Ruleset, name, self._timed("diff", getattr(Ruleset, name)))
        for name in ("render", "replacement", "small"):
            setattr(sync, name, self._timed("diff", getattr(sync, name)))
        sync.Dataplane.apply = self._apply(sync.Dataplane.apply)  # type: ignore[method-assign]
        setattr(sync.Dataplane, "_run", self._run(sync.Dataplane._run))  # noqa: B010
        setattr(sync.Dataplane, "_commit", self._commit(sync.Dataplane._commit))  # noqa: B010

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **more: Any) -> Any:
            began_s = time.monotonic()
            try:
                return function(*arguments, **more)
            finally:
                self._spent[stage] += time.monotonic() - began_s

        return timed

    def _compile(self, update: Callable[..., None]) -> Callable[..., None]:
        timed = self._timed("compile", update)

        def compiling(*arguments: Any) -> None:
            self._compiling_s = time.monotonic()
            timed(*arguments)

        return compiling

    def _apply(self, apply: Callable[..., None]) -> Callable[..., None]:
        timed = self._timed("store", apply)

        def applying(plane: sync.Dataplane, change: Change) -> None:
            timed(plane, change)
            if not isinstance(change, Listed):
                key = change.record.key if isinstance(change, Upserted) else change.key
                if key.name.startswith(MARKED):
                    mark = {"kind": change.kind, "key": str(key), "name": key.name, "received_s": change.received_s}
                    self._marks.append({**mark, "applied_s": time.monotonic()})

        return applying

    def _run(self, run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def running(*arguments: Any, **more: Any) -> Any:
            began_s = self._running_s = time.monotonic()
            try:
                return await run(*arguments, **more)
            finally:
                self._spent["commit"] += time.monotonic() - began_s
                self._transactions += 1
                self._whole = any(argument is True for argument in arguments)

        return running

    def _commit(self, commit: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def committing(plane: sync.Dataplane, *arguments: Any) -> None:
            # What arrives while the kernel works, or is not compiled yet, belongs to a later commit.
            marks = [mark for mark in self._marks if not _waits(plane, mark)]
            self._marks = [mark for mark in self._marks if mark not in marks]
            before, self._spent = self._spent, defaultdict(float)
            self._transactions, self._whole = 0, False
            await commit(plane, *arguments)
            done_s = time.monotonic()
            own = {stage: self._spent.pop(stage, 0.0) for stage in ("diff", "commit")}
            if self._transactions or marks:
                line = {
                    "marks": marks,
                    "whole": self._whole,
                    "done_s": done_s,
                    "compiling_s": self._compiling_s,
                    "running_s": self._running_s if self._transactions else done_s,
                    "decode": before["decode"],
                    "store": before["store"],
                    "compile": before["compile"],
                    **own,
                    **(_ruleset(plane) if self._whole else {}),
                }
                self._output.write(orjson.dumps(line) + b"\n")

        return committing


def _ruleset(plane: sync.Dataplane) -> dict[str, int]:
    """How large what is enforced is: policies that select pods of this node, and what they became."""
    compiler = plane.compiler
    active = {policy for key in compiler.classes().values() for policy, _ in key.policies}
    sets = compiler.ruleset.sets.values()
    return {
        "active_policies": len(active),
        "chains": len(compiler.ruleset.chains),
        "sets": len(sets),
        "elements": sum(len(one.values) for one in sets),
    }


def _waits(plane: sync.Dataplane, mark: dict[str, Any]) -> bool:
    """Whether a change is still to be compiled."""
    backlog = plane._backlog
    waiting: dict[Kind, Any] = {
        Kind.POD: backlog._pods,
        Kind.NAMESPACE: backlog._namespaces,
        Kind.NETWORK_POLICY: backlog._policies.get(mark["key"].partition("/")[0], ()),
    }
    return mark["key"] in map(str, waiting.get(mark["kind"], ()))


def main() -> int:
    """Run the agent with stopwatches."""
    path, *arguments = sys.argv[1:]
    with open(path, "ab", buffering=0) as output:
        Stopwatches(output).attach()
        return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
