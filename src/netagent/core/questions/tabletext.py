"""Our table as text, in one spelling: what is desired and what `nft list table` prints can be compared line by line.

nft prints rules nearly as they were written. What differs is undone here on both sides: masks (`and` for `&`, and a
mask that already holds the bits set after it), the width of hexadecimal numbers, braces around a single element, the
order in braces, quotes, and networks where ranges were written. `tests/kernel/debug` holds this to the kernel.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher

from msgspec import Struct, field

from netagent.core.policy.intervals import Range, range_text, united
from netagent.core.policy.ruleset import GENERATION, ChainDecl, Ruleset, SetDecl

MISMATCHES_KEPT = 1000
"""Differences told one by one; beyond that they are only counted."""

_HEX = re.compile(r"\b0x[0-9a-f]+\b")
_MASKED = re.compile(r"& (0x[0-9a-f]{8}) \| (0x[0-9a-f]{8})")
_BRACES = re.compile(r"\{ ([^{}]*) \}")
_HOST = re.compile(r"\b(\d+\.\d+\.\d+\.\d+)/32\b|([0-9a-f:]+)/128\b")
_NETWORK = re.compile(r"[0-9a-f.:]*[.:][0-9a-f.:]*(?:/\d+|-[0-9a-f.:]+)?")
_DECLARATION = re.compile(r"(set|map|chain|counter) (\S+) \{")


class Snapshot(Struct, frozen=True, gc=False, kw_only=True):
    """A ruleset at one moment; cheap to take, whoever has it may work on it in another thread."""

    sets: Mapping[str, tuple[SetDecl, Mapping[str, str]]]
    """Name -> declaration and elements with their verdicts."""
    chains: Mapping[str, ChainDecl]
    counters: frozenset[str]
    mark: str
    """The generation as it stands in the conntrack mark."""


class Table(Struct, frozen=True, kw_only=True):
    """A table in our spelling."""

    sets: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """Name -> what it is, in words, and its elements with their verdicts ("" in a set)."""
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> rules; of a base chain the hook stands first."""
    counters: frozenset[str] = frozenset()

    @property
    def exists(self) -> bool:
        return bool(self.sets or self.chains or self.counters)

    def sizes(self) -> dict[str, int]:
        """How many of each."""
        return {
            "sets": len(self.sets),
            "elements": sum(len(elements) for _, elements in self.sets.values()),
            "chains": len(self.chains),
            "rules": sum(len(rules) - (" hook " in "".join(rules[:1])) for rules in self.chains.values()),
            "counters": len(self.counters),
        }


class Mismatch(Struct, frozen=True, gc=False):
    """One difference."""

    verb: str
    """lacks: desired and not in the kernel; extra: the other way round."""
    kind: str
    """table, set, element, chain, rule or counter."""
    where: str
    """Name of the object; for rules and elements, of what holds them."""
    text: str = ""

    def __str__(self) -> str:
        return f"{self.verb:5}  {self.kind} {self.where}" + (f": {self.text}" if self.text else "")


class Difference(Struct, frozen=True, kw_only=True):
    """What the kernel's table lacks and has too much."""

    lacks: int
    extra: int
    mismatches: tuple[Mismatch, ...]
    """The first MISMATCHES_KEPT."""

    @property
    def equal(self) -> bool:
        return not (self.lacks or self.extra)


def snapshot(ruleset: Ruleset, mark: str) -> Snapshot:
    """Takes some milliseconds for 200,000 elements."""
    return Snapshot(
        sets={name: (one.decl, dict(one.values)) for name, one in ruleset.sets.items()},
        chains=dict(ruleset.chains),
        counters=frozenset(ruleset.counters),
        mark=mark,
    )


def desired(wanted: Snapshot) -> Table:
    """What the kernel should print."""
    sets = {}
    for name, (decl, values) in wanted.sets.items():
        elements = {wanted.mark: ""} if GENERATION in values else dict(_elements(decl, values))
        sets[name] = (_what(decl.type, decl.flags, str(decl.size or "")), elements)
    chains = {}
    for name, chain in wanted.chains.items():
        rules = (normal(rule.replace(GENERATION, wanted.mark)) for rule in chain.rules)
        chains[name] = (*((chain.hook,) if chain.hook else ()), *rules)
    return Table(sets=sets, chains=chains, counters=wanted.counters)


def listed(lines: Iterable[str]) -> Table:
    """What `nft list table` printed, line by line; empty where it printed nothing."""
    sets, chains, counters = {}, {}, set()
    for kind, name, body in _blocks(lines):
        if kind == "chain":
            chains[name] = tuple(line if " hook " in line else normal(line) for line in body)
        elif kind == "counter":
            counters.add(name)
        else:
            sets[name] = _listed_set(body)
    return Table(sets=sets, chains=chains, counters=frozenset(counters))


def compare(wanted: Table, found: Table) -> Difference:
    """What is different, tables first, elements and rules last."""
    kept: list[Mismatch] = []
    counts = {"lacks": 0, "extra": 0}
    for one in _mismatches(wanted, found):
        counts[one.verb] += 1
        if len(kept) < MISMATCHES_KEPT:
            kept.append(one)
    return Difference(lacks=counts["lacks"], extra=counts["extra"], mismatches=tuple(kept))


def text(table: Table) -> Iterator[str]:
    """The table for people and for diff(1): in order of names."""
    for counter in sorted(table.counters):
        yield f"counter {counter}"
    for name, (what, elements) in sorted(table.sets.items()):
        yield f"set {name} {what}"
        yield from (f"    {_pair(element, verdict)}" for element, verdict in sorted(elements.items()))
    for name, rules in sorted(table.chains.items()):
        yield f"chain {name}"
        yield from (f"    {rule}" for rule in rules)


