"""Pods keep their way into the node, whoever meddles with it: link, MAC, routes, neighbours, sysctls of the node's end.

The kernel tells of every change; what is not as CNI ADD made it is put right within a fraction of a second, and a slow
audit finds what was never told. A link that is gone is made anew as long as the pod's network namespace is there: the
pod gets the same MAC and addresses, and its connections go on. (What a chained plugin had put on the old link, such as
bandwidth's queue, is gone with it.)
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Never, Protocol

from netagent.kernel.netns import NetnsError
from netagent.kernel.podlinks import PodLinkNews
from netagent.ports import NetagentError
from netagent.records import Endpoint

SETTLE_S = 0.02
"""What one foreign command does arrives within this time."""
SPACING_S = 0.25
"""Between two repairs: somebody who fights with us costs a few per second."""
RETRY_S = 1.0
"""Until a pod that could not be put right is tried again."""
AUDIT_S = 60.0

log = logging.getLogger(__name__)


class Wired(Protocol):
    """Who owns the pods' wiring."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The pods that are wired."""

    async def mend(self, host_ifname: str) -> tuple[str, ...]:
        """Compare with what ADD made and put it right; what was wrong. Raises NetagentError."""


class PodLinks:
    """Service; `run` is its one task."""

    def __init__(self, wired: Wired, *, audit_s: float = AUDIT_S) -> None:
        self._wired = wired
        self._audit_s = audit_s
        self._wake = asyncio.Event()
        self._problems: dict[str, str] = {}
        """Why pods are still wrong, by host_ifname."""
        self.rounds = 0
        """Times that pods were compared, at news and audits."""
        self.repairs = 0
        """Pods whose wiring was put right."""

    async def run(self) -> Never:
        """Until cancelled. Raises RtnetlinkError where the kernel tells nothing."""
        with PodLinkNews(self._wake.set) as news:
            loop, due_s = asyncio.get_running_loop(), 0.0
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(due_s, loop.time() + RETRY_S) if self._problems else due_s):
                        await self._wake.wait()
                await asyncio.sleep(SETTLE_S)
                self._wake.clear()
                pods = {endpoint.host_ifname: endpoint for endpoint in self._wired.endpoints()}
                suspects = news.suspects(pods.values())
                if suspects is None or loop.time() >= due_s:
                    due_s, suspects = loop.time() + self._audit_s, frozenset(pods)
                if await self._mend(pods[name] for name in {*suspects, *self._problems} & pods.keys()):
                    await asyncio.sleep(SPACING_S)
                self.rounds += 1

    async def _mend(self, endpoints: Iterable[Endpoint]) -> bool:
        """Whether anything was wrong."""
        found, before, self._problems = False, self._problems, {}
        for endpoint in endpoints:
            name = endpoint.host_ifname
            try:
                problems = await self._wired.mend(name)
            except NetnsError:
                continue  # the pod is going, and its link with it
            except NetagentError as error:
                found = True
                self._problems[name] = str(error)
                if before.get(name) != str(error):
                    log.warning("%s: %s was changed by others: %s netagent tries again.", endpoint.pod, name, error)
                continue
            if problems:
                found = True
                self.repairs += 1
                log.warning("%s: changed by others and put right: %s", endpoint.pod, "; ".join(problems))
        return found
