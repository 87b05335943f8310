"""What the services ask of the adapters: Protocols, each with its promise.

A fake in a test keeps the same promises and passes the same contract tests as the real adapter.
"""

from typing import Protocol

from msgspec import Struct

from netagent.records import Endpoint


class NetagentError(Exception):
    """Root of the project's own errors. Its text says what failed, what is true now and what to do."""


class NftError(NetagentError):
    """nftables refused a transaction; the kernel is unchanged."""


class Nft(Protocol):
    """One nftables table of ours."""

    async def run(self, commands: str) -> None:
        """Apply all of the commands or nothing. Raises NftError; then the kernel is unchanged."""

    async def inventory(self) -> "TableInventory":
        """What our table holds in the kernel now, without set elements."""


class TableInventory(Protocol):
    """Names in our table."""

    exists: bool
    chains: frozenset[str]
    sets: frozenset[str]
    maps: frozenset[str]
    generation: int | None
    """Mark generation that the kernel accepts now; None where the table is absent or unreadable."""


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
