"""Flows that are open when the policy changes: what needs a lost allow stops, what keeps its allow loses nothing."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from msgspec import structs

from netagent.records import Pod
from support.flows import KINDS, flood, udp_back, udp_forth
from support.podbed import Bed
from support.words import gone, key, namespace, namespaces, pods, policy, port, put, rule, selector

pytestmark = pytest.mark.kernel

CUT_S = 0.4
"""How long a cut flow is watched: some 400 packets of each kind."""
NEAR = pods(role="near")
PORTS = [port(9001, end=9030), port(9001, "UDP", end=9030)]
"""Of the server: in a stream that only flows back they are the sender's."""
TWO = namespaces(selector(team="two"), selector(role="ok"))

Change = Callable[[Bed], Awaitable[int]]
"""Takes the allow away or gives it back; the moment (ns) after the commit."""


async def town(bed: Bed) -> None:
    """x/server takes flows of x/near and of the pods of y that are ok."""
    await bed.put(namespace("x"), namespace("y", team="two"))
    await bed.pod("x/server", app="server")
    await bed.pod("x/near", role="near")
    await bed.pod("y/here", role="ok")
    await bed.pod("y/far", remote=True, role="ok")
    await allow(bed)


async def allow(bed: Bed) -> int:
    return await bed.put(policy("x/p", selector(app="server"), ingress=[rule([NEAR, TWO], PORTS)]))


async def policy_edited(bed: Bed) -> int:
    return await bed.put(policy("x/p", selector(app="server"), ingress=[rule([NEAR], PORTS)]))


async def policy_replaced(bed: Bed) -> int:
    await bed.remove(bed.cluster.policies[key("x/p")])
    return await bed.put(policy("x/q", selector(app="server"), ingress=[rule([NEAR], PORTS)]))


async def put_back(bed: Bed) -> int:
    await bed.remove(bed.cluster.policies[key("x/q")])
    return await allow(bed)


def labelled(bed: Bed, role: str) -> list[Pod]:
    return [structs.replace(bed.record(name), labels={"role": role}) for name in ("y/here", "y/far")]


async def pods_relabelled(bed: Bed) -> int:
    return await bed.put(*labelled(bed, "none"))


async def pods_labelled_again(bed: Bed) -> int:
    return await bed.put(*labelled(bed, "ok"))


async def namespace_relabelled(bed: Bed) -> int:
    return await bed.put(namespace("y", team="three"))


async def namespace_labelled_again(bed: Bed) -> int:
    return await bed.put(namespace("y", team="two"))


async def default_deny(bed: Bed) -> int:
    """At both ends: of the remote pod's, only the server's is ours."""
    await bed.put(policy("y/deny", types=["Ingress", "Egress"]))
    return await policy_edited(bed)


async def deny_removed(bed: Bed) -> int:
    await bed.remove(bed.cluster.policies[key("y/deny")])
    return await allow(bed)


async def egress_denied(bed: Bed) -> int:
    await bed.put(policy("y/deny", egress=[], types=["Egress"]))
    return await policy_edited(bed)


async def pods_gone(bed: Bed) -> int:
    """The objects go; what they stood for still sends."""
    return await bed.remove(bed.record("y/here"), bed.record("y/far"))


async def pods_return(bed: Bed) -> int:
    fresh = [
        Pod(
            key=key(name),
            uid=f"uid-{name}",
            labels={"role": "ok"},
            ips=bed.places[name].ips,
            node=node,
            phase="Running",
        )
        for name, node in (("y/here", "node-0"), ("y/far", "node-1"))
    ]
    return await bed.put(*fresh)


