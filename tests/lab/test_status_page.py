"""The status page of a real agent: a browser on the node opens it, and it shows what is so in the cluster."""

from collections.abc import Callable
from typing import Any

import pytest

from netagent.lab.cluster import Lab
from netagent.lab.plan import Settings
from support.browser import Browser

pytestmark = [pytest.mark.lab, pytest.mark.kernel]

Object = dict[str, Any]
URL = "http://127.0.0.1:9098"
DRAWN = "document.querySelectorAll('#matrix tbody td').length > 0"


def admitting(*apps: str) -> Object:
    """Only these may reach web/server, and only on its port 80."""
    peers = [{"podSelector": {"matchLabels": {"app": app}}} for app in apps]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "web", "name": "guard"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": peers, "ports": [{"port": 80}]}],
        },
    }


def cell(source: str, destination: str) -> str:
    """The text of a cell, as an expression."""
    selector = f'#matrix td[data-from="{source}"][data-to="{destination}"]'
    return f"(document.querySelector({selector!r}) || {{}}).textContent"


async def test_it_shows_the_node_as_packets_find_it(
    make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    async with Lab(Settings(agent={"policy": {"drop_log": True}})) as lab:
        await lab.create(make_namespace("web"))
        for app, node in (("server", 0), ("client", 0), ("far", 1)):
            pod = make_pod("web", app, node)
            pod["metadata"]["labels"] = {"app": app}
            await lab.create(pod)
        await lab.pods_ready()
        await lab.put(admitting("far"))
        async with Browser(f"/proc/{lab.nodes[0].holder.pid}/ns/net") as browser:
            await browser.open(f"{URL}/")
            await browser.until(DRAWN)
            await browser.until(cell("web/client", "web/server"), "none")
            await browser.until(cell("web/far", "web/server"), "TCP 80")
            assert not (await lab.probe("web/client", "web/server", 80)).allowed
            assert (await lab.probe("web/far", "web/server", 80)).allowed

            assert await browser.text("#node") == "node-0"
            assert await browser.text("#ready") == "ready"
            assert {row[0] for row in await browser.rows("pods")} == {"web/server", "web/client"}
            ((name, subnet, public_ip, way, renewed),) = await browser.rows("peers")
            assert (name, subnet, public_ip, way) == ("node-1", "10.244.1.0/24", lab.nodes[1].plan.ips[0], "vxlan")
            assert renewed.endswith(" ago")
            texts = "row => [...row.cells].slice(1).map(one => one.textContent).join()"
            drop = f"[...document.querySelectorAll('#drops tbody tr')].map({texts})"
            await browser.until(f"{drop}.includes('web/client,web/server,TCP 80,ingress policy,web/guard')")
            assert await browser.run("document.querySelectorAll('#latency g[data-count] circle').length") > 0
            words = await browser.text("#latency-words")
            assert "in the last 10 min: typically" in words

            await lab.put(admitting("client"))
            await browser.until(cell("web/client", "web/server"), "TCP 80")
            assert (await lab.probe("web/client", "web/server", 80)).allowed
            assert await browser.text('#matrix td[data-from="web/far"][data-to="web/server"]') == "none"
            await browser.click('#matrix td[data-from="web/far"][data-to="web/server"]')
            await browser.until("document.getElementById('text').textContent.startsWith('DENY  web/far -> web/server')")
            assert "kernel of this node: drop, agrees" in await browser.text("#text")

            assert browser.console == []
            assert [url for url in browser.requests if not url.startswith((f"{URL}/", "data:"))] == []
