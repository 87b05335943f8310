"""The journal of the desired ruleset: its deltas, applied one after the other, give the desired state."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.core.policy.ruleset import ChainDecl, Delta, Ruleset, SetDecl

SET, NARROW = SetDecl("ipv4_addr"), SetDecl("ipv4_addr", narrows=True)
MAP = SetDecl("ipv4_addr : verdict", narrows=True)
DECLS = {"plain": SET, "narrow": NARROW, "map": MAP, "late": SET}
ELEMENTS = ("1.1.1.1", "1.1.1.2", "1.1.1.3")


class Model:
    """What a kernel would hold; it refuses what the kernel refuses."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, str]] = {}
        self.chains: dict[str, ChainDecl] = {}
        self.counters: set[str] = set()

    def apply(self, delta: Delta) -> None:
        for name in delta.new_counters:
            assert name not in self.counters
            self.counters.add(name)
        for name, elements in delta.new_sets.items():
            assert name not in self.sets
            self.sets[name] = dict(elements.values)
        for name, change in delta.changed_sets.items():
            for element in change.removed:
                del self.sets[name][element]
            for element, value in change.added.items():
                assert element not in self.sets[name]
                self.sets[name][element] = value
        for name, chain in delta.new_chains.items():
            assert name not in self.chains
            self.chains[name] = chain
        for name, chain in delta.changed_chains.items():
            assert self.chains[name] != chain
            self.chains[name] = chain
        for name in delta.old_chains:
            del self.chains[name]
        for name in delta.old_sets:
            del self.sets[name]
        for name in delta.old_counters:
            self.counters.remove(name)

    def equals(self, ruleset: Ruleset) -> bool:
        wanted = {name: one.values for name, one in ruleset.sets.items()}
        return (self.sets, self.chains, self.counters) == (wanted, ruleset.chains, set(ruleset.counters))


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(list(DECLS)), st.sampled_from(ELEMENTS), st.sampled_from("ab")),
    st.tuples(st.just("discard"), st.sampled_from(list(DECLS)), st.sampled_from(ELEMENTS), st.just("")),
    st.tuples(st.just("declare"), st.sampled_from(list(DECLS)), st.sampled_from(["", *ELEMENTS]), st.just("")),
    st.tuples(st.just("drop_set"), st.sampled_from(list(DECLS)), st.just(""), st.just("")),
    st.tuples(st.just("put_chain"), st.sampled_from("cd"), st.sampled_from(["rule 1", "rule 2"]), st.just("")),
    st.tuples(st.just("drop_chain"), st.sampled_from("cd"), st.just(""), st.just("")),
    st.tuples(st.just("use_counter"), st.sampled_from("kl"), st.just(""), st.just("")),
    st.tuples(st.just("release_counter"), st.sampled_from("kl"), st.just(""), st.just("")),
    st.tuples(st.just("take"), st.just(""), st.just(""), st.just("")),
)


def operate(ruleset: Ruleset, operation: tuple[str, str, str, str]) -> None:
    """One operation, where it makes sense."""
    verb, name, argument, value = operation
    match verb:
        case "declare":
            ruleset.declare(name, DECLS[name], [argument] if argument and not DECLS[name].is_map else [])
        case "put" if name in ruleset.sets:
            ruleset.put(name, argument, value if ruleset.sets[name].decl.is_map else "")
        case "discard" if name in ruleset.sets:
            ruleset.discard(name, argument)
        case "drop_set" if name in ruleset.sets:
            ruleset.drop_set(name)
        case "put_chain":
            ruleset.put_chain(name, ChainDecl((argument,)))
        case "drop_chain" if name in ruleset.chains:
            ruleset.drop_chain(name)
        case "use_counter":
            ruleset.use_counter(name)
        case "release_counter" if name in ruleset.counters:
            ruleset.release_counter(name)


@given(st.lists(OPERATIONS, max_size=40))
@settings(max_examples=200, deadline=None)
def test_deltas_add_up_to_the_desired_state(operations: list[tuple[str, str, str, str]]) -> None:
    ruleset, model = Ruleset(), Model()
    for operation in operations:
        if operation[0] == "take":
            model.apply(ruleset.take())
            assert model.equals(ruleset)
        else:
            operate(ruleset, operation)
    model.apply(ruleset.take())
    assert model.equals(ruleset)
    assert not ruleset.changed
    assert not ruleset.take()
    anew = Model()
    anew.apply(ruleset.whole())
    assert anew.equals(ruleset)
    assert not ruleset.take()


def taken(*operations: tuple[str, str, str, str], before: tuple[tuple[str, str, str, str], ...] = ()) -> Delta:
    ruleset = Ruleset()
    for operation in before:
        operate(ruleset, operation)
    ruleset.take()
    for operation in operations:
        operate(ruleset, operation)
    return ruleset.take()


def test_what_came_and_went_is_not_in_the_delta() -> None:
    there = (("declare", "plain", "", ""), ("put", "plain", "1.1.1.1", ""), ("put_chain", "c", "rule 1", ""))
    delta = taken(
        ("put", "plain", "1.1.1.2", ""),
        ("discard", "plain", "1.1.1.2", ""),
        ("discard", "plain", "1.1.1.1", ""),
        ("put", "plain", "1.1.1.1", ""),
        ("declare", "late", "", ""),
        ("put", "late", "1.1.1.1", ""),
        ("drop_set", "late", "", ""),
        ("put_chain", "c", "rule 2", ""),
        ("put_chain", "c", "rule 1", ""),
        ("put_chain", "d", "rule 1", ""),
        ("drop_chain", "d", "", ""),
        ("use_counter", "k", "", ""),
        ("release_counter", "k", "", ""),
        before=there,
    )
    assert not delta
    assert not delta.revokes


def test_an_element_stays_while_any_reason_for_it_does() -> None:
    ruleset = Ruleset()
    ruleset.declare("plain", SET)
    for _ in range(3):
        ruleset.put("plain", "1.1.1.1")
    ruleset.take()
    for _ in range(2):
        ruleset.discard("plain", "1.1.1.1")
        assert not ruleset.take()
    ruleset.discard("plain", "1.1.1.1")
    assert ruleset.take().changed_sets["plain"].removed == ["1.1.1.1"]
    assert ruleset.sets["plain"].counts == {}


@pytest.mark.parametrize(
    ("operation", "revokes"),
    [
        (("put", "plain", "1.1.1.2", ""), False),
        (("discard", "plain", "1.1.1.1", ""), True),
        (("put", "narrow", "1.1.1.2", ""), True),
        (("discard", "narrow", "1.1.1.1", ""), False),
        (("put", "map", "1.1.1.2", "a"), True),
        (("put", "map", "1.1.1.1", "b"), True),
        (("discard", "map", "1.1.1.1", ""), False),
        (("put_chain", "c", "rule 2", ""), True),
        (("put_chain", "d", "rule 1", ""), False),
        (("declare", "late", "1.1.1.1", ""), False),
    ],
)
def test_only_what_can_take_an_allow_away_revokes(operation: tuple[str, str, str, str], revokes: bool) -> None:
    before: list[tuple[str, str, str, str]] = [("put_chain", "c", "rule 1", "")]
    for name in ("plain", "narrow", "map"):
        before += [("declare", name, "", ""), ("put", name, "1.1.1.1", "a")]
    delta = taken(operation, before=tuple(before))
    assert delta
    assert delta.revokes is revokes
