"""labelSelector and fieldSelector of list, watch and deletecollection, as the API writes them in a query."""

import re
from collections.abc import Callable
from typing import Any

from netagent.lab.apiserver.faults import bad_request

Object = dict[str, Any]
Predicate = Callable[[Object], bool]

_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s!=<>,()]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^\s!=<>,()]*)$")
_COMPARE = re.compile(r"^(?P<key>[^\s!=<>,()]+)\s*(?P<operator>[<>])\s*(?P<value>-?\d+)$")
_EXISTS = re.compile(r"^(?P<not>!?)\s*(?P<key>[^\s!=<>,()]+)$")

COMMON_FIELDS = ("metadata.name", "metadata.namespace")
FIELDS: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "secrets": ("type",),
}
"""Fields that upstream can select by, beside the common ones."""


def label_selector(text: str) -> Predicate | None:
    """The predicate of a labelSelector; None when it selects everything. Raises ApiFault 400."""
    tests = [_label_test(part.strip()) for part in _split(text)]
    if not tests:
        return None
    return lambda obj: all(test(obj["metadata"].get("labels") or {}) for test in tests)


def _split(text: str) -> list[str]:
    """At commas outside parentheses."""
    parts = re.split(r",(?![^()]*\))", text)
    return [part for part in parts if part.strip()]


def _label_test(text: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(text):
        values = frozenset(value.strip() for value in match["values"].split(","))
        return _membership(match["key"], values, match["operator"] == "in")
    if match := _EQUAL.match(text):
        return _membership(match["key"], frozenset((match["value"],)), match["operator"] != "!=")
    if match := _COMPARE.match(text):
        return _comparison(match["key"], match["operator"], int(match["value"]))
    if match := _EXISTS.match(text):
        key, present = match["key"], not match["not"]
        return lambda labels: (key in labels) is present
    raise bad_request(f'unable to parse requirement: found "{text}", expected a label selector')


def _membership(key: str, values: frozenset[str], wanted: bool) -> Callable[[dict[str, str]], bool]:
    """`in` needs the label; `notin` and `!=` also hold where it is absent."""
    if wanted:
        return lambda labels: labels.get(key) in values
    return lambda labels: labels.get(key) not in values


def _comparison(key: str, operator: str, bound: int) -> Callable[[dict[str, str]], bool]:
    def test(labels: dict[str, str]) -> bool:
        try:
            value = int(labels[key])
        except (KeyError, ValueError):
            return False
        return value > bound if operator == ">" else value < bound

    return test


def field_selector(text: str, plural: str) -> Predicate | None:
    """The predicate of a fieldSelector; None when it selects everything. Raises ApiFault 400."""
    tests = [_field_test(part.strip(), plural) for part in text.split(",") if part.strip()]
    if not tests:
        return None
    return lambda obj: all(test(obj) for test in tests)


def _field_test(text: str, plural: str) -> Predicate:
    match = re.match(r"^(?P<path>[^!=]+?)(?P<operator>!=|==|=)(?P<value>.*)$", text)
    if match is None:
        raise bad_request(f'invalid selector: "{text}"; can\'t understand "{text}"')
    path, wanted, value = match["path"], match["operator"] != "!=", match["value"]
    if path not in COMMON_FIELDS and path not in FIELDS.get(plural, ()):
        raise bad_request(
            f'Unable to find "{plural}" that match label selector "", field selector "{text}": '
            f"field label not supported: {path}"
        )
    steps = path.split(".")
    return lambda obj: (_field(obj, steps) == value) is wanted


def _field(obj: Object, steps: list[str]) -> str:
    value: Any = obj
    for step in steps:
        if not isinstance(value, dict):
            return ""
        value = value.get(step)
    if steps == ["source"]:
        return str((value or {}).get("component", ""))
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "false" if steps[-1] in ("unschedulable", "hostNetwork") else ""
    return str(value)


def both(*predicates: Predicate | None) -> Predicate | None:
    """All of the predicates; None when there is none."""
    tests = [predicate for predicate in predicates if predicate is not None]
    if len(tests) < 2:
        return tests[0] if tests else None
    return lambda obj: all(test(obj) for test in tests)
