"""`netagent cleanup`: take everything of netagent's off this node."""

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from netagent import config
from netagent.commands.output import add_output, print_json
from netagent.config import Config
from netagent.ports import NetagentError

if TYPE_CHECKING:
    from netagent.agent.leftovers import Leftover, Scope

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class CleanupRefusedError(NetagentError):
    """Nothing was removed."""


def add_commands(subparsers: Subparsers) -> None:
    """Add cleanup to the command line."""
    parser = subparsers.add_parser(
        "cleanup",
        help="take everything of netagent's off this node",
        description="Remove from this node what netagent put there: its nftables table, its accept rules in chains of "
        "others, its vxlan devices and routes, the CNI configuration and executable, the socket. What others made is "
        "not touched. Repeating it does no harm. Pods that run keep their links unless --pods is given; they have no "
        "policy and no way to other nodes from then on, so drain the node first.",
        epilog="Exit status: 0 nothing of netagent's is left (of what was asked for); 1 refused, or something could "
        "not be removed.",
    )
    parser.add_argument("--config", default="", metavar="FILE", help="the agent's; NETAGENT_* variables count too")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--pods", action="store_true", help="also cut off the pods that run on this node")
    parser.add_argument("--state", action="store_true", help="also forget which pod has which address and the subnet")
    parser.add_argument(
        "--flannel", action="store_true", help="also remove what node mode keeps under flannel's names for its return"
    )
    parser.add_argument("--force", action="store_true", help="even though an agent runs here: it will make it again")
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from netagent.agent.leftovers import Scope  # noqa: PLC0415 - start-up time of the other commands

    loaded = config.load(options.config, os.environ, {})
    scope = Scope(dry_run=options.dry_run, pods=options.pods, state=options.state, flannel=options.flannel)
    with _no_agent(loaded, needed=not (options.force or options.dry_run)):
        return asyncio.run(_clean(loaded, scope, as_json=options.output == "json"))


@contextlib.contextmanager
def _no_agent(loaded: Config, *, needed: bool) -> Iterator[None]:
    """Keep agents from starting while it lasts. Raises CleanupRefusedError where one runs."""
    from netagent.agent.pods.cnisocket import AnotherAgentError, only_agent  # noqa: PLC0415

    if not needed or not Path(loaded.cni.socket).parent.is_dir():
        yield
        return
    try:
        lock = contextlib.ExitStack()
        lock.enter_context(only_agent(loaded.cni.socket))
    except AnotherAgentError as error:
        raise CleanupRefusedError(
            f"an agent (process {error.process}) runs on this node. Nothing was removed; stop it first, or it makes "
            "again what is removed (--force goes on all the same)."
        ) from None
    with lock:
        yield


async def _clean(loaded: Config, scope: "Scope", *, as_json: bool) -> int:
    from netagent.agent.leftovers import clean  # noqa: PLC0415

    found = []
    async for leftover in clean(loaded, scope):
        found.append(leftover)
        if not as_json:
            print(_line(leftover, scope), flush=True)
    if as_json:
        items = [{"kind": one.kind, "name": one.name, "problem": one.problem} for one in found]
        print_json({"dry_run": scope.dry_run, "items": items})
    elif not found:
        print("nothing of netagent's is here")
    return 1 if any(one.problem for one in found) else 0


def _line(leftover: "Leftover", scope: "Scope") -> str:
    what = f"{leftover.kind} {leftover.name}"
    if leftover.problem:
        return f"could not remove {what}: {leftover.problem}"
    return f"{'would remove' if scope.dry_run else 'removed'} {what}"
