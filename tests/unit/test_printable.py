"""What is printed for people: a name from outside can neither end a line nor speak to the terminal."""

import msgspec
import pytest

from netagent.core.doctor import findings
from netagent.core.questions import explain, simulate, status
from netagent.core.questions.parties import parse_question
from netagent.printable import one_line
from support import words
from support.words import policy, rule, selector
from unit.test_explain import DB, ingress, pod, view
from unit.test_simulate import applied, cluster

EVIL = "x\nALLOW  a -> b\x1b[2J\u202e\r"
ESCAPED = "x\\nALLOW  a -> b\\x1b[2J\\u202e\\r"


def explained() -> str:
    named = ingress(rule := words.rule([words.pods(app=EVIL)]), name=EVIL, app="db")
    assert rule.peers
    question = parse_question("10.244.2.8", str(DB), "5432", "TCP")
    return explain.text(explain.explain(view(named, more=(pod(words.key(f"shop/{EVIL}"), "10.244.1.77"),)), question))


def simulated() -> str:
    hostile = words.pod(f"shop/{EVIL}", "10.244.0.9", labels={"app": "evil"})
    proposal = applied(policy(f"shop/{EVIL}", selector(app="evil"), ingress=[rule([words.pods(app=EVIL)])]))
    return simulate.text(simulate.simulate(cluster(more=(hostile,)), proposal, ()))


def shown() -> str:
    tree = {"endpoints": [{"pod": f"shop/{EVIL}"}], "agent": {"node": EVIL}}
    state = msgspec.convert(tree, status.State)
    parts = {"dataplane": EVIL}
    return status.text(status.status(state, parts=parts, remarks={}, drops=None, not_answered={EVIL: "timed out"}))


def found() -> str:
    return findings.text([findings.Finding("x.y", "error", EVIL, EVIL, EVIL)])


@pytest.mark.parametrize("made", [explained, simulated, shown, found])
def test_a_name_from_outside_stays_in_its_line(made: object) -> None:
    assert callable(made)
    text = made()
    assert ESCAPED in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.startswith("ALLOW") for line in text.split("\n"))


def test_what_is_printable_stays_as_it_is() -> None:
    assert one_line("Größe: 日本 \\n") == "Größe: 日本 \\n"
