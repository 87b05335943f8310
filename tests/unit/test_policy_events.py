"""Events about policy: a kernel that refuses, and policies that cannot be honoured, each told once in a cluster."""

from collections.abc import AsyncIterator

import pytest

from netagent.agent.http.policyevents import PATIENCE_S, POLICIES_PER_LOOK, PolicyEvents
from netagent.kube.events import Note
from netagent.records import Key, Kind, NetworkPolicy
from support.stubborn import StubbornNode
from support.waiting import running, until
from support.words import block, gone, namespace, pod, policy, put, rule, selector


class Site(StubbornNode):
    """With somebody who looks."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Note] = []
        self.events = PolicyEvents(self.dataplane, self.told.append, "node-0", clock=self.clock)

    async def shown(self, *policies: NetworkPolicy) -> None:
        for one in policies:
            self.dataplane.apply(put(one))
        await self.dataplane.committed()
        for _ in range(len(policies) // POLICIES_PER_LOOK + 3):
            self.events.look()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    async with running(made.dataplane.run()):
        made.list_all()
        made.dataplane.apply(put(namespace("x")))
        await made.dataplane.committed()
        yield made


def broken(name: str, **labels: str) -> NetworkPolicy:
    return policy(name, selector(**labels), ingress=[rule([block("10.0.0.0/40")])])


async def test_a_kernel_that_refuses_is_told_at_the_node_once_and_its_end_too(site: Site) -> None:
    site.kernel.refuses = True
    site.dataplane.distrust("test")
    await until(lambda: site.dataplane.failure, "the failure")
    site.events.look()
    assert site.told == []
    site.clock.ahead_s += PATIENCE_S
    site.events.look()
    site.events.look()
    (note,) = site.told
    assert (note.kind, note.key, note.reason, note.type) == (
        Kind.NODE,
        Key("", "node-0"),
        "NetagentRulesNotUpdated",
        "Warning",
    )
    assert "refused by the test" in note.message
    site.kernel.refuses = False
    await until(lambda: not site.dataplane.failure, "the recovery")
    site.events.look()
    assert [one.reason for one in site.told[1:]] == ["NetagentRulesUpdated"]


async def test_a_policy_with_a_problem_is_told_by_the_node_of_its_first_pod(site: Site) -> None:
    site.dataplane.apply(put(pod("x/a", "10.0.0.1", labels={"app": "a"}, node="node-0")))
    site.dataplane.apply(put(pod("x/b", "10.0.1.1", labels={"app": "a"}, node="node-1")))
    site.dataplane.apply(put(pod("x/0", "10.0.1.2", labels={"app": "b"}, node="node-1")))
    await site.shown(broken("x/ours", app="a"), broken("x/theirs", app="b"), broken("x/nobodys", app="c"))
    (note,) = site.told
    assert (note.kind, str(note.key), note.reason) == (Kind.NETWORK_POLICY, "x/ours", "NetagentPolicyProblem")
    assert note.uid
    assert "spec.ingress[0].from[0].ipBlock" in note.message


async def test_when_the_first_pod_goes_another_node_speaks(site: Site) -> None:
    first = pod("x/a", "10.0.1.1", labels={"app": "a"}, node="node-1")
    site.dataplane.apply(put(first))
    site.dataplane.apply(put(pod("x/b", "10.0.0.1", labels={"app": "a"}, node="node-0")))
    await site.shown(broken("x/p", app="a"))
    assert site.told == []
    site.dataplane.apply(gone(first))
    await site.shown()
    assert len(site.told) == 1


async def test_a_policy_is_told_again_only_with_another_problem(site: Site) -> None:
    site.dataplane.apply(put(pod("x/a", "10.0.0.1", labels={"app": "a"}, node="node-0")))
    one = broken("x/p", app="a")
    await site.shown(one)
    await site.shown(one)
    assert len(site.told) == 1
    await site.shown(policy("x/p", selector(app="a"), ingress=[rule([block("nonsense")])]))
    assert len(site.told) == 2
    site.dataplane.apply(gone(one))
    await site.shown()
    await site.shown(one)
    assert len(site.told) == 3


async def test_many_policies_with_problems_all_get_their_turn(site: Site) -> None:
    site.dataplane.apply(put(pod("x/a", "10.0.0.1", labels={"app": "a"}, node="node-0")))
    many = [broken(f"x/p{number}", app="a") for number in range(3 * POLICIES_PER_LOOK + 1)]
    await site.shown(*many)
    assert len({note.key for note in site.told}) == len(site.told) == len(many)
