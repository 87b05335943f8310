"""Credentials and requests: how little is imported, rotation of tokens and certificates, what errors tell."""

import asyncio
import contextlib
import json
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from netagent.config import ApiConfig
from netagent.kube.auth import Credentials, CredentialsError
from netagent.kube.client import ApiError, Silent, Unreachable, connect
from support.certificates import make_certificate

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECRET = "s3cret-token"


class Server:
    """Answers every request by `answer` and notes what it was sent."""

    def __init__(self) -> None:
        self.answer: Answer = self.ok
        self.tokens: list[str | None] = []
        self.accepted = ""
        """The only token that is let in; empty: any."""
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization")
        self.tokens.append(token)
        if self.accepted and token != f"Bearer {self.accepted}":
            return web.json_response({"code": 401, "reason": "Unauthorized", "message": "no"}, status=401)
        return await self.answer(request)

    @staticmethod
    async def ok(request: web.Request) -> web.StreamResponse:
        return web.json_response({"path": request.path, "query": dict(request.query)})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


def kubeconfig(directory: Path, url: str, cluster: dict[str, Any] | None = None, **user: Any) -> ApiConfig:
    tree = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url, **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(tree))
    return ApiConfig(kubeconfig=str(path))


def test_loading_credentials_imports_no_model_class(tmp_path: Path) -> None:
    settings = kubeconfig(tmp_path, "http://127.0.0.1:1", token=SECRET)
    program = """
import asyncio, sys
from netagent.kube.auth import Credentials
async def main():
    credentials = Credentials(sys.argv[1])
    await credentials.load()
    assert await credentials.header() == "Bearer s3cret-token"
    assert credentials.server == "http://127.0.0.1:1"
asyncio.run(main())
names = [name for name in sys.modules if name.startswith("kubernetes_asyncio")]
assert names == [], names
import kubernetes_asyncio.client
assert kubernetes_asyncio.client.V1Pod and kubernetes_asyncio.client.ApiClient is not object
from kubernetes_asyncio import config
assert config.load_incluster_config
"""
    subprocess.run([sys.executable, "-c", program, settings.kubeconfig], check=True, timeout=60)


async def test_parameters_without_a_value_are_left_out(server: Server, tmp_path: Path) -> None:
    async with connect(kubeconfig(tmp_path, server.url, token=SECRET)) as api:
        answer = await api.get_json("/a", dict, limit=5, token="", labelSelector="a=b,c!=d")
    assert answer == {"path": "/a", "query": {"limit": "5", "labelSelector": "a=b,c!=d"}}
    assert server.tokens == [f"Bearer {SECRET}"]


async def test_a_token_file_is_read_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netagent.kube.auth.REFRESH_S", 0.0)
    token = tmp_path / "token"
    token.write_text("first\n")
    async with connect(kubeconfig(tmp_path, server.url, tokenFile=str(token))) as api:
        await api.get_json("/", dict)
        token.write_text("second\n")
        await api.get_json("/", dict)
        token.unlink()
        await api.get_json("/", dict)
    assert server.tokens == ["Bearer first", "Bearer second", "Bearer second"]


async def test_after_a_401_credentials_are_loaded_again_and_tried_once(server: Server, tmp_path: Path) -> None:
    async with connect(kubeconfig(tmp_path, server.url, token="old")) as api:
        kubeconfig(tmp_path, server.url, token="new")
        server.accepted = "new"
        assert (await api.get_json("/a", dict))["path"] == "/a"
        server.accepted = "newer"
        with pytest.raises(ApiError, match="401"):
            await api.get_json("/b", dict)
    assert server.tokens == ["Bearer old", "Bearer new", "Bearer new"]


