"""Bad days of a node, seen from its pods: the agent killed, the API server away at start and later."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from netagent.lab.cluster import Lab
from netagent.lab.places import Place
from netagent.lab.plan import Settings
from netagent.lab.pods import HOLD
from netagent.lab.probe import Target

pytestmark = [pytest.mark.lab, pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

DEADLINE_S = 30.0
NAMESPACE = "faults"
STEADY_GAP_MS = 500.0
"""What a busy machine may take to schedule the prober: the stream itself must not lose a packet."""
Object = dict[str, Any]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def town(make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]) -> AsyncIterator[Lab]:
    """client and stranger on node 0, server on node 1; only client may reach server."""
    async with Lab(Settings(nodes=2)) as lab:
        await lab.create(make_namespace(NAMESPACE))
        for name, node in (("client", 0), ("stranger", 0), ("server", 1)):
            pod = make_pod(NAMESPACE, name, node)
            pod["metadata"]["labels"] = {"app": name}
            await lab.create(pod)
        await lab.pods_ready()
        await lab.put(admitting("client"))
        await settled(lab, "stranger", allowed=False)
        await settled(lab, "client", allowed=True)
        yield lab


def admitting(*apps: str) -> Object:
    """Only these reach the server."""
    peers = [{"podSelector": {"matchLabels": {"app": app}}} for app in apps]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": NAMESPACE, "name": "server"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": peers}]},
    }


async def reaches(lab: Lab, name: str, places: dict[str, Place] | None = None) -> bool:
    """`places`: as they were when the API server could still be asked."""
    found = places or await lab.places()
    target = Target(found[f"{NAMESPACE}/server"].ip(), 80)
    return (await lab.probe_from(found[f"{NAMESPACE}/{name}"], target, timeout_s=0.5)).allowed


async def settled(lab: Lab, name: str, *, allowed: bool) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while await reaches(lab, name) != allowed:
        assert time.monotonic() < deadline_s, f"{name}: expected allowed={allowed}\n{lab.log_tail('node-1')}"


async def fault(lab: Lab, **what: Any) -> None:
    """What the API server does to every request from now on."""
    async with aiohttp.ClientSession() as session, session.post(f"{lab.url}/lab/faults", json=what) as answer:
        assert answer.status == 200, await answer.text()


async def test_a_killed_agent_leaves_everything_in_force(town: Lab) -> None:
    stream = await town.flow(f"{NAMESPACE}/client", f"{NAMESPACE}/server", 80)
    stream.reset_gap()
    for _ in range(3):
        await town.stop_agent(1, signal.SIGKILL)
        assert not await reaches(town, "stranger")
        assert await reaches(town, "client")
        await town.start_agent(1)
        assert not await reaches(town, "stranger")
    await town.nodes_ready()
    await stream.stop()
    assert stream.error == ""
    assert stream.longest_gap_ms < STEADY_GAP_MS
    await town.put(admitting("client", "stranger"))
    await settled(town, "stranger", allowed=True)
    await town.put(admitting("client"))
    await settled(town, "stranger", allowed=False)


async def test_a_new_pod_waits_for_the_agent(town: Lab, make_pod: Callable[..., Object]) -> None:
    await town.stop_agent(0, signal.SIGKILL)
    await town.create(make_pod(NAMESPACE, "late", 0))
    await asyncio.sleep(1.0)
    (late,) = [pod for pod in await town.pods() if pod["metadata"]["name"] == "late"]
    assert late.get("status", {}).get("podIPs") in (None, [])
    await town.start_agent(0)
    await town.pods_ready()
    assert not await reaches(town, "late")


async def test_without_the_api_server_the_rules_stay_and_the_agent_catches_up(town: Lab) -> None:
    places = await town.places()
    await fault(town, status=503, for_s=3.0, close_watches=True)
    began_s = time.monotonic()
    while time.monotonic() - began_s < 2.0:
        assert not await reaches(town, "stranger", places)
        assert await reaches(town, "client", places)
    await asyncio.sleep(max(0.0, began_s + 3.2 - time.monotonic()))
    await town.put(admitting("client", "stranger"))
    await settled(town, "stranger", allowed=True)
    await town.put(admitting("client"))
    await settled(town, "stranger", allowed=False)


async def test_an_agent_that_starts_without_the_api_server_keeps_the_old_rules(town: Lab) -> None:
    places = await town.places()
    await town.stop_agent(1, signal.SIGKILL)
    await fault(town, status=503, for_s=3.0)
    await town.start_agent(1)
    for _ in range(3):
        assert not await reaches(town, "stranger", places)
        assert await reaches(town, "client", places)
    await asyncio.sleep(3.0)
    await town.put(admitting("stranger"))
    await settled(town, "stranger", allowed=True)
    await settled(town, "client", allowed=False)
    await town.put(admitting("client"))
    await settled(town, "client", allowed=True)


async def test_an_unreadable_pod_costs_only_itself(town: Lab, make_pod: Callable[..., Object]) -> None:
    await town.create(make_pod(NAMESPACE, "odd", 0, annotations={HOLD: "true"}))
    path = await town.client.path("v1", "Pod", NAMESPACE, "odd")
    await town.client.patch(f"{path}/status", {"status": {"podIPs": [{"ip": "no address"}]}})
    await town.put(admitting("client", "stranger"))
    await settled(town, "stranger", allowed=True)
    await town.put(admitting("client"))
    await settled(town, "stranger", allowed=False)
    state = await town.kubectl("get", "pod", "-n", NAMESPACE, "odd", "-o", "jsonpath={.status.podIPs}")
    assert "no address" in state
    shown = await debug_state(town, 1, "policies")
    assert f"Pod {NAMESPACE}/odd" in shown["undecodable"]


async def debug_state(lab: Lab, node: int, section: str) -> Any:
    """A section of /debug/state of a node's agent, asked for on the node's own loopback."""
    address = f"http://127.0.0.1:9098/debug/state/{section}"
    net = f"--net=/proc/{lab.nodes[node].holder.pid}/ns/net"
    process = await asyncio.create_subprocess_exec(
        *("nsenter", net, "--", "curl", "-sf", "-m", "10", address), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return orjson.loads(output)
