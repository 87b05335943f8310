"""What netagent has put on this node, found and taken away with no agent running.

Everything is known by what only we make: our table, our rules' comment and shape, names and kinds of links, the
protocol number of routes, what stands in a file. Whatever does not fit is somebody else's and stays. First nothing new
comes to us any more, then the kernel is cleared, then go the files that say how to do it again.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import orjson
from msgspec import Struct

from netagent.agent.dataplane.forward import remove_accepts
from netagent.cni.install import EXECUTABLE
from netagent.config import Config
from netagent.core.network.podnet import Entries, Key, LinkKey, RouteKey, Step, Vxlan, diff
from netagent.disk import format as state_format
from netagent.disk.atomic import DiskError, read_bounded
from netagent.disk.state import FILE_NAME, MODE_FILE_NAME
from netagent.kernel import wiring
from netagent.kernel.nft import TABLE, LibNftables
from netagent.kernel.podnet import PodNetKernel
from netagent.ports import NetagentError

EXECUTABLE_MARK = b"CNI-ContainerID"
"""In every build of the plugin's executable: the header that it sends."""
MAX_BYTES = 16 << 20
STATE_FILES = (FILE_NAME, MODE_FILE_NAME, "freed.log", state_format.FILE_NAME)
STATE_DIRECTORIES = ("endpoints", "quarantine")


class Leftover(Struct, frozen=True):
    """One thing of ours."""

    kind: str
    """table, accept rules, vxlan device, route, pod link, file, directory, ..."""
    name: str
    problem: str = ""
    """Why it is still there although it should not be."""


class Scope(Struct, frozen=True, kw_only=True):
    """How far the cleaning goes."""

    dry_run: bool = False
    pods: bool = False
    """Running pods' links too: these pods lose their network."""
    state: bool = False
    """The state directory too: which pod has which address, which subnet was held."""
    flannel: bool = False
    """Devices and routes under flannel's names too, which node mode keeps for flannel's return."""


async def clean(config: Config, scope: Scope) -> AsyncIterator[Leftover]:
    """Find what is there and, unless it is a dry run, remove it; one after the other as it is done."""
    for leftover in _conflist(config, scope):
        yield leftover
    for step in (_pods(scope), _accepts(scope), _table(scope), _pod_network(scope)):
        async for leftover in step:
            yield leftover
    for leftover in (*_executable(config, scope), *_socket(config, scope)):
        yield leftover
    if scope.state:
        for leftover in _state(config, scope):
            yield leftover


# The kernel


async def _pods(scope: Scope) -> AsyncIterator[Leftover]:
    for name in sorted(wiring.links()) if scope.pods else ():
        problem = ""
        try:
            if not scope.dry_run:
                await asyncio.to_thread(wiring.unwire, name)
        except NetagentError as error:
            problem = str(error)
        yield Leftover("pod link", name, problem)


async def _accepts(scope: Scope) -> AsyncIterator[Leftover]:
    try:
        for chain, problem in (await remove_accepts(dry_run=scope.dry_run)).items():
            yield Leftover("accept rules", f"in chain {chain}", problem)
    except NetagentError as error:
        yield Leftover("accept rules", "in chains of others", str(error))


async def _table(scope: Scope) -> AsyncIterator[Leftover]:
    nft = LibNftables()
    try:
        if not (await nft.inventory()).exists:
            return
        if not scope.dry_run:
            await nft.run(f"delete table {TABLE}\n")
        yield Leftover("table", TABLE)
    except NetagentError as error:
        yield Leftover("table", TABLE, str(error))
    finally:
        nft.close()


async def _pod_network(scope: Scope) -> AsyncIterator[Leftover]:
    try:
        with PodNetKernel(lambda: None, flannel=scope.flannel) as kernel:
            steps = diff({}, _ours((await kernel.read()).entries))
            failures = [] if scope.dry_run else await kernel.apply(steps)
    except NetagentError as error:
        yield Leftover("pod network", "devices and routes", str(error))
        return
    refused: dict[Step, str] = {failure.step: failure.reason for failure in failures}
    for step in steps:
        yield Leftover(*_words(step.key), refused.get(step, ""))


