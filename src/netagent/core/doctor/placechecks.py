"""What the files of the node and the agent on it mean: facts in, findings out."""

from collections.abc import Collection, Iterable, Mapping

import msgspec
from msgspec import Struct

from netagent.config import Config
from netagent.core.doctor.findings import Finding

CONFIG_ENDS = (".conf", ".conflist", ".json")
"""What container runtimes read; they take the first by name."""
LEAST_FREE_BYTES, LITTLE_FREE_BYTES = 1 << 20, 50 << 20
LEAST_FREE_INODES = 100
"""One file per pod is kept."""
TESTED_LIBNFTABLES = (1, 0, 6)
SERVE = "netagent"
"""Type of our plugin."""


class _Plugin(Struct):
    type: str = ""


class _Conflist(Struct):
    type: str = ""
    """Of a configuration of one plugin."""
    plugins: list[_Plugin] = []


class StateDir(Struct, frozen=True, kw_only=True):
    """The state directory, or the nearest directory above it that exists."""

    path: str
    there: bool
    writable: bool
    mode: int = 0o700
    owner: int = 0
    free_bytes: int = 0
    free_inodes: int | None = None
    """None: the file system has no such limit."""


class Presence(Struct, frozen=True, kw_only=True):
    """What of netagent is on the node."""

    agents: tuple[int, ...] = ()
    """Processes of agents in this network namespace, of those that can be seen."""
    served: bool = False
    """Somebody answers on the CNI socket."""
    socket: bool = False
    """There is a socket file."""
    http: bool = False
    """An agent answers on http.port."""
    table: bool = False
    """Our nftables table is in the kernel."""
    conflist: bool = False
    """Our configuration list is in its place."""

    @property
    def running(self) -> bool:
        return bool(self.agents) or self.served or self.http


def plugins(content: bytes) -> tuple[str, ...] | None:
    """Types of the plugins in a CNI configuration (list); None where it cannot be read."""
    try:
        found = msgspec.json.decode(content, type=_Conflist)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return tuple(plugin.type for plugin in found.plugins) or ((found.type,) if found.type else ())


def cni_configs(files: Mapping[str, tuple[str, ...] | None], config: Config, *, running: bool) -> Iterable[Finding]:
    """`files`: name -> types of plugins, None for unreadable ones, of all files in cni.conf_dir that runtimes read."""
    cni = config.cni
    if not cni.enabled:
        yield _others_config(files, cni.conf_dir)
        return
    first = sorted(name for name in files if name < cni.conf_name)
    if first:
        yield Finding(
            "cni.order",
            "error" if running else "warning",
            f"{cni.conf_dir} has {', '.join(first)} before {cni.conf_name}",
            "Container runtimes take the first by name: new pods are wired by that plugin, not by netagent.",
            "remove or rename it (any other end than .conf, .conflist, .json), after flannel with `netagent migrate "
            "--from flannel`; or choose an earlier cni.conf_name",
        )
    else:
        yield Finding("cni.order", "ok", f"nothing in {cni.conf_dir} comes before {cni.conf_name}")
    ours = files.get(cni.conf_name, ())
    if cni.conf_name in files and SERVE not in (ours or ()):
        yield Finding(
            "cni.conflist",
            "error",
            f"{cni.conf_dir}/{cni.conf_name} is not netagent's: {', '.join(ours or ()) or 'it cannot be read'}",
            "New pods are not wired by netagent.",
            "restart the agent, which writes it anew, and find out who overwrites it",
        )
    elif cni.conf_name in files:
        yield Finding("cni.conflist", "ok", f"{cni.conf_dir}/{cni.conf_name} is in place")
    elif running:
        yield Finding(
            "cni.conflist",
            "error",
            f"{cni.conf_dir}/{cni.conf_name} is not there although an agent runs",
            "The runtime reports NetworkReady=false and no pod starts.",
            "`netagent status` says what the agent waits for",
        )


def _others_config(files: Collection[str], conf_dir: str) -> Finding:
    if files:
        return Finding("cni.order", "ok", f"another plugin wires the pods: {min(files)}")
    return Finding(
        "cni.order",
        "warning",
        f"cni.enabled is false and {conf_dir} has no configuration of another plugin",
        "Nobody wires pods on this node.",
        "install the other plugin, or set cni.enabled to true",
    )


def executable(path: str, *, there: bool, runs: bool, same: bool, running: bool) -> Finding:
    """The plugin's executable; `same`: the one of this version."""
    if there and runs and same:
        return Finding("cni.executable", "ok", f"{path} is of this version")
    if there and runs:
        return Finding(
            "cni.executable",
            "info",
            f"{path} is of another version than this command",
            "The agent replaces it when it starts.",
        )
    found = f"{path} cannot be executed" if there else f"{path} is not there"
    if not running and not there:
        return Finding("cni.executable", "info", f"{found}; the agent installs it")
    return Finding(
        "cni.executable",
        "error",
        found,
        "The runtime cannot call netagent: no pod starts or is removed.",
        "restart the agent, which installs it; is the file system of cni.bin_dir read-only or noexec?",
    )


