"""Our plugin in a list with others, as a runtime calls them: what they do to the pod is asked of packets and queues."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netagent.agent.pods.podlinks import PodLinks
from netagent.cni import install
from netagent.core.cni import HOST_MAC, host_ifname
from netagent.kernel.netns import open_netns, run_in_netns
from support.cnibed import DEADLINE_S, Bed, Netns, addresses, execute, has_link, sh, udp_socket

PLUGINS = Path("/usr/lib/cni")
LINK = host_ifname("web", "eth0")
RATE_BITS = 8_000_000
LIMITS = {"ingressRate": RATE_BITS, "ingressBurst": RATE_BITS, "egressRate": RATE_BITS, "egressBurst": RATE_BITS}

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not (PLUGINS / "portmap").exists(), reason="needs containernetworking-plugins"),
]


class Runtime:
    """Calls the plugins of a list in order, and in reverse for DEL, as libcni does."""

    def __init__(self, bed: Bed, runtime_config: dict[str, Any], version: str = "1.0.0") -> None:
        config = msgspec.structs.replace(
            bed.config, chained=("portmap", "bandwidth"), version=version, bin_dir=str(PLUGINS)
        )
        self.conflist = json.loads(install.render_conflist(config))
        self._runtime_config = runtime_config
        self._bed = bed

    async def add(self, name: str) -> Any:
        result: Any = None
        for plugin in self.conflist["plugins"]:
            status, result = await self._call("ADD", name, plugin, result)
            assert status == 0, (plugin["type"], result)
        return result

    async def other(self, command: str, name: str, result: Any) -> None:
        """CHECK or DEL."""
        plugins = self.conflist["plugins"]
        for plugin in plugins if command == "CHECK" else reversed(plugins):
            status, answer = await self._call(command, name, plugin, result)
            assert status == 0, (plugin["type"], answer)

    async def _call(self, command: str, name: str, plugin: Any, result: Any) -> tuple[int, Any]:
        able = plugin.get("capabilities", {})
        conf = {key: value for key, value in plugin.items() if key != "capabilities"}
        conf |= {"cniVersion": self.conflist["cniVersion"], "name": self.conflist["name"]}
        conf["runtimeConfig"] = {key: value for key, value in self._runtime_config.items() if able.get(key)}
        if result is not None:
            conf["prevResult"] = result
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}",
            "CNI_PATH": str(PLUGINS),
            "PATH": os.environ["PATH"],
        }
        program = install.SHIM if plugin["type"] == "netagent" else PLUGINS / plugin["type"]
        return await execute(environ, json.dumps(conf).encode(), str(program))


def rates(link: str) -> list[int]:
    """Rates of the token buckets on a link, bits per second."""
    found = json.loads(sh("tc", "-j", "qdisc", "show", "dev", link))
    return [queue["options"]["rate"] * 8 for queue in found if queue["kind"] == "tbf"]


@pytest.fixture
def server(bed: Bed, pod_netns: Netns) -> Callable[[str, int], socket.socket]:
    def make(name: str, port: int) -> socket.socket:
        with open_netns(f"/run/netns/{name}") as descriptor:
            return run_in_netns(descriptor, lambda: socket.create_server(("", port)))

    return make


async def test_bandwidth_shapes_what_the_pod_gets(bed: Bed, pod_netns: Netns) -> None:
    """The plugin finds our host end by the result, so that what is beyond the rate is held back."""
    sh("ip", "address", "replace", "192.0.2.7/32", "dev", "lo")
    netns = pod_netns("web")
    runtime = Runtime(bed, {"bandwidth": LIMITS})
    assert [plugin["type"] for plugin in runtime.conflist["plugins"]] == ["netagent", "portmap", "bandwidth"]
    result = await runtime.add("web")
    assert addresses(result)[0] == "10.77.0.1"
    assert rates(LINK) == [RATE_BITS]
    await runtime.other("CHECK", "web", result)
    with udp_socket(netns, "10.77.0.1") as pod, udp_socket(None, "192.0.2.7") as node:
        pod.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        node.sendto(b"x", pod.getsockname())
        assert pod.recvfrom(8)[0] == b"x"
        began_s = time.monotonic()
        for _ in range(2_500):  # 3 MB; the bucket holds 1 MB and fills at 1 MB/s, and the socket waits for it
            await asyncio.to_thread(node.sendto, bytes(1200), pod.getsockname())
        assert time.monotonic() - began_s > 1.0
    await runtime.other("DEL", "web", result)
    assert not has_link(LINK)
    assert bed.server.endpoints() == ()


async def test_portmap_by_the_runtimes_configuration(
    bed: Bed, pod_netns: Netns, server: Callable[[str, int], socket.socket]
) -> None:
    sh("ip", "address", "replace", "192.0.2.7/32", "dev", "lo")
    pod_netns("web")
    runtime = Runtime(bed, {"portMappings": [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}]})
    result = await runtime.add("web")
    with server("web", 80):
        _, writer = await asyncio.wait_for(asyncio.open_connection("192.0.2.7", 8081), DEADLINE_S)
        writer.close()
        await writer.wait_closed()
        await runtime.other("DEL", "web", result)
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection(("192.0.2.7", 8081), timeout=1)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_the_whole_chain_in_every_version_that_the_plugins_know(bed: Bed, pod_netns: Netns, version: str) -> None:
    pod_netns("web")
    runtime = Runtime(bed, {"bandwidth": LIMITS}, version)  # without limits the plugin's own CHECK breaks
    assert runtime.conflist["cniVersion"] == version
    result = await runtime.add("web")
    assert result["cniVersion"] == version
    if version != "0.3.1":
        await runtime.other("CHECK", "web", result)
    await runtime.other("DEL", "web", result)


async def test_version_1_1_0_has_status_and_gc(bed: Bed, pod_netns: Netns) -> None:
    """Of the list alone: Debian 12's chained plugins do not know it."""
    config = msgspec.structs.replace(bed.config, chained=(), version="1.1.0")
    assert json.loads(install.render_conflist(config))["cniVersion"] == "1.1.0"
    pod_netns("web")
    await bed.add("web", version="1.1.0")
    assert await bed.call("STATUS", "", version="1.1.0") == (0, None)
    empty: dict[str, Any] = {"cni.dev/valid-attachments": []}
    assert await bed.call("GC", "", version="1.1.0", conf=empty) == (0, None)
    assert bed.server.endpoints() == ()


