"""A container runtime and its impatience: ADD and DEL through the plugin, cut short, repeated, forgotten."""

import os
import subprocess
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from chaos.ledger import Command, Ledger
from chaos.town import NAMESPACE
from netagent.lab import runtime
from netagent.lab.cluster import Lab
from netagent.lab.holder import MS_BIND, checked, libc, loopback_up
from netagent.lab.namespaces import CLONE_NEWNET, Inside, open_netns, setns, unpin_netns, unshare
from netagent.lab.places import Place

PATIENCE_S = 90.0
"""More than the executable waits for an agent."""


class Sandbox(Struct, kw_only=True):
    """One pod's network namespace and its addresses."""

    node: int
    name: str
    uid: str
    container: str
    """64 hex digits, as containerd makes them."""
    ips: tuple[str, ...] = ()

    @property
    def netns(self) -> str:
        """Path on its node."""
        return f"/run/netns/cni-{self.container[:32]}"


class Runtime:
    """The runtime of one node."""

    def __init__(self, lab: Lab, node: int, ledger: Ledger) -> None:
        self._node = lab.nodes[node]
        self._index = node
        self._ledger = ledger
        self._inside = Inside(self._node.holder.pid, threads=8)
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        """Ours: in the node's, this process is not to be seen."""

    def close(self) -> None:
        """No more calls."""
        self._inside.close()
        os.close(self._proc)

    def place(self, sandbox: Sandbox) -> Place:
        """Where its traffic starts and ends."""
        pid = self._node.holder.pid
        return Place(name=sandbox.name, net=f"/proc/{pid}/root{sandbox.netns}", ips=sandbox.ips, node_pid=pid)

    async def create(self, sandbox: Sandbox) -> None:
        """Its network namespace."""
        await self._inside.run(_pin, self._proc, Path(sandbox.netns))

    async def remove(self, sandbox: Sandbox) -> None:
        """The namespace goes, and the pod's link with it."""
        self._ledger.leaving(sandbox.container)
        await self._inside.run(unpin_netns, Path(sandbox.netns))

    async def add(self, sandbox: Sandbox, patience_s: float = PATIENCE_S) -> tuple[str, ...] | None:
        """The addresses; None where the caller lost patience, or the plugin failed."""
        answer = await self._call("ADD", sandbox, patience_s)
        if answer is None:
            return None
        return tuple(ip["address"].partition("/")[0] for ip in orjson.loads(answer)["ips"])

    async def delete(self, sandbox: Sandbox, patience_s: float = PATIENCE_S) -> bool:
        """Whether it was done, as far as the caller knows."""
        self._ledger.leaving(sandbox.container)
        return await self._call("DEL", sandbox, patience_s) is not None

    async def _call(self, command: Command, sandbox: Sandbox, patience_s: float) -> bytes | None:
        self._ledger.counts[command] += 1
        self._ledger.under_way[self._index, command] += 1
        try:
            done = await self._inside.run(_execute, command, sandbox, patience_s)
        finally:
            self._ledger.under_way[self._index, command] -= 1
        if done is None:
            self._ledger.counts[f"{command}, caller killed"] += 1
            return None
        if done.returncode != 0:
            self._ledger.counts[f"{command} refused"] += 1
            self._ledger.counts[f"refused: {done.stdout.decode(errors='replace')[:160]}"] += 1
            return None
        return done.stdout


def _pin(proc: int, path: Path) -> None:
    """A new network namespace at a path of the node, in a thread on the node."""
    os.fchdir(proc)
    home = open_netns("thread-self/ns/net")
    try:
        path.touch(mode=0o444)
        unshare(CLONE_NEWNET)
        loopback_up()
        checked(libc.mount(b"thread-self/ns/net", os.fsencode(path), b"", MS_BIND, None), f"bind {path}")
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


def _execute(command: Command, sandbox: Sandbox, patience_s: float) -> subprocess.CompletedProcess[bytes] | None:
    """In a thread on the node; None: the call was killed."""
    network = runtime.load_config()
    plugin = network["plugins"][0]
    config: dict[str, Any] = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
    arguments = {"K8S_POD_NAMESPACE": NAMESPACE, "K8S_POD_NAME": sandbox.name, "K8S_POD_UID": sandbox.uid}
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox.container,
        "CNI_NETNS": sandbox.netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": runtime.BIN_DIR,
        "CNI_ARGS": ";".join(["IgnoreUnknown=1", *(f"{name}={value}" for name, value in arguments.items())]),
    }
    try:
        return subprocess.run(
            [f"{runtime.BIN_DIR}/{plugin['type']}"],
            input=orjson.dumps(config),
            env={**os.environ, **environment},
            capture_output=True,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
