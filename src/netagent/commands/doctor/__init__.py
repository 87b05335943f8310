"""`netagent doctor`: look at this node and say what keeps the agent from doing its work. Nothing is changed."""

import argparse
import asyncio
import os
import sys
from typing import TypeAlias

from msgspec import structs

from netagent import config
from netagent.commands.output import add_output, print_json
from netagent.config import Config, ConfigError

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(subparsers: Subparsers) -> None:
    """Add doctor to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="what keeps the agent from doing its work on this node",
        description="Look at this node: what its kernel can do (by doing it in a network namespace of its own), "
        "sysctls, links, packet filters and CNI configurations of others, files, the agent, the API server and the "
        "rights there. Each finding says what it means and what to do. Nothing on the node is changed. What cannot be "
        "looked at, for want of root or of the API server, is said so.",
        epilog="Exit status: 0 nothing to do; 1 warnings, or something could not be looked at; 2 errors.",
    )
    parser.add_argument(
        "--config",
        default="",
        metavar="FILE",
        help="the agent's, by default that of the agent that runs here; NETAGENT_* variables count too",
    )
    parser.add_argument(
        "--kubeconfig",
        default=os.environ.get("KUBECONFIG", ""),
        metavar="FILE",
        help="for the API server, where the configuration names none; rights are then those of its user",
    )
    parser.add_argument("--all", "-a", action="store_true", dest="every", help="in text: what is well too")
    parser.add_argument("--no-api", action="store_true", help="do not ask the API server")
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from netagent.commands.doctor.examination import (  # noqa: PLC0415 - start-up time of the others
        accepted,
        examine,
        refused,
        running_config,
    )
    from netagent.core.doctor import findings  # noqa: PLC0415

    found, loaded = [], Config()
    try:
        path = options.config or running_config()
        loaded = _with_kubeconfig(config.load(path, os.environ, {}), options.kubeconfig)
        found.append(accepted(path))
    except ConfigError as error:
        found.append(refused(error))
    found += asyncio.run(examine(loaded, with_config=found[0].level == "ok", with_api=not options.no_api))
    status = findings.exit_status(found)
    if options.output == "json":
        print_json({"status": status, "level": findings.worst(found), "findings": found})
    else:
        sys.stdout.write(findings.text(found, every=options.every))
    return status


def _with_kubeconfig(loaded: Config, path: str) -> Config:
    return (
        loaded if loaded.api.kubeconfig else structs.replace(loaded, api=structs.replace(loaded.api, kubeconfig=path))
    )
