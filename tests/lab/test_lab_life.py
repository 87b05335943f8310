"""A lab comes up, serves other processes and leaves nothing, whichever way it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from netagent.lab import control
from netagent.lab.cluster import Lab
from netagent.lab.directory import base_directory
from netagent.lab.plan import Serving, Settings
from netagent.lab.processes import LabError, clean_environment

pytestmark = [pytest.mark.lab, pytest.mark.kernel]

DEADLINE_S = 60.0
Object = dict[str, Any]


def netagent(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**clean_environment(), "NETAGENT_LAB_DIR": str(base_directory())}
    argv = [sys.executable, "-m", "netagent", "lab", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=DEADLINE_S, check=False)


def network_namespaces() -> set[str]:
    """Those that a process lives in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(path))
        except OSError:
            continue
    return found


def own_mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def live(pids: Iterable[int]) -> list[int]:
    """Those that run; a zombie that waits for its parent does not."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if runs(pid)]


def pids_of(state: Any) -> list[int]:
    nodes = state["nodes"]
    return [state["init"], *(node["pid"] for node in nodes), *(node["agent"] for node in nodes)]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


async def test_a_lab_that_ends_leaves_nothing(make_pod: Callable[..., Object]) -> None:
    mounts, files = own_mounts(), os.listdir("/proc/self/fd")
    async with Lab(Settings(nodes=2, families=(4, 6))) as lab:
        await lab.create(make_pod("default", "a", 0), make_pod("default", "b", 1))
        await lab.pods_ready()
        for family in (4, 6):
            assert (await lab.probe("default/a", "default/b", 80, family=family, timeout_s=5.0)).allowed
        pids, directory = pids_of(lab.state()), lab.directory
        spaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
        assert len(spaces) == 3
        assert spaces <= network_namespaces()
    assert not live(pids)
    assert not directory.exists()
    assert not spaces & network_namespaces()
    assert own_mounts() == mounts
    assert len(os.listdir("/proc/self/fd")) <= len(files) + 2  # the event loop's own


async def test_two_labs_at_once_and_one_name_once() -> None:
    settings = Settings(name="same", nodes=1)
    async with Lab(settings) as first, Lab(Settings(nodes=1)) as second:
        assert first.url != second.url
        with pytest.raises(LabError, match="running already"):
            await Lab(settings).__aenter__()
        assert "node-0" in await first.kubectl("get", "nodes")
        assert "node-0" in await second.kubectl("get", "nodes")


async def test_a_cleared_lab_is_as_new(make_pod: Callable[..., Object]) -> None:
    async with Lab(Settings(nodes=1)) as lab:
        for _ in range(2):
            await lab.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})
            await lab.create(make_pod("x", "a", 0), make_pod("default", "b", 0))
            await lab.add_external("192.0.2.10", [Serving(80, "TCP")])
            await lab.pods_ready()
            assert (await lab.probe("x/a", "external:192.0.2.10", 80, timeout_s=5.0)).allowed
            assert (await lab.probe("external:192.0.2.10", "default/b", 80, timeout_s=5.0)).allowed
            await lab.clear()
            assert set(await lab.places()) == {"node:0"}


async def test_an_agent_that_is_killed_starts_again() -> None:
    async with Lab(Settings(nodes=1)) as lab:
        node = lab.nodes[0]
        assert node.agent is not None
        first = node.agent
        first.signal(signal.SIGKILL)
        assert await first.exited == -signal.SIGKILL
        deadline = time.monotonic() + DEADLINE_S
        while node.agent is first or not node.agent.running:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await lab.stop_agent(0)
        assert not node.agent.running


def test_a_supervisor_that_is_killed_takes_everything_along() -> None:
    environment = {**clean_environment(), "NETAGENT_LAB_DIR": str(base_directory())}
    argv = [sys.executable, "-m", "netagent", "lab", "up", "--foreground", "--name", "killed", "--nodes", "2"]
    supervisor = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline().startswith("up;")
        state = asyncio.run(control.call("killed", "GET", "/state"))
        pids = pids_of(state)
        spaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
        assert live(pids) == pids
    finally:
        supervisor.kill()
        supervisor.communicate()
    wait_until(lambda: not live(pids), "all processes are gone")
    wait_until(lambda: not spaces & network_namespaces(), "all namespaces are gone")
    wait_until(lambda: not (base_directory() / "killed").exists(), "the directory is gone")


def test_commands_drive_a_lab_from_other_processes() -> None:
    up = netagent("up", "--name", "cli", "--nodes", "2")
    assert up.returncode == 0, up.stderr
    try:
        assert "node-1: 172.30.0.12; pods 10.244.1.0/24; agent" in up.stdout
        again = netagent("up", "--name", "cli")
        assert again.returncode == 1
        assert "running already" in again.stderr
        kubeconfig = netagent("kubeconfig", "--name", "cli").stdout.strip()
        nodes = subprocess.run(
            ["kubectl", "--kubeconfig", kubeconfig, "get", "nodes"], capture_output=True, text=True, check=True
        )
        assert nodes.stdout.count(" Ready ") == 2
        assert netagent("external", "--name", "cli", "192.0.2.10", "--serves", "80/TCP").returncode == 0
        probe = netagent("probe", "--name", "cli", "--from", "node:0", "--to", "external:192.0.2.10", "--port", "80")
        assert (probe.returncode, probe.stdout) == (
            0,
            "node:0 -> external:192.0.2.10 80/TCP: allowed, answered by external:192.0.2.10\n",
        )
        denied = netagent("probe", "--name", "cli", "--from", "node:0", "--to", "node:1", "--port", "7")
        assert (denied.returncode, "refused" in denied.stdout) == (1, True)
        inside = netagent("exec", "--name", "cli", "node:1", "--", "ls", "/etc/cni/net.d")
        assert inside.stdout == "10-netagent.conflist\n"
        assert netagent("logs", "--name", "cli", "node-0").returncode == 0
    finally:
        down = netagent("down", "--name", "cli")
    assert down.returncode == 0, down.stderr
    assert not (base_directory() / "cli").exists()
    gone = netagent("status", "--name", "cli")
    assert gone.returncode == 1
    assert "does not answer" in gone.stderr
