"""The command line."""


def main() -> int:
    """Run one command; the exit status."""
    return 0
