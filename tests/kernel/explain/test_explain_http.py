"""`GET /debug/explain` on a real table: the answer, its text, and the difference when the kernel was tampered with."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from netagent.agent.http.questions import add_routes
from netagent.records import Key

pytestmark = pytest.mark.kernel

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(cluster: Any) -> AsyncIterator[Client]:
    app = web.Application()
    add_routes(app, cluster.dataplane, cluster.nft, node_name="n1", overlay=True)
    async with TestClient(TestServer(app)) as made:
        yield made


@pytest.fixture
async def shop(cluster: Any) -> Any:
    cluster.shop()
    await cluster.start()
    return cluster


async def ask(client: Client, source: str, destination: str, port: str = "5432", **more: str) -> Any:
    query = {"from": source, "to": destination, "port": port, **more}
    response = await client.get("/debug/explain", params=query)
    return await response.json()


async def test_allowed_by_a_named_port_on_both_families(shop: Any, client: Client) -> None:
    answer = await ask(client, "shop/web", "shop/db")
    assert (answer["verdict"], answer["agree"]) == ("allow", True)
    assert [one["version"] for one in answer["answers"]] == [4, 6]
    ingress = answer["answers"][0]["directions"][1]
    assert ingress["isolated_by"] == ["shop/db"]
    assert ingress["admitted_by"] == [{"policy": "shop/db", "direction": "ingress", "index": 0}]


async def test_denied_with_the_near_miss_and_the_kernels_path(shop: Any, client: Client) -> None:
    answer = await ask(client, "shop/admin", "shop/db")
    assert (answer["verdict"], answer["agree"]) == ("deny", True)
    (one,) = answer["answers"]
    assert one["directions"][1]["near_misses"][0]["missing"] == ["label app=web wanted, pod shop/admin has app=admin"]
    assert (one["kernel"]["verdict"], one["kernel"]["dropped_by"]) == ("drop", "ingress")


async def test_text_says_who_why_and_what_the_kernel_does(shop: Any, client: Client) -> None:
    query = {"from": "shop/web", "to": "shop/db", "port": "81"}
    response = await client.get("/debug/explain", params=query, headers={"Accept": "text/plain"})
    text = await response.text()
    assert response.content_type == "text/plain"
    assert text.startswith("DENY  shop/web -> shop/db  81/TCP\n")
    assert "not shop/db ingress[0]: named port sql/TCP is 5432 on pod shop/db, not 81" in text
    assert "kernel of this node: drop, agrees" in text


async def test_element_deleted_by_hand_is_flagged(shop: Any, client: Client) -> None:
    """Whoever takes web out of the peer set closes what the policy allows."""
    name = await set_with(shop, "10.244.1.2")
    await shop.nft.run(f"delete element inet netagent {name} {{ 10.244.1.2 }}\n")
    answer = await ask(client, "shop/web", "shop/db")
    assert (answer["verdict"], answer["agree"]) == ("allow", False)
    assert [one["agree"] for one in answer["answers"]] == [False, True]
    assert (
        "DISAGREES" in await (await client.get("/debug/explain?from=shop/web&to=shop/db&port=5432&format=text")).text()
    )


async def test_isolation_deleted_by_hand_is_flagged(shop: Any, client: Client) -> None:
    """Whoever takes db out of the dispatch map opens what the policy denies."""
    await shop.nft.run("delete element inet netagent ingress4 { 10.244.1.4 }\n")
    answer = await ask(client, "shop/admin", "shop/db")
    assert (answer["verdict"], answer["agree"]) == ("deny", False)
    assert answer["answers"][0]["kernel"]["verdict"] == "accept"


async def test_table_deleted_by_hand_is_flagged(shop: Any, client: Client) -> None:
    await shop.nft.run("delete table inet netagent\n")
    answer = await ask(client, "shop/admin", "shop/db")
    assert answer["agree"] is False
    assert "no chain of ours" in answer["answers"][0]["kernel"]["reason"]


async def test_foreign_accept_rule_is_flagged(shop: Any, client: Client) -> None:
    await shop.nft.run("insert rule inet netagent forward ip daddr 10.244.1.4 tcp dport 5000-6000 accept\n")
    assert (await ask(client, "shop/admin", "shop/db"))["agree"] is False
    assert (await ask(client, "shop/admin", "shop/db", "443"))["agree"] is True


async def test_foreign_rule_that_is_not_understood_is_not_guessed(shop: Any, client: Client) -> None:
    await shop.nft.run("insert rule inet netagent forward meta random < 100 accept\n")
    answer = await ask(client, "shop/admin", "shop/db")
    assert answer["agree"] is None
    assert answer["answers"][0]["kernel"]["verdict"] == "unknown"
    assert answer["answers"][0]["kernel"]["reason"].startswith("unknown: ")


async def test_node_to_its_own_pod_is_never_judged(shop: Any, client: Client) -> None:
    answer = await ask(client, "192.168.0.1", "shop/db")
    assert (answer["verdict"], answer["agree"]) == ("allow", True)
    assert answer["answers"][0]["exempt"] == "traffic between node n1 and its own pods is always allowed"


async def test_pod_reaches_itself(shop: Any, client: Client) -> None:
    answer = await ask(client, "shop/db", "shop/db", "1")
    assert (answer["verdict"], answer["agree"]) == ("allow", True)


async def test_other_node_is_an_outsider_also_by_its_overlay_address(shop: Any, client: Client) -> None:
    for address in ("192.168.0.2", "10.244.2.0"):
        answer = await ask(client, address, "shop/db")
        assert (answer["verdict"], answer["agree"]) == ("deny", True)


async def test_pod_of_another_node_is_judged_but_not_enforced_here(shop: Any, client: Client) -> None:
    answer = await ask(client, "shop/db", "shop/far", "80")
    egress, ingress = answer["answers"][0]["directions"]
    assert (egress["enforced_here"], ingress["enforced_here"], ingress["node"]) == (True, False, "n2")


async def test_sandbox_whose_pod_is_not_shown_is_closed(cluster: Any, client: Client) -> None:
    cluster.shop()
    cluster.wire(Key("shop", "new"), "10.244.1.7", uid="uid-new")
    await cluster.start()
    answer = await ask(client, "10.244.1.7", "shop/web", "80")
    assert (answer["verdict"], answer["agree"]) == ("deny", True)
    assert "has not shown" in answer["answers"][0]["directions"][0]["reason"]


async def test_icmp_and_sctp_and_udp(shop: Any, client: Client) -> None:
    for protocol, port in (("ICMP", ""), ("SCTP", "5432"), ("UDP", "5432")):
        answer = await ask(client, "shop/web", "shop/db", port, protocol=protocol)
        assert (answer["verdict"], answer["agree"]) == ("deny", True), protocol


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"from": "shop/nobody", "to": "shop/db", "port": "80"}, "not in this agent's view"),
        ({"from": "10.0.0", "to": "shop/db", "port": "80"}, "Accepted: namespace/pod or an IP address"),
        ({"from": "10.0.0.1", "to": "shop/db", "port": "0"}, "Accepted: 1 to 65535"),
        ({"from": "10.0.0.1", "to": "shop/db"}, "Accepted: 1 to 65535"),
        ({"from": "10.0.0.1", "to": "shop/db", "port": "80", "protocol": "GRE"}, "Accepted: TCP, UDP, SCTP, ICMP"),
        ({"from": "10.0.0.1", "to": "shop/db", "port": "80", "protocol": "icmp"}, "ICMP has none"),
        ({"from": "2001:db8::1", "to": "shop/admin", "port": "80"}, "common IP version"),
    ],
)
async def test_wrong_question_is_refused_with_what_is_accepted(
    shop: Any, client: Client, query: dict[str, str], words: str
) -> None:
    response = await client.get("/debug/explain", params=query)
    assert response.status == 400
    assert words in (await response.json())["error"]


async def set_with(cluster: Any, address: str) -> str:
    """The peer set of the class chains that holds an address."""
    for item in await cluster.nft.listing():
        one = item.get("set")
        if one and one["name"].startswith("p4_") and address in one.get("elem", ()):
            return str(one["name"])
    raise AssertionError(f"no peer set holds {address}")
