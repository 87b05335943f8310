"""Where running labs keep what other processes need: one directory each, locked while the lab runs."""

import fcntl
import os
import shutil
from pathlib import Path

from netagent.lab.processes import LabError


def base_directory() -> Path:
    """Where labs live, one directory each."""
    base = os.environ.get("NETAGENT_LAB_DIR")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/run", "netagent-lab")


def claim(name: str) -> tuple[Path, int]:
    """Make the lab's directory and lock it: (path, locked file descriptor). Raises LabError where it is running.

    What a lab that died left there is removed.
    """
    directory = base_directory() / name
    if not name or "/" in name or name.startswith("."):
        raise LabError(f"{name!r} is no name for a lab. Accepted: one path component, e.g. lab.")
    base_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise LabError(
                f"lab {name!r} is running already. Nothing was started; end it by `netagent lab down --name {name}` "
                "or choose another --name."
            ) from None
        if [entry.name for entry in directory.iterdir()] == ["lock"]:
            return directory, lock
        shutil.rmtree(directory)
        os.close(lock)
