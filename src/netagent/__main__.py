"""Run the command line: ``python -m netagent``."""

from netagent.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
