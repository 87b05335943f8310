"""`netagent completion`: what a shell needs to complete netagent's commands and options."""

import argparse
import sys
import typing
from collections.abc import Iterator
from typing import Any, TypeAlias

from netagent import config

SHELLS = ("bash", "zsh", "fish")
FILE_WORDS = ("FILE",)
"""Metavariables of options that take a path."""

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(subparsers: Subparsers, root: argparse.ArgumentParser) -> None:
    """Add completion to the command line; `root` is the parser of all commands."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script for the shell's completion",
        description="Print a script that completes commands and options in a shell. bash: netagent completion bash > "
        "/etc/bash_completion.d/netagent; zsh: into a file _netagent in a directory of $fpath; fish: into "
        "~/.config/fish/completions/netagent.fish.",
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=lambda options: _run(options.shell, root))


def _run(shell: str, root: argparse.ArgumentParser) -> int:
    sys.stdout.write(script(shell, root))
    return 0


def script(shell: str, root: argparse.ArgumentParser) -> str:
    """Of one shell."""
    import shtab  # noqa: PLC0415 - start-up time of the other commands

    choices = _choices()
    for action in _actions(root):
        if action.metavar in FILE_WORDS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in choices and action.choices is None:
            action.choices = choices[action.dest]
    return str(shtab.complete(root, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and of all below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            helps = {one.dest: one.help for one in action._choices_actions}
            for name, below in action.choices.items():
                below.description = helps.get(name)  # shells show it beside the name: a line, not a paragraph
                yield from _actions(below)


def _choices() -> dict[str, tuple[str, ...]]:
    """Options of the configuration that take one of some words -> the words."""
    found = {}
    for section, field, kind in config.options():
        words = _words(kind)
        if words:
            found[f"option.{config.option_name(section, field)}"] = words
    return found


def _words(kind: Any) -> tuple[str, ...]:
    if kind is bool:
        return ("true", "false")
    return tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ()
