"""Tells the cluster whether this node has a pod network: the Node's condition NetworkUnavailable, and Events.

While the condition is True the control plane taints the node, so that no pod is sent to where none can start. It is set
only for what this node itself lacks (a subnet, its tunnel), after it has lacked it for a while; the pods that run are
not touched by it. A lease lost to another node is told even if another one is held a moment later: the pods of the lost
one are the operator's business. flannel and cloud providers use the same condition: it is written at start and at
changes, not defended.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Never

from msgspec import Struct

from netagent.kube.backoff import Backoff
from netagent.kube.client import ApiClient, ApiError, Unreachable
from netagent.kube.events import EventWriter, Note, set_network_available
from netagent.records import Change, Key, Kind, Node, Upserted

LOOK_S = 0.2
"""Between two looks at the parts; they have no event for it."""
PATIENCE_S = 5.0
"""A lack is told only after it has lasted so long; a node that starts is not unavailable yet."""
BACKOFF_CAP_S = 30.0
UP, DOWN = "NetagentIsUp", "NetagentHasNoNetwork"

log = logging.getLogger(__name__)


class Lack(Struct, frozen=True):
    """Why no pod can start here for want of a network."""

    message: str
    reason: str = DOWN
    """CamelCase, for machines."""


class NetworkCondition:
    """Keeps the condition of one Node in step with `lack()` (None: the pod network is there)."""

    def __init__(
        self,
        api: ApiClient,
        events: EventWriter,
        node: str,
        lack: Callable[[], Lack | None],
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._events = events
        self._node = node
        self._lack = lack
        self._patience_s = patience_s
        self._clock = clock
        self._uid = ""
        self._written: tuple[str, Lack | None] | None = None
        """(Node's uid, what it lacks) that the cluster knows."""
        self._news: deque[Lack] = deque()
        """To be told before anything else, oldest first."""
        self._lacking_since_s: float | None = None

    def tell(self, news: Lack) -> None:
        """Set the condition True for this, and post an Event, even if it is over by then."""
        self._news.append(news)

    def observe(self, change: Change) -> None:
        """A Node that is made anew has no condition."""
        if isinstance(change, Upserted) and isinstance(change.record, Node) and change.record.key.name == self._node:
            self._uid = change.record.uid

    async def run(self) -> Never:
        """Until cancelled. No failure of the API server ends it."""
        backoff, told = Backoff(BACKOFF_CAP_S), ""
        while True:
            pause_s = LOOK_S
            state = self._due()
            if state is not None:
                try:
                    await self._write(state)
                    backoff.reset()
                except (ApiError, Unreachable) as error:
                    pause_s = backoff.next_s(error.retry_after_s)
                    if str(error) != told:
                        told = str(error)
                        log.warning("condition NetworkUnavailable: %s netagent tries again.", error)
            await asyncio.sleep(pause_s)

    def _due(self) -> tuple[str, Lack | None] | None:
        """What must be written now."""
        lack = self._lack()
        if lack is None:
            self._lacking_since_s = None
        elif self._lacking_since_s is None:
            self._lacking_since_s = self._clock()
        patient = self._lacking_since_s is not None and self._clock() - self._lacking_since_s < self._patience_s
        if self._news:
            return (self._uid, self._news[0]) if self._uid else None
        state = (self._uid, lack)
        return None if not self._uid or patient or state == self._written else state

    async def _write(self, state: tuple[str, Lack | None]) -> None:
        uid, lack = state
        message = lack.message if lack else "netagent has joined this node to the pod network."
        reason = lack.reason if lack else UP
        written = await set_network_available(
            self._api, self._node, lack is None, reason, message, now_s=self._api.clock.now_s()
        )
        before = self._written[1] if self._written else None
        self._written = state
        if self._news and self._news[0] is lack:
            self._news.popleft()
        if lack is not None and lack != before:
            self._events.post(Note(Kind.NODE, Key("", self._node), uid, reason, message))
        if written:
            log.info("condition NetworkUnavailable=%s: %s", lack is not None, message)
