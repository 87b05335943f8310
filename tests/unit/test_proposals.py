"""Documents to simulate: what is read, and what is refused with which words."""

import pytest

from netagent.agent.http.proposals import ProposalError, read_proposal
from netagent.core.policy.meaning import Direction
from netagent.records import Key

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %s%s}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{ipBlock: {cidr: %s}}]
    ports: [{port: 5432}]
"""


def one(name: str = "db", namespace: str = "shop", cidr: str = "10.0.0.0/8") -> str:
    return POLICY % (name, f", namespace: {namespace}" if namespace else "", cidr)


def problems(text: str | bytes, *, deletes: bool = False) -> tuple[str, ...]:
    with pytest.raises(ProposalError) as refused:
        read_proposal(text if isinstance(text, bytes) else text.encode(), deletes=deletes)
    return refused.value.problems


def test_several_documents_and_the_default_namespace() -> None:
    found = read_proposal(f"---\n{one()}---\n{one('web', '')}---\n".encode(), deletes=False)
    assert [policy.key for policy in found.applied] == [Key("shop", "db"), Key("default", "web")]
    assert list(found.applied[0].rules) == [Direction.INGRESS]
    assert found.deleted == ()


def test_json_and_lists_as_kubectl_prints_them() -> None:
    text = """{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {"podSelector": {}}}]}"""
    assert [policy.key for policy in read_proposal(text.encode(), deletes=False).applied] == [Key("x", "a")]


def test_timestamps_of_a_dump_do_not_disturb() -> None:
    text = one().replace("metadata: {", "metadata: {creationTimestamp: 2026-01-01T00:00:00Z, ")
    assert read_proposal(text.encode(), deletes=False).applied


def test_deletion_takes_names_only() -> None:
    found = read_proposal(one(cidr="nonsense").encode(), deletes=True)
    assert (found.applied, found.deleted) == ((), (Key("shop", "db"),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no document in the body"),
        ("# nothing\n---\n", "no document in the body"),
        ("{", "not YAML: "),
        ("just text", "document 1: a str. Accepted: a NetworkPolicy object"),
        ("apiVersion: v1\nkind: Pod\n", "apiVersion 'v1', kind 'Pod'. Accepted: networking.k8s.io/v1, NetworkPolicy"),
        (one(cidr="10.0.0.0/99"), "NetworkPolicy shop/db: spec.ingress[0].from[0].ipBlock"),
        (one() + "\n---\n" + one(), "appears twice"),
        (one().replace("podSelector", "podSelectr"), "spec.podSelectr: no such field"),
        (one().replace("  ingress:", "  policyTypes: [ingress]\n  ingress:"), "spec.policyTypes: 'ingress'. Accepted"),
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n", "spec is a NoneType"),
        (one().replace("port: 5432", "prot: 5432"), "unknown field `prot`"),
        (one().replace("name: db", "nam: db"), "name"),
        ("a: &x 1\nb: *x\n", "line 2: YAML aliases are not accepted"),
        ("[" * 60 + "]" * 60, "line 1: nested deeper than 50"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("a: !!python/object:os.system {}", "not YAML: "),
    ],
)
def test_refused_with_what_is_wrong(text: str | bytes, words: str) -> None:
    found = problems(text)
    assert any(words in problem for problem in found), found


def test_all_faults_are_told_at_once() -> None:
    found = problems(f"{one(cidr='x')}---\nkind: Pod\n---\n{one('web', cidr='y')}")
    assert [problem.split(":")[0] for problem in found] == [
        "document 1, NetworkPolicy shop/db",
        "document 2",
        "document 3, NetworkPolicy shop/web",
    ]


def test_a_megabyte_of_anything_is_read_or_refused() -> None:
    for text in ("[" * (1 << 20), "- a\n" * (1 << 18), "{a: " * (1 << 18), "&a" * (1 << 19)):
        assert problems(text)
