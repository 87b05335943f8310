"""Pods of a lab: their addresses, what kubectl says of them, their traffic, their end."""

import ipaddress
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from netagent.lab import pods
from netagent.lab.cluster import Lab
from netagent.lab.places import Place
from netagent.lab.plan import Serving
from support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.kernel, pytest.mark.asyncio(loop_scope="module")]

Object = dict[str, Any]
DEADLINE_S = 30.0


def exists(place: Place) -> bool:
    """Its network namespace is there."""
    return os.path.exists(place.net)


async def pod_named(lab: Lab, name: str) -> Object | None:
    return next((pod for pod in await lab.pods() if pods.full_name(pod) == name), None)


async def test_pods_have_unique_addresses_of_their_nodes_and_reach_everybody(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    await lab.create(make_namespace("one"), *(make_pod("one", f"p{number}", number % 2) for number in range(4)))
    found = [pod for pod in await lab.pods_ready() if pod["metadata"]["namespace"] == "one"]
    addresses = {pods.ips(pod)[0] for pod in found}
    assert len(addresses) == 4
    for pod in found:
        index = pod["spec"]["nodeName"].removeprefix("node-")
        assert ipaddress.ip_address(pods.ips(pod)[0]) in ipaddress.ip_network(f"10.244.{index}.0/24")

    wide = await lab.kubectl("get", "pods", "-n", "one", "-o", "wide")
    assert wide.count("1/1     Running") == 4
    assert all(address in wide for address in addresses)

    await lab.add_external("192.0.2.10", [Serving(80, "TCP"), Serving(81, "UDP")])
    for node in lab.nodes:
        await lab.serve(node.place, [Serving(80, "TCP"), Serving(81, "UDP")])
    names = ["one/p0", "one/p1", "one/p2", "one/p3", "node:0", "node:1", "external:192.0.2.10"]
    for port, protocol in ((80, "TCP"), (81, "UDP")):
        matrix = await lab.matrix(names, names, port, protocol, timeout_s=5.0)
        # The answer tells who answered: a probe that ends at the wrong pod is no success.
        assert {(cell, verdict.answer) for cell, verdict in matrix.items()} == {(cell, cell[1]) for cell in matrix}


async def test_a_static_pod_starts_under_its_policies(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    """Its runtime knows it by another UID than the API."""
    static = make_pod("static", "server", 0)
    static["metadata"]["labels"] = {"app": "server"}
    uid = "0123456789abcdef0123456789abcdef"
    static["metadata"]["annotations"] = {"kubernetes.io/config.mirror": uid, "kubernetes.io/config.hash": uid}
    closed = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "static"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]},
    }
    await lab.create(make_namespace("static"), closed, static, make_pod("static", "client", 1))
    found = await lab.pods_ready()
    assert {"static/server", "static/client"} <= {pods.full_name(pod) for pod in found}
    assert not (await lab.probe("static/client", "static/server", 80)).allowed
    assert (await lab.probe("static/server", "static/client", 80)).allowed


async def test_nobody_answers_on_a_port_that_is_not_served(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    await lab.create(
        make_namespace("two"),
        make_pod("two", "a", 0),
        make_pod("two", "b", 1, annotations={pods.SERVES: "8080/TCP"}),
    )
    await lab.pods_ready()
    assert (await lab.probe("two/a", "two/b", 8080, timeout_s=5.0)).allowed
    refused = await lab.probe("two/a", "two/b", 80, timeout_s=5.0)
    assert not refused.allowed
    assert refused.detail == "refused"
    assert not (await lab.probe("two/a", "two/b", 81, "UDP")).allowed


async def test_requested_address_hold_and_host_network(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    await lab.create(
        make_namespace("three"),
        make_pod("three", "fixed", 0, annotations={pods.IP: "10.244.0.77"}),
        make_pod("three", "held", 0, annotations={pods.HOLD: "true"}),
        make_pod("three", "host", 1, hostNetwork=True, containers=[{"name": "main", "image": "test"}]),
    )
    found = {pod["metadata"]["name"]: pod for pod in await lab.pods_ready() if pod["metadata"]["namespace"] == "three"}
    assert pods.ips(found["fixed"]) == ("10.244.0.77",)
    assert pods.ips(found["host"]) == ("172.30.0.12",)
    assert (pods.phase(found["held"]), pods.ips(found["held"])) == ("Pending", ())

    await lab.kubectl("annotate", "pod", "-n", "three", "held", f"{pods.HOLD}-")
    held = [pod for pod in await lab.pods_ready() if pods.full_name(pod) == "three/held"]
    assert pods.ips(held[0])[0].startswith("10.244.0.")


async def test_deleted_and_finished_pods_lose_their_network(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    await lab.create(make_namespace("four"), make_pod("four", "gone", 0), make_pod("four", "done", 0))
    await lab.pods_ready()
    places = await lab.places()
    done = await pod_named(lab, "four/done")
    assert done is not None

    await lab.kubectl("delete", "pod", "-n", "four", "gone", "--timeout=30s")
    assert await pod_named(lab, "four/gone") is None
    assert not exists(places["four/gone"])

    await lab.client.patch("/api/v1/namespaces/four/pods/done/status", {"status": {"phase": "Succeeded"}})

    async def torn_down() -> bool:
        return not exists(places["four/done"])

    await until(torn_down, "the finished pod's namespace is gone")
    finished = await pod_named(lab, "four/done")
    assert finished is not None
    assert pods.ips(finished) == pods.ips(done)


async def test_kubelet_that_starts_again_takes_up_what_it_finds(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    await lab.create(make_namespace("five"), make_pod("five", "stays", 0), make_pod("five", "goes", 1))
    before = {pods.full_name(pod): pods.ips(pod) for pod in await lab.pods_ready()}
    gone = (await lab.places())["five/goes"]
    await lab.kill_kubelet()
    assert not (await lab.probe("five/goes", "five/stays", 80)).allowed
    await lab.kubectl("delete", "pod", "-n", "five", "goes", "--force", "--grace-period=0")
    await lab.start_kubelet()

    async def answers() -> bool:
        return (await lab.probe("node:0", "five/stays", 80)).allowed

    await until(answers, "the pod's server answers again")
    stays = await pod_named(lab, "five/stays")
    assert stays is not None
    assert pods.ips(stays) == before["five/stays"]

    async def torn_down() -> bool:
        return not exists(gone)

    await until(torn_down, "the pod that was deleted meanwhile is torn down")


async def test_flows_are_cut_by_a_policy_and_go_on_without_it(
    lab: Lab, make_pod: Callable[..., Object], make_namespace: Callable[[str], Object]
) -> None:
    await lab.create(make_namespace("six"), make_pod("six", "a", 0), make_pod("six", "b", 1))
    await lab.pods_ready()
    tcp = await lab.flow("six/a", "six/b", 80)
    udp = await lab.flow("six/a", "six/b", 81, "UDP")
    try:

        async def exchanging() -> bool:
            return tcp.answered > 50 and udp.answered > 50

        await until(exchanging, "both flows are answered")
        deny = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": "six", "name": "deny"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }
        await lab.put(deny)
        await tcp.silent_for(0.5, DEADLINE_S)
        await udp.silent_for(0.5, DEADLINE_S)
        begin = time.monotonic()
        await lab.delete("networking.k8s.io/v1", "NetworkPolicy", "deny", "six")
        assert await udp.resumed(begin, DEADLINE_S) >= begin
        assert udp.longest_gap_ms >= 500.0
    finally:
        await tcp.stop()
        await udp.stop()
