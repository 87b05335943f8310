"""The desired content of our nftables table, with a journal of what changed since it was last taken.

Pure bookkeeping over names: sets and maps with elements, chains with rules. `take` turns the journal into a Delta,
whose size is that of the net change: what was added and removed again in between is not in it. Rules and elements refer
to the current generation by the word GENERATION, which rendering replaces.

Every chain other than the fixed ones, and every set with constant elements, is named by its content, so a name that is
in the kernel needs no look at what is behind it.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct, field

GENERATION = "@generation@"
"""In a rule or as an element: the mark value of the current generation."""


class SetDecl(Struct, frozen=True, gc=False):
    """Declaration of a set or verdict map."""

    type: str
    """As nft writes it, e.g. `ipv4_addr` or `ipv4_addr : verdict`."""
    flags: str = ""
    """e.g. `interval`."""
    size: int = 0
    """Room for that many elements, which the kernel then keeps in its fastest kind of set; 0: it grows."""
    narrows: bool = False
    """Whether more elements mean less traffic allowed, as in the map of isolated pods; else fewer mean less."""

    @property
    def is_map(self) -> bool:
        return ":" in self.type


class ChainDecl(Struct, frozen=True, gc=False):
    """A chain's rules; `hook` is the specification of a base chain, or empty."""

    rules: tuple[str, ...]
    hook: str = ""