CAUSES: dict[str, tuple[Change, Change]] = {
    "policy edited": (policy_edited, allow),
    "policy deleted and replaced": (policy_replaced, put_back),
    "pods relabelled": (pods_relabelled, pods_labelled_again),
    "namespace relabelled": (namespace_relabelled, namespace_labelled_again),
    "default deny at both ends": (default_deny, deny_removed),
    "egress denied at the client": (egress_denied, deny_removed),
    "pods gone": (pods_gone, pods_return),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("version", [4, 6])
async def test_flows_stop_and_resume_and_the_neighbours_lose_nothing(bed: Bed, cause: str, version: int) -> None:
    await town(bed)
    take, give = CAUSES[cause]
    server = bed.places["x/server"]
    flows = {
        f"{kind} from {name}": bed.flow(KINDS[kind](bed.places[name], server, number, version))
        for name, first in (("y/here", 9001), ("y/far", 9011))
        for number, kind in enumerate(KINDS if name == "y/here" else ("tcp_back", "udp_back"), first)
    }
    near = bed.places["x/near"]
    kept = [bed.flow(udp_forth(near, server, 9021, version)), bed.flow(udp_back(near, server, 9022, version))]
    await bed.flowing(*flows.values(), *kept)

    moment_ns = await take(bed)
    sent = {name: flow.sent for name, flow in flows.items()}
    await asyncio.sleep(CUT_S)
    assert {name: flow.sent_after_and_received(moment_ns) for name, flow in flows.items()} == dict.fromkeys(flows, 0)
    assert all(flow.sent > sent[name] + 20 for name, flow in flows.items()), "the flows must have tried"

    await give(bed)
    await bed.flowing(*flows.values(), *kept)
    assert [flow.finish() for flow in kept] == [0, 0]


async def test_a_flow_of_a_pod_that_was_replaced_at_its_address_is_judged_anew(bed: Bed) -> None:
    await bed.put(policy("x/closed", selector(app="closed"), ingress=[]))
    server, client = await bed.pod("x/old", app="open"), await bed.pod("y/client")
    flow = bed.flow(udp_forth(client, server, 9001))
    await bed.flowing(flow)
    ips = server.ips
    await bed.unplug("x/old")
    await bed.remove(bed.record("x/old"))
    fresh = await bed.pod("x/new", ips=ips, app="closed")
    after = bed.flow(udp_forth(client, fresh, 9001))
    await asyncio.sleep(CUT_S)
    assert after.received == 0


CHURN_S = 3.0
POLICY_PERIOD_S = 0.015
LABEL_PERIOD_S = 0.025


async def churn_policies(bed: Bed) -> None:
    """Policies of the server come and go; all of them leave x/near allowed and y/denied not."""
    for number in itertools.count():
        extra = policy("x/churn", selector(app="server"), ingress=[rule([pods(role=f"r{number % 3}")], PORTS)])
        bed.dataplane.apply(put(extra) if number % 4 else gone(extra))
        bed.dataplane.apply(put(policy("x/p", selector(app="server"), ingress=[rule([NEAR], PORTS[: 2 + number % 2])])))
        await asyncio.sleep(POLICY_PERIOD_S)


async def churn_labels(bed: Bed) -> None:
    """Labels that decide for others change on the pods and namespaces that the flows belong to."""
    for number in itertools.count():
        for name, role in (("x/near", "near"), ("y/here", "denied"), ("x/server", "")):
            labels = {"role": role, "app": name[2:], "turn": str(number % 2)}
            bed.dataplane.apply(put(structs.replace(bed.record(name), labels=labels)))
        bed.dataplane.apply(put(namespace("y", team="two", turn=str(number % 2))))
        await asyncio.sleep(LABEL_PERIOD_S)


async def test_no_verdict_is_wrong_under_churn(bed: Bed) -> None:
    await town(bed)
    await bed.put(policy("x/p", selector(app="server"), ingress=[rule([NEAR], PORTS)]))
    server, near, denied = (bed.places[name] for name in ("x/server", "x/near", "y/here"))
    kept = [bed.flow(KINDS[kind](near, server, number)) for number, kind in enumerate(KINDS, 9001)]
    floods = [bed.flow(flood(denied, server.ip(), server, 9011)), bed.flow(flood(denied, server.ip(6), server, 9012))]
    await bed.flowing(*kept)
    generation, commits = bed.dataplane.generation, len(bed.dataplane.transactions)
    tasks = [asyncio.create_task(churn_policies(bed)), asyncio.create_task(churn_labels(bed))]
    await asyncio.sleep(CHURN_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await bed.settled()
    assert bed.dataplane.generation != generation
    assert len(bed.dataplane.transactions) > commits
    await bed.flowing(*kept)
    assert [flow.received for flow in floods] == [0, 0]
    assert [flow.finish() for flow in kept] == [0] * len(kept)
