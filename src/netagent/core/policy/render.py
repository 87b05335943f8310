"""A Delta as one kernel transaction: an nft script, or a small one without.

Order is data. What is referred to comes before what refers to it, removals come after additions and in reverse; only a
map element that changes its verdict is removed before it is added again.
"""

from collections.abc import Iterator, Mapping

from netagent.core.policy.frame import CURRENT, STAMP
from netagent.core.policy.ruleset import GENERATION, ChainDecl, Delta, Elements, SetDecl
from netagent.ports import ElementChange, NewSet, SmallTransaction, StampChange, TableInventory

TABLE = "inet netagent"
ELEMENTS_PER_COMMAND = 1000
"""Bounds the length of a line of the script."""
SMALL = 20_000
"""More elements and objects go as a script: it is read without holding the interpreter for tens of milliseconds."""
FAST_TYPES = frozenset(("ipv4_addr", "ipv6_addr", "inet_service", "ifname"))
"""Of keys that need no script, alone and as fields of a concatenation."""


def render(delta: Delta, chains: Mapping[str, ChainDecl], mark: str, *, new_mark: bool) -> str:
    """The script that brings the kernel from before the delta to after it.

    `chains` are all desired chains; `mark` is the current generation as it stands in the conntrack mark. With
    `new_mark` what holds it is written anew.
    """
    return "\n".join(_lines(delta, chains, mark, new_mark=new_mark)) + "\n"


def small(delta: Delta, stamp: StampChange | None) -> SmallTransaction | None:
    """The same without a script; None where that is not possible, or much changes. `stamp`: a new generation."""
    if not _fast(delta):
        return None
    changes = tuple(
        ElementChange(name=name, type=one.decl.type, removed=tuple(one.removed), added=one.added)
        for name, one in delta.changed_sets.items()
    )
    made = SmallTransaction(
        new_counters=tuple(delta.new_counters),
        new_sets=tuple(
            NewSet(name=name, type=one.decl.type, interval=bool(one.decl.flags), elements=tuple(one.values))
            for name, one in delta.new_sets.items()
        ),
        new_chains={name: chain.rules for name, chain in delta.new_chains.items()},
        stamp=stamp,
        changes=changes,
        old_chains=tuple(sorted(delta.old_chains)),
        old_sets=tuple(delta.old_sets),
        old_counters=tuple(delta.old_counters),
    )
    return made if made.elements + made.objects <= SMALL else None


def replacement(whole: Delta, mark: str, existing: TableInventory, *, anew: bool = False) -> str:
    """The script that replaces whatever the table holds by exactly the delta, in one transaction.

    What stays is flushed, not deleted: hooks stay in force, and a packet that is under way while the kernel turns to
    the new generation finds the old rules and the new elements, never a map that is empty for it. `anew` deletes the
    table and its counters all the same: the only way where somebody gave a name another hook or type.
    """
    lines = [f"add table {TABLE}"]
    if anew:
        lines += (f"delete table {TABLE}", f"add table {TABLE}")
    elif existing.exists:
        maps = {name for name, one in whole.new_sets.items() if one.decl.is_map}
        sets = whole.new_sets.keys() - maps
        lines.append(f"flush table {TABLE}")
        lines += (f"flush map {TABLE} {name}" for name in sorted(existing.maps))
        lines += (f"flush set {TABLE} {name}" for name in sorted(existing.sets & sets))
        lines += (f"delete chain {TABLE} {name}" for name in sorted(existing.chains - whole.new_chains.keys()))
        lines += (f"delete map {TABLE} {name}" for name in sorted(existing.maps - maps))
        lines += (f"delete set {TABLE} {name}" for name in sorted(existing.sets - sets))
        lines += (f"delete counter {TABLE} {name}" for name in sorted(existing.counters - set(whole.new_counters)))
    lines += _lines(whole, whole.new_chains, mark, new_mark=False)
    return "\n".join(lines) + "\n"


def _lines(delta: Delta, chains: Mapping[str, ChainDecl], mark: str, *, new_mark: bool) -> Iterator[str]:
    for name in delta.new_counters:
        yield f"add counter {TABLE} {name}"
    yield from _declare_sets(delta)
    yield from _declare_chains(delta)
    for name, chain in delta.new_chains.items():
        yield from _rules(name, chain, mark)
    rewritten = dict(delta.changed_chains)
    stamps = new_mark and STAMP in chains and STAMP not in delta.new_chains
    if stamps:
        rewritten[STAMP] = chains[STAMP]
    for name, chain in rewritten.items():
        yield f"flush chain {TABLE} {name}"
        yield from _rules(name, chain, mark)
    if stamps:
        yield f"flush set {TABLE} {CURRENT}"
        yield from _elements("add", CURRENT, [mark])
    for name, elements in delta.new_sets.items():
        yield from _elements("add", name, [mark] if GENERATION in elements.values else _pairs(elements.values))
    for name, change in delta.changed_sets.items():
        yield from _elements("delete", name, change.removed)
        yield from _elements("add", name, _pairs(change.added))
    for name in sorted(delta.old_chains):
        yield f"flush chain {TABLE} {name}"
        yield f"delete chain {TABLE} {name}"
    for name, decl in delta.old_sets.items():
        yield f"delete {'map' if decl.is_map else 'set'} {TABLE} {name}"
    for name in delta.old_counters:
        yield f"delete counter {TABLE} {name}"


def _declare_sets(delta: Delta) -> Iterator[str]:
    for name, elements in delta.new_sets.items():
        yield f"add {'map' if elements.decl.is_map else 'set'} {TABLE} {name} {{ {_spec(elements)} }}"


def _spec(elements: Elements) -> str:
    flags = f" flags {elements.decl.flags};" if elements.decl.flags else ""
    size = f" size {elements.decl.size};" if elements.decl.size else ""
    return f"type {elements.decl.type};{flags}{size}"


def _fast(delta: Delta) -> bool:
    """Whether only elements of plain sets change, and what belongs to policies comes and goes."""
    return (
        not delta.changed_chains
        and not any(chain.hook for chain in delta.new_chains.values())
        and all(_plain(change.decl) for change in delta.changed_sets.values())
        and all(_creatable(one.decl) for one in delta.new_sets.values())
    )


def _plain(decl: SetDecl) -> bool:
    key, _, data = decl.type.partition(" : ")
    return not decl.flags and data in ("", "verdict") and FAST_TYPES.issuperset(key.split(" . "))


def _creatable(decl: SetDecl) -> bool:
    if decl.size:
        return False
    return (decl.flags == "interval" and decl.type in FAST_TYPES) or (not decl.is_map and _plain(decl))


def _declare_chains(delta: Delta) -> Iterator[str]:
    for name, chain in delta.new_chains.items():
        yield f"add chain {TABLE} {name}" + (f" {{ {chain.hook} }}" if chain.hook else "")


def _rules(name: str, chain: ChainDecl, mark: str) -> Iterator[str]:
    for rule in chain.rules:
        yield f"add rule {TABLE} {name} {rule.replace(GENERATION, mark)}"


def _pairs(values: Mapping[str, str]) -> list[str]:
    return [f"{element} : {value}" if value else element for element, value in values.items()]


def _elements(verb: str, name: str, elements: list[str]) -> Iterator[str]:
    for start in range(0, len(elements), ELEMENTS_PER_COMMAND):
        yield f"{verb} element {TABLE} {name} {{ {', '.join(elements[start : start + ELEMENTS_PER_COMMAND])} }}"
