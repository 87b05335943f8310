"""Files of this node, and the agent on it."""

import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from netagent.cni.install import EXECUTABLE, MAX_BYTES, SHIM
from netagent.commands.ask import AskError, base_url, readiness
from netagent.config import Config
from netagent.core.doctor import placechecks
from netagent.core.doctor.findings import Finding, unknown
from netagent.core.doctor.placechecks import CONFIG_ENDS, Presence, StateDir
from netagent.disk.atomic import DiskError, read_bounded
from netagent.disk.format import require_known_format
from netagent.kernel import host

CONNECT_TIMEOUT_S = 5.0
ON_NODE = "run it on the node"
NEEDS_ROOT = "run it as root, or in the agent's pod"


def look(config: Config, *, table: bool) -> tuple[Presence, Mapping[str, str]]:
    """What of netagent is on the node, and its parts with why they are not ready ("": they are)."""
    try:
        parts = readiness(base_url(config.http.address, config.http.port), timeout_s=CONNECT_TIMEOUT_S).parts
    except AskError:
        parts = {}
    path = Path(config.cni.conf_dir) / config.cni.conf_name
    return (
        Presence(
            agents=host.agents(),
            served=_answers(config.cni.socket),
            socket=_exists(Path(config.cni.socket)),
            http=bool(parts),
            table=table,
            conflist=config.cni.enabled and _exists(path),
        ),
        parts,
    )


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def examine(config: Config, presence: Presence, parts: Mapping[str, str]) -> Iterable[Finding]:
    """Agent, CNI files, state directory."""
    state_dir = Path(config.state_dir)
    found = [*placechecks.agents(presence, config), *_state_dir(state_dir), *_state_format(state_dir)]
    if presence.http:
        found.append(placechecks.readiness(parts))
    try:
        files = _configs(Path(config.cni.conf_dir))
    except OSError as error:
        found.append(unknown("cni.order", f"{config.cni.conf_dir}: {error.strerror}", NEEDS_ROOT))
    else:
        if config.cni.enabled or Path(config.cni.conf_dir).exists():
            found += placechecks.cni_configs(files, config, running=presence.running)
        else:  # the pod of a policy-only agent does not mount it
            found.append(unknown("cni.order", f"{config.cni.conf_dir} is not there, or not mounted here", ON_NODE))
    if config.cni.enabled and config.cni.bin_dir:
        found.append(_executable(Path(config.cni.bin_dir) / EXECUTABLE, running=presence.running))
    return found


def _configs(directory: Path) -> dict[str, tuple[str, ...] | None]:
    """Raises OSError where the directory exists and cannot be read."""
    found: dict[str, tuple[str, ...] | None] = {}
    names = os.listdir(directory) if directory.exists() else []
    for name in sorted(names):
        if name.endswith(CONFIG_ENDS):
            try:
                found[name] = placechecks.plugins(read_bounded(directory / name, MAX_BYTES) or b"")
            except DiskError:
                found[name] = None
    return found


def _executable(path: Path, *, running: bool) -> Finding:
    try:
        content = read_bounded(path, MAX_BYTES)
        same = content is not None and content == read_bounded(SHIM, MAX_BYTES)
    except DiskError as error:
        return unknown("cni.executable", str(error), NEEDS_ROOT)
    return placechecks.executable(
        str(path), there=content is not None, runs=os.access(path, os.X_OK), same=same, running=running
    )


def _state_format(path: Path) -> Iterable[Finding]:
    try:
        require_known_format(path)
    except DiskError as error:
        means = "An agent of this version stays not ready: it sets nothing up, and no pod can start or end."
        yield Finding("state.format", "error", str(error), means, "run the version that wrote it, or as it says")


def _state_dir(path: Path) -> Iterable[Finding]:
    there = _exists(path)
    nearest = path
    while not _exists(nearest):
        nearest = nearest.parent
    try:
        space, status = os.statvfs(nearest), nearest.stat()
    except OSError as error:
        return [unknown("state.dir", f"{nearest}: {error.strerror}", NEEDS_ROOT)]
    read_only = bool(space.f_flag & os.ST_RDONLY)
    if os.geteuid() != 0 and not read_only:
        writable = True  # the agent is root
    else:
        writable = not read_only and os.access(nearest, os.W_OK | os.X_OK) and nearest.is_dir()
    return placechecks.state_dir(
        StateDir(
            path=str(nearest),
            there=there,
            writable=writable,
            mode=status.st_mode & 0o7777,
            owner=status.st_uid,
            free_bytes=space.f_bavail * space.f_frsize,
            free_inodes=space.f_favail if space.f_files else None,
        )
    )
