"""Commands that ask a running agent, or the machine, a question."""

import argparse


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add every command of this package to the command line."""
    from netagent.commands import cleanup, doctor, migrate, questions  # noqa: PLC0415 - keeps `import netagent.commands` cheap

    questions.add_commands(subparsers)
    doctor.add_commands(subparsers)
    cleanup.add_commands(subparsers)
    migrate.add_commands(subparsers)
