"""A node as the CNI plugin's executable meets it: an agent's socket, namespaces, packets."""

import asyncio
import contextlib
import json
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netagent.agent.pods.cni import CniServer
from netagent.cni import install
from netagent.config import CniConfig
from netagent.disk.allocations import Allocations
from netagent.kernel.netns import open_netns, run_in_netns
from netagent.ports import NetagentError, PodNetState
from netagent.records import Endpoint

DEADLINE_S = 20.0
DUAL = ("10.77.0.0/24", "fd77::/64")


class Gate:
    """Policy that admits, and remembers what the kernel looked like when it did."""

    def __init__(self) -> None:
        self.admitted: dict[str, Endpoint] = {}
        self.restored: tuple[Endpoint, ...] = ()
        self.withdrawn: list[Endpoint] = []
        self.link_at_admission: dict[str, bool] = {}
        self.refusal: NetagentError | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def admit(self, endpoint: Endpoint) -> None:
        self.link_at_admission[endpoint.container_id] = has_link(endpoint.host_ifname)
        await self.open.wait()
        if self.refusal:
            raise self.refusal
        self.admitted[endpoint.host_ifname] = endpoint

    def withdraw(self, endpoint: Endpoint) -> None:
        self.withdrawn.append(endpoint)
        self.admitted.pop(endpoint.host_ifname, None)

    def restore(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.restored = endpoints


class Net:
    """A pod network that is what the test says."""

    def __init__(self, subnets: tuple[str, ...] = DUAL, mtu: int = 1450) -> None:
        self.now: PodNetState | None = PodNetState(subnets=subnets, mtu=mtu)

    def state(self) -> PodNetState | None:
        return self.now


class Bed:
    """One node: agent, executable, pods."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = CniConfig(
            socket=str(root / "run" / "cni.sock"),
            bin_dir=str(root / "bin"),
            conf_dir=str(root / "net.d"),
            chained=(),
            admit_timeout_s=5.0,
        )
        self.gate = Gate()
        self.net = Net()
        self.elsewhere: set[str] = set()
        """Addresses of pods of other nodes."""
        self.store = Allocations(root / "state")
        self.server = self.new_server()
        self.task: asyncio.Task[None] | None = None
        self.wait_s = 20

    def new_server(self) -> CniServer:
        return CniServer(
            self.config, pod_net=self.net, policy=self.gate, store=self.store, elsewhere=self.elsewhere.__contains__
        )

    async def start(self) -> None:
        self.server = self.new_server()
        self.task = asyncio.create_task(self.server.run())
        async with asyncio.timeout(DEADLINE_S):
            while not self.server.status.serving:
                if self.task.done():
                    await self.task
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        if self.task:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    async def call(self, command: str, name: str, *, version: str = "1.0.0", **more: Any) -> tuple[int, Any]:
        """(exit status, decoded answer) of the executable. `more`: netns, ifname, args, conf."""
        conf: dict[str, Any] = {"cniVersion": version, "name": "t", "type": "netagent", "socket": self.config.socket}
        conf |= {"waitSeconds": self.wait_s, **more.get("conf", {})}
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": more.get("netns", f"/run/netns/{name}"),
            "CNI_IFNAME": more.get("ifname", "eth0"),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};{more.get('args', '')}",
            "CNI_PATH": self.config.bin_dir,
        }
        return await execute(environ, json.dumps(conf).encode())

    async def add(self, name: str, **more: Any) -> Any:
        status, answer = await self.call("ADD", name, **more)
        assert status == 0, answer
        return answer

    async def delete(self, name: str, **more: Any) -> None:
        assert await self.call("DEL", name, **more) == (0, None)


async def execute(environ: dict[str, str], stdin: bytes, program: str = str(install.SHIM)) -> tuple[int, Any]:
    process = await asyncio.create_subprocess_exec(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)
    out, _ = await asyncio.wait_for(process.communicate(stdin), DEADLINE_S * 2)
    assert process.returncode is not None
    return process.returncode, json.loads(out) if out else None


Netns = Callable[[str], str]


def sh(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def has_link(name: str) -> bool:
    return any(name == other for _, other in socket.if_nameindex())


def addresses(result: Any) -> list[str]:
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def udp_socket(netns: str | None, ip: str) -> socket.socket:
    """A UDP socket bound to the address, in the namespace or here."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((ip, 0))
        made.settimeout(5)
        return made

    if netns is None:
        return make()
    with open_netns(netns) as descriptor:
        return run_in_netns(descriptor, make)


def exchange(client: socket.socket, server: socket.socket, server_ip: str) -> tuple[str, str]:
    """Send there and back; the sources that server and client saw."""
    client.sendto(b"ping", (server_ip, server.getsockname()[1]))
    _, seen_by_server = server.recvfrom(16)
    server.sendto(b"pong", seen_by_server)
    _, seen_by_client = client.recvfrom(16)
    return seen_by_server[0], seen_by_client[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - conditions of the kernel
            await asyncio.sleep(0.02)
