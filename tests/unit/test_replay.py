"""A view that was written down and read again compiles to the same ruleset."""

from typing import TypeVar

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.store import Store
from netagent.core.questions.replay import Situation, View, replay, view_of
from netagent.core.questions.tabletext import Table, compare, desired, normal, snapshot
from netagent.records import Endpoint, Kind, Undecodable
from support import histories
from support.histories import State, new_compiler, states, steps
from support.words import gone, key, namespace, pod, policy, put, selector

T = TypeVar("T")
SITUATION = Situation(
    node="node-0", frame=FrameSettings(vxlan_port=8472), own_subnets=(), mark="0x00050000", overlay=True
)


def written_and_read(value: T) -> T:
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value))


def table(compiler: Compiler) -> Table:
    return desired(snapshot(compiler.ruleset, SITUATION.mark))


@given(st.lists(states(), min_size=1, max_size=3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_replayed_view_compiles_to_the_same_ruleset(history: list[State], unreadable: bool) -> None:
    compiler, before = new_compiler(), State()
    for state in history:
        histories.replay(compiler, steps(before, state))
        before = state
    if unreadable:
        for kind in (Kind.NETWORK_POLICY, Kind.POD):
            compiler.update(compiler.store.apply(Undecodable(kind, key("x/a"), "garbage")))
    again = replay(written_and_read(view_of(compiler.store)), written_and_read(SITUATION))
    difference = compare(table(compiler), table(again.compiler))
    assert difference.equal, difference.mismatches
    assert again.store.undecodable == compiler.store.undecodable


def test_a_sandbox_whose_pod_object_is_gone_keeps_its_policy() -> None:
    compiler, store = (made := new_compiler()), made.store
    a = pod("x/a", "10.244.0.1", labels={"app": "a"})
    endpoint = Endpoint(
        pod=a.key, pod_uid=a.uid, container_id="c", ifname="eth0", host_ifname="nap0", ips=("10.244.0.1",)
    )
    for change in (put(namespace("x")), put(a), put(policy("x/p", selector(app="a")))):
        compiler.update(store.apply(change))
    compiler.update(store.admit(endpoint))
    compiler.update(store.apply(gone(a)))
    wanted = table(compiler)
    assert "goto in_" in wanted.sets["ingress4"][1]["10.244.0.1"]
    again = replay(written_and_read(view_of(store)), SITUATION)
    assert compare(wanted, table(again.compiler)).equal


def test_a_view_holds_everything_that_the_store_was_told() -> None:
    told = {name for name, one in vars(Store()).items() if not name.startswith("_")} - {"listed"}
    assert told - {"sandboxes", "undecodable"} == set(View.__struct_fields__) - {"wired", "unreadable"}


def test_one_spelling_of_rules() -> None:
    for written, printed in (
        ("ct mark and 0xffff0000 == @current accept", "ct mark & 0xffff0000 == @current accept"),
        ("ct mark set ct mark and 0x0000ffff or 0x00050000", "ct mark set ct mark & 0x0005ffff | 0x00050000"),
        ("meta mark and 0x4000 == 0x4000 return", "meta mark & 0x00004000 == 0x00004000 return"),
        ("ip saddr { 10.244.0.0/16 } return", "ip saddr 10.244.0.0/16 return"),
        ("ip saddr { 10.0.0.7/32, 10.0.2.0/24 } return", "ip saddr { 10.0.0.7, 10.0.2.0/24 } return"),
        ("ip saddr { 10.0.1.0/24, 10.0.0.0/24 } return", "ip saddr { 10.0.0.0/23 } return"),
        ("ip6 saddr { ::, fe80::/10 } accept", "ip6 saddr { fe80::/10, :: } accept"),
        ("counter name k_1 drop", 'counter name "k_1" drop'),
    ):
        assert normal(written) == normal(printed)
    assert normal("ip saddr 10.0.0.1 accept") != normal("ip saddr 10.0.0.11 accept")
    assert normal("ct mark & 0xffff0000 == 0x1 drop") != normal("ct mark & 0xffff0000 == 0x10 drop")
