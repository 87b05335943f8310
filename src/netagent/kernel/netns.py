"""Work inside another network namespace."""

import ctypes
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from netagent.ports import NetagentError

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
"""ioctl of a namespace's file: which kind it is."""

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class NetnsError(NetagentError):
    """The path does not lead to a network namespace of a pod; nothing was changed."""


@contextmanager
def open_netns(path: str) -> Iterator[int]:
    """A descriptor of the network namespace at the path. Raises NetnsError, also for the namespace we are in."""
    try:
        # O_NONBLOCK: a FIFO in its place must not hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NetnsError(f"network namespace {path}: {reason}. Nothing was changed.") from None
    try:
        _require_foreign_netns(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def run_in_netns(descriptor: int, work: Callable[[], T]) -> T:
    """Run `work` in a new thread that has entered the namespace and ends afterwards, and wait for it.

    A thread of its own, so that none ever has to find its way back. Raises what `work` raises, or NetnsError.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            _setns(descriptor)
            results.append(work())
        except BaseException as error:
            failures.append(error)  # raised again in the thread that waits

    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise NetnsError(f"cannot enter the pod's network namespace: {os.strerror(ctypes.get_errno())}.")


def _require_foreign_netns(descriptor: int, path: str) -> None:
    try:
        is_netns = fcntl.ioctl(descriptor, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        is_netns = False
    if not is_netns:
        raise NetnsError(f"{path} is not a network namespace. Nothing was changed.")
    there, here = os.fstat(descriptor), os.stat("/proc/self/ns/net")
    if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
        raise NetnsError(f"{path} is the node's own network namespace; no pod is wired there. Nothing was changed.")