def agents(presence: Presence, config: Config) -> Iterable[Finding]:
    """Whether one agent runs, and only one."""
    pids = ", ".join(map(str, presence.agents))
    if len(presence.agents) > 1:
        yield Finding(
            "agent.running",
            "error",
            f"{len(presence.agents)} agents run on this node: processes {pids}",
            "They undo each other's changes.",
            "stop all but one; is there a second DaemonSet, or one beside a system service?",
        )
    elif presence.running:
        yield Finding("agent.running", "ok", f"an agent runs{f': process {pids}' if pids else ''}")
    elif presence.table or presence.conflist:
        yield Finding(
            "agent.running",
            "error",
            "no agent runs, but " + " and ".join(_traces(presence)) + " of one is there",
            "Running pods go on under the old rules; new pods wait, policy does not change any more.",
            "look why it ended: kubectl -n kube-system get pods -l app.kubernetes.io/name=netagent -o wide, its log, "
            "`kubectl logs --previous`",
        )
    else:
        yield Finding("agent.running", "info", "no agent runs here, and there are no traces of one")
    if config.cni.enabled and presence.running and not presence.served:
        yield Finding(
            "cni.socket",
            "error",
            f"nobody serves {config.cni.socket}" + ("" if presence.socket else ", which is not there"),
            "New pods wait.",
            "`netagent status` says what the agent waits for; has it the same cni.socket, and is its directory "
            "mounted?",
        )
    elif config.cni.enabled and presence.served:
        yield Finding("cni.socket", "ok", f"{config.cni.socket} is served")


def _traces(presence: Presence) -> list[str]:
    return ["the table"] * presence.table + ["the CNI configuration"] * presence.conflist


def readiness(parts: Mapping[str, str]) -> Finding:
    """Parts of the agent -> why they are not ready, "" where they are."""
    lacking = {name: problem for name, problem in parts.items() if problem}
    if not lacking:
        return Finding("agent.ready", "ok", f"ready: {', '.join(parts)}")
    return Finding(
        "agent.ready",
        "warning",
        "; ".join(f"{name}: {problem}" for name, problem in lacking.items()),
        "New pods wait until all parts are ready; running ones go on.",
        "`netagent status`, and the agent's log",
    )


def state_dir(found: StateDir) -> Iterable[Finding]:
    """Space and rights of the state directory."""
    name = "state.dir"
    if not found.writable:
        yield Finding(
            name,
            "error",
            f"{found.path} cannot be written",
            "No pod can start: addresses that are given out must be written down.",
            "make it writable for the agent (mount, owner, read-only file system)",
        )
    elif found.there and (found.mode & 0o022 or found.owner != 0):
        yield Finding(
            name,
            "warning",
            f"{found.path} has mode {found.mode:04o} and owner {found.owner}",
            "Others than root can change which pod has which address.",
            f"chown 0:0 {found.path}; chmod 700 {found.path}",
        )
    else:
        yield Finding(name, "ok", f"{found.path} is writable" + ("" if found.there else "; the agent makes its own"))
    yield _space(found)


def _space(found: StateDir) -> Finding:
    inodes = found.free_inodes
    text = f"{found.free_bytes >> 20} MiB" + (f" and {inodes} files" if inodes is not None else "") + " free"
    few = inodes is not None and inodes < LEAST_FREE_INODES
    if found.free_bytes >= LITTLE_FREE_BYTES and not few:
        return Finding("state.space", "ok", f"{found.path}: {text}")
    lacking = found.free_bytes < LEAST_FREE_BYTES or few
    return Finding(
        "state.space",
        "error" if lacking else "warning",
        f"{found.path}: {text}",
        "No pod can start while nothing can be written there." if lacking else "Without space no pod can start.",
        "make room on that file system; the kubelet's image and container logs are the usual cause",
    )


def libnftables(version: str) -> Finding:
    """Of the library that this command, and the agent of the same image, uses."""
    found = f"libnftables {version}"
    if parse_version(version) >= TESTED_LIBNFTABLES:
        return Finding("libnftables.version", "ok", found)
    return Finding(
        "libnftables.version",
        "warning",
        found,
        f"netagent was tried with {'.'.join(map(str, TESTED_LIBNFTABLES))} and newer only.",
        "use the image, or Debian 12's libnftables1",
    )


def parse_version(text: str) -> tuple[int, ...]:
    """`1.0.6` -> (1, 0, 6); what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))