@pytest.mark.parametrize(("family", "vip"), [(4, "10.96.0.10"), (6, "fd96::10")])
async def test_hairpin(bed: Bed, pod_netns: Netns, family: int, vip: str) -> None:
    """A pod reaches itself through a Service: out by its only link and in by the same, source rewritten as
    kube-proxy does for hairpins."""
    netns = pod_netns("web")
    ip = addresses(await bed.add("web"))[0 if family == 4 else 1]
    word, host = ("ip", "192.0.2.7") if family == 4 else ("ip6", "fd99::7")
    sh("ip", "address", "replace", host, "dev", "lo")
    sh(
        "nft",
        f"""
        table {word} hairpin {{
            chain pre {{ type nat hook prerouting priority dstnat; {word} daddr {vip} udp dport 80 dnat to {ip}; }}
            chain post {{
                type nat hook postrouting priority srcnat;
                {word} saddr {ip} {word} daddr {ip} snat to {host};
            }}
        }}
    """,
    )
    try:
        with open_netns(netns) as descriptor:
            kind = socket.AF_INET6 if family == 6 else socket.AF_INET
            pod, client = (run_in_netns(descriptor, lambda: socket.socket(kind, socket.SOCK_DGRAM)) for _ in range(2))
        with pod, client:
            for each in (pod, client):
                each.settimeout(5)
            pod.bind((ip, 80))
            client.sendto(b"to myself", (vip, 80))
            data, seen = pod.recvfrom(32)
            assert (data, seen[0]) == (b"to myself", host)
            pod.sendto(b"answer", seen)
            answer, source = client.recvfrom(32)
            assert (answer, source[0]) == (b"answer", vip)
    finally:
        sh("nft", "delete", "table", word, "hairpin")


async def test_macs_and_neighbours_are_the_same_over_a_restart(bed: Bed, pod_netns: Netns) -> None:
    """Nothing that the pod or the node has learned of the other goes stale, and nobody ever has to ask."""
    pod_netns("web")
    await bed.add("web")

    def state() -> list[Any]:
        commands = (
            ["-j", "link", "show", LINK],
            ["-n", "web", "-j", "link", "show", "eth0"],
            ["-j", "neigh", "show", "dev", LINK],
            ["-n", "web", "-j", "neigh", "show", "dev", "eth0"],
        )
        shown = [json.loads(sh("ip", *command)) for command in commands]
        macs = [link[0]["address"] for link in shown[:2]]
        return [*macs, *(sorted((n["dst"], n["lladdr"], n["state"][0]) for n in table) for table in shown[2:])]

    before = state()
    assert before[0] == HOST_MAC
    assert {entry[2] for table in before[2:] for entry in table} == {"PERMANENT"}
    await bed.stop()
    assert state() == before
    await bed.start()
    links = PodLinks(bed.server)
    task = asyncio.create_task(links.run())
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert state() == before
    assert links.repairs == 0
    await bed.add("web")
    assert state() == before
