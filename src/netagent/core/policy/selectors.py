"""Label selectors in canonical form, and an index that finds which of many can match a set of labels.

Source: the LabelSelector text of meta/v1. `NotIn` and `DoesNotExist` hold for objects without the key.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from msgspec import Struct

from netagent.records import LabelSelector, Requirement

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


class Selector(Struct, frozen=True, gc=False, order=True):
    """A conjunction of requirements, sorted and without repeats: equal meaning as written gives equal values."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True when every requirement holds."""
        for requirement in self.requirements:  # noqa: SIM110 - a generator takes twice the time
            if not holds(requirement, labels):
                return False
        return True

    def unmet(self, labels: Mapping[str, str]) -> tuple[Requirement, ...]:
        """The requirements that do not hold, for explanations."""
        return tuple(requirement for requirement in self.requirements if not holds(requirement, labels))

    def anchor(self) -> tuple[str, tuple[str, ...]] | None:
        """A key and the values one of which every match must carry: the narrowest `In`; None where there is none."""
        narrowest = None
        for requirement in self.requirements:
            if requirement.operator == "In" and (narrowest is None or len(requirement.values) < len(narrowest.values)):
                narrowest = requirement
        return None if narrowest is None else (narrowest.key, narrowest.values)

    def __str__(self) -> str:
        return ",".join(describe(requirement) for requirement in self.requirements) or "<all>"


EVERYTHING = Selector()


def holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    """One requirement against one set of labels."""
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False


def describe(requirement: Requirement) -> str:
    """As kubectl writes it."""
    key, values = requirement.key, requirement.values
    match requirement.operator:
        case "In":
            return f"{key}={values[0]}" if len(values) == 1 else f"{key} in ({','.join(values)})"
        case "NotIn":
            return f"{key} notin ({','.join(values)})"
        case "Exists":
            return key
        case "DoesNotExist":
            return f"!{key}"
    return f"{key} {requirement.operator} ({','.join(values)})"


def compile_selector(selector: LabelSelector) -> tuple[Selector, tuple[str, ...]]:
    """The canonical selector and what is wrong with it.

    A requirement that the API would refuse is left out, so the result matches a superset: right for choosing the pods
    that a broken policy isolates. Whoever admits traffic must treat any problem as "matches nothing".
    """
    requirements, problems = [], []
    for key, value in selector.match_labels.items():
        requirements.append(Requirement(key, "In", (value,)))
    for requirement in selector.match_expressions:
        problem = _problem(requirement)
        if problem:
            problems.append(problem)
        else:
            values = tuple(sorted(set(requirement.values)))
            requirements.append(Requirement(requirement.key, requirement.operator, values))
    canonical = sorted(set(requirements), key=_order)
    return Selector(tuple(canonical)), tuple(problems)


def _order(requirement: Requirement) -> tuple[str, str, tuple[str, ...]]:
    return requirement.key, requirement.operator, requirement.values


def _problem(requirement: Requirement) -> str:
    if requirement.operator not in OPERATORS:
        accepted = ", ".join(OPERATORS)
        return f"selector operator {requirement.operator!r} of key {requirement.key!r}: accepted are {accepted}"
    takes_values = requirement.operator in ("In", "NotIn")
    if takes_values != bool(requirement.values):
        need = "at least one value" if takes_values else "no values"
        return f"selector key {requirement.key!r}: operator {requirement.operator} takes {need}"
    return ""


T = TypeVar("T")


class SelectorIndex(Generic[T]):
    """Items filed under a selector; finds those that can match given labels without looking at the others.

    An item whose selector has an `In` requirement is filed under each (key, value) of the narrowest one; the others are
    looked at every time. Results are candidates: the caller still asks `matches`.
    """

    def __init__(self) -> None:
        self._anchored: dict[tuple[str, str], dict[T, None]] = {}
        self._loose: dict[T, None] = {}

    def __bool__(self) -> bool:
        """Whether it holds any item."""
        return bool(self._anchored or self._loose)

    def add(self, selector: Selector, item: T) -> None:
        """File an item."""
        for bucket in self._places(selector):
            if bucket is None:
                self._loose[item] = None
            else:
                self._anchored.setdefault(bucket, {})[item] = None

    def discard(self, selector: Selector, item: T) -> None:
        """Take an item out that was added under this selector."""
        for bucket in self._places(selector):
            if bucket is None:
                self._loose.pop(item, None)
            elif bucket in self._anchored:
                self._anchored[bucket].pop(item, None)
                if not self._anchored[bucket]:
                    del self._anchored[bucket]

    def candidates(self, labels: Mapping[str, str]) -> Iterator[T]:
        """Every item whose selector can match these labels, each once."""
        yield from self._loose
        for pair in labels.items():
            yield from self._anchored.get(pair, ())

    @staticmethod
    def _places(selector: Selector) -> Iterable[tuple[str, str] | None]:
        anchor = selector.anchor()
        return (None,) if anchor is None else ((anchor[0], value) for value in anchor[1])
