"""Puts the plugin's executable and its configuration list where the container runtime looks for them.

Plugins that the list names besides ours, and `loopback` that runtimes call for every pod, come from the node's own
packages; the image brings them for nodes that have none.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from netagent.config import CniConfig
from netagent.disk.atomic import DiskError, ensure_dir, read_bounded, write_atomic

SHIM = Path(__file__).with_name("netagent-cni")
"""Built from shim.c beside it."""
EXECUTABLE = "netagent"
NETWORK_NAME = "netagent"
SETTINGS: dict[str, dict[str, Any]] = {
    "portmap": {"snat": True, "capabilities": {"portMappings": True}},
    "bandwidth": {"capabilities": {"bandwidth": True}},
}
"""What well-known chained plugins need in their part of the list."""
ALWAYS = "loopback"
"""Called by runtimes themselves (containerd before 2.0) for every pod, outside any list."""
MAX_BYTES = 16 << 20


def install(bin_dir: str | Path) -> bool:
    """Copy the executable to `bin_dir`/netagent unless it is there already; whether it was copied. Raises DiskError."""
    content = read_bounded(SHIM, MAX_BYTES)
    if content is None:
        raise DiskError(f"{SHIM} is not built, so no pod can be wired. Build it with `make setup`.")
    directory = Path(bin_dir)
    ensure_dir(directory, 0o755)
    target = directory / EXECUTABLE
    if os.access(target, os.X_OK) and _same(target, content):
        return False
    write_atomic(target, content, mode=0o755)
    return True


def install_plugins(config: CniConfig) -> list[str]:
    """Copy the plugins we need from `plugin_dir` to `bin_dir`, where neither has its own; names of those copied.

    A plugin that is there already is the node's: it is not replaced, not even by a newer one. Raises DiskError.
    """
    if not config.bin_dir or not config.plugin_dir:
        return []
    copied = []
    for name in (ALWAYS, *config.chained):
        target = Path(config.bin_dir) / name
        content = None if target.exists() else read_bounded(Path(config.plugin_dir) / name, MAX_BYTES)
        if content is not None:
            write_atomic(target, content, mode=0o755)
            copied.append(name)
    return copied


def write_conflist(config: CniConfig) -> bool:
    """Write the configuration list unless it is there already; whether it was written. Raises DiskError."""
    content = render_conflist(config)
    target = Path(config.conf_dir) / config.conf_name
    if _same(target, content):
        return False
    ensure_dir(target.parent, 0o755)
    write_atomic(target, content, mode=0o644)
    return True


def render_conflist(config: CniConfig) -> bytes:
    """The list: our plugin, then the chained ones whose executables exist."""
    ours = {"type": EXECUTABLE, "socket": config.socket, "capabilities": {"ips": True}}
    chained = [
        {"type": name, **SETTINGS.get(name, {})}
        for name in config.chained
        if os.access(Path(config.bin_dir or "/opt/cni/bin") / name, os.X_OK)
    ]
    conflist = {"cniVersion": config.version, "name": NETWORK_NAME, "plugins": [ours, *chained]}
    return msgspec.json.format(msgspec.json.encode(conflist), indent=2) + b"\n"


def _same(path: Path, content: bytes) -> bool:
    try:
        return read_bounded(path, MAX_BYTES) == content
    except DiskError:
        return False
