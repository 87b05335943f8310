"""Who may change log levels where the debug listener is not on loopback alone, and by which names it may be asked."""

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from netagent.agent.http.guard import guard
from netagent.agent.http.pages import Pages
from netagent.config import Config, HttpConfig

pytestmark = pytest.mark.kernel

OWN, OWN_V6 = "192.0.2.99", "2001:db8::99"
CHANGE = {"level": "warning", "logger": "netagent.test.guard"}


@pytest.fixture(autouse=True)
def addresses() -> Iterator[None]:
    """Of this node, not on loopback: who asks there comes from there."""
    logging.getLogger("netagent.test.guard")
    for address in (OWN, OWN_V6):
        subprocess.run(["ip", "address", "replace", address, "dev", "lo"], check=True)
    yield
    logging.getLogger("netagent.test.guard").setLevel(logging.NOTSET)


@asynccontextmanager
async def serving(http: HttpConfig, everywhere: str = "0.0.0.0") -> AsyncIterator[int]:
    """The port."""
    app = web.Application(middlewares=[guard(http)])
    Pages(Config(http=http), {}, {}, dict).add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, everywhere, 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def put(address: str, port: int) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"http://{address}:{port}/debug/log", json=CHANGE) as response,
    ):
        changed = (logging.getLogger("netagent.test.guard").level == logging.WARNING) is (response.status == 200)
        assert changed, await response.text()
        return response.status


@pytest.mark.parametrize(
    ("write", "local", "remote"), [("loopback", 200, 403), ("always", 200, 200), ("never", 403, 403)]
)
@pytest.mark.parametrize(("loopback", "other"), [("127.0.0.1", OWN), ("[::1]", f"[{OWN_V6}]")])
async def test_who_may_change_levels(write: str, local: int, remote: int, loopback: str, other: str) -> None:
    config = HttpConfig(debug_write=write)  # type: ignore[arg-type]
    async with serving(config, "::" if ":" in other else "0.0.0.0") as port:
        assert await put(other, port) == remote
        logging.getLogger("netagent.test.guard").setLevel(logging.NOTSET)
        assert await put(loopback, port) == local


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("[::1]:9098", 200),
        (OWN, 200),
        ("localhost:1", 200),
        ("node-7.example:9098", 200),
        ("node-7.example.evil:9098", 403),
        ("localhost.evil", 403),
        ("127.0.0.1.evil", 403),
        ("[::1", 403),
        ("", 403),
        ("127.0.0.1@evil", 403),
    ],
)
async def test_names(host: str, status: int) -> None:
    async with serving(HttpConfig(debug_hosts=("node-7.example",))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /debug/index HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert int(answer.split()[1]) == status


async def test_a_body_that_is_no_change_is_refused() -> None:
    async with serving(HttpConfig()) as port, aiohttp.ClientSession() as session:
        for body in (
            b"",
            b"[]",
            b'{"level": 1}',
            b'{"level": "debug", "x": 1}',
            b"\xff",
            b'{"level":"' + b"x" * 10_000,
        ):
            async with session.put(f"http://127.0.0.1:{port}/debug/log", data=body) as response:
                assert response.status == 400, body[:20]
                assert "Nothing was changed." in await response.text()


@pytest.mark.parametrize(
    ("mode", "destination", "status"),
    [
        ("navigate", "document", 200),
        ("navigate", "iframe", 403),
        ("navigate", "object", 403),
        ("no-cors", "image", 403),
    ],
)
async def test_a_link_of_another_site_may_lead_here_but_its_page_may_not_hold_ours(
    mode: str, destination: str, status: int
) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
    async with (
        serving(HttpConfig()) as port,
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"http://127.0.0.1:{port}/debug/index") as response,
    ):
        assert response.status == status
