"""`make chaos KILLS=200 SEED=1`: kills agents for as long as it takes; exit status 1 where anything went wrong."""

import argparse
import asyncio
import random
import sys

from chaos.storm import Order, play


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))  # noqa: S311
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    outcome = asyncio.run(play(Order(kills=arguments.kills, seed=arguments.seed)))
    print(outcome.text())
    return 1 if outcome.ledger.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
