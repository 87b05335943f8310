"""The desired ruleset is a function of the view, whatever happened before, and nothing of the past stays."""

from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.core.policy.compiler import Compiler
from support.histories import State, Step, decided, new_compiler, replay, states, steps

STATES = st.lists(states().map(decided), min_size=1, max_size=4)


def facts(compiler: Compiler) -> dict[str, Any]:
    """Everything the compiler derived, without the numbers that count revisions."""
    peers = vars(compiler._peers)
    uses: dict[str, int] = {}
    for one in compiler._classes.values():
        uses[one.chain] = uses.get(one.chain, 0) + one.uses
    return {
        "sets": {name: (one.decl, one.values, one.counts) for name, one in compiler.ruleset.sets.items()},
        "chains": compiler.ruleset.chains,
        "counters": compiler.ruleset.counters,
        "chain uses": compiler._chain_uses,
        "class uses": uses,
        "constants": compiler._constants,
        "placed": {container: (one.ips, one.host_ifname, one.known) for container, one in compiler.placements.items()},
        "problems": compiler.problems,
        "policies": {key: known.policy for key, known in compiler._policies.items()},
        "policy index": {name: vars(index) for name, index in compiler._policy_index.items()},
        "set uses": {key: (one.name, one.uses) for key, one in peers["_sets"].items()},
        "peers": {peer: (set(one.sets), set(one.pods)) for peer, one in peers["_peers"].items()},
        "peer index": vars(peers["_index"]),
        "peer indexes": {name: vars(index) for name, index in peers["_index_in"].items()},
        "matched": peers["_pods"],
        "overlay": peers["_overlay"],
    }


def way(*through: State) -> list[Step]:
    """From nothing through all states."""
    made, before = [], State()
    for state in through:
        made += steps(before, state)
        before = state
    return made


def ended(some: Iterable[Step], *, at_once: bool = False) -> dict[str, Any]:
    compiler = new_compiler()
    replay(compiler, some, at_once=at_once)
    return facts(compiler)


@given(STATES)
@settings(max_examples=80, deadline=None)
def test_every_history_ends_in_the_same_ruleset(history: list[State]) -> None:
    last = history[-1]
    squashed = ended(way(last), at_once=True)
    assert ended(way(*history)) == squashed
    assert ended(way(*reversed(history), last)) == squashed
    assert ended(way(*history), at_once=True) == squashed
    assert ended(way(*(one for state in history for one in (state, State())), last)) == squashed
    assert ended(step for step in reversed(way(last))) == squashed


@given(STATES)
@settings(max_examples=60, deadline=None)
def test_nothing_stays_when_everything_is_gone(history: list[State]) -> None:
    assert ended(way(*history, State())) == ended([])


@given(st.lists(states(), min_size=2, max_size=3))
@settings(max_examples=60, deadline=None)
def test_splitting_a_change_makes_no_difference_even_with_unknown_pods(history: list[State]) -> None:
    assert ended(way(*history)) == ended(way(*history), at_once=True)