def normal(rule: str) -> str:
    """A rule in our spelling."""
    rule = rule.replace('"', "").replace(" and 0x", " & 0x").replace(" or 0x", " | 0x")
    rule = _HEX.sub(lambda found: f"{int(found[0], 16):#010x}", rule)
    rule = _MASKED.sub(lambda found: f"& {int(found[1], 16) & ~int(found[2], 16):#010x} | {found[2]}", rule)
    return _HOST.sub(lambda found: found[1] or found[2], _BRACES.sub(_in_braces, rule))


# Inner workings


def _mismatches(wanted: Table, found: Table) -> Iterator[Mismatch]:
    if not found.exists:
        yield Mismatch("lacks", "table", "inet netagent")
        return
    yield from _names("counter", wanted.counters, found.counters)
    yield from _names("set", wanted.sets.keys(), found.sets.keys())
    yield from _names("chain", wanted.chains.keys(), found.chains.keys())
    for name in sorted(wanted.sets.keys() & found.sets.keys()):
        yield from _set_mismatches(name, wanted.sets[name], found.sets[name])
    for name in sorted(wanted.chains.keys() & found.chains.keys()):
        yield from _rule_mismatches(name, wanted.chains[name], found.chains[name])


def _names(kind: str, wanted: Iterable[str], found: Iterable[str]) -> Iterator[Mismatch]:
    expected, actual = set(wanted), set(found)
    yield from (Mismatch("lacks", kind, name) for name in sorted(expected - actual))
    yield from (Mismatch("extra", kind, name) for name in sorted(actual - expected))


def _set_mismatches(
    name: str, wanted: tuple[str, dict[str, str]], found: tuple[str, dict[str, str]]
) -> Iterator[Mismatch]:
    if wanted[0] != found[0]:
        yield Mismatch("lacks", "set", name, wanted[0])
        yield Mismatch("extra", "set", name, found[0])
    if wanted[1] == found[1]:
        return
    gone, come = wanted[1].items() - found[1].items(), found[1].items() - wanted[1].items()
    yield from (Mismatch("lacks", "element", name, _pair(*one)) for one in sorted(gone))
    yield from (Mismatch("extra", "element", name, _pair(*one)) for one in sorted(come))


def _rule_mismatches(name: str, wanted: tuple[str, ...], found: tuple[str, ...]) -> Iterator[Mismatch]:
    if wanted == found:
        return
    for _, first, last, begin, end in SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes():
        if wanted[first:last] != found[begin:end]:
            yield from (Mismatch("lacks", "rule", name, rule) for rule in wanted[first:last])
            yield from (Mismatch("extra", "rule", name, rule) for rule in found[begin:end])


def _blocks(lines: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Kind, name and the lines within, of every object in the table."""
    kind, name = "", ""
    body: list[str] = []
    for line in lines:
        stripped = line.strip()
        if not kind:
            declared = _DECLARATION.fullmatch(stripped)
            if declared:
                kind, name, body = declared[1], declared[2], []
        elif stripped == "}":
            yield kind, name, body
            kind = ""
        elif stripped:
            body.append(stripped)


def _listed_set(body: Iterable[str]) -> tuple[str, dict[str, str]]:
    words = {"type": "", "flags": "", "size": ""}
    elements: dict[str, str] = {}
    within = False
    for line in body:
        word, _, rest = line.partition(" ")
        if not within and word in words:
            words[word] = rest
            continue
        if word == "elements":
            within, line = True, rest.removeprefix("= { ")  # noqa: PLW2901
        if within:
            elements.update(_listed_elements(line.removesuffix("}")))
    return _what(words["type"], words["flags"], words["size"]), elements


def _listed_elements(line: str) -> Iterator[tuple[str, str]]:
    for one in line.split(","):
        element, _, verdict = one.partition(" : ")
        if element := element.strip():
            yield _element(element), verdict.strip()


def _elements(decl: SetDecl, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if not decl.flags and '"' not in next(iter(values), ""):
        yield from values.items()
        return
    for element, verdict in values.items():
        yield _element(element), verdict


def _element(element: str) -> str:
    """Quotes are left out, a network is written as a range."""
    element = element.replace('"', "")
    return _written(_range(element)) if "/" in element else element


def _in_braces(found: re.Match[str]) -> str:
    items = [item.strip() for item in found[1].split(",")]
    if all(_NETWORK.fullmatch(item) for item in items):
        version = 6 if ":" in items[0] else 4
        ranges = united(_range(item)[1] for item in items)
        items = [_network(part, version) for part in ranges]
    return items[0] if len(items) == 1 else "{ " + ", ".join(sorted(items)) + " }"


def _range(item: str) -> tuple[int, Range]:
    """IP version and bounds of an address, a network or a range."""
    first, _, last = item.partition("-")
    if last:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
        return low.version, (int(low), int(high))
    network = ipaddress.ip_network(item, strict=False)
    return network.version, (int(network.network_address), int(network.broadcast_address))


def _written(one: tuple[int, Range]) -> str:
    version, part = one
    return range_text(part, version)


def _network(part: Range, version: int) -> str:
    """A range as the network that it is, where it is one: so it is written outside of sets."""
    address = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    networks = list(ipaddress.summarize_address_range(address(part[0]), address(part[1])))
    return str(networks[0]) if len(networks) == 1 else range_text(part, version)


def _what(type_: str, flags: str, size: str) -> str:
    return " ".join(part for part in (type_, flags and f"flags {flags}", size and f"size {size}") if part)


def _pair(element: str, verdict: str) -> str:
    return f"{element} : {verdict}" if verdict else element
