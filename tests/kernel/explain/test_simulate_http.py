"""`POST /debug/simulate` beside a real table and real open flows: nothing is applied, the flows are found."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from netagent.agent.http.questions import add_routes
from netagent.core.questions.simulate import OpenFlow
from netagent.kernel.conntrack import ConntrackError
from netagent.records import Key, LabelSelector, NetworkPolicy
from support.places import Place, new_place, prepare_router

pytestmark = pytest.mark.kernel

Client = TestClient[web.Request, web.Application]

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: friend}}}]
"""


@pytest.fixture
def places() -> Iterator[tuple[Place, Place]]:
    prepare_router(())
    both = new_place("client", ("10.78.1.2",), "sim"), new_place("server", ("10.78.2.2",), "sim")
    for place in both:
        place.wire()
    yield both
    for place in both:
        place.close()


@pytest.fixture
async def client(cluster: Any) -> AsyncIterator[Client]:
    app = web.Application()
    add_routes(app, cluster.dataplane, cluster.nft, node_name="n1", overlay=True)
    cluster.namespace("shop")
    cluster.pod(Key("shop", "client"), "10.78.1.2", app="client")
    cluster.pod(Key("shop", "server"), "10.78.2.2", app="server")
    # The table tracks connections only where a rule needs it, as in the life of a node with any policy at all.
    cluster.policy(NetworkPolicy(key=Key("shop", "else"), uid="e", pod_selector=LabelSelector(match_labels={"a": "b"})))
    await cluster.start()
    async with TestClient(TestServer(app)) as made:
        yield made


async def test_open_flow_that_would_be_cut(cluster: Any, client: Client, places: tuple[Place, Place]) -> None:
    table = await cluster.nft.text()
    opener, listener = (place.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for place in places)
    with opener, listener:
        listener.bind(("10.78.2.2", 8080))
        listener.listen()
        opener.settimeout(10)
        await asyncio.to_thread(opener.connect, ("10.78.2.2", 8080))
        report = await (await client.post("/debug/simulate", data=POLICY)).json()
        port = opener.getsockname()[1]
    (cut,) = [one for one in report["cut"] if one["source_port"] == port]
    assert (cut["source"], cut["destination"], cut["destination_port"]) == ("shop/client", "shop/server", 8080)
    assert cut["state"] == "ESTABLISHED"
    assert {(one["source"], one["destination"]) for one in report["pairs"]} >= {("shop/client", "shop/server")}
    assert await cluster.nft.text() == table
    assert Key("shop", "server") not in cluster.dataplane.store.policies


async def test_text_and_deletion(cluster: Any, client: Client) -> None:
    response = await client.post("/debug/simulate?format=text&delete=true", data=POLICY)
    text = await response.text()
    assert text.startswith("Nothing was applied.\ndelete, but there is none shop/server (selects 0 pods)\n")


async def test_wrong_documents_are_refused_with_every_fault(client: Client) -> None:
    response = await client.post("/debug/simulate", data="kind: Pod\n---\nkind: Service\n")
    answer = await response.json()
    assert response.status == 400
    assert len(answer["problems"]) == 2


async def test_too_large_a_body_is_refused(client: Client) -> None:
    response = await client.post("/debug/simulate", data=io.BytesIO(b"#" * ((1 << 20) + 1)))
    assert response.status == 413
    assert "larger than 1048576 bytes" in (await response.json())["error"]


async def test_without_conntrack_the_verdicts_are_still_reported(cluster: Any) -> None:
    async def away() -> list[OpenFlow]:
        raise ConntrackError("the kernel's open flows could not be read: no such thing.")

    app = web.Application()
    add_routes(app, cluster.dataplane, cluster.nft, node_name="n1", overlay=True, flows=away)
    cluster.shop()
    await cluster.start()
    async with TestClient(TestServer(app)) as client:
        report = await (await client.post("/debug/simulate", data=POLICY.replace("server", "web"))).json()
    assert report["pairs_total"] > 0
    assert any("could not be read" in note for note in report["capped"])
