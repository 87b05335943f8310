"""`netagent status`: how the agent of this node is."""

import argparse
import os
import sys
import time
from typing import TypeAlias

import msgspec

from netagent import config
from netagent.commands import ask
from netagent.commands.ask import AskError, Readiness, UnreachableError
from netagent.commands.output import add_output, print_json
from netagent.config import HttpConfig
from netagent.core.questions import status
from netagent.core.questions.status import State, Status

READY_STATUS, NOT_READY_STATUS, UNREACHABLE_STATUS = 0, 1, 2
TIMEOUT_S = 10.0
"""For one question; an agent that needs longer is as good as away."""
DROPPED = "netagent_dropped_packets"
CLEAR = "\x1b[H\x1b[2J"
"""To the top of the terminal, and everything there gone."""

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(subparsers: Subparsers) -> None:
    """Add status to the command line."""
    parser = subparsers.add_parser(
        "status",
        help="how the agent of this node is",
        description="Ask the agent of this node how it is: parts that are ready, subnets, peers, pods, policies with "
        "problems, the last transaction, dropped packets.",
        epilog="Exit status: 0 ready; 1 not ready; 2 nobody answers.",
    )
    parser.add_argument("--config", default="", metavar="FILE", help="the agent's, for where it listens")
    parser.add_argument("--address", default="", metavar="URL", help=f"of its debug HTTP; by default {ask.ADDRESS}")
    parser.add_argument("--health", default="", metavar="URL", help="of /readyz and /metrics; by default as configured")
    parser.add_argument(
        "--watch", "-w", type=_seconds, nargs="?", const=2.0, default=None, metavar="SECONDS", help="again and again"
    )
    add_output(parser)
    parser.set_defaults(run=_run)


def _seconds(text: str) -> float:
    found = float(text)
    if not 0.1 <= found <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: accepted are 0.1 to 3600")
    return found


def _run(options: argparse.Namespace) -> int:
    http = config.load(options.config, os.environ, {}).http
    while True:
        code = _show(options, http)
        if options.watch is None:
            return code
        time.sleep(options.watch)


def _show(options: argparse.Namespace, http: HttpConfig) -> int:
    debug = options.address or ask.base_url(http.debug_address, http.debug_port)
    health = options.health or ask.base_url(http.address, http.port)
    if options.watch is not None and options.output == "text" and sys.stdout.isatty():
        sys.stdout.write(CLEAR)
    try:
        found = look(debug, health)
    except UnreachableError as error:
        print(f"netagent: {error}", file=sys.stderr, flush=True)
        return UNREACHABLE_STATUS
    if options.output == "json":
        print_json(found)
    else:
        sys.stdout.write(status.text(found) + ("\n" if options.watch is not None else ""))
        sys.stdout.flush()
    return READY_STATUS if found.ready else NOT_READY_STATUS


def look(debug: str, health: str) -> Status:
    """Ask both listeners; one of them is enough. Raises UnreachableError."""
    failures: dict[str, str] = {}
    ready = state = drops = None
    try:
        state = _state(debug)
    except AskError as error:
        failures["state"] = _reason(error)
    try:
        ready = ask.readiness(health, timeout_s=TIMEOUT_S)
        drops = _drops(ask.ask(health, "GET", "/metrics", timeout_s=TIMEOUT_S))
    except AskError as error:
        failures["health"] = _reason(error)
    if state is None and ready is None:
        raise UnreachableError(
            f"no agent answers at {debug} ({failures['state']}) nor at {health} ({failures['health']}). Is it running "
            "on this node? Give its configuration with --config, or its addresses with --address and --health.",
            failures["health"],
        )
    return status.status(
        state,
        parts=ready.parts if isinstance(ready, Readiness) else None,
        remarks=ready.remarks if isinstance(ready, Readiness) else {},
        drops=drops,
        not_answered=failures,
    )


def _reason(error: AskError) -> str:
    return error.reason if isinstance(error, UnreachableError) else str(error)


def _state(debug: str) -> State:
    answer = ask.ask(debug, "GET", "/debug/state", timeout_s=TIMEOUT_S)
    try:
        return msgspec.json.decode(answer, type=State)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AskError(f"{debug} answered what this command cannot read ({error}). Same version?") from None


def _drops(text: bytes) -> dict[str, int]:
    """Reason -> packets, of the metrics' text."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - start-up time of the others

    return {
        sample.labels["reason"]: int(sample.value)
        for family in text_string_to_metric_families(text.decode(errors="replace"))
        for sample in family.samples
        if sample.name == DROPPED
    }
