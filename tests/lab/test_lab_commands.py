"""`netagent status` and `netagent doctor` on nodes that work, as an operator calls them there."""

import asyncio
import ipaddress
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from netagent.lab.cluster import Lab
from netagent.lab.plan import Settings
from netagent.lab.processes import clean_environment

pytestmark = [pytest.mark.lab, pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

CONFIG = "/run/lab/agent.json"
DEADLINE_S = 40.0
SHOP = "shop"
Object = dict[str, Any]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shop(make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]) -> AsyncIterator[Lab]:
    """web on node 0, db on node 1; nobody reaches db."""
    async with Lab(Settings(nodes=2)) as lab:
        await lab.create(make_namespace(SHOP))
        for node, name in enumerate(("web", "db")):
            pod = make_pod(SHOP, name, node)
            pod["metadata"]["labels"] = {"app": name}
            await lab.create(pod)
        await lab.pods_ready()
        await lab.put(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"namespace": SHOP, "name": "db"},
                "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": []},
            }
        )
        yield lab


def argv(lab: Lab, node: int, *words: str) -> list[str]:
    pid = lab.nodes[node].holder.pid
    joins = [f"--{name}=/proc/{pid}/ns/{kind}" for name, kind in (("net", "net"), ("mount", "mnt"), ("uts", "uts"))]
    # The lab's processes are in a PID namespace of their own, and so is the node's /proc.
    joins.append(f"--pid=/proc/{lab.outside.pid}/ns/pid")
    return ["nsenter", *joins, "--", sys.executable, "-m", "netagent", *words]


def run(lab: Lab, node: int, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        argv(lab, node, *words), capture_output=True, text=True, check=False, env=clean_environment(), timeout=60
    )
    return done.returncode, done.stdout + done.stderr


async def eventually(lab: Lab, wanted: Callable[[Object], bool]) -> Object:
    """Of node 1's status."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            code, printed = run(lab, 1, "status", "--output", "json")
            answer: Object = json.loads(printed)
            if code == 0 and wanted(answer):
                return answer
            await asyncio.sleep(0.2)


async def test_status_has_what_the_node_is_and_does(shop: Lab) -> None:
    answer = await eventually(shop, lambda one: any(pod["chains"] for pod in one["pods"]))
    assert (answer["node"], answer["ready"], answer["not_answered"]) == ("node-1", True, {})
    assert set(answer["parts"]) >= {"dataplane", "lease", "pod network", "cni"}
    assert [peer["holder"] for peer in answer["peers"]] == ["node-0"]
    assert [pod["pod"] for pod in answer["pods"]] == ["shop/db"]
    subnet = ipaddress.ip_network(answer["leases"][0]["subnet"])
    assert ipaddress.ip_address(answer["pods"][0]["ips"][0]) in subnet
    assert answer["network"]["peers"] == 1
    assert answer["generation"] > 0
    assert answer["last_transaction"]["error"] == ""
    assert 0 < answer["uptime_s"] < 3600
    before = answer["drops"]["denied_ingress"]
    assert not (await shop.probe("shop/web", "shop/db", 80, timeout_s=1.0)).allowed
    await eventually(shop, lambda one: one["drops"]["denied_ingress"] > before)


async def test_status_as_text(shop: Lab) -> None:
    code, printed = run(shop, 0, "status", "--config", CONFIG)
    assert code == 0
    assert printed.startswith("node node-0: ready, netagent ")
    for part in ("  + pod network\n", "  node-1  10.244.", "  shop/web  ", "not isolated", "dropped   "):
        assert part in printed


async def test_status_again_and_again(shop: Lab) -> None:
    command = argv(shop, 0, "status", "--watch", "0.1")
    with subprocess.Popen(  # noqa: ASYNC220 - it ends here
        command, stdout=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.startswith("node node-0: ready")
            if seen == 3:
                break
        # nsenter waits for the program in the other PID namespace, which ends when nobody reads what it prints.
        process.stdout.close()
    assert process.returncode != 0


async def test_a_good_node_has_nothing_to_do(shop: Lab) -> None:
    code, printed = run(shop, 0, "doctor", "--config", CONFIG, "--output", "json")
    answer = json.loads(printed)
    bad = [one for one in answer["findings"] if one["level"] not in ("ok", "info")]
    assert (code, bad) == (0, [])
    found = {one["id"]: one for one in answer["findings"]}
    assert {found[name]["level"] for name in ("agent.running", "agent.ready", "cni.socket", "api.server")} == {"ok"}
    assert found["node.object"]["found"].startswith("Node node-0 has the addresses ")


async def test_a_node_without_its_agent(shop: Lab) -> None:
    await shop.stop_agent(1, signal.SIGKILL)
    code, printed = run(shop, 1, "status")
    assert code == 2
    assert printed.startswith("netagent: no agent answers at http://127.0.0.1:9098")
    code, printed = run(shop, 1, "doctor", "--config", CONFIG)
    assert code == 2
    assert printed.startswith(
        "error    agent.running: no agent runs, but the table and the CNI configuration of one is"
    )
