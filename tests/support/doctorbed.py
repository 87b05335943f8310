"""A node in an empty network namespace that `netagent doctor` looks at: links, files, and sometimes an agent."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netagent import cli

UPLINK, ADDRESS, GATEWAY = "up0", "10.9.0.1", "10.9.0.254"
DEADLINE_S = 40.0
Found = dict[str, Any]


def sh(*lines: str) -> str:
    """Run commands; what they print."""
    printed = ""
    for line in lines:
        printed += subprocess.run(line.split(), check=True, capture_output=True, text=True).stdout
    return printed


def nft(*commands: str) -> None:
    for command in commands:
        subprocess.run(["nft", command], check=True)


class DoctorBed:
    """The node."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys
        self.sections: dict[str, Any] = {
            "node_name": "bed",
            "state_dir": str(home / "state"),
            "network": {"mode": "lease", "pools": ["10.244.0.0/16"]},
            "policy": {},
            "cni": {
                "socket": str(home / "run/cni.sock"),
                "bin_dir": str(home / "bin"),
                "conf_dir": str(home / "net.d"),
                "plugin_dir": "",
            },
            "http": {"address": "127.0.0.1", "port": 19299, "debug_port": 19298},
        }
        for name in ("run", "net.d", "bin"):
            (home / name).mkdir()
        (home / "state").mkdir(mode=0o700)
        sh(
            f"ip link add {UPLINK} type veth peer name wire0",
            f"ip address add {ADDRESS}/24 dev {UPLINK}",
            f"ip link set {UPLINK} up",
            "ip link set wire0 up",
            f"ip route add default via {GATEWAY}",
        )
        self.sysctl("net/ipv4/ip_forward", "1")

    @property
    def config(self) -> Path:
        path = self.home / "config.json"
        content = json.dumps(self.sections)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        return path

    def set(self, section: str, **options: Any) -> None:
        self.sections[section] |= options

    def sysctl(self, path: str, value: str) -> None:
        (Path("/proc/sys") / path).write_text(value)

    def conf(self, name: str, *types: str) -> Path:
        """A CNI configuration list."""
        path = self.home / "net.d" / name
        path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": one} for one in types]}))
        return path

    def examine(self, *words: str) -> tuple[int, dict[str, list[Found]]]:
        """Exit status, and findings by id."""
        api = () if "--kubeconfig" in words else ("--no-api",)
        status = cli.main(["doctor", "--config", str(self.config), "--output", "json", *api, *words])
        return sort(self._capsys.readouterr().out, status)

    def levels(self, *words: str) -> dict[str, str]:
        """Id -> worst level, of those that are not well."""
        _, found = self.examine(*words)
        return {
            name: one["level"] for name, many in found.items() for one in many if one["level"] not in ("ok", "info")
        }

    def one(self, name: str) -> Found:
        """The only finding with this id."""
        (found,) = self.examine()[1][name]
        return found

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Somebody answers on the CNI socket, as an agent does."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.sections["cni"]["socket"])
            listener.listen(64)
            yield
        Path(self.sections["cni"]["socket"]).unlink()

    @contextlib.contextmanager
    def agent(self, **environ: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A real agent, which has no API server to ask."""
        nowhere = self.home / "nowhere"
        nowhere.write_text(NOWHERE)
        variables = {**os.environ, "NETAGENT_API_KUBECONFIG": str(nowhere), **environ}
        with (self.home / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "netagent", "agent", "--config", str(self.config)], env=variables, stderr=log
            )
        try:
            self.until(lambda: process.poll() is not None or self.listens(), "the agent listens")
            assert process.poll() is None, (self.home / "log").read_text()
            yield process
        finally:
            process.terminate()
            process.wait(DEADLINE_S)

    def listens(self) -> bool:
        for port in ("port", "debug_port"):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.sections["http"][port])):
                    return False
        return True

    def until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
            time.sleep(0.05)


def sort(printed: str, status: int) -> tuple[int, dict[str, list[Found]]]:
    answer = json.loads(printed)
    assert answer["status"] == status
    found: dict[str, list[Found]] = {}
    for one in answer["findings"]:
        found.setdefault(one["id"], []).append(one)
    return status, found


def has(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


NOWHERE = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
