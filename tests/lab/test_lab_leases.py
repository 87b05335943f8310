"""Subnets of nodes end to end: cut off, taken over, lost, replaced; and what becomes of the pods meanwhile."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from netagent.kube import leases
from netagent.lab import pods
from netagent.lab.cluster import Lab
from netagent.lab.places import Place
from netagent.lab.plan import Settings
from netagent.lab.probe import Target
from support.waiting import until

pytestmark = [
    pytest.mark.lab,
    pytest.mark.kernel,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]

DEADLINE_S = 60.0
DURATION_S, GRACE_S = 3, 8
LEASES = leases.collection("kube-system")
FIRST, SECOND = "10.244.0.0/24", "10.244.1.0/24"
EXTERNAL = "192.0.2.10"
Object = dict[str, Any]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def town(make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]) -> AsyncIterator[Lab]:
    """Two nodes and no third subnet; leases that expire in seconds."""
    network = {"pools": ["10.244.0.0/23"], "lease_duration_s": DURATION_S, "takeover_grace_s": GRACE_S}
    async with Lab(Settings(nodes=2, agent={"network": network})) as lab:
        await lab.create(make_namespace("x"))
        await lab.create(*(make_pod("x", name, 0) for name in ("old", "friend")), make_pod("x", "far", 1))
        await lab.add_external(EXTERNAL)
        await lab.pods_ready()
        yield lab


async def inside(lab: Lab, index: int, *argv: str, stdin: str = "") -> tuple[int, str]:
    """Run a program in the network and mount namespaces of a node; exit status and output."""
    process = await asyncio.create_subprocess_exec(
        *("nsenter", "--net", "--mount", "-t", str(lab.nodes[index].holder.pid), "--", *argv),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, output.decode()


async def takes_pods(lab: Lab, index: int) -> bool:
    """CNI STATUS of the node's plugin, as a runtime asks it."""
    _, conflist = await inside(lab, index, "cat", "/etc/cni/net.d/10-netagent.conflist")
    conf = json.loads(conflist)["plugins"][0] | {"cniVersion": "1.1.0", "name": "netagent"}
    command = ("env", "CNI_COMMAND=STATUS", "/opt/cni/bin/netagent")
    status, answer = await inside(lab, index, *command, stdin=json.dumps(conf))
    assert status == 0 or json.loads(answer)["code"] == 50, answer
    return status == 0


async def holder(lab: Lab, subnet: str) -> str:
    found = {one["metadata"]["name"]: one for one in await lab.client.list(LEASES)}
    lease = found.get(leases.name(subnet))
    return str(lease["spec"].get("holderIdentity") or "") if lease else ""


async def unavailable(lab: Lab, index: int) -> tuple[str, str]:
    """Status and reason of the Node's condition."""
    node = (await lab.client.list("/api/v1/nodes"))[index]
    found = [one for one in node["status"]["conditions"] if one["type"] == "NetworkUnavailable"]
    return (found[0]["status"], found[0]["reason"]) if found else ("", "")


async def event(lab: Lab, reason: str) -> str:
    items = await lab.client.list("/api/v1/events")
    return next((str(one["message"]) for one in items if one["reason"] == reason), "")


async def reaches(lab: Lab, source: Place, ip: str) -> bool:
    return (await lab.probe_from(source, Target(ip, 80), timeout_s=1.0)).allowed


async def cut(lab: Lab, index: int) -> None:
    """The node's agent hears nothing of the API server any more."""
    rules = "table ip cut {\nchain out {\ntype filter hook output priority 0; tcp dport 6443 drop\n}\n}\n"
    assert await inside(lab, index, "nft", "-f", "-", stdin=rules) == (0, "")


async def mend(lab: Lab, index: int) -> None:
    assert await inside(lab, index, "nft", "delete table ip cut") == (0, "")


async def test_a_node_cut_off_for_longer_than_its_lease(town: Lab, make_pod: Callable[..., Object]) -> None:
    """The whole story: its subnet goes to another node, never to both; its pods live on; it comes back."""
    places = await town.places()
    old, friend, outside = places["x/old"], places["x/friend"], places[f"external:{EXTERNAL}"]

    async def served() -> bool:
        """The old pods go on, within the node and with the outside."""
        return all(
            [
                await reaches(town, friend, old.ip()),
                await reaches(town, places["node:0"], old.ip()),
                await reaches(town, outside, old.ip()),
            ]
        )

    assert await holder(town, FIRST) == "node-0"
    assert await takes_pods(town, 0)
    await cut(town, 0)
    # The other node is driven out of its own subnet, so that it has to take what it finds.
    await town.stop_agent(1)
    await town.client.request("DELETE", f"{LEASES}/{leases.name(SECOND)}")
    await town.create(reservation(SECOND))
    await town.start_agent(1)

    async def taken() -> bool:
        held = await holder(town, FIRST)
        if held == "node-1":
            assert not await takes_pods(town, 0)
        return held == "node-1" and await takes_pods(town, 1)

    await until(taken, "the second node takes over")
    assert await served()

    # The old pods' addresses are in use: the new holder gives out others.
    await town.create(make_pod("x", "new", 1))

    async def running() -> Object | None:
        found = {pods.full_name(pod): pod for pod in await town.pods()}
        return found["x/new"] if pods.is_ready(found["x/new"]) else None

    new = await until(running, "a pod starts on the new holder")
    assert pods.ips(new)[0].startswith("10.244.0.")
    assert pods.ips(new)[0] not in (old.ip(), friend.ip())

    await mend(town, 0)
    message = await until(lambda: event(town, "SubnetLeaseLost"), "the loss is told")
    assert f"The lease of {FIRST} is held by node-1 now" in message

    async def exhausted() -> bool:
        return await unavailable(town, 0) == ("True", "SubnetPoolExhausted")

    await until(exhausted, "the node says that it has no subnet")
    assert "no free subnet in 10.244.0.0/23" in await until(lambda: event(town, "SubnetPoolExhausted"), "and an Event")
    assert await served()

    await town.client.request("DELETE", f"{LEASES}/{leases.name(SECOND)}")

    async def available() -> bool:
        return (await unavailable(town, 0))[0] == "False"

    await until(available, "the node has a subnet again")
    assert await holder(town, SECOND) == "node-0"
    await town.create(make_pod("x", "next", 0))
    await town.pods_ready()
    later = await town.places()
    assert later["x/next"].ip().startswith("10.244.1.")
    assert await served()
    assert await reaches(town, later["x/next"], old.ip())
    assert await reaches(town, old, later["x/next"].ip())
    assert await reaches(town, later["x/next"], later["x/new"].ip())
    assert await reaches(town, later["x/new"], later["x/next"].ip())


def reservation(subnet: str) -> Object:
    """A lease of nobody that never expires, as an operator makes it."""
    body = leases.body(subnet, "kube-system", leases.Tenant("operator", "", 1), time.time())
    del body["metadata"]["ownerReferences"], body["spec"]["leaseDurationSeconds"]
    return body


async def test_a_lease_goes_with_its_node(town: Lab) -> None:
    await town.stop_agent(1)
    assert await holder(town, FIRST) == "node-1"
    await town.kubectl("delete", "node", "node-1")

    async def gone() -> bool:
        return await holder(town, FIRST) == ""

    await until(gone, "the lease is collected with the Node")
