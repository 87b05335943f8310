"""Health and debug of an agent process on a real API server with a token of its own."""

import asyncio
import io
import json
import signal
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from netagent import cli
from support.agentprocess import AgentProcess
from support.waiting import until

pytestmark = [pytest.mark.envtest, pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

NODE = "debug-node"
NAMESPACE = "debug"


class Site:
    """The API server seen by its administrator, and the agent with a token."""

    def __init__(self, api: Any, session: aiohttp.ClientSession, home: Path) -> None:
        self.api = api
        self.home = home
        self.kubeconfig = home / "kubeconfig"
        self.token = ""
        self.agent: AgentProcess
        self._session = session

    async def admin(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """A request with all rights."""
        url = self.api.url + path
        async with self._session.request(method, url, json=body, ssl=self.api.tls(), **more) as response:
            tree = await response.json()
            assert response.status < 300 or response.status == 409, (path, tree)
            return tree

    async def open(self) -> None:
        account = {"metadata": {"name": "debug-agent"}}
        binding = {
            "metadata": {"name": "debug-agent"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "debug-agent", "namespace": "kube-system"}],
        }
        await self.admin("POST", "/api/v1/namespaces/kube-system/serviceaccounts", account)
        await self.admin("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        await self.admin("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        await self.sign_in()

    async def sign_in(self) -> None:
        """A new token in the agent's kubeconfig."""
        path = "/api/v1/namespaces/kube-system/serviceaccounts/debug-agent/token"
        self.token = (await self.admin("POST", path, {"spec": {}}))["status"]["token"]
        await self.write_token(self.token)

    async def write_token(self, token: str) -> None:
        """The agent reads it again when the server refuses the one that it has."""
        tree = yaml.safe_load(self.api.kubeconfig.read_text())
        tree["users"][0]["user"] = {"token": token}
        self.kubeconfig.write_text(yaml.safe_dump(tree))

    async def pod(self, name: str, ip: str, **labels: str) -> None:
        """A running pod of this node."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        container = {"name": "c", "image": "none", "ports": [{"name": "web", "containerPort": 80}]}
        spec = {"nodeName": NODE, "containers": [container]}
        annotations = {"example.org/secret": "annotation-that-nobody-needs"}
        await self.admin(
            "POST", path, {"metadata": {"name": name, "labels": labels, "annotations": annotations}, "spec": spec}
        )
        status = {"status": {"phase": "Running", "podIPs": [{"ip": ip}], "podIP": ip}}
        merge = {"Content-Type": "application/merge-patch+json"}
        await self.admin("PATCH", f"{path}/{name}/status", status, headers=merge)

    async def policy(self, name: str, spec: Any) -> None:
        path = f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies"
        await self.admin("POST", path, {"metadata": {"name": name}, "spec": spec})

    async def transaction(self, cause: str) -> Any:
        """The first that has this cause."""

        async def found() -> Any:
            transactions = await self.agent.json("/debug/state/transactions")
            return next((one for one in transactions if cause in one["causes"]), None)

        return await until(found, cause)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(real_api: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    home = tmp_path_factory.mktemp("debug")
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {real_api.token}"}) as session:
        made = Site(real_api, session, home)
        await made.open()
        made.agent = AgentProcess(home, made.kubeconfig, NODE, log={"format": "json"})
        try:
            await made.agent.ready()
            await made.pod("web", "10.244.0.11", app="web")
            await made.pod("db", "10.244.0.12", app="db")
            yield made
        finally:
            await made.agent.stop()
            await asyncio.to_thread(
                cli.main, ["cleanup", "--config", str(made.agent.config), "--state", "--output", "json"]
            )


async def test_alive_and_ready(site: Site) -> None:
    assert await site.agent.request("GET", site.agent.url + "/livez") == (200, b"[+] event loop\n[+] dataplane\n")
    _, body = await site.agent.request("GET", site.agent.url + "/readyz", Accept="application/json")
    assert json.loads(body) == {"ready": True, "parts": {"dataplane": ""}, "remarks": {}}


async def test_every_endpoint_of_the_index_answers(site: Site) -> None:
    index = await site.agent.json("/debug/index")
    asked = [words.removeprefix("GET ") for words in index["endpoints"] if words.startswith("GET ")]
    assert {"/debug/ruleset", "/debug/dump", "/debug/tasks", "/debug/memory", "/debug/config"} <= set(asked)
    assert all(index["endpoints"].values())
    for path in asked:
        status, _ = await site.agent.get(path.replace("{section}", "agent"))
        assert status == (400 if path == "/debug/explain" else 200), path
    for section in index["sections"]:
        await site.agent.json(f"/debug/state/{section}")


async def test_a_transaction_tells_its_cause_and_its_latency(site: Site) -> None:
    await site.policy("only-web", {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": []})
    found = await site.transaction(f"NetworkPolicy {NAMESPACE}/only-web")
    assert found["error"] == ""
    assert 0 < found["duration_s"] < found["latency_s"]
    status, text = await site.agent.get("/debug/ruleset?format=text")
    assert (status, text) == (200, b"the kernel has what is desired\n")


async def test_pages_of_the_process(site: Site) -> None:
    tasks = {one["name"]: one for one in await site.agent.json("/debug/tasks")}
    assert tasks["heartbeat"]["runs"] == "Heartbeat.run"
    assert "health.py:" in tasks["heartbeat"]["at"]
    assert {"dataplane", "http", "watch Pod", "events"} <= tasks.keys()
    memory = await site.agent.json("/debug/memory")
    assert memory["process"]["rss_bytes"] > 20 << 20
    assert memory["kept"]["objects"]["pods"] >= 2
    assert memory["kept"]["ruleset"]["rules"] > 20
    assert memory["allocations"] == "not traced"
    config = await site.agent.json("/debug/config")
    assert config["network.mode"] == {"value": "off", "from": str(site.agent.config)}
    assert config["api.page_size"] == {"value": 100, "from": "NETAGENT_API_PAGE_SIZE"}
    assert config["network.vni"] == {"value": 1, "from": "default"}


async def test_levels_change_while_it_runs(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    agent = site.agent
    words = ["log-level", "--address", agent.debug]
    assert await asyncio.to_thread(cli.main, [*words, "debug", "netagent.agent.dataplane.sync"]) == 0
    assert capsys.readouterr().out == "all: info\nnetagent.agent.dataplane.sync: debug\n"
    assert await asyncio.to_thread(cli.main, [*words, "", "netagent.agent.dataplane.sync"]) == 0
    assert await asyncio.to_thread(cli.main, [*words, "error"]) == 0
    assert await asyncio.to_thread(cli.main, words) == 0
    assert capsys.readouterr().out.endswith("all: error\n")
    assert await asyncio.to_thread(cli.main, [*words, "loud"]) == 1
    assert "Accepted: debug, info, warning, error." in capsys.readouterr().err
    assert await asyncio.to_thread(cli.main, [*words, "debug", "x"]) == 1
    assert "there is no such logger" in capsys.readouterr().err

    async def level(wanted: str) -> None:
        async def is_so() -> bool:
            return bool((await agent.json("/debug/log"))["levels"][""] == wanted)

        await until(is_so, wanted)

    for wanted in ("debug", "info"):
        agent.process.send_signal(signal.SIGUSR1)
        await level(wanted)
    lines = [json.loads(line) for line in agent.log.read_text().splitlines()]
    assert [one["message"] for one in lines if "SIGUSR1" in one["message"]][:1] == [
        "SIGUSR1: the log level is debug now"
    ]
    assert (await agent.json("/debug/log"))["lines"][-1]["message"] == lines[-1]["message"]


async def test_pages_of_other_sites_learn_and_change_nothing(site: Site) -> None:
    change = json.dumps({"level": "debug"}).encode()
    for headers in (
        {"Host": "evil.example:9098"},
        {"Host": f"evil.example:{site.agent.debug_port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ):
        status, body = await site.agent.get("/debug/state", **headers)
        assert (status, b"error" in body, b"10.244" in body) == (403, True, False), headers
        status, _ = await site.agent.request("PUT", site.agent.debug + "/debug/log", change, **headers)
        assert status == 403
    assert (await site.agent.json("/debug/log"))["levels"][""] == "info"
    for headers in (
        {"Host": f"localhost:{site.agent.debug_port}"},
        {"Origin": site.agent.debug, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ):
        assert (await site.agent.get("/debug/state/agent", **headers))[0] == 200, headers


async def test_the_token_is_nowhere(site: Site) -> None:
    """At the lowest level, from the start, with a token that is refused first: not in the log, nor in any page."""
    await site.agent.stop()
    tokens = [site.token, site.token[:-20] + "A" * 20]
    await site.write_token(tokens[1])
    agent = site.agent = AgentProcess(site.home, site.kubeconfig, NODE, log={"format": "json", "level": "debug"})
    await until(lambda: "401" in agent.log.read_text(), agent.log.read_text)
    await site.sign_in()
    await agent.ready()
    tokens.append(site.token)
    await site.pod("late", "10.244.0.13", app="web")
    await site.transaction(f"Pod {NAMESPACE}/late")
    texts = {"log": agent.log.read_bytes()}
    index = await agent.json("/debug/index")
    for words in index["endpoints"]:
        method, path = words.split()
        if method == "GET":
            _, texts[path] = await agent.get(path.replace("{section}", "agent"))
    _, texts["/metrics"] = await agent.request("GET", agent.url + "/metrics")
    with tarfile.open(fileobj=io.BytesIO(texts["/debug/dump"])) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            texts[member.name] = file.read()
    for line in (b"GET /api/v1/pods: 401", b"GET /api/v1/pods: 200"):
        assert line in texts["log"]
    parts = {part for token in tokens for part in token.split(".")[1:]}
    for name, text in texts.items():
        found = [part for part in parts if part.encode() in text]
        assert not found, name
        assert b"annotation-that-nobody-needs" not in text, name


async def test_undecided_is_alive_and_says_why_it_is_not_ready(site: Site, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, site.kubeconfig, "nobody", network={"mode": "auto"})
    try:

        async def alive() -> bool:
            return await agent.health("/livez") == 200

        await until(alive, agent.log.read_text)
        status, body = await agent.request("GET", agent.url + "/readyz")
        assert (status, body.startswith(b"[-] mode: network.mode is auto")) == (503, True)
        await agent.stop()
        assert agent.process.returncode == 0
    finally:
        agent.process.kill()
