"""Coverage-guided fuzzing of one target: python -m fuzz TARGET SECONDS. Needs atheris (`make fuzz` installs it).

Inputs begin with the seed corpus. What reaches new code is kept under FUZZ_DIR (default: a directory beside the
caches of this user), and the input that breaks a target is written there as crash-*. Exit status 0: none did.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import atheris

from fuzz.mutate import mutated

with atheris.instrument_imports(include=["netagent"], enable_loader_override=False):
    from fuzz.scenes import silence
    from fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
CLONE_NEWNET = 0x40000000
MAX_BYTES = 1 << 14
RSS_LIMIT_MB = 1024
HANG_S = 20
"""An input that takes longer is a finding."""


def _mutator(data: bytes, max_size: int, seed: int) -> bytes:
    """One in three mutations keeps the structure."""
    random = Random(seed)  # noqa: S311 - repeatable
    return mutated(data, random)[:max_size] if random.random() < 0.33 else atheris.Mutate(data, max_size)


def main() -> None:
    """Fuzz until the time is over."""
    name, seconds = sys.argv[1], int(sys.argv[2])
    if name not in TARGETS:
        sys.exit(f"target {name!r}. Accepted: {', '.join(TARGETS)}.")
    if os.geteuid() == 0:  # a target that reached the network after all would find none
        ctypes.CDLL(None).unshare(CLONE_NEWNET)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    root = Path(os.environ.get("FUZZ_DIR") or Path.home() / ".cache" / "netagent-fuzz") / name
    root.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-timeout={HANG_S}",
        f"-artifact_prefix={root}/",
        "-print_final_stats=1",
        "-verbosity=0",
        str(root),
        str(CORPUS / name),
    ]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name], custom_mutator=_mutator)
    with silence():
        atheris.Fuzz()


main()
