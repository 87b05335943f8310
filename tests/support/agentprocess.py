"""The agent as a process of its own in policy-only mode, and its HTTP: no link, no plugin, pods out of the API."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from support.waiting import until

Answer = tuple[int, bytes]


class AgentProcess:
    """One agent; `stop` ends it."""

    def __init__(self, home: Path, kubeconfig: Path, node: str, **options: Any) -> None:
        """`options` are sections of the configuration that are laid over it."""
        self.log = home / "agent.log"
        self.port, self.debug_port = _free_port(), _free_port()
        self.config = home / "netagent.json"
        tree: dict[str, Any] = {
            "node_name": node,
            "state_dir": str(home / "state"),
            "api": {"kubeconfig": str(kubeconfig)},
            "network": {"mode": "off"},
            "cni": {"enabled": False, "socket": str(home / "run/cni.sock")},
            "http": {"address": "127.0.0.1", "port": self.port, "debug_port": self.debug_port},
        }
        for section, values in options.items():
            tree[section] = tree.get(section, {}) | values
        self.config.write_text(json.dumps(tree))
        with self.log.open("wb") as output:
            command = [sys.executable, "-m", "netagent", "agent", "--config", str(self.config)]
            environ = {**os.environ, "NETAGENT_API_PAGE_SIZE": "100"}
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environ)

    @property
    def debug(self) -> str:
        """URL of the debug listener."""
        return f"http://127.0.0.1:{self.debug_port}"

    @property
    def url(self) -> str:
        """URL of health and metrics."""
        return f"http://127.0.0.1:{self.port}"

    async def request(self, method: str, url: str, body: bytes | None = None, **headers: str) -> Answer:
        """Status and body. Raises aiohttp.ClientError where nobody answers."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, data=body, headers=headers) as response,
        ):
            return response.status, await response.read()

    async def get(self, path: str, **headers: str) -> Answer:
        """A page of the debug listener."""
        return await self.request("GET", self.debug + path, None, **headers)

    async def json(self, path: str) -> Any:
        """A page that must be there."""
        status, body = await self.get(path)
        assert status == 200, body
        return json.loads(body)

    async def health(self, path: str) -> int:
        """Status of /livez or /readyz; 0: nobody answers."""
        with contextlib.suppress(aiohttp.ClientError):
            return (await self.request("GET", self.url + path))[0]
        return 0

    async def ready(self) -> None:
        """Until it is."""

        async def answered() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return await self.health("/readyz") == 200

        await until(answered, self.log.read_text)

    async def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
