"""Label selectors: what matches, what is the same, and what the index finds."""

from hypothesis import given
from hypothesis import strategies as st

from netagent.core.policy.selectors import EVERYTHING, Selector, SelectorIndex, compile_selector
from netagent.records import LabelSelector, Requirement
from support import oracle
from support.words import Expression, selector

KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["", "1", "2", "3"])
LABELS = st.dictionaries(KEYS, VALUES)
REQUIREMENTS = st.one_of(
    st.builds(Requirement, KEYS, st.sampled_from(["In", "NotIn"]), st.lists(VALUES, min_size=1, max_size=3).map(tuple)),
    st.builds(Requirement, KEYS, st.sampled_from(["Exists", "DoesNotExist"])),
)
SELECTORS = st.builds(
    LabelSelector, match_labels=LABELS, match_expressions=st.lists(REQUIREMENTS, max_size=3).map(tuple)
)


def compiled(*expressions: Expression, **labels: str) -> Selector:
    found, problems = compile_selector(selector(*expressions, **labels))
    assert problems == ()
    return found


def test_each_operator() -> None:
    some, other, none = {"k": "v"}, {"k": "w"}, {"x": "v"}
    cases: list[tuple[Expression, list[bool]]] = [
        (("k", "In", ["v", "u"]), [True, False, False]),
        (("k", "NotIn", ["v", "u"]), [False, True, True]),
        (("k", "Exists"), [True, True, False]),
        (("k", "DoesNotExist"), [False, False, True]),
    ]
    for expression, verdicts in cases:
        assert [compiled(expression).matches(labels) for labels in (some, other, none)] == verdicts, expression


def test_empty_matches_everything_and_empty_values_are_values() -> None:
    assert compiled() == EVERYTHING
    assert EVERYTHING.matches({})
    assert compiled(k="").matches({"k": ""})
    assert not compiled(k="").matches({})
    assert not compiled(("k", "NotIn", [""])).matches({"k": ""})


def test_equal_meaning_gives_equal_selectors() -> None:
    assert compiled(("a", "In", ["2", "1", "2"]), b="x") == compiled(("b", "In", ["x"]), ("a", "In", ["1", "2"]))
    assert compiled(("a", "Exists"), ("a", "Exists")) == compiled(("a", "Exists"))
    assert compiled(a="x") != compiled(a="y")


def test_what_the_api_refuses_is_a_problem_and_left_out() -> None:
    for broken in (
        ("k", "Like", ["v"]),
        ("k", "In", []),
        ("k", "NotIn", []),
        ("k", "Exists", ["v"]),
        ("k", "DoesNotExist", ["v"]),
        ("k", "in", ["v"]),
    ):
        found, problems = compile_selector(selector(broken, app="web"))
        assert found == compiled(app="web")
        assert len(problems) == 1
        assert "'k'" in problems[0]


@given(SELECTORS, LABELS)
def test_matches_as_the_oracle(source: LabelSelector, labels: dict[str, str]) -> None:
    found, problems = compile_selector(source)
    assert problems == ()
    assert found.matches(labels) == oracle.selects(source, labels)
    assert (found.unmet(labels) == ()) == found.matches(labels)


@given(st.lists(SELECTORS, max_size=8), st.lists(LABELS, max_size=5), st.data())
def test_the_index_finds_exactly_what_matches(
    sources: list[LabelSelector], many_labels: list[dict[str, str]], data: st.DataObject
) -> None:
    selectors = [compile_selector(source)[0] for source in sources]
    index: SelectorIndex[int] = SelectorIndex()
    for number, one in enumerate(selectors):
        index.add(one, number)
    kept = set(range(len(selectors)))
    for number in data.draw(st.sets(st.sampled_from(sorted(kept)))) if kept else ():
        index.discard(selectors[number], number)
        kept.discard(number)
    for labels in many_labels:
        candidates = list(index.candidates(labels))
        assert len(candidates) == len(set(candidates))
        assert {n for n in candidates if selectors[n].matches(labels)} == {
            n for n in kept if selectors[n].matches(labels)
        }
        assert set(candidates) <= kept


def test_the_index_looks_only_at_what_can_match() -> None:
    index: SelectorIndex[str] = SelectorIndex()
    for number in range(100):
        index.add(compiled(app=f"app-{number}"), f"anchored-{number}")
    index.add(compiled(("app", "Exists")), "loose")
    assert list(index.candidates({"app": "app-7"})) == ["loose", "anchored-7"]
