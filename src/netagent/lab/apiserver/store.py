"""The versioned store: every object's latest state, a window of history, and the fan-out to watches.

One revision counts all writes, as etcd's does. Objects are dicts that nobody changes after they were put; each is
encoded once, and so is each watch event, however many watches there are. A past revision within the window is rebuilt
by undoing the events since.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import islice
from typing import Any, Literal

import orjson
from msgspec import Struct

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace ("" for cluster-scoped kinds) and name."""

FIRST_REVISION = 100
"""An empty store's revision. Above 1, so that a watch from revision 1 is too old, as it is on any real server."""


class Stored(Struct, frozen=True):
    """One object at one revision."""

    obj: Object
    """Without kind and apiVersion, which the resource adds."""
    body: bytes
    """The same as JSON."""
    revision: int

    def encoded(self, head: bytes) -> bytes:
        """JSON with the head of its kind in front: `{"kind":"Pod","apiVersion":"v1",`."""
        return head + self.body[1:]


class Event(Struct):
    """One write."""

    type: EventType
    table: str
    key: Key
    revision: int
    now: Stored
    """For DELETED: the last state, at the revision of the deletion."""
    before: Stored | None
    line: bytes = b""
    """The encoded watch event, made once by whoever needs it first."""


Filter = Callable[[Object], bool]


class Watch:
    """One client's view of the events of a table; bounded, and closed when the client does not keep up."""

    def __init__(self, table: str, namespace: str, matches: Filter | None, limit: int) -> None:
        self.table = table
        self.namespace = namespace
        self.matches = matches
        self.limit = limit
        self.overrun = False
        self.closed = False
        self._events: deque[tuple[EventType, Event]] = deque()
        self._wakeup = asyncio.Event()

    def offer(self, event: Event) -> None:
        """Take the event if the client is to see it."""
        if self.overrun or (self.namespace and event.key[0] != self.namespace):
            return
        seen_as = self._seen_as(event)
        if seen_as is None:
            return
        if len(self._events) >= self.limit:
            self.overrun = True
            self._events.clear()
        else:
            self._events.append((seen_as, event))
        self._wakeup.set()

    def _seen_as(self, event: Event) -> EventType | None:
        """An object that starts to match is added, one that stops to match is deleted, for this client."""
        if self.matches is None:
            return event.type
        matched = event.before is not None and self.matches(event.before.obj)
        if event.type == "DELETED":
            return "DELETED" if matched else None
        if self.matches(event.now.obj):
            return "MODIFIED" if matched else "ADDED"
        return "DELETED" if matched else None

    async def take(self, timeout_s: float) -> list[tuple[EventType, Event]]:
        """What has arrived, at once if there is anything; empty after `timeout_s` without."""
        if not self._events and not self.overrun and not self.closed:
            self._wakeup.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wakeup.wait()
            except TimeoutError:
                return []
        taken = list(self._events)
        self._events.clear()
        return taken

    @property
    def pending(self) -> bool:
        """There are events that were not taken yet."""
        return bool(self._events)

    def close(self) -> None:
        """End the watch from the server's side."""
        self.closed = True
        self._wakeup.set()


class Compacted(Exception):
    """The revision is older than the history window."""


class Table(Struct):
    """The objects of one resource."""

    objects: dict[Key, Stored]
    order: list[Key]
    """Sorted; what lists and pages follow."""
    watches: set[Watch]


