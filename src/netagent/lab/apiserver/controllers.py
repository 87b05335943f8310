"""The controllers that share the API server's process: garbage collection, namespace deletion, custom resources,
scheduling.
"""

import asyncio
import logging
from typing import Protocol

from netagent.lab.apiserver.crds import CustomResources
from netagent.lab.apiserver.faults import ApiFault
from netagent.lab.apiserver.gc import GarbageCollection
from netagent.lab.apiserver.namespaces import NamespaceDeletion
from netagent.lab.apiserver.registry import Registry
from netagent.lab.apiserver.scheduler import Scheduling
from netagent.lab.apiserver.store import Event

log = logging.getLogger(__name__)

BATCH_EVENTS = 100
"""Events between two turns of the event loop."""


class Controller(Protocol):
    """Reacts to writes, by further writes."""

    def react(self, event: Event) -> None:
        """Bring the cluster closer to what this controller is for."""


class Controllers:
    """Hands every write to every controller, in order, outside the request that made it."""

    def __init__(self, registry: Registry, *, schedule: bool) -> None:
        self._controllers: list[Controller] = [
            CustomResources(registry),
            GarbageCollection(registry),
            NamespaceDeletion(registry),
        ]
        if schedule:
            self._controllers.append(Scheduling(registry))
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        registry.store.listen(self._events.put_nowait)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            event = await self._events.get()
            self._react(event)
            for _ in range(min(self._events.qsize(), BATCH_EVENTS)):
                self._react(self._events.get_nowait())
            await asyncio.sleep(0)

    def _react(self, event: Event) -> None:
        for controller in self._controllers:
            try:
                controller.react(event)
            except ApiFault as fault:
                log.warning("%s %s/%s: %s", event.table, *event.key, fault)
