"""NetworkPolicy documents as people write them (YAML or JSON, several per file, or a List) -> a Proposal.

All or nothing, and stricter than a watch: what the agent could only honour by failing closed is refused here, because
the API server would refuse it too, or because it does not do what its author thinks.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson
import yaml

from netagent.core.policy.meaning import Policy, compile_policy
from netagent.core.questions.simulate import Proposal
from netagent.kube import decode
from netagent.kube.wire import DecodeError
from netagent.ports import NetagentError
from netagent.records import Key, Kind, NetworkPolicy

BODY_MAX_BYTES = 1 << 20
"""As many as the API server takes for one object, roughly (etcd: 1.5 MiB)."""
DEPTH_MAX = 50
"""Nesting of a document; a NetworkPolicy needs about ten."""
API_VERSION = "networking.k8s.io/v1"
SPEC_FIELDS = ("podSelector", "policyTypes", "ingress", "egress")
DEFAULT_NAMESPACE = "default"


class ProposalError(NetagentError):
    """The documents cannot be simulated. `problems` has one text per fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(f"{len(problems)} problems in the documents, nothing was simulated: {'; '.join(problems)}")
        self.problems = tuple(problems)


def read_proposal(body: bytes, *, deletes: bool) -> Proposal:
    """What the documents propose: to apply them, or (`deletes`) to delete the policies they name.

    Raises ProposalError.
    """
    problems: list[str] = []
    policies: dict[Key, Policy] = {}
    for where, document in _documents(body):
        policy = _policy(where, document, problems, named_only=deletes)
        if policy is not None and policy.key in policies:
            problems.append(f"{where}: NetworkPolicy {policy.key} appears twice")
        elif policy is not None:
            policies[policy.key] = policy
    if not policies and not problems:
        problems.append("no document in the body. Accepted: NetworkPolicy objects as YAML or JSON")
    if problems:
        raise ProposalError(problems)
    return Proposal(deleted=tuple(policies)) if deletes else Proposal(applied=tuple(policies.values()))


def _documents(body: bytes) -> list[tuple[str, Any]]:
    try:
        text = body.decode()
        _check_shape(text)
        loaded = list(yaml.load_all(text, Loader=_Loader))
    except UnicodeDecodeError as error:
        raise ProposalError([f"not UTF-8: {error.reason} at byte {error.start}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ProposalError([f"not YAML: {' '.join(str(error).split())}"]) from None
    return list(_flat(loaded))


def _flat(loaded: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, document in enumerate(loaded, start=1):
        where = f"document {number}"
        items = document.get("items") if isinstance(document, dict) else None
        if isinstance(items, list) and str(document.get("kind", "")).endswith("List"):
            yield from ((f"{where}, item {index}", item) for index, item in enumerate(items, start=1))
        elif document is not None:
            yield where, document


def _check_shape(text: str) -> None:
    """No aliases, which make a small document huge, and no deep nesting. Raises ProposalError, yaml.YAMLError."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ProposalError([f"line {_line(event)}: YAML aliases are not accepted"])
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_MAX:
            raise ProposalError([f"line {_line(event)}: nested deeper than {DEPTH_MAX}"])


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0


def _policy(where: str, document: Any, problems: list[str], *, named_only: bool) -> Policy | None:
    """The policy of one document; None and a problem where it is none."""
    if not isinstance(document, dict):
        problems.append(f"{where}: a {type(document).__name__}. Accepted: a NetworkPolicy object")
        return None
    found = (document.get("apiVersion"), document.get("kind"))
    if found != (API_VERSION, "NetworkPolicy"):
        problems.append(f"{where}: apiVersion {found[0]!r}, kind {found[1]!r}. Accepted: {API_VERSION}, NetworkPolicy")
        return None
    faults = [] if named_only else list(_spec_faults(document.get("spec")))
    if faults:
        problems.extend(f"{where}: {fault}" for fault in faults)
        return None
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        document = {**document, "metadata": {**metadata, "namespace": metadata.get("namespace") or DEFAULT_NAMESPACE}}
    try:
        record = decode.record(Kind.NETWORK_POLICY, orjson.dumps(document))
    except (DecodeError, TypeError) as error:
        problems.append(f"{where}: {error}")
        return None
    assert isinstance(record, NetworkPolicy)  # noqa: S101 - by the kind asked for
    policy = compile_policy(record)
    if policy.problems and not named_only:
        problems.extend(f"{where}, NetworkPolicy {policy.key}: {problem}" for problem in policy.problems)
        return None
    return policy


def _spec_faults(spec: Any) -> Iterator[str]:
    """What a watch passes over because the API server has checked it before."""
    if not isinstance(spec, dict):
        yield f"spec is a {type(spec).__name__}. Accepted: a mapping with podSelector"
        return
    for name in (name for name in spec if name not in SPEC_FIELDS):
        yield f"spec.{name}: no such field. Accepted: {', '.join(SPEC_FIELDS)}"
    types = spec.get("policyTypes")
    for one in types if isinstance(types, list) else ():
        if one not in ("Ingress", "Egress"):
            yield f"spec.policyTypes: {one!r}. Accepted: Ingress, Egress"


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Timestamps stay text, as JSON has none."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's way
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