class Store:
    """All objects. Single-threaded: every method runs to its end before another starts."""

    def __init__(self, history_events: int = 10_000) -> None:
        self.revision = FIRST_REVISION
        self.compacted = FIRST_REVISION
        """Watches and lists at or after this revision can be served."""
        self._history: deque[Event] = deque()
        self._history_events = history_events
        self._tables: dict[str, Table] = {}
        self._listeners: list[Callable[[Event], None]] = []

    def _table(self, name: str) -> Table:
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table({}, [], set())
        return table

    def get(self, table: str, key: Key) -> Stored | None:
        """The latest state of an object."""
        return self._table(table).objects.get(key)

    def put(self, table: str, key: Key, obj: Object) -> Stored:
        """Create or replace an object; its metadata.resourceVersion is set to the new revision."""
        rows = self._table(table)
        before = rows.objects.get(key)
        now = self._next(obj)
        rows.objects[key] = now
        if before is None:
            insort(rows.order, key)
        self._record(Event("ADDED" if before is None else "MODIFIED", table, key, now.revision, now, before))
        return now

    def remove(self, table: str, key: Key) -> Stored:
        """Delete an object; the last state, at the revision of the deletion."""
        rows = self._table(table)
        before = rows.objects.pop(key)
        del rows.order[bisect_left(rows.order, key)]
        now = self._next(before.obj)
        self._record(Event("DELETED", table, key, now.revision, now, before))
        return now

    def _next(self, obj: Object) -> Stored:
        self.revision += 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.revision)}}
        return Stored(stored, orjson.dumps(stored), self.revision)

    def _record(self, event: Event) -> None:
        self._history.append(event)
        if len(self._history) > self._history_events:
            self.compacted = self._history.popleft().revision
        for watch in self._tables[event.table].watches:
            watch.offer(event)
        for listener in self._listeners:
            listener(event)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call for every write from now on, before the write's caller goes on. A listener must not write."""
        self._listeners.append(listener)

    def scan(self, table: str, namespace: str = "") -> Iterator[Stored]:
        """The latest state of a table's objects, in order. The table must not change meanwhile."""
        rows = self._table(table)
        keys = rows.order
        start = bisect_left(keys, (namespace, "")) if namespace else 0
        for index in range(start, len(keys)):
            if namespace and keys[index][0] != namespace:
                return
            yield rows.objects[keys[index]]

    def page(
        self, table: str, namespace: str, after: Key, limit: int, revision: int
    ) -> tuple[list[tuple[Key, Stored]], int]:
        """The objects that followed a key at a revision, at most so many, and how many more there were.

        Costs the page and what changed since, not the table. Raises Compacted.
        """
        rows = self._table(table)
        after = max(after, (namespace, ""))
        first = bisect_right(rows.order, after)
        end = bisect_left(rows.order, (namespace + "\0", "")) if namespace else len(rows.order)
        past = {
            key: then
            for key, then in self._changed_since(table, revision).items()
            if key > after and (not namespace or key[0] == namespace)
        }
        come = {key for key, then in past.items() if then is None and key in rows.objects}
        gone = sorted(key for key, then in past.items() if then is not None and key not in rows.objects)
        stayed = (key for key in rows.order[first : min(end, first + limit + len(come))] if key not in come)
        keys = list(islice(merge(stayed, gone), limit))
        found = [(key, past.get(key) or rows.objects[key]) for key in keys]
        return found, max(0, end - first) - len(come) + len(gone) - len(keys)

    def _changed_since(self, table: str, revision: int) -> dict[Key, Stored | None]:
        """What came after a revision, as it was then; None: not there. Raises Compacted."""
        if revision < self.compacted:
            raise Compacted
        changed: dict[Key, Stored | None] = {}
        for event in reversed(self._history):
            if event.revision <= revision:
                break
            if event.table == table:
                changed[event.key] = event.before
        return changed

    def snapshot(self, table: str, revision: int) -> dict[Key, Stored]:
        """A table's objects as they were at a revision, unordered. Raises Compacted."""
        past = self._changed_since(table, revision)
        objects = {key: row for key, row in self._table(table).objects.items() if key not in past}
        return objects | {key: row for key, row in past.items() if row is not None}

    def watch(self, table: str, since: int, watch: Watch) -> None:
        """Start a watch with the events after `since`. Raises Compacted."""
        if since < self.compacted:
            raise Compacted
        missed: list[Event] = []
        for event in reversed(self._history):
            if event.revision <= since:
                break
            if event.table == table:
                missed.append(event)
        for event in reversed(missed):
            watch.offer(event)
        self._table(table).watches.add(watch)

    def unwatch(self, watch: Watch) -> None:
        """Forget a watch."""
        self._table(watch.table).watches.discard(watch)

    def tables(self) -> tuple[str, ...]:
        """The names of the tables that have or had objects."""
        return tuple(self._tables)

    def close_watches(self) -> int:
        """End every watch from the server's side; how many there were."""
        watches = [watch for table in self._tables.values() for watch in table.watches]
        for watch in watches:
            watch.close()
        return len(watches)

    def compact(self, revision: int) -> None:
        """Forget the history up to a revision."""
        self.compacted = max(self.compacted, min(revision, self.revision))
        while self._history and self._history[0].revision <= self.compacted:
            self._history.popleft()
