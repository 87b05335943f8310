"""The agent's commits that go without a script obey, revoke, and are known as its own."""

import asyncio

import pytest

from netagent.records import Pod
from support.driftbed import WatchedBed
from support.flows import flood, tcp_forth, udp_back, udp_forth
from support.words import pod, pods, policy, rule, selector

pytestmark = pytest.mark.kernel


def fast(bed: WatchedBed) -> int:
    """Commits without a script so far."""
    return sum(one.elements_only and not one.error for one in bed.dataplane.transactions)


def labelled(bed: WatchedBed, name: str, **labels: str) -> Pod:
    ips = bed.record(name).ips
    return pod(name, *ips, labels=labels)


@pytest.mark.parametrize("how", ["out of a peer set", "into a class"])
async def test_a_label_cuts_open_flows_without_a_script(bed: WatchedBed, how: str) -> None:
    for name in ("x/server", "x/closed", "x/near", "x/other"):
        await bed.pod(name, app=name[2:])
    await bed.put(
        policy("x/p", selector(app="server"), ingress=[rule([pods(app="near"), pods(app="other")])]),
        policy("x/q", selector(app="closed"), ingress=[rule([pods(app="other")])]),
    )
    near, other, server = (bed.places[f"x/{name}"] for name in ("near", "other", "server"))
    makers = (udp_forth, udp_back, tcp_forth)
    cut = [bed.flow(make(near, server, port)) for port, make in enumerate(makers, 9001)]
    kept = [bed.flow(make(other, server, port)) for port, make in enumerate(makers, 9011)]
    await bed.flowing(*cut, *kept)
    before, generation = fast(bed), bed.dataplane.generation
    name, app = ("x/near", "far") if how == "out of a peer set" else ("x/server", "closed")
    moment_ns = await bed.put(labelled(bed, name, app=app))
    assert fast(bed) == before + (1 if how == "out of a peer set" else 0)
    assert bed.dataplane.generation != generation
    await asyncio.sleep(0.3)
    assert [flow.sent_after_and_received(moment_ns) for flow in cut] == [0, 0, 0]
    await bed.flowing(*kept)
    assert [flow.finish() for flow in kept] == [0, 0, 0]


async def test_its_own_commits_are_no_drift(bed: WatchedBed) -> None:
    for name in ("x/server", "x/near"):
        await bed.pod(name, app=name[2:])
    await bed.put(policy("x/p", selector(app="server"), ingress=[rule([pods(app="near")])]))
    before = fast(bed)
    for number in range(10):
        await bed.put(labelled(bed, "x/near", app="near" if number % 2 else "far"))
    assert fast(bed) == before + 10
    await asyncio.sleep(0.3)
    assert bed.repairs() == 0
    await bed.expect_oracle()


async def test_while_fast_commits_take_effect_nothing_opens_and_nothing_is_lost(bed: WatchedBed) -> None:
    for name in ("x/server", "x/near", "x/other", "x/denied"):
        await bed.pod(name, app=name[2:])
    bed.outside("192.0.2.10")
    await bed.put(policy("x/p", selector(app="server"), ingress=[rule([pods(app="near"), pods(app="other")])]))
    server, other = bed.places["x/server"], bed.places["x/other"]
    kept = [bed.flow(udp_forth(other, server, 9001)), bed.flow(udp_back(other, server, 9002))]
    denied = [
        bed.flow(flood(bed.places[name], server.ip(), server, port))
        for port, name in ((9003, "x/denied"), (9004, "192.0.2.10"))
    ]
    await bed.flowing(*kept)
    await bed.until("floods run", lambda: all(flow.sent > 5 for flow in denied))
    before = bed.dataplane.generation or 0
    for number in range(300):
        await bed.put(labelled(bed, "x/near", app="near" if number % 2 else "far"))
    assert (bed.dataplane.generation or 0) - before == 150
    assert all(one.elements_only for one in bed.dataplane.transactions)
    assert [flow.received for flow in denied] == [0, 0]
    await bed.flowing(*kept)
    assert [flow.finish() for flow in kept] == [0, 0]
