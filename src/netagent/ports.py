"""What the services ask of the adapters: Protocols, each with its promise.

A fake in a test keeps the same promises.
"""

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct, field

from netagent.records import Endpoint


class NetagentError(Exception):
    """Root of the project's own errors. Its text says what failed, what is true now and what to do."""


class NftError(NetagentError):
    """A transaction or a question to nftables failed; the kernel is unchanged, unless the text says otherwise."""


class TableInventory(Struct, frozen=True, gc=False, kw_only=True):
    """Names in our table as the kernel has it."""

    exists: bool
    chains: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    maps: frozenset[str] = frozenset()
    counters: frozenset[str] = frozenset()
    mark: int | None = None
    """Value of the conntrack mark that passes without judgement; None where the table is absent or has none."""


class ElementChange(Struct, frozen=True, gc=False, kw_only=True):
    """Elements that leave and enter a set or verdict map, written as nft writes them."""

    name: str
    type: str
    """e.g. `ipv4_addr : verdict`, `ifname . ipv4_addr`; of address, service and interface names alone."""
    removed: tuple[str, ...] = ()
    """First, so that an element may change its verdict."""
    added: Mapping[str, str]
    """Element -> verdict; "" in a set."""


class StampChange(Struct, frozen=True, gc=False):
    """A new generation."""

    mask: int
    """Bits of the conntrack mark that are ours."""
    mark: int
    """The generation in those bits."""


class NewSet(Struct, frozen=True, gc=False, kw_only=True):
    """A set that comes with its first elements, written as nft writes them."""

    name: str
    type: str
    """Of address, service and interface names alone."""
    interval: bool = False
    """Whether elements may be ranges, `a-b`: disjoint, ascending, not touching each other, of a type of one field."""
    elements: tuple[str, ...] = ()


class SmallTransaction(Struct, frozen=True, gc=False, kw_only=True):
    """A transaction that needs no script: elements, and what comes and goes with policies."""

    new_counters: tuple[str, ...] = ()
    new_sets: tuple[NewSet, ...] = ()
    new_chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> rules. None of them is a base chain."""
    stamp: StampChange | None = None
    changes: tuple[ElementChange, ...] = ()
    old_chains: tuple[str, ...] = ()
    old_sets: tuple[str, ...] = ()
    old_counters: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Number of them."""
        changed = sum(len(change.removed) + len(change.added) for change in self.changes)
        return changed + sum(len(new.elements) for new in self.new_sets)

    @property
    def objects(self) -> int:
        """Rules, and sets, chains and counters that come and go: none where only elements change."""
        rules = sum(map(len, self.new_chains.values()))
        gone = len(self.old_chains) + len(self.old_sets) + len(self.old_counters)
        return len(self.new_counters) + len(self.new_sets) + len(self.new_chains) + rules + gone


class CounterValue(Struct, frozen=True, gc=False):
    """A named counter."""

    packets: int
    size_bytes: int


class Nft(Protocol):
    """One nftables table of ours."""

    async def run(self, commands: str) -> None:
        """Apply all of the commands or nothing. Raises NftError; then the kernel is unchanged."""

    async def run_small(self, transaction: SmallTransaction) -> None:
        """Apply all of a small transaction or nothing, without the cost of a script.

        Raises NftError; then the kernel is unchanged, unless the error says that the answer was lost.
        """

    async def inventory(self) -> TableInventory:
        """What our table holds in the kernel now, without set elements. Raises NftError."""

    async def counters(self) -> dict[str, CounterValue]:
        """The named counters of our table. Raises NftError."""

    async def text(self) -> str:
        """Our table as `nft list table` prints it; empty where it is absent. Raises NftError."""


class PolicyGate(Protocol):
    """What CNI needs of policy: no pod goes on before its policy is in the kernel."""

    async def admit(self, endpoint: Endpoint) -> None:
        """Return once the endpoint's policy is committed. Raises NetagentError (then nothing is admitted)."""

    def withdraw(self, endpoint: Endpoint) -> None:
        """The endpoint is gone. Its policy entries leave the kernel with the next commit."""

    def restore(self, endpoints: tuple[Endpoint, ...]) -> None:
        """At start: endpoints that earlier runs of the agent wired."""


class PodNetState(Struct, frozen=True, gc=False, kw_only=True):
    """What the pod network offers to new pods."""

    subnets: tuple[str, ...]
    """This node's subnets that new pods take addresses from, at most one per family, canonical CIDRs."""
    mtu: int
    """For the pods' interfaces, bytes."""


class PodNet(Protocol):
    """What CNI needs of the pod network."""

    def state(self) -> PodNetState | None:
        """None until this node holds its subnets and has joined them to the pod network."""
