"""`netagent migrate` on the command line."""

import argparse
from typing import TypeAlias

from netagent.commands.output import add_output

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(subparsers: Subparsers) -> None:
    """Add migrate to the command line."""
    parser = subparsers.add_parser(
        "migrate",
        help="hand this node over from flannel to netagent, or back",
        description="Run on the node (its network namespace, its /etc/cni and /var/lib). --from flannel: once the "
        "agent is ready in node mode. --to flannel: once the agent is stopped and flannel runs. See "
        "docs/migrate-from-flannel.md.",
        epilog="Exit status: 0 done, or nothing to do; 1 refused, or a step failed: what was done until then stays, "
        "and the command can be repeated.",
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="source", choices=["flannel"], help="netagent takes over")
    way.add_argument("--to", dest="target", choices=["flannel"], help="flannel takes over again")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--config", default="", metavar="FILE", help="the agent's; NETAGENT_* variables count too")
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from netagent.commands import migration  # noqa: PLC0415 - start-up time of the other commands

    return migration.run(options)