def _ours(entries: Entries) -> Entries:
    """Without links that only carry a name like ours, and what is on them."""
    foreign = {
        key.device
        for key, value in entries.items()
        if isinstance(key, LinkKey) and isinstance(value, Vxlan) and value.kind != "vxlan"
    }
    return {key: value for key, value in entries.items() if getattr(key, "device", "") not in foreign}


def _words(key: Key) -> tuple[str, str]:
    match key:
        case LinkKey(device=device):
            return "vxlan device", device
        case RouteKey(subnet=subnet):
            return "route", subnet
    fields = " ".join(str(getattr(key, name)) for name in key.__struct_fields__ if name != "family")
    return type(key).__name__.removesuffix("Key").lower(), fields


# Files


def _conflist(config: Config, scope: Scope) -> Iterable[Leftover]:
    path = Path(config.cni.conf_dir) / config.cni.conf_name
    if _is_our_conflist(path):
        yield _unlink(path, scope)
    yield from _drafts(path, scope)


def _is_our_conflist(path: Path) -> bool:
    try:
        content = orjson.loads(read_bounded(path, MAX_BYTES) or b"null")
    except (DiskError, orjson.JSONDecodeError):
        return False
    plugins = content.get("plugins") if isinstance(content, dict) else None
    first = plugins[0] if isinstance(plugins, list) and plugins else None
    return isinstance(first, dict) and first.get("type") == EXECUTABLE


def _executable(config: Config, scope: Scope) -> Iterable[Leftover]:
    if not config.cni.bin_dir:
        return
    path = Path(config.cni.bin_dir) / EXECUTABLE
    with contextlib.suppress(DiskError):
        if EXECUTABLE_MARK in (read_bounded(path, MAX_BYTES) or b""):
            yield _unlink(path, scope)
    yield from _drafts(path, scope)


def _socket(config: Config, scope: Scope) -> Iterable[Leftover]:
    path = Path(config.cni.socket)
    for name in (path.name, f"{path.name}.new"):
        one = path.with_name(name)
        if one.is_socket():
            yield _unlink(one, scope)
    lock = path.with_name(f"{path.name}.lock")
    if not scope.dry_run:
        with contextlib.suppress(OSError):
            lock.unlink()  # not worth a word: whoever cleans holds it, and so has made it
    yield from _empty_directory(path.parent, {path.name, f"{path.name}.new", lock.name}, scope)


def _state(config: Config, scope: Scope) -> Iterable[Leftover]:
    """Names that we use; a state directory of other things too keeps those."""
    root = Path(config.state_dir)
    ours = [root / name for name in STATE_FILES if (root / name).is_file()]
    for path in ours:
        yield _unlink(path, scope)
    for name in STATE_FILES:
        yield from _drafts(root / name, scope)
    for name in STATE_DIRECTORIES:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            yield _remove(path, "directory", scope)
    yield from _empty_directory(root, {*STATE_FILES, *STATE_DIRECTORIES}, scope)


def _drafts(path: Path, scope: Scope) -> Iterable[Leftover]:
    """What an agent left that died while it wrote the file."""
    with contextlib.suppress(OSError):
        for draft in sorted(path.parent.glob(f".{path.name}.tmp*")):
            yield _unlink(draft, scope)


def _empty_directory(path: Path, expected: set[str], scope: Scope) -> Iterable[Leftover]:
    """The directory itself, where nothing else is in it; one that something is mounted on stays."""
    try:
        others = {entry.name for entry in path.iterdir()} - (expected if scope.dry_run else set())
        if others or path.is_mount():
            return
    except OSError:
        return
    yield _remove(path, "directory", scope)


def _unlink(path: Path, scope: Scope) -> Leftover:
    return _remove(path, "socket" if path.is_socket() else "file", scope)


def _remove(path: Path, kind: str, scope: Scope) -> Leftover:
    try:
        if scope.dry_run:
            pass
        elif kind != "directory":
            path.unlink(missing_ok=True)
        elif path.name in STATE_DIRECTORIES:
            shutil.rmtree(path)
        else:
            path.rmdir()
    except OSError as error:
        return Leftover(kind, str(path), f"{error.strerror}. Remove it by hand.")
    return Leftover(kind, str(path))
