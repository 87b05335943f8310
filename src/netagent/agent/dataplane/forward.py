"""Keeps pod traffic accepted in forward chains of others that deny by default; takes the rules out when not wanted.

Docker, ufw and many firewalls set the policy of a forward chain to drop. When somebody rewrites such a chain the kernel
tells and our rules come back; everything else in it stays as it is.
"""

import asyncio
import logging
from contextlib import suppress

from msgspec import Struct

from netagent.core.foreign import corrections
from netagent.kernel.forward import LEGACY_TABLES, ForeignNft, ForwardWatch, legacy_filter
from netagent.kernel.nfnetlink import NfnetlinkError
from netagent.ports import NftError

log = logging.getLogger(__name__)

AUDIT_S = 60.0
"""Looked at this often, in case a notification never came."""
RETRY_S = 5.0
SETTLE_S = 0.1
"""Who changes one rule of such a chain changes more: one look for all that comes in this time."""


class ForwardStatus(Struct, kw_only=True):
    """For debug."""

    chains: tuple[str, ...] = ()
    """Foreign chains that deny by default and hold our accepts now."""
    repairs: int = 0
    """Times that rules were put back after the first round."""
    problem: str = ""
    looks: int = 0
    """Times that all chains were read."""
    watching: bool = False


class ForwardAccepts:
    """Service; `run` is its one task."""

    def __init__(self, pools: tuple[str, ...], *, first: bool) -> None:
        """`pools`: what to accept; empty: take out what an earlier run has put in. `first`: before others' rules."""
        self._pools = pools
        self._first = first
        self._nft = ForeignNft()
        self._watch: ForwardWatch | None = None
        self._due = asyncio.Event()
        self._told = ""
        self.status = ForwardStatus()

    async def run(self) -> None:
        """Until cancelled; without pools, until nothing of ours is left in foreign chains."""
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._pools:
                    tasks.create_task(self._listen(), name="forward watch")
                tasks.create_task(self._keep(), name="forward accepts")
        finally:
            self._nft.close()

    async def _keep(self) -> None:
        self._warn_of_legacy()
        while True:
            pause_s = AUDIT_S if await self._look() else RETRY_S
            if not self._pools and pause_s == AUDIT_S:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._due.wait()
                    await asyncio.sleep(SETTLE_S)
            self._due.clear()

    async def _look(self) -> bool:
        """Read and correct every chain; whether all are right now."""
        problems = []
        try:
            chains = await self._nft.forward_chains()
        except NftError as error:
            return self._tell(str(error))
        if self._watch is not None and self._watch.know(frozenset(chain.name for chain in chains)):
            self._due.set()  # what happened between the reading and now was not told
        for chain in chains:
            commands = corrections(chain, self._pools, first=self._first)
            if not commands:
                continue
            try:
                await self._nft.change(chain.name, commands)
            except NftError as error:
                problems.append(str(error))
                continue
            log.info("chain %s: %d rules of ours changed for the pod network", chain.name, len(commands))
            self.status.repairs += self.status.looks > 0
        self.status.chains = tuple(str(chain.name) for chain in chains if chain.denies) if self._pools else ()
        self.status.looks += 1
        return self._tell("; ".join(problems))

    def _tell(self, problem: str) -> bool:
        if problem and problem != self._told:
            log.warning("%s Next attempt in %.0f s.", problem, RETRY_S)
        self.status.problem = self._told = problem
        return not problem

    async def _listen(self) -> None:
        """Every relevant change asks for a look; after a break in the subscription anything may have happened."""
        while True:
            try:
                self._watch = ForwardWatch()
                self.status.watching = True
                self._due.set()
                while True:
                    await self._watch.next()
                    self._due.set()
            except NfnetlinkError as error:
                log.warning("%s Next attempt in %.0f s.", error, RETRY_S)
            finally:
                self.status.watching = False
                if self._watch is not None:
                    self._watch.close()
                    self._watch = None
            await asyncio.sleep(RETRY_S)

    def _warn_of_legacy(self) -> None:
        for version, path in LEGACY_TABLES.items():
            if self._pools and legacy_filter(version):
                log.warning(
                    "%s names a filter table of legacy iptables, which nftables cannot see. If its FORWARD chain drops "
                    "by default, pods have no IPv%d: accept the pod network there by hand, or change to iptables-nft.",
                    path,
                    version,
                )


async def remove_accepts(*, dry_run: bool = False) -> dict[str, str]:
    """Take our rules out of all foreign chains, with no agent running: chain -> why they are still there, or "".

    Raises NftError where the chains cannot be read.
    """
    nft = ForeignNft()
    found: dict[str, str] = {}
    try:
        for chain in await nft.forward_chains():
            commands = corrections(chain, (), first=True)
            if not commands:
                continue
            found[str(chain.name)] = ""
            try:
                if not dry_run:
                    await nft.change(chain.name, commands)
            except NftError as error:
                found[str(chain.name)] = str(error)
    finally:
        nft.close()
    return found
