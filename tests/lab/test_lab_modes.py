"""One half of the agent at a time: policy beside another network, a network beside another policy engine."""

import asyncio
import functools
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from netagent.kernel.netns import run_in_netns
from netagent.lab.cluster import Lab
from netagent.lab.nodes import LabNode
from netagent.lab.plan import Settings
from support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.kernel]

Object = dict[str, Any]
DEADLINE_S = 60.0
FAMILIES = (4, 6)
POLICY_ONLY = {"network": {"mode": "off"}, "cni": {"enabled": False}}
NETWORK_ONLY = {"policy": {"enabled": False}}
DEBIAN_PLUGINS = {name: f"/usr/lib/cni/{name}" for name in ("ptp", "bridge", "host-local")}


def on(node: LabNode, *command: str) -> str:
    """Run a command in a node's network namespace."""
    argv = ("nsenter", f"--net=/proc/{node.holder.pid}/ns/net", "--", *command)
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


async def ask(node: LabNode, path: str, port: int = 9099) -> tuple[int, Any]:
    """The answer of a node's agent."""
    loop = asyncio.get_running_loop()

    def connected() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=10)

    sock = await loop.run_in_executor(None, lambda: run_in_netns(node.netns, connected))
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nConnection: close\r\n\r\n".encode()
    )
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), json.loads(body)


async def ready(node: LabNode) -> bool:
    try:
        return (await ask(node, "/readyz"))[0] == 200
    except (OSError, IndexError):
        return False


def deny_ingress(name: str = "deny", **selector: str) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": name},
        "spec": {"podSelector": {"matchLabels": selector}, "policyTypes": ["Ingress"]},
    }


def labelled(pod: Object, **labels: str) -> Object:
    pod["metadata"]["labels"] = labels
    return pod


def install_other_plugin(lab: Lab, node: LabNode, plugin: str) -> None:
    """A conflist of Debian's plugins, and routes between the nodes' subnets, as an operator would make them."""
    ranges = [[{"subnet": subnet}] for subnet in node.plan.subnets]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": "/run/lab/host-local"}
    entry: Object = {"type": plugin, "ipam": ipam}
    if plugin == "bridge":
        entry |= {"bridge": "cni0", "isGateway": True}
    conflist = {"cniVersion": "1.0.0", "name": "other", "plugins": [entry]}
    for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        on(node, "sysctl", "-qw", f"net/{family}=1")
    for other in lab.nodes:
        if other is not node:
            for subnet, via in zip(other.plan.subnets, other.plan.ips, strict=True):
                on(node, "ip", "route", "add", subnet, "via", via)
    node.path("/etc/cni/net.d/20-other.conflist").write_text(json.dumps(conflist))


