"""`netagent explain` and `netagent simulate` against an agent that answers with what the test says."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from netagent import cli
from netagent.core.policy.meaning import compile_policy
from netagent.core.policy.store import Store
from netagent.core.questions import explain
from netagent.core.questions.explain import Explanation
from netagent.core.questions.parties import cluster_of, parse_question
from support import words
from support.words import pods, policy, rule, selector

Run = Callable[..., int]


def explanation(source: str) -> Explanation:
    """Of a cluster in which db takes web."""
    store = Store()
    for record in (
        words.namespace("shop"),
        words.pod("shop/web", "10.244.0.1", labels={"app": "web"}),
        words.pod("shop/admin", "10.244.0.2"),
        words.pod("shop/db", "10.244.0.3", labels={"app": "db"}),
        policy("shop/db", selector(app="db"), ingress=[rule([pods(app="web")])]),
    ):
        store.apply(words.put(record))
    cluster = cluster_of(store, map(compile_policy, store.policies.values()), "n", overlay=False)
    return explain.explain(cluster, parse_question(source, "shop/db", "80", "TCP"))


class Agent:
    """Answers on a port of its own, in a thread of its own, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.refusal: tuple[int, bytes] | None = None
        self.url = ""
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._up.wait(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/debug/{what}", self._answer)
        app.router.add_get("/api/v1/namespaces/shop/services/db", self._service)
        app.router.add_get("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", self._slices)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _service(self, _: web.Request) -> web.Response:
        """The API server's part."""
        return web.json_response({"spec": {"ports": [{"name": "sql", "port": 80, "targetPort": 8080}]}})

    async def _slices(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "kubernetes.io/service-name=db"
        pod = {"kind": "Pod", "namespace": "shop", "name": "db"}
        endpoints = [
            {"addresses": ["10.244.0.3"], "targetRef": pod, "conditions": {"ready": True}},
            {"addresses": ["10.244.0.9"], "conditions": {"ready": False}},
            {"addresses": ["10.9.9.9"], "conditions": {}},
        ]
        ports = [{"name": "sql", "port": 8080, "protocol": "TCP"}, {"name": "x", "port": 1}]
        return web.json_response({"items": [{"endpoints": endpoints, "ports": ports}]})

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, dict(request.query), await request.read()))
        if self.refusal is not None:
            return web.Response(status=self.refusal[0], body=self.refusal[1])
        if request.path.endswith("simulate"):
            return web.Response(text="Nothing was applied.\n")
        return web.Response(body=msgspec.json.encode(explanation(request.query["from"])))


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent()
    yield made
    made.close()


@pytest.fixture
def run(agent: Agent) -> Run:
    return lambda *arguments: cli.main([*arguments, "--address", agent.url])


def test_explain_prints_text_and_ends_well(run: Run, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "--from", "shop/admin", "--to", "shop/db", "--port", "80") == 0
    assert capsys.readouterr().out.startswith("DENY  shop/admin -> shop/db  80/TCP\n")
    assert agent.asked == [
        ("/debug/explain", {"from": "shop/admin", "to": "shop/db", "port": "80", "protocol": "TCP"}, b"")
    ]


@pytest.mark.parametrize(("source", "status"), [("shop/web", 0), ("shop/admin", 2)])
def test_exit_code_tells_the_verdict_where_asked(run: Run, source: str, status: int) -> None:
    assert run("explain", "--from", source, "--to", "shop/db", "--port", "80", "--exit-code") == status


def test_json_is_the_agents_own(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "--from", "shop/web", "--to", "shop/db", "--port", "80", "-o", "json") == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Explanation) == explanation("shop/web")


def test_simulate_sends_all_files(run: Run, agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{name}: 1")
    assert run("simulate", "-f", str(tmp_path / "a"), "-f", str(tmp_path / "b"), "--delete") == 0
    assert agent.asked == [("/debug/simulate", {"format": "text", "delete": "true"}, b"a: 1\n---\nb: 1")]
    assert capsys.readouterr().out == "Nothing was applied.\n"


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((400, b'{"error": "port = \'x\'. Accepted: 1 to 65535."}'), "netagent: port = 'x'. Accepted: 1 to 65535."),
        ((400, b'{"error": "2 problems", "problems": ["one", "two"]}'), "netagent: one; two"),
        ((404, b"404: Not Found"), "answered 404, which is not an agent's answer"),
        ((200, b"<html>"), "answered what this command cannot read"),
    ],
)
def test_refusal_is_told_and_ends_badly(
    run: Run, agent: Agent, capsys: pytest.CaptureFixture[str], refusal: tuple[int, bytes], expected: str
) -> None:
    agent.refusal = refusal
    assert run("explain", "--from", "shop/web", "--to", "shop/db", "--port", "x") == 1
    assert expected in capsys.readouterr().err


def test_agent_that_is_away_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["explain", "--from", "a/b", "--to", "c/d", "--port", "1"]
    assert cli.main([*question, "--address", "http://127.0.0.1:1"]) == 1
    assert "Is it running on this node?" in capsys.readouterr().err
    for address in ("ftp://x", "nonsense", "http://[", "http://x:99999"):
        assert cli.main([*question, "--address", address]) == 1
        assert "Accepted: http://HOST:PORT" in capsys.readouterr().err


def test_file_that_is_not_there(run: Run, agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", "-f", "/nonexistent.yaml") == 1
    assert "/nonexistent.yaml: No such file or directory" in capsys.readouterr().err
    assert agent.asked == []


@pytest.fixture
def kubeconfig(agent: Agent, tmp_path: Path) -> str:
    file = tmp_path / "kubeconfig"
    file.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: c, cluster: {{server: "{agent.url}"}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
"""
    )
    return str(file)


def test_service_is_asked_about_by_its_ready_endpoints(
    run: Run, agent: Agent, kubeconfig: str, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ["explain", "--from", "shop/admin", "--to", "svc/shop/db", "--kubeconfig", kubeconfig]
    assert run(*question, "--port", "80", "--exit-code") == 2
    assert [(query["to"], query["port"]) for _, query, _ in agent.asked] == [("shop/db", "8080"), ("10.9.9.9", "8080")]
    assert capsys.readouterr().out.count("DENY") == 2
    assert run(*question, "--port", "81") == 1
    assert "svc/shop/db has no such port. Accepted: 80/TCP." in capsys.readouterr().err
    assert run(*question[:-2], "--port", "80", "-o", "json", "--kubeconfig", kubeconfig) == 0
    assert len(msgspec.json.decode(capsys.readouterr().out, type=list[Explanation])) == 2
