"""What each commit was about: which objects brought it on, how long the oldest of them waited, and where.

Names are kept, not objects, and not all of them: a burst of 10,000 events costs no more than its first ones.
"""

import time
from collections import deque

from msgspec import Struct
from prometheus_client import Counter

from netagent.records import Change, Key, Kind, Listed, Upserted

NAMED = 10
"""Causes told by name per commit; the others are counted."""
SLOW_S = 0.25
"""An event that takes longer from its arrival to the kernel is slow: ten times what an idle agent needs at most."""
SLOW_KEPT = 50


class Arrival(Struct, frozen=True, gc=False):
    """A change of the API on its way."""

    kind: Kind
    key: Key
    received_s: float
    """Monotonic, as the next."""
    taken_s: float
    """When the view had it."""


class Batch(Struct, frozen=True, gc=False):
    """What one commit is about."""

    causes: tuple[str, ...] = ()
    """The first NAMED of them, e.g. `Pod shop/web`, `Pod shop/db removed`, `pod shop/web added`."""
    left_out: int = 0
    oldest: Arrival | None = None


class SlowEvent(Struct, frozen=True, gc=False, kw_only=True):
    """The oldest event of a commit that took long, and where its time went."""

    at_s: float
    """When it was in the kernel, seconds since the epoch."""
    kind: Kind
    object: str
    total_s: float
    view_s: float
    """From its bytes' arrival until the view had it: decoding, and a busy event loop."""
    wait_s: float
    """Until a commit that covers it began: the commit before, company, pauses after failures."""
    compile_s: float
    kernel_s: float
    """Read-back and transaction, and the way there through a busy event loop."""
    covered: int
    """Changes that came with it."""


class Causes:
    """Collects what the next commit is about, and remembers what took long."""

    def __init__(self, slow: Counter) -> None:
        self.slow_events: deque[SlowEvent] = deque(maxlen=SLOW_KEPT)
        """Oldest first."""
        self._slow = slow
        self._named: list[tuple[Kind | str, Key | str, str]] = []
        self._left_out = 0
        self._oldest: Arrival | None = None

    def event(self, change: Change) -> None:
        """A change of the API; cheap."""
        if isinstance(change, Listed):
            self._note(change.kind, "listed", "")
            return
        key = change.record.key if isinstance(change, Upserted) else change.key
        if self._oldest is None:
            self._oldest = Arrival(change.kind, key, change.received_s, time.monotonic())
        self._note(change.kind, key, "" if isinstance(change, Upserted) else type(change).__name__.lower())

    def local(self, what: str, key: Key | str, verb: str = "") -> None:
        """Something on this node."""
        self._note(what, key, verb)

    def part(self) -> Batch:
        """For a commit that begins now and covers a part of it only: none of it is over with that."""
        causes = tuple(" ".join(str(word) for word in words if word) for words in self._named)
        return Batch(causes, self._left_out)

    def take(self) -> Batch:
        """For the commit that begins now."""
        part = self.part()
        batch = Batch(part.causes, part.left_out, self._oldest)
        self._named, self._left_out, self._oldest = [], 0, None
        return batch

    def put_back(self, batch: Batch) -> None:
        """The commit failed: the next one is about this too."""
        later = self.take()
        causes = batch.causes + later.causes
        self._named = [(cause, "", "") for cause in causes[:NAMED]]
        self._left_out = batch.left_out + later.left_out + len(causes[NAMED:])
        self._oldest = batch.oldest or later.oldest

    def covered(self, batch: Batch, began_s: float, compiled_s: float) -> None:
        """The commit is in the kernel. Times are monotonic."""
        now_s, oldest = time.monotonic(), batch.oldest
        if oldest is None or not oldest.received_s or now_s - oldest.received_s < SLOW_S:
            return
        self._slow.labels(oldest.kind).inc()
        self.slow_events.append(
            SlowEvent(
                at_s=time.time(),
                kind=oldest.kind,
                object=str(oldest.key),
                total_s=now_s - oldest.received_s,
                view_s=oldest.taken_s - oldest.received_s,
                wait_s=began_s - oldest.taken_s,
                compile_s=compiled_s - began_s,
                kernel_s=now_s - compiled_s,
                covered=len(batch.causes) + batch.left_out,
            )
        )

    def _note(self, what: Kind | str, key: Key | str, verb: str) -> None:
        if len(self._named) < NAMED:
            self._named.append((what, key, verb))
        else:
            self._left_out += 1
