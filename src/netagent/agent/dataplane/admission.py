"""What pods that start wait for: the view shows them, and the kernel has their policy."""

import asyncio
from collections.abc import Iterable

from netagent.core.policy.store import Store, same_pod
from netagent.ports import NetagentError
from netagent.records import Endpoint, Key, Pod


class NotAdmittedError(NetagentError):
    """A pod's policy could not be committed in time; the pod must wait."""


class Admissions:
    """Those that wait now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shown: dict[Key, list[asyncio.Future[None]]] = {}
        self._committed: list[asyncio.Future[None]] = []

    async def described(self, endpoint: Endpoint) -> None:
        """Return once the view has the pod that a sandbox belongs to: its labels decide its policy."""
        pod = self._store.pods.get(endpoint.pod)
        while pod is None or not same_pod(endpoint, pod):
            seen = asyncio.get_running_loop().create_future()
            waiters = self._shown.setdefault(endpoint.pod, [])
            waiters.append(seen)
            try:
                await seen
            finally:
                waiters.remove(seen)
                if not waiters:
                    self._shown.pop(endpoint.pod, None)
            pod = self._store.pods.get(endpoint.pod)

    def show(self, pod: Pod) -> None:
        """The view has news of a pod."""
        _wake(self._shown.get(pod.key, ()))

    async def committed(self) -> None:
        """Return once a commit that was told of in `waiting` is over."""
        admitted = asyncio.get_running_loop().create_future()
        self._committed.append(admitted)
        try:
            await admitted
        finally:
            self._committed.remove(admitted)

    def waiting(self) -> list[asyncio.Future[None]]:
        """Those whom the commit that begins now covers."""
        return list(self._committed)

    @staticmethod
    def admit(covered: list[asyncio.Future[None]]) -> None:
        """That commit is in the kernel."""
        _wake(covered)


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in list(waiters):
        if not waiter.done():
            waiter.set_result(None)