@pytest_asyncio.fixture(params=["ptp", "bridge"])
async def beside(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Two nodes whose pods another plugin wires, with agents for policy alone."""
    settings = Settings(nodes=2, families=FAMILIES, agents=False, agent=POLICY_ONLY, plugins=DEBIAN_PLUGINS)
    async with Lab(settings) as lab:
        for node in lab.nodes:
            install_other_plugin(lab, node, request.param)
        await lab.nodes_ready()
        for node in lab.nodes:
            await lab.start_agent(node.plan.index)
        yield lab


async def expect(lab: Lab, source: str, destination: str, *, allowed: bool) -> None:
    """On both families, once what was written has taken effect."""
    for family in FAMILIES:

        async def holds(family: int = family) -> bool:
            verdict = await lab.probe(source, destination, 80, family=family, timeout_s=1.0)
            return verdict.allowed is allowed

        await until(holds, f"{source} -> {destination} v{family} {'allowed' if allowed else 'denied'}")


async def test_policy_is_enforced_on_pods_of_another_plugin(beside: Lab, make_pod: Callable[..., Object]) -> None:
    lab = beside
    await lab.create(
        labelled(make_pod("default", "server", 0), app="server"),
        labelled(make_pod("default", "free", 0), app="free"),
        labelled(make_pod("default", "near", 0), app="near"),
        labelled(make_pod("default", "far", 1), app="far"),
    )
    await lab.pods_ready()
    for source in ("default/far", "default/near"):
        await expect(lab, source, "default/server", allowed=True)
    await lab.create(deny_ingress(app="server"))
    for source in ("default/far", "default/near"):
        await expect(lab, source, "default/server", allowed=False)
        await expect(lab, source, "default/free", allowed=True)
    await expect(lab, "node:0", "default/server", allowed=True)
    await lab.delete("networking.k8s.io/v1", "NetworkPolicy", "deny", "default")
    await expect(lab, "default/far", "default/server", allowed=True)


async def test_policy_that_is_there_first_meets_new_pods_once_the_api_shows_their_addresses(
    beside: Lab, make_pod: Callable[..., Object]
) -> None:
    lab = beside
    await lab.create(deny_ingress(app="server"), labelled(make_pod("default", "far", 1), app="far"))
    await lab.create(labelled(make_pod("default", "server", 0), app="server"))
    await lab.pods_ready()
    await expect(lab, "default/far", "default/server", allowed=False)
    await lab.delete("v1", "Pod", "server", "default")
    # Another pod may get the address: it must not inherit the verdict.
    await lab.create(labelled(make_pod("default", "next", 0), app="next"))
    await lab.pods_ready()
    await expect(lab, "default/far", "default/next", allowed=True)


async def test_policy_only_agents_are_ready_without_network_and_plugin(beside: Lab) -> None:
    lab = beside
    for node in lab.nodes:
        await until(functools.partial(ready, node), "ready")
        _, health = await ask(node, "/readyz")
        assert list(health["parts"]) == ["dataplane"]
        _, watches = await ask(node, "/debug/state/watches", 9098)
        assert sorted(watch["kind"] for watch in watches) == ["Namespace", "NetworkPolicy", "Pod"]
        assert os.listdir(node.path("/etc/cni/net.d")) == ["20-other.conflist"]
        assert not node.path("/opt/cni/bin/netagent").exists()
        assert "netagent" not in on(node, "ip", "-brief", "link")
        assert not on(node, "ip", "route", "show", "proto", "78")
        assert "masquerade" not in on(node, "nft", "list", "ruleset")
        assert "hook forward" in on(node, "nft", "list", "table", "inet", "netagent")


async def test_network_only_carries_pods_and_enforces_nothing(make_pod: Callable[..., Object]) -> None:
    async with Lab(Settings(nodes=2, families=FAMILIES, agent=NETWORK_ONLY)) as lab:
        await lab.create(
            deny_ingress(app="server"),
            labelled(make_pod("default", "server", 0), app="server"),
            labelled(make_pod("default", "far", 1), app="far"),
        )
        await lab.pods_ready()
        await expect(lab, "default/far", "default/server", allowed=True)
        for node in lab.nodes:
            assert await ready(node)
            table = on(node, "nft", "list", "table", "inet", "netagent")
            assert "hook forward" not in table
            assert "masquerade" in table
            _, watches = await ask(node, "/debug/state/watches", 9098)
            assert not {"NetworkPolicy", "Namespace"} & {watch["kind"] for watch in watches}


async def test_switching_policy_off_opens_and_on_closes(make_pod: Callable[..., Object]) -> None:
    """Chains of the other mode do not outlive the restart, in both directions; pods live through it."""
    async with Lab(Settings(nodes=1, families=FAMILIES)) as lab:
        node = lab.nodes[0]
        config = json.loads(node.path("/run/lab/agent.json").read_text())
        await lab.create(
            deny_ingress(app="server"),
            labelled(make_pod("default", "server", 0), app="server"),
            labelled(make_pod("default", "client", 0), app="client"),
        )
        await lab.pods_ready()
        for enabled in (True, False, True):
            await lab.stop_agent(0)
            node.path("/run/lab/agent.json").write_text(json.dumps({**config, "policy": {"enabled": enabled}}))
            await lab.start_agent(0)
            await expect(lab, "default/client", "default/server", allowed=not enabled)
            assert ("hook forward" in on(node, "nft", "list", "table", "inet", "netagent")) is enabled
