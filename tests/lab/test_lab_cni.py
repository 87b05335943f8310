"""CNI end to end: ports of the node that lead to pods, and what becomes of traffic to pods that are gone."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from netagent.lab.cluster import Lab
from netagent.lab.places import Place
from netagent.lab.probe import Target

pytestmark = [pytest.mark.lab, pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

EXTERNAL = "192.0.2.10"
Object = dict[str, Any]


async def nft(lab: Lab, index: int, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("nsenter", "--net", "-t", str(lab.nodes[index].holder.pid), "--", "nft", *command),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_a_host_port_is_reached_from_outside(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    """runtimeConfig.portMappings of the kubelet, through the list that the agent wrote."""
    ports = [{"containerPort": 80, "hostPort": 8080, "protocol": "TCP"}]
    containers = [{"name": "main", "image": "test", "ports": ports}]
    await lab.create(make_namespace("ports"), make_pod("ports", "web", 0, containers=containers))
    await lab.create(make_pod("ports", "far", 1))
    await lab.pods_ready()
    await lab.add_external(EXTERNAL)
    for source in (f"external:{EXTERNAL}", "node:1", "ports/far"):
        verdict = await lab.probe(source, "node:0", 8080, timeout_s=5.0)
        assert (verdict.allowed, verdict.answer) == (True, "ports/web"), source
    await lab.kubectl("delete", "pod", "-n", "ports", "web", "--timeout=30s")
    assert not (await lab.probe(f"external:{EXTERNAL}", "node:0", 8080)).allowed


async def test_packets_to_a_pod_that_is_gone_end_on_its_node(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    """They arrive through the tunnel, and nothing of them leaves again: not back, not to the default gateway."""
    await lab.create(make_namespace("gone"), make_pod("gone", "web", 0), make_pod("gone", "client", 1))
    await lab.pods_ready()
    places = await lab.places()
    ip = places["gone/web"].ip()
    assert (await lab.probe("gone/client", "gone/web", 80, timeout_s=5.0)).allowed
    await lab.kubectl("delete", "pod", "-n", "gone", "web", "--timeout=30s")
    hooks = {"arrived": "prerouting priority -310", "left": "postrouting priority 310"}
    await nft(lab, 0, "add", "table", "ip", "seen")
    for name, hook in hooks.items():
        await nft(lab, 0, f"add chain ip seen {name} {{ type filter hook {hook}; }}")
        await nft(lab, 0, f"add rule ip seen {name} ip daddr {ip} tcp dport 80 counter")
    try:
        assert not (await lab.probe_from(places["gone/client"], Target(ip, 80), timeout_s=1.0)).allowed
        assert not (await lab.probe_from(places["node:0"], Target(ip, 80), timeout_s=1.0)).allowed
        listing = json.loads(await nft(lab, 0, "-j", "list", "table", "ip", "seen"))["nftables"]
        rules = [one["rule"] for one in listing if "rule" in one]
        counted = {rule["chain"]: rule["expr"][-1]["counter"]["packets"] for rule in rules}
        assert counted["arrived"] > 0
        assert counted["left"] == 0
    finally:
        await nft(lab, 0, "delete", "table", "ip", "seen")


async def test_a_pods_link_is_made_anew_by_the_agent(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    """The node's end of every pod is deleted; pods elsewhere reach them again without anybody's help."""
    await lab.create(make_namespace("links"), make_pod("links", "web", 0), make_pod("links", "client", 1))
    await lab.pods_ready()
    places = await lab.places()
    pid = str(lab.nodes[0].holder.pid)
    process = await asyncio.create_subprocess_exec("nsenter", "--net", "-t", pid, "--", "ip", "-j", "link", stdout=-1)
    output, _ = await process.communicate()
    names = [link["ifname"] for link in json.loads(output) if link["ifname"].startswith("nap")]
    assert names
    batch = "".join(f"link del {name}\n" for name in names)
    process = await asyncio.create_subprocess_exec(
        *("nsenter", "--net", "-t", pid, "--", "ip", "-batch", "-"), stdin=asyncio.subprocess.PIPE
    )
    await process.communicate(batch.encode())
    deadline_s = time.monotonic() + 30.0
    while not await reaches(lab, places["links/client"], places["links/web"]):
        assert time.monotonic() < deadline_s, lab.log_tail("node-0")


async def reaches(lab: Lab, source: Place, destination: Place) -> bool:
    return (await lab.probe_from(source, Target(destination.ip(), 80), timeout_s=0.5)).allowed
