"""CNI as a container runtime speaks it: the first configuration list of a node, its plugins one after the other.

Source: the CNI specification 1.1, sections 1 (configuration), 2 (execution) and 3 (derivation of configuration).
All functions run in a thread inside the node's namespaces.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from netagent.ports import NetagentError

CONF_DIR = "/etc/cni/net.d"
BIN_DIR = "/opt/cni/bin"
EXEC_TIMEOUT_S = 90.0
"""Longer than a plugin waits for its agent (60 s)."""
IFNAME = "eth0"

Config = dict[str, Any]


class CniError(NetagentError):
    """A plugin failed, or there is no network configuration."""


class Sandbox(Struct, kw_only=True):
    """What CNI needs to know of one pod, kept until DEL has succeeded."""

    namespace: str
    name: str
    uid: str
    """Of the API's object."""
    static_uid: str = ""
    """Of a static pod: what kubelet and runtime know it by. The API's object is only its mirror."""
    node: str
    container_id: str
    requested_ips: tuple[str, ...] = ()
    port_mappings: tuple[dict[str, Any], ...] = ()
    config: Config | None = None
    """The list that ADD was called with; DEL must use the same."""
    result: dict[str, Any] | None = None
    """Result of the last plugin; None before ADD has succeeded."""

    @property
    def netns(self) -> Path:
        """The pod's network namespace, as the node sees it."""
        return netns_path(self.uid)

    @property
    def ips(self) -> tuple[str, ...]:
        """Addresses in the result's order, without prefix lengths."""
        return tuple(entry["address"].partition("/")[0] for entry in (self.result or {}).get("ips", ()))


def netns_path(uid: str) -> Path:
    """Where a pod's network namespace is pinned on its node."""
    return Path(f"/run/netns/cni-{uid}")


def load_config() -> Config:
    """The first configuration of the node in alphabetical order. Raises CniError."""
    directory = Path(CONF_DIR)
    names = sorted(entry.name for entry in directory.iterdir() if entry.suffix in (".conflist", ".conf", ".json"))
    if not names:
        raise CniError(f"no network configuration in {CONF_DIR}; pods wait until the node's agent is ready")
    path = directory / names[0]
    try:
        config: Config = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CniError(f"{path}: {error}; pods wait until it can be read") from None
    if "plugins" not in config:
        config = {"cniVersion": config["cniVersion"], "name": config["name"], "plugins": [config]}
    return config


def add(sandbox: Sandbox) -> Sandbox:
    """ADD through the list in `config`; fills in `result`. Raises CniError; then DEL is due."""
    result: dict[str, Any] | None = None
    for plugin in (sandbox.config or {}).get("plugins", ()):
        result = _call("ADD", sandbox, plugin, result)
    sandbox.result = result
    return sandbox


def delete(sandbox: Sandbox) -> None:
    """DEL through the list in reverse; nothing happens where ADD was never called. Raises CniError."""
    if sandbox.config is None:
        return
    for plugin in reversed(sandbox.config["plugins"]):
        _call("DEL", sandbox, plugin, sandbox.result)
    sandbox.config = None
    sandbox.result = None


def _call(command: str, sandbox: Sandbox, plugin: Config, previous: dict[str, Any] | None) -> dict[str, Any] | None:
    """Run one plugin. Returns its result (ADD). Raises CniError."""
    program = Path(BIN_DIR, plugin["type"])
    try:
        done = subprocess.run(
            [program],
            input=orjson.dumps(_plugin_config(sandbox, plugin, previous)),
            env={**os.environ, **_variables(command, sandbox)},
            capture_output=True,
            timeout=EXEC_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CniError(f"CNI {command} {plugin['type']}: {error}; it will be tried again") from None
    if done.returncode != 0:
        text = done.stdout.decode(errors="replace").strip() or done.stderr.decode(errors="replace").strip()
        raise CniError(f"CNI {command} {plugin['type']} for {sandbox.namespace}/{sandbox.name}: {text[:1000]}")
    try:
        return orjson.loads(done.stdout) if command == "ADD" else None
    except orjson.JSONDecodeError as error:
        raise CniError(f"CNI {command} {plugin['type']}: its answer is not JSON: {error}") from None


def _plugin_config(sandbox: Sandbox, plugin: Config, previous: dict[str, Any] | None) -> Config:
    """What the plugin reads: its entry of the list with the list's name, version, previous result and capabilities."""
    network = sandbox.config or {}
    config = {name: value for name, value in plugin.items() if name != "capabilities"}
    config |= {"name": network.get("name"), "cniVersion": network.get("cniVersion")}
    if previous is not None:
        config["prevResult"] = previous
    able = plugin.get("capabilities") or {}
    runtime: dict[str, Any] = {}
    if able.get("portMappings") and sandbox.port_mappings:
        runtime["portMappings"] = list(sandbox.port_mappings)
    if able.get("ips") and sandbox.requested_ips:
        runtime["ips"] = list(sandbox.requested_ips)
    if runtime:
        config["runtimeConfig"] = runtime
    return config


def _variables(command: str, sandbox: Sandbox) -> dict[str, str]:
    arguments = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": sandbox.namespace,
        "K8S_POD_NAME": sandbox.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox.container_id,
        "K8S_POD_UID": sandbox.static_uid or sandbox.uid,
    }
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox.container_id,
        "CNI_NETNS": str(sandbox.netns),
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": BIN_DIR,
        "CNI_ARGS": ";".join(f"{name}={value}" for name, value in arguments.items()),
    }
