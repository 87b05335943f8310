"""The one unix socket of the CNI service: never two agents on it, never a moment without it while one serves."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netagent.disk.atomic import ensure_dir
from netagent.ports import NetagentError

BACKLOG = 1024
"""Calls that wait while a busy agent accepts; a node starts at most some hundred pods at once."""


class SocketError(NetagentError):
    """The socket cannot be had; nothing is served."""


class AnotherAgentError(SocketError):
    """An agent runs on this node already."""

    def __init__(self, message: str, process: str) -> None:
        super().__init__(message)
        self.process = process


@contextmanager
def only_agent(path_text: str) -> Iterator[None]:
    """While it lasts, no other agent of this node starts; without serving. Raises AnotherAgentError, SocketError."""
    path = Path(path_text)
    ensure_dir(path.parent)
    lock = _lock(path)
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def exclusive_socket(path_text: str) -> Iterator[socket.socket]:
    """Bind the socket (0600) in place of a stale one. Raises SocketError where another live agent has it.

    A lock file beside it says who is alive: the kernel releases its lock with the process. The socket is made under
    another name and renamed, so that the path always leads to one that listens.
    """
    path = Path(path_text)
    ensure_dir(path.parent)
    lock = _lock(path)
    try:
        listener = _listen(path)
        try:
            yield listener
        finally:
            listener.close()
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    name = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SocketError(f"cannot open {name}: {error.strerror}. No pod can be wired.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise AnotherAgentError(
            f"another agent (process {holder}) serves {path}; this one does not start. Stop the other one first.",
            holder,
        ) from error
    with contextlib.suppress(OSError):  # a full disk: then the one who is refused cannot say by whom
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), 0o600)  # before bind: the file never has a wider mode
        listener.bind(str(temporary))
        listener.listen(BACKLOG)
        temporary.rename(path)
    except OSError as error:
        listener.close()
        raise SocketError(f"cannot listen on {path}: {error.strerror or error}. No pod can be wired.") from error
    return listener
