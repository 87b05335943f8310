"""An API server that plays a script, and a reflector in front of it."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from netagent.config import ApiConfig
from netagent.kube.client import connect
from netagent.kube.reflector import Reflector, resources
from netagent.records import Change, Kind, Listed, Pod, Removed, Undecodable, Upserted

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]
DEADLINE_S = 20.0


def pod(name: str, version: str, **extra: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns", "resourceVersion": version, "uid": f"u-{name}"}, **extra}


def page(version: str, *items: Any, token: str = "", kind: str = "PodList") -> dict[str, Any]:
    return {"kind": kind, "metadata": {"resourceVersion": version, "continue": token}, "items": list(items)}


def frame(kind: str, item: Any) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def failure(code: int, reason: str) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": f"scripted {reason}"}


class ScriptedServer:
    """Answers lists and watches from two queues; the last entry of a queue is repeated.

    A list is a tree, bytes, or a function of the query that returns one of them, perhaps later.
    """

    def __init__(self) -> None:
        self.lists: list[Any] = [page("1")]
        self.watches: list[Script] = [self.hold()]
        self.list_queries: list[dict[str, str]] = []
        self.watch_queries: list[dict[str, str]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        if query.get("watch") == "true":
            self.watch_queries.append(query)
            script = self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]
            return await script(request)
        self.list_queries.append(query)
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if callable(answer):
            answer = answer(query)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(answer, status=answer.get("code", 200) if answer.get("kind") == "Status" else 200)

    @staticmethod
    def send(*chunks: bytes, hold: bool = False, cut: bool = False) -> Script:
        """A watch that sends these chunks and then stays open, ends, or is cut without the end of its last chunk."""

        async def script(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for chunk in chunks:
                await response.write(chunk)
                await asyncio.sleep(0.01)
            if hold:
                await asyncio.sleep(3600)
            if cut and request.transport is not None:
                request.transport.abort()
            return response

        return script

    @classmethod
    def hold(cls) -> Script:
        return cls.send(hold=True)

    @staticmethod
    def refuse(code: int, reason: str, **headers: str) -> Script:
        async def script(request: web.Request) -> web.StreamResponse:
            return web.json_response(failure(code, reason), status=code, headers=headers)

        return script


@asynccontextmanager
async def listening(server: ScriptedServer, port: int = 0) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield
    finally:
        await runner.cleanup()


class Observed:
    """What a running reflector has emitted."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.reflector: Reflector | None = None

    def said(self) -> list[str]:
        return [describe(change) for change in self.changes]

    async def until(self, *expected: str) -> None:
        """Wait until exactly these changes have come."""
        await until(lambda: self.said() == list(expected), lambda: f"{self.said()} != {list(expected)}")


def describe(change: Change) -> str:
    match change:
        case Upserted(_, record):
            version = record.labels.get("v", "") if isinstance(record, Pod) else ""
            return f"+{record.key.name}{version}"
        case Removed(_, key):
            return f"-{key.name}"
        case Undecodable(_, key):
            return f"?{key.name}"
        case Listed():
            return "listed"


async def until(condition: Callable[[], bool], why: Callable[[], str] = lambda: "condition never held") -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - any condition
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(why())


def write_kubeconfig(directory: Path, port: int) -> str:
    path = directory / f"kubeconfig-{port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "s3cret-token"}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


@asynccontextmanager
async def reflecting(
    server: ScriptedServer, directory: Path, kind: Kind = Kind.POD, **settings: Any
) -> AsyncIterator[Observed]:
    config = ApiConfig(kubeconfig=write_kubeconfig(directory, server.port), **{"backoff_cap_s": 0.2, **settings})
    observed = Observed()
    async with connect(config) as api:
        reflector = Reflector(api, resources("kube-system")[kind], observed.changes.append, config)
        observed.reflector = reflector
        task = asyncio.create_task(reflector.run())
        try:
            yield observed
            assert not task.done(), "the reflector ended"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
