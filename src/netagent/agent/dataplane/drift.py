"""Keeps our table ours: what another process changes in it is repaired, and said.

Every foreign commit that touches the table is told by the kernel with the process that made it; the answer is one
replacement of the whole table. An audit compares names now and then, for what notifications cannot tell.
"""

import asyncio
import logging

from netagent.agent.dataplane.sync import Dataplane
from netagent.kernel.nfnetlink import NfnetlinkError
from netagent.kernel.nft import LibNftables
from netagent.kernel.nfwatch import Missed, NftWatch, TableChange
from netagent.metrics import Metrics
from netagent.ports import NftError, TableInventory

log = logging.getLogger(__name__)

AUDIT_S = 60.0
REPAIR_PAUSE_S = 0.25
"""Between two repairs at least: who keeps writing our table gets one replacement for all that came meanwhile."""
MISSED_PAUSE_S = 10.0
"""Between two repairs for lost notifications: a node that floods them must not keep us replacing the table."""
RETRY_S = 5.0
DIFFERENCES_NAMED = 5


class DriftWatch:
    """Tells the dataplane when its table is not what it wrote."""

    def __init__(
        self, dataplane: Dataplane, nft: LibNftables, metrics: Metrics, *, table: str, audit_s: float = AUDIT_S
    ) -> None:
        self._dataplane = dataplane
        self._nft = nft
        self._metrics = metrics.drift
        self._table = table
        self._audit_s = audit_s
        self._watch: NftWatch | None = None
        self._seen: dict[str, str] = {}
        """What happened since the last repair -> its kind."""
        self._due = asyncio.Event()
        self._missed_note_s = 0.0
        """When (event loop's clock) the last repair for lost notifications was or will be asked for."""

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            await self._nft.open()  # so that the watch knows them as ours
        except NftError as error:
            log.warning("%s The first commits may be taken for somebody else's and repaired.", error)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_table(), name="drift watch")
            tasks.create_task(self._repair(), name="drift repair")
            tasks.create_task(self._audit_often(), name="drift audit")

    @property
    def watching(self) -> bool:
        """Whether the subscription is open."""
        return self._watch is not None

    @property
    def repairing(self) -> bool:
        """Whether something was seen that is not repaired yet."""
        return self._due.is_set() or self._dataplane.settled() is None

    async def _watch_table(self) -> None:
        """Collect what others do. After a break in the subscription anything may have happened."""
        broken = ""
        while True:
            try:
                self._watch = NftWatch(self._table)
                if broken:
                    self._note("missed", broken)
                    broken = ""
                while True:
                    self._take(await self._watch.next())
            except NfnetlinkError as error:
                broken = str(error)
                log.warning("%s Next attempt in %.0f s.", error, RETRY_S)
            finally:
                if self._watch is not None:
                    self._watch.close()
                    self._watch = None
            await asyncio.sleep(RETRY_S)

    def _take(self, change: TableChange | Missed) -> None:
        if isinstance(change, Missed):
            self._note_missed(change.reason)
        else:
            self._note("seen", f"process {change.process or '?'} (pid {change.pid}) changed it")

    def _note_missed(self, reason: str) -> None:
        """Now, or once the pause since the last one is over; what is missed before then is covered by it."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if now_s < self._missed_note_s:
            return
        self._missed_note_s = max(now_s, self._missed_note_s + MISSED_PAUSE_S) if self._missed_note_s else now_s
        loop.call_at(self._missed_note_s, self._note, "missed", reason)

    def _note(self, kind: str, what: str) -> None:
        if len(self._seen) < DIFFERENCES_NAMED:
            self._seen[what] = kind
        self._due.set()

    async def _repair(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            seen, self._seen = self._seen, {}
            cause = "; ".join(seen)
            log.warning("table inet %s is not as it was written: %s. It is replaced whole now.", self._table, cause)
            self._metrics.labels(next(iter(seen.values()))).inc()
            self._dataplane.distrust(cause)
            await asyncio.sleep(REPAIR_PAUSE_S)

    async def _audit_often(self) -> None:
        while True:
            await asyncio.sleep(self._audit_s)
            await self._audit()

    async def _audit(self) -> None:
        """Compare names; quietly give up where a commit comes in between: its own success says as much."""
        if self._watch is not None:
            self._watch.refresh()
        wanted = self._dataplane.settled()
        commits = self._dataplane.transactions[-1:]
        try:
            found = await self._nft.inventory()
        except NftError as error:
            log.warning("%s The audit of the table did not happen.", error)
            return
        if wanted is None or self._dataplane.settled() is None or commits != self._dataplane.transactions[-1:]:
            return
        difference = differences(wanted, found)
        if difference:
            self._note("audit", f"the audit found {difference}")


def differences(wanted: TableInventory, found: TableInventory) -> str:
    """What the kernel's table lacks or has beyond, in words; "" where nothing."""
    if not found.exists:
        return "no table"
    words = []
    for kind in ("chains", "sets", "maps", "counters"):
        expected, actual = getattr(wanted, kind), getattr(found, kind)
        for verb, names in (("missing", expected - actual), ("foreign", actual - expected)):
            if names:
                shown = ", ".join(sorted(names)[:DIFFERENCES_NAMED])
                words.append(f"{len(names)} {kind} {verb} ({shown})")
    return "; ".join(words)