async def test_in_cluster_token_rotates(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = make_certificate(tmp_path / "ca")
    (tmp_path / "token").write_text("first")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("netagent.kube.auth.REFRESH_S", 0.0)
    loader = sys.modules["netagent.kube.auth"]._loaders()[0].incluster_config
    monkeypatch.setattr(loader, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(loader, "SERVICE_CERT_FILENAME", str(authority.with_suffix(".crt")))
    monkeypatch.setattr(loader, "TOKEN_REFRESH_PERIOD", type(loader.TOKEN_REFRESH_PERIOD)(0))
    credentials = Credentials("")
    await credentials.load()
    assert credentials.server == "https://[fd00::1]:443"
    assert await credentials.header() == "Bearer first"
    (tmp_path / "token").write_text("second")
    assert await credentials.header() == "Bearer second"


async def test_a_rotated_authority_is_trusted_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netagent.kube.auth.REFRESH_S", 0.0)
    old, new = make_certificate(tmp_path / "old"), make_certificate(tmp_path / "new")
    authority = tmp_path / "ca.crt"
    authority.write_text(old.with_suffix(".crt").read_text())
    server = Server()
    app = web.Application()
    app.router.add_get("/", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(new.with_suffix(".crt"), new.with_suffix(".key"))
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    settings = kubeconfig(
        tmp_path, f"https://127.0.0.1:{runner.addresses[0][1]}", {"certificate-authority": str(authority)}, token=SECRET
    )
    try:
        async with connect(settings) as api:
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await api.get_json("/", dict)
            authority.write_text(new.with_suffix(".crt").read_text())
            assert (await api.get_json("/", dict))["path"] == "/"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (None, "No such file"),
        ("{}", "could not be loaded"),
        ("clusters: [", "could not be loaded"),
        ("[]", "could not be loaded"),
        ('{"current-context": "x", "contexts": [], "clusters": []}', "x"),
    ],
)
async def test_a_kubeconfig_that_is_none_is_refused_by_name(tmp_path: Path, text: str | None, hint: str) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CredentialsError, match=hint) as caught:
        async with connect(ApiConfig(kubeconfig=str(path))):
            pass
    assert str(path) in str(caught.value)


async def test_outside_a_cluster_the_service_account_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(CredentialsError, match="service account"):
        async with connect(ApiConfig()):
            pass


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, b'{"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no rights"}', "Forbidden"),
        (500, b"<html>oops</html>", "Internal Server Error"),
        (503, b"", "Service Unavailable"),
        (200, b"not json", "Undecodable"),
        (302, b"", "Found"),
    ],
)
async def test_refusals(server: Server, tmp_path: Path, status: int, body: bytes, reason: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"Location": server.url + "/elsewhere"})

    server.answer = answer
    async with connect(kubeconfig(tmp_path, server.url, token=SECRET)) as api:
        with pytest.raises(ApiError) as caught:
            await api.get_json("/a", dict)
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert str(caught.value).startswith(f"GET /a: the API server answered {status} {reason}")
    assert len(server.tokens) == 1, "a redirect must not carry the token elsewhere"


async def test_no_error_and_no_log_line_holds_the_token(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def cut_later(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"a":')
        return await cut(request)

    errors: list[BaseException] = []
    async with connect(kubeconfig(tmp_path, server.url, token=SECRET)) as api:
        for server.answer in (cut, cut_later):
            with pytest.raises(Unreachable) as caught:
                await api.get_json("/a", dict)
            errors.append(caught.value)
    async with connect(kubeconfig(tmp_path, "http://127.0.0.1:1", token=SECRET)) as api:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1") as caught:
            await api.get_json("/a", dict)
        errors.append(caught.value)
    async with connect(kubeconfig(tmp_path, server.url, token=SECRET + "\r\nX: y")) as api:
        with pytest.raises(Unreachable, match="malformed") as caught:
            await api.get_json("/a", dict)
        errors.append(caught.value)
    assert not [error for error in errors if SECRET in str(error) + repr(error)]
    assert SECRET not in caplog.text


async def test_a_stream_yields_whole_lines_and_notices_silence(server: Server, tmp_path: Path) -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b"one\ntw", b"o", b"\nthree\nfo"):
            await response.write(piece)
            await asyncio.sleep(0.05)
        await asyncio.sleep(60)
        return response

    server.answer = trickle
    lines: list[bytes] = []
    batches = 0

    async def follow() -> None:
        nonlocal batches
        async for batch in api.stream("/w", silence_s=0.5, watch="true"):
            batches += 1
            lines.extend(batch)

    async with connect(kubeconfig(tmp_path, server.url)) as api:
        with pytest.raises(Silent, match=r"0\.5 s"):
            await follow()
    assert lines == [b"one", b"two", b"three"]
    assert batches >= 2
    assert server.tokens == [None]


async def test_a_line_that_comes_byte_by_byte_is_given_up(server: Server, tmp_path: Path) -> None:
    async def dribble(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x")
                await asyncio.sleep(0.05)
        return response

    server.answer = dribble
    async with connect(kubeconfig(tmp_path, server.url)) as api:
        stream = api.stream("/w", silence_s=0.5, watch="true")
        assert await anext(stream) == []
        with pytest.raises(Silent, match="whole line"):
            await anext(stream)
