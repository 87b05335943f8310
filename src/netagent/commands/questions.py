"""`netagent explain` and `netagent simulate`: ask the agent of this node over its debug HTTP."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlencode

import msgspec

from netagent.commands.ask import ADDRESS, AskError, ask
from netagent.commands.output import add_output
from netagent.core.questions.explain import Explanation, text
from netagent.core.questions.parties import ASKABLE

DENIED_STATUS = 2
"""Exit status of `explain --exit-code` for a connection that is not allowed on every IP version."""
STDIN = "-"
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(subparsers: Subparsers) -> None:
    """Add explain and simulate to the command line."""
    _add_explain(subparsers)
    _add_simulate(subparsers)


def _add_explain(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="why a connection is allowed or denied",
        description="Ask the agent of this node whether a connection is allowed, by which policies and rules, what "
        "nearly matched, and whether the kernel's rules say the same. Each agent's kernel enforces the pods of its "
        "own node: ask on the node of the pod in question.",
        epilog=f"Exit status: 0 answered; 1 no answer; {DENIED_STATUS} with --exit-code: not allowed on every IP "
        "version.",
    )
    parser.add_argument("--from", required=True, dest="source", metavar="NS/POD|IP", help="who connects")
    parser.add_argument(
        "--to",
        required=True,
        dest="destination",
        metavar="NS/POD|IP|svc/NS/NAME",
        help="whom; a Service is asked about by its ready endpoints, which takes a look at the API server",
    )
    parser.add_argument("--port", default="", metavar="N", help="the pod's port, or the Service's; none for ICMP")
    parser.add_argument(
        "--kubeconfig", default=os.environ.get("KUBECONFIG", ""), metavar="FILE", help="for Services; empty: in-cluster"
    )
    parser.add_argument("--protocol", default="TCP", metavar="P", help=f"one of {', '.join(ASKABLE)}; TCP by default")
    parser.add_argument(
        "--exit-code", action="store_true", help=f"exit status {DENIED_STATUS} where the connection is denied"
    )
    _add_common(parser)
    parser.set_defaults(run=_explain)


def _add_simulate(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "simulate",
        help="what a NetworkPolicy would change, without applying it",
        description="Show which pairs of pods and ports would change verdict and which open flows of this node would "
        "be cut if NetworkPolicy documents were applied (or deleted). Nothing is applied.",
        epilog="Exit status: 0 answered; 1 no answer, or the documents were refused.",
    )
    parser.add_argument(
        "-f",
        "--filename",
        required=True,
        action="append",
        dest="files",
        metavar="FILE",
        help="YAML or JSON; - is stdin",
    )
    parser.add_argument("--delete", action="store_true", help="simulate deleting the policies that the documents name")
    _add_common(parser)
    parser.set_defaults(run=_simulate)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("--address", default=ADDRESS, metavar="URL", help=f"of the agent's debug HTTP; {ADDRESS}")


def _explain(options: argparse.Namespace) -> int:
    answers = [_explain_one(options, destination, port) for destination, port in _targets(options)]
    if options.output == "text":
        sys.stdout.write("\n".join(text(explanation) for _, explanation in answers))
    else:
        printed = [answer.decode().rstrip() for answer, _ in answers]
        several = _is_service(options.destination)
        sys.stdout.write(("[" + ",\n".join(printed) + "]" if several else printed[0]) + "\n")
    denied = any(explanation.verdict != "allow" for _, explanation in answers)
    return DENIED_STATUS if options.exit_code and denied else 0


def _is_service(destination: str) -> bool:
    """`svc/NAMESPACE/NAME`; `svc/NAME` is a pod of a namespace called svc."""
    return destination.startswith("svc/") and destination.count("/") == 2


def _targets(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Destinations and ports to ask about."""
    if not _is_service(options.destination):
        return [(options.destination, options.port)]
    from netagent.commands import services  # noqa: PLC0415 - start-up time of the other commands

    found = services.resolve(options.destination, options.port, options.protocol.upper(), options.kubeconfig)
    return [(target.destination, target.port) for target in asyncio.run(found)]


def _explain_one(options: argparse.Namespace, destination: str, port: str) -> tuple[bytes, Explanation]:
    question = {
        "from": options.source,
        "to": destination,
        "port": port,
        "protocol": options.protocol,
    }
    answer = ask(options.address, "GET", f"/debug/explain?{urlencode(question)}")
    try:
        return answer, msgspec.json.decode(answer, type=Explanation)
    except msgspec.MsgspecError as error:
        raise AskError(f"{options.address} answered what this command cannot read ({error}). Same version?") from None


def _simulate(options: argparse.Namespace) -> int:
    query = {"format": options.output} | ({"delete": "true"} if options.delete else {})
    answer = ask(options.address, "POST", f"/debug/simulate?{urlencode(query)}", _documents(options.files))
    sys.stdout.write(answer.decode())
    return 0


def _documents(files: Sequence[str]) -> bytes:
    parts = []
    for file in files:
        try:
            parts.append(sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes())
        except OSError as error:
            raise AskError(f"{file}: {error.strerror}. Nothing was asked; give a readable file.") from None
    return b"\n---\n".join(parts)