class Elements(Struct, gc=False):
    """A set or map: its elements and, for a map, what they map to ("" in a set), with how often each was put."""

    decl: SetDecl
    values: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Only elements that were put more than once."""


class SetDelta(Struct, gc=False):
    """Net change of one set that exists before and after."""

    decl: SetDecl
    removed: list[str]
    """Elements, for a map those too whose verdict changes."""
    added: dict[str, str]


class Delta(Struct, gc=False):
    """Net change between two takes."""

    new_sets: dict[str, Elements] = field(default_factory=dict)
    old_sets: dict[str, SetDecl] = field(default_factory=dict)
    changed_sets: dict[str, SetDelta] = field(default_factory=dict)
    new_chains: dict[str, ChainDecl] = field(default_factory=dict)
    changed_chains: dict[str, ChainDecl] = field(default_factory=dict)
    old_chains: set[str] = field(default_factory=set)
    new_counters: list[str] = field(default_factory=list)
    old_counters: list[str] = field(default_factory=list)
    revokes: bool = False
    """Whether traffic that was allowed may not be any more: open flows must be judged again."""

    def __bool__(self) -> bool:
        return bool(
            self.new_sets
            or self.old_sets
            or self.changed_sets
            or self.new_chains
            or self.changed_chains
            or self.old_chains
            or self.new_counters
            or self.old_counters
        )


class Ruleset:
    """Desired sets, maps and chains by name."""

    def __init__(self) -> None:
        self.sets: dict[str, Elements] = {}
        self.chains: dict[str, ChainDecl] = {}
        self.counters: dict[str, int] = {}
        """Named counters and how many uses each has."""
        self._before_sets: dict[str, SetDecl | None] = {}
        self._before_elements: dict[str, dict[str, str | None]] = {}
        self._before_chains: dict[str, ChainDecl | None] = {}
        self._before_counters: dict[str, bool] = {}

    # Sets and maps

    def declare(self, name: str, decl: SetDecl, constant: Iterable[str] = ()) -> None:
        """A set or map that must exist; `constant` are the elements of one that never changes."""
        if name in self.sets:
            return
        self._before_sets.setdefault(name, None)
        self.sets[name] = Elements(decl, dict.fromkeys(constant, ""))
        for element in self.sets[name].values:
            self._before_elements.setdefault(name, {}).setdefault(element, None)

    def drop_set(self, name: str) -> None:
        """A set that no rule uses any more."""
        gone = self.sets.pop(name)
        self._before_sets.setdefault(name, gone.decl)
        journal = self._before_elements.setdefault(name, {})
        for element, value in gone.values.items():
            journal.setdefault(element, value)

    def put(self, name: str, element: str, value: str = "") -> None:
        """One more reason for an element to be in a set; in a map, the verdict (the last one put holds)."""
        target = self.sets[name]
        before = target.values.get(element)
        if before is not None and not target.decl.is_map:
            target.counts[element] = target.counts.get(element, 1) + 1
            return
        if before != value:
            self._before_elements.setdefault(name, {}).setdefault(element, before)
            target.values[element] = value

    def discard(self, name: str, element: str) -> None:
        """One reason less for an element to be in a set; without any it leaves."""
        target = self.sets[name]
        count = target.counts.get(element, 1)
        if count > 2:
            target.counts[element] = count - 1
        elif count == 2:
            del target.counts[element]
        elif element in target.values:
            self._before_elements.setdefault(name, {}).setdefault(element, target.values.pop(element))

    # Chains

    def put_chain(self, name: str, chain: ChainDecl) -> None:
        """A chain that must exist with these rules."""
        if self.chains.get(name) != chain:
            self._before_chains.setdefault(name, self.chains.get(name))
            self.chains[name] = chain

    def drop_chain(self, name: str) -> None:
        """A chain that nothing leads to any more."""
        self._before_chains.setdefault(name, self.chains.pop(name))

    # Counters

    def use_counter(self, name: str) -> None:
        """One more rule counts with it; its value stays as long as any does."""
        if name not in self.counters:
            self._before_counters.setdefault(name, False)
        self.counters[name] = self.counters.get(name, 0) + 1

    def release_counter(self, name: str) -> None:
        """One use less."""
        self.counters[name] -= 1
        if not self.counters[name]:
            del self.counters[name]
            self._before_counters.setdefault(name, True)

    # The journal

    @property
    def changed(self) -> bool:
        """Whether anything was touched since the last take (the net change may still be empty)."""
        return bool(self._before_sets or self._before_elements or self._before_chains or self._before_counters)

    def take(self) -> Delta:
        """The net change since the last take; the journal starts anew."""
        delta = Delta()
        for name, before in self._before_sets.items():
            now = self.sets.get(name)
            if before is None and now is not None:
                delta.new_sets[name] = Elements(now.decl, dict(now.values))
            elif before is not None and now is None:
                delta.old_sets[name] = before
        for name, elements in self._before_elements.items():
            if name in self.sets and name not in delta.new_sets:
                self._take_elements(delta, name, elements)
        for name, was in self._before_chains.items():
            self._take_chain(delta, name, was)
        delta.new_counters = [name for name, was in self._before_counters.items() if name in self.counters and not was]
        delta.old_counters = [name for name, was in self._before_counters.items() if was and name not in self.counters]
        delta.revokes = delta.revokes or bool(delta.changed_chains)
        self._forget()
        return delta

    def whole(self) -> Delta:
        """Everything, as if the kernel had nothing; the journal starts anew."""
        self._forget()
        return Delta(
            new_counters=list(self.counters),
            new_sets={name: Elements(one.decl, dict(one.values)) for name, one in self.sets.items()},
            new_chains=dict(self.chains),
            revokes=True,
        )

    def _forget(self) -> None:
        self._before_sets, self._before_elements, self._before_chains, self._before_counters = {}, {}, {}, {}

    def _take_elements(self, delta: Delta, name: str, before: Mapping[str, str | None]) -> None:
        values = self.sets[name].values
        removed = [e for e, was in before.items() if was is not None and values.get(e) != was]
        added = {e: values[e] for e, was in before.items() if e in values and values[e] != was}
        if not removed and not added:
            return
        delta.changed_sets[name] = SetDelta(self.sets[name].decl, removed, added)
        narrows = self.sets[name].decl.narrows
        delta.revokes = delta.revokes or bool(added if narrows else removed)

    def _take_chain(self, delta: Delta, name: str, was: ChainDecl | None) -> None:
        now = self.chains.get(name)
        if was is None and now is not None:
            delta.new_chains[name] = now
        elif was is not None and now is None:
            delta.old_chains.add(name)
        elif now is not None and now != was:
            delta.changed_chains[name] = now
