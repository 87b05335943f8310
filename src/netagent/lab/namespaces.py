"""Namespaces of Linux from one process: threads that live in others, and sockets opened in others.

A thread may change its own network namespace at any time and, once it has a root directory of its own
(`unshare(CLONE_FS)`), its mount namespace too. A socket stays in the namespace it was created in, whoever uses it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from netagent.lab.holder import MS_BIND, checked, libc, loopback_up

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MNT_DETACH = 0x2

P = ParamSpec("P")
T = TypeVar("T")


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace that `fd` names."""
    checked(libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces (or a root directory of its own: CLONE_FS)."""
    checked(libc.unshare(flags), "unshare")


def open_netns(path: str | Path) -> int:
    """A file descriptor of a network namespace; the caller closes it."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def new_netns() -> int:
    """A new network namespace with loopback up, as a file descriptor: it lives as long as that is open."""

    def build() -> int:
        unshare(CLONE_NEWNET)
        loopback_up()
        return open_netns("/proc/thread-self/ns/net")

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build).result()


def pin_new_netns(path: Path) -> None:
    """Make a new network namespace and keep it at `path`, as `ip netns add` does. For threads of `Inside` only."""
    home = open_netns("/proc/thread-self/ns/net")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o444)
        unshare(CLONE_NEWNET)
        loopback_up()
        source = b"/proc/thread-self/ns/net"
        checked(libc.mount(source, os.fsencode(path), b"", MS_BIND, None), f"bind a network namespace to {path}")
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


def unpin_netns(path: Path) -> None:
    """Undo `pin_new_netns`; nothing happens where it is gone."""
    if path.exists():
        libc.umount2(os.fsencode(path), MNT_DETACH)
        path.unlink(missing_ok=True)


class Inside:
    """Threads that live in another process's network and mount namespaces; programs they start live there too."""

    def __init__(self, pid: int, threads: int) -> None:
        """`pid`: the process whose namespaces to enter. Threads start as they are needed, at most `threads`."""
        self._net = open_netns(f"/proc/{pid}/ns/net")
        self._mnt = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._threads = ThreadPoolExecutor(threads, f"inside-{pid}", self._enter)

    def _enter(self) -> None:
        unshare(CLONE_FS)
        setns(self._net, CLONE_NEWNET)
        setns(self._mnt, CLONE_NEWNS)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in there."""
        return await asyncio.wrap_future(self._threads.submit(work, *args, **kwargs))

    def close(self) -> None:
        """Leave; work that runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        os.close(self._net)
        os.close(self._mnt)


class Sockets:
    """Opens sockets in any network namespace."""

    def __init__(self) -> None:
        self._home = open_netns("/proc/self/ns/net")
        self._thread = ThreadPoolExecutor(1, "sockets")

    def _open(self, netns: int, build: Callable[[], T]) -> T:
        setns(netns, CLONE_NEWNET)
        try:
            return build()
        finally:
            # Staying would keep the namespace of a deleted pod alive.
            setns(self._home, CLONE_NEWNET)

    async def build(self, netns: int, build: Callable[[], T]) -> T:
        """Call `build`, which must be quick, in the namespace that the file descriptor `netns` names."""
        return await asyncio.wrap_future(self._thread.submit(self._open, netns, build))

    async def open(
        self, netns: int, family: int, kind: int, count: int = 1, *, protocol: int = 0
    ) -> list[socket.socket]:
        """`count` non-blocking sockets in the namespace; `protocol` for raw ones."""

        def build() -> list[socket.socket]:
            made = [socket.socket(family, kind, protocol) for _ in range(count)]
            for sock in made:
                sock.setblocking(False)
            return made

        return await self.build(netns, build)

    async def listen(self, netns: int, address: tuple[str, int], kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A bound (and for TCP listening) non-blocking socket. Raises OSError."""

        def build() -> socket.socket:
            return bound(address, kind)

        return await self.build(netns, build)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        os.close(self._home)


def bound(address: tuple[str, int], kind: int) -> socket.socket:
    """A bound non-blocking socket in the calling thread's namespace. "::" also takes IPv4. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address[0] == "::" else 1)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(512)
    except OSError:
        sock.close()
        raise
    return sock
