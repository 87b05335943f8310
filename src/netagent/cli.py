"""The command line. Each command's module is imported only when it runs."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from netagent import __version__, config
from netagent.ports import NetagentError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = make_parser().parse_args(argv)
    try:
        return int(options.run(options))
    except NetagentError as error:
        print(f"netagent: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough. What is still buffered goes nowhere, or Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def make_parser() -> argparse.ArgumentParser:
    """Of all commands."""
    from netagent import commands  # noqa: PLC0415 - keeps `import netagent.cli` cheap
    from netagent.commands import completion  # noqa: PLC0415
    from netagent.lab import cli as lab  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="netagent", description="Node agent for Kubernetes networking.")
    parser.add_argument("--version", action="version", version=f"netagent {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_agent(subparsers)
    commands.add_commands(subparsers)
    lab.add_commands(subparsers)
    completion.add_commands(subparsers, parser)
    return parser


def _add_agent(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    agent = subparsers.add_parser(
        "agent", help="run the agent of this node", description="Run the agent of this node until SIGTERM."
    )
    agent.add_argument("--config", default="", metavar="FILE", help="YAML or JSON; see docs/configuration.md")
    for section, field, _ in config.options():
        name = config.option_name(section, field)
        flag = "--" + name.replace(".", "-").replace("_", "-")
        agent.add_argument(flag, dest=f"option.{name}", metavar="VALUE", help=f"overrides {name}")
    agent.set_defaults(run=_run_agent)


def _run_agent(options: argparse.Namespace) -> int:
    flags = {
        (section, field): value
        for section, field, _ in config.options()
        if (value := getattr(options, f"option.{config.option_name(section, field)}")) is not None
    }
    loaded = config.load(options.config, os.environ, flags)
    from netagent import app, logs  # noqa: PLC0415 - start-up time of the other commands

    logs.set_up(loaded.log)
    return asyncio.run(app.run(loaded, config.origins(options.config, os.environ, flags)))
