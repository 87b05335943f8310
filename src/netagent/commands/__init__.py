"""Commands that ask a running agent, or the machine, a question."""

import argparse


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add every command of this package to the command line."""
    from netagent.commands import (  # noqa: PLC0415 - keeps `import netagent.commands` cheap
        cleanup,
        debug,
        doctor,
        migrate,
        questions,
        replay,
        status,
    )

    questions.add_commands(subparsers)
    status.add_commands(subparsers)
    doctor.add_commands(subparsers)
    debug.add_commands(subparsers)
    replay.add_commands(subparsers)
    cleanup.add_commands(subparsers)
    migrate.add_commands(subparsers)
