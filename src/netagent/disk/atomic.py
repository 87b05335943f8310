"""Files that are either the old or the new, whatever happens in between."""

import contextlib
import os
from pathlib import Path

import msgspec

from netagent.ports import NetagentError

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a file that is no JSON, or of another shape, or nested too deeply."""


class DiskError(NetagentError):
    """A file could not be read or written; the file on disk is as it was."""


def ensure_dir(path: Path, mode: int = 0o700) -> None:
    """Make the directory (and its parents) where there is none; one that exists keeps its mode. Raises DiskError."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"directory {path}: {error.strerror}. Nothing is kept there; make it writable.") from error


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace the file by way of a temporary file in the same directory. Raises DiskError.

    A crash of the process leaves the old or the new content. `durable` adds the same against a crash of the machine
    (fsync of file and directory); without it that crash may leave an empty file.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(descriptor, mode)
            _write_all(descriptor, content)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
        if durable:
            sync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot write {path}: {error.strerror}. The file is as it was.") from error


def sync_dir(path: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit_bytes: int) -> bytes | None:
    """The file's content; None where there is no such file. Raises DiskError (unreadable, larger than the limit)."""
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}.") from error
    if len(content) > limit_bytes:
        raise DiskError(f"{path} is larger than {limit_bytes} bytes; it is not ours.")
    return content


def set_aside(path: Path, directory: Path) -> Path:
    """Move an unreadable file into the directory, under a name that is free there. Raises DiskError."""
    ensure_dir(directory)
    target = directory / path.name
    number = 0
    while target.exists():
        number += 1
        target = directory / f"{path.name}.{number}"
    try:
        path.rename(target)
    except OSError as error:
        raise DiskError(f"cannot move {path} to {target}: {error.strerror}. Move it by hand.") from error
    return target


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
