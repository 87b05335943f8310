"""`netagent dump` and `netagent log-level`: what the agent of this node knows in one file, and how much it says."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TypeAlias

import orjson

from netagent.commands.ask import ADDRESS, ask
from netagent.ports import NetagentError

STDOUT = "-"

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class DumpError(NetagentError):
    """The file could not be written."""


def add_commands(subparsers: Subparsers) -> None:
    """Add dump and log-level to the command line."""
    _add_dump(subparsers)
    _add_log_level(subparsers)


def _add_dump(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "dump",
        help="everything that the agent of this node knows, in one file",
        description="Fetch /debug/dump of the agent of this node: its view of the cluster, its ruleset and the "
        "kernel's, state, metrics, configuration and the last lines of its log. `netagent replay dump FILE` answers "
        "questions from it anywhere. It holds names, labels and addresses of the whole cluster, and no credentials.",
    )
    parser.add_argument(
        "--output",
        "-o",
        default=f"netagent-dump-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz",
        metavar="FILE",
        help="readable by its owner only; - is stdout",
    )
    parser.add_argument("--address", default=ADDRESS, metavar="URL", help=f"of the agent's debug HTTP; {ADDRESS}")
    parser.set_defaults(run=_dump)


def _add_log_level(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "log-level",
        help="how much the running agent of this node logs",
        description="Show the levels of the agent's log, or set one until it ends. SIGUSR1 does the same as "
        "`log-level debug`, and the next one takes it back.",
    )
    parser.add_argument("level", nargs="?", metavar="LEVEL", help="debug, info, warning, error; empty: as those above")
    parser.add_argument(
        "logger",
        nargs="?",
        default="",
        metavar="LOGGER",
        help="e.g. netagent.agent.dataplane.sync; all of them by default",
    )
    parser.add_argument("--address", default=ADDRESS, metavar="URL", help=f"of the agent's debug HTTP; {ADDRESS}")
    parser.set_defaults(run=_log_level)


def _dump(options: argparse.Namespace) -> int:
    archive = ask(options.address, "GET", "/debug/dump")
    if options.output == STDOUT:
        sys.stdout.buffer.write(archive)
        return 0
    _write(Path(options.output), archive)
    print(f"{options.output}: {len(archive)} bytes", file=sys.stderr)
    return 0


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, 0600 whatever was there. Raises DumpError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DumpError(f"{path}: {error.strerror}. Nothing was written; give another file with -o.") from None


def _log_level(options: argparse.Namespace) -> int:
    if options.level is None:
        levels = orjson.loads(ask(options.address, "GET", "/debug/log"))["levels"]
    else:
        body = orjson.dumps({"level": options.level, "logger": options.logger})
        levels = orjson.loads(ask(options.address, "PUT", "/debug/log", body))["levels"]
    for logger, level in sorted(levels.items()):
        print(f"{logger or 'all'}: {level}")
    return 0
