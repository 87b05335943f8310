"""What netagent tells the cluster about itself: Events on objects, and the Node's NetworkUnavailable condition."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Never

from msgspec import Raw, Struct

from netagent.kube.backoff import Backoff
from netagent.kube.client import ApiClient, ApiError, Unreachable
from netagent.records import Key, Kind

SUPPRESS_S = 600.0
"""The same Event is written again (as a higher count) at most this often."""
REMEMBERED = 512
"""Distinct Events whose repetitions are counted; beyond that the oldest is forgotten."""
QUEUED = 64
"""Events that wait for the API server; beyond that new ones are dropped: they are for people, not for machines."""
BACKOFF_CAP_S = 30.0
"""Longest pause between two attempts while the API server is away or overloaded."""
PASSING = (429, 500, 502, 503, 504)
"""Refusals that have nothing to do with the Event."""
MESSAGE_CHARS = 1024
"""The API server's own limit."""
COMPONENT = "netagent"
API_VERSIONS = {
    Kind.NETWORK_POLICY: "networking.k8s.io/v1",
    Kind.LEASE: "coordination.k8s.io/v1",
}

log = logging.getLogger(__name__)


class Note(Struct, frozen=True):
    """One thing to say about one object."""

    kind: Kind
    key: Key
    uid: str
    """metadata.uid of the object; empty where it is not known."""
    reason: str
    """CamelCase, for machines."""
    message: str
    type: str = "Warning"
    """Warning or Normal."""


class _Told(Struct):
    """An Event that exists on the server."""

    name: str
    count: int
    written_s: float


class EventWriter:
    """Posts Events in the background; the caller never waits and never sees a failure.

    `clock` counts seconds that nobody sets; Events are dated by the API server's clock.
    """

    def __init__(self, api: ApiClient, node: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._node = node
        self._clock = clock
        self._queue: deque[Note] = deque()
        self._told: OrderedDict[Note, _Told] = OrderedDict()
        self._kick = asyncio.Event()
        self.dropped = 0
        """Events that nobody will see."""

    def post(self, note: Note) -> None:
        """Say it soon. The same note within SUPPRESS_S is said once."""
        told = self._told.get(note)
        if told is not None:
            told.count += 1
            if self._clock() - told.written_s < SUPPRESS_S:
                return
        if note in self._queue:
            return
        if len(self._queue) >= QUEUED:
            self.dropped += 1
            return
        self._queue.append(note)
        self._kick.set()

    async def run(self) -> Never:
        """Write what was posted until cancelled."""
        backoff = Backoff(BACKOFF_CAP_S)
        while True:
            self._kick.clear()
            while self._queue:
                try:
                    await self._write(self._queue[0])
                except (ApiError, Unreachable) as error:
                    if isinstance(error, Unreachable) or error.status in PASSING:
                        await asyncio.sleep(backoff.next_s(error.retry_after_s))
                        continue
                    # A namespace that is being deleted, missing rights: repeating would change nothing.
                    self.dropped += 1
                    log.debug("Event was refused: %s", error)
                backoff.reset()
                self._queue.popleft()
            await self._kick.wait()

    async def _write(self, note: Note) -> None:
        told = self._told.get(note)
        if told is None or not await self._count_up(note, told):
            told = _Told(self._name(note), 1, 0.0)
            await self._api.create(self._path(note), self._body(note, told), Raw)
        told.written_s = self._clock()
        self._told[note] = told
        self._told.move_to_end(note)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)

    async def _count_up(self, note: Note, told: _Told) -> bool:
        """False: the server has dropped the Event meanwhile (it keeps them for an hour)."""
        body = {"count": told.count, "lastTimestamp": timestamp(self._api.clock.now_s())}
        try:
            await self._api.patch(f"{self._path(note)}/{told.name}", body, Raw)
        except ApiError as error:
            if error.not_found:
                return False
            raise
        return True

    def _path(self, note: Note) -> str:
        return f"/api/v1/namespaces/{note.key.namespace or 'default'}/events"

    def _name(self, note: Note) -> str:
        """Unique per node, note and moment, as a DNS-1123 subdomain."""
        text = "\0".join((self._node, note.kind, note.uid, note.reason, note.message, str(self._api.clock.now_s())))
        return f"{note.key.name[:200]}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _body(self, note: Note, told: _Told) -> dict[str, Any]:
        now = timestamp(self._api.clock.now_s())
        involved = {
            "apiVersion": API_VERSIONS.get(note.kind, "v1"),
            "kind": note.kind,
            "name": note.key.name,
            "namespace": note.key.namespace,
            "uid": note.uid,
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": told.name, "namespace": note.key.namespace or "default"},
            "involvedObject": {field: value for field, value in involved.items() if value},
            "reason": note.reason,
            "message": note.message[:MESSAGE_CHARS],
            "type": note.type,
            "source": {"component": COMPONENT, "host": self._node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": told.count,
        }


class _Condition(Struct, rename="camel"):
    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None
    last_transition_time: str | None = None


class _Status(Struct):
    conditions: list[_Condition] | None = None


class _Node(Struct):
    status: _Status | None = None


async def set_network_available(
    api: ApiClient, node: str, available: bool, reason: str, message: str, *, now_s: float
) -> bool:
    """Set the Node's condition NetworkUnavailable (status False: pods may come) where it says something else now.

    Answers whether it had to be written. Raises ApiError, Unreachable.
    """
    current = await api.get_json(f"/api/v1/nodes/{node}", _Node)
    conditions = (current.status and current.status.conditions) or []
    there = next((item for item in conditions if item.type == "NetworkUnavailable"), None)
    status = "False" if available else "True"
    if there is not None and (there.status, there.reason, there.message) == (status, reason, message):
        return False
    now = timestamp(now_s)
    same_status = there is not None and there.status == status
    condition = {
        "type": "NetworkUnavailable",
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": (there.last_transition_time if there and same_status else None) or now,
    }
    patch = {"status": {"conditions": [condition]}}
    await api.patch(f"/api/v1/nodes/{node}/status", patch, Raw, patch_type="strategic")
    return True


def timestamp(now_s: float) -> str:
    """Seconds since the epoch as meta/v1 Time."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
