"""The one way in which commands print: text for people, or JSON for programs."""

import argparse
import sys
from typing import Any

import msgspec
import orjson


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that every command with something to print has."""
    parser.add_argument(
        "--output", "-o", choices=("text", "json"), default="text", help="for people (default) or for programs"
    )


def print_json(answer: Any) -> None:
    """One document, of plain data or records, two spaces deep."""
    plain = msgspec.to_builtins(answer, str_keys=True)
    sys.stdout.write(orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()
