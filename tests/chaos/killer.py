"""kill -9 of one node's agent, again and again, at moments chosen by chance: while it starts, and while it works."""

import asyncio
import contextlib
import random
import signal
import socket
import time
from collections.abc import Callable

import orjson

from chaos.ledger import Kill, Ledger
from netagent.lab.cluster import Lab
from netagent.lab.processes import Process

POLL_S = 0.01
READY_S = 60.0
"""An agent that is not ready by then is stuck."""
SLOW_SHARE = 0.2
"""Of the kills that fall into the first lists or the commit after them, which a slow API server draws out."""
SLOW_MS = (100.0, 600.0)
"""Delay of each of its answers."""
SLOW_S = 8.0
"""At most; agents that are slow to start meet a fast API server."""
START_SHARE = 0.4
"""Of the kills that fall into the start, the slow ones too."""
START_S = 1.2
"""The start is over by then, on a machine that has not too much to do."""
RECENT_S = 0.05
"""A policy written so long ago is being committed, more or less."""


class Agent:
    """The agent of one node as it can be seen from outside."""

    def __init__(self, lab: Lab, node: int) -> None:
        self._lab = lab
        self._node = lab.nodes[node]
        self.problems: dict[str, str] | None = None
        """Part -> why it is not ready; None: it does not answer yet."""

    @property
    def process(self) -> Process | None:
        """The one that runs."""
        found = self._node.agent
        return found if found is not None and found.running else None

    async def look(self) -> None:
        """Ask /readyz."""
        self.problems = None
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(2.0):
                self.problems = await self._readyz()

    @property
    def listing(self) -> bool:
        """When it was looked at, a first list was missing."""
        return "not listed" in (self.problems or {}).get("dataplane", "")

    async def _readyz(self) -> dict[str, str]:
        loop = asyncio.get_running_loop()
        (sock,) = await self._lab.sockets.open(self._node.netns, socket.AF_INET, socket.SOCK_STREAM)
        with sock:
            await loop.sock_connect(sock, ("127.0.0.1", 9099))
            request = b"GET /readyz HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
            await loop.sock_sendall(sock, request)
            answer = b""
            while part := await loop.sock_recv(sock, 1 << 16):
                answer += part
        parts = orjson.loads(answer.partition(b"\r\n\r\n")[2])["parts"]
        return {name: str(problem) for name, problem in parts.items() if problem}

    async def ready(self, since: Process | None = None) -> None:
        """Until an agent (not `since`) is ready. Raises TimeoutError."""
        async with asyncio.timeout(READY_S):
            while True:
                if self.process is not None and self.process is not since:
                    await self.look()
                    if self.problems == {}:
                        return
                await asyncio.sleep(POLL_S)


class Killer:
    """Kills the agent of one node until told to stop."""

    def __init__(self, lab: Lab, node: int, ledger: Ledger, seed: int, wanted: Callable[[], bool]) -> None:
        """`wanted`: whether one more kill is due; asked right before it."""
        self._lab = lab
        self._node = node
        self._agent = Agent(lab, node)
        self._ledger = ledger
        self._random = random.Random(f"{seed}/kills/{node}")  # noqa: S311
        self._wanted = wanted

    async def run(self) -> None:
        """Until no kill is wanted any more; the agent is ready then."""
        last: Process | None = None
        while self._wanted():
            while (process := self._agent.process) is None or process is last:  # noqa: ASYNC110 - the lab starts it
                await asyncio.sleep(POLL_S)
            last = process
            try:
                await self._wait_for_the_moment(process)
            except TimeoutError:
                self._ledger.blame(
                    f"agent of node {self._node} is not ready after {READY_S:g} s: {self._agent.problems}"
                )
                return
            if not self._wanted():
                return
            if process.running:
                self._ledger.kills.append(Kill(time.monotonic(), self._node, self._moment()))
                process.signal(signal.SIGKILL)
            status = await process.exited
            if status != -signal.SIGKILL:
                self._ledger.blame(f"agent of node {self._node} ended by itself, status {status}")

    async def _wait_for_the_moment(self, process: Process) -> None:
        chance = self._random.random()
        if chance < SLOW_SHARE:
            await self._among_lists(process)
            return
        if chance < START_SHARE:
            until_s = time.monotonic() + self._random.uniform(0.0, START_S)
            await self._watch(process, lambda: time.monotonic() < until_s)
            return
        await self._agent.ready()
        for share, holds in ((0.55, self._adding), (0.7, self._deleting), (0.9, self._committing)):
            if chance < share:
                await self._until(holds)
                await asyncio.sleep(self._random.uniform(0.0, 0.04))
                return
        await asyncio.sleep(self._random.uniform(0.0, 1.5))

    async def _among_lists(self, process: Process) -> None:
        """While the first lists come, or right after the last of them."""
        latency_ms, deadline_s = self._random.uniform(*SLOW_MS), time.monotonic() + SLOW_S
        await self._slow_down(latency_ms, SLOW_S)
        try:
            await self._watch(process, lambda: not self._agent.listing and time.monotonic() < deadline_s)
            if self._random.random() < 0.5:
                await asyncio.sleep(self._random.uniform(0.0, latency_ms / 1000))
            else:
                await self._watch(process, lambda: self._agent.listing, pause_s=0.0)
        finally:
            await self._slow_down(0.0, 0.0)

    async def _slow_down(self, latency_ms: float, for_s: float) -> None:
        await self._lab.client.request("POST", "/lab/faults", {"latency_ms": latency_ms, "for_s": for_s})

    async def _watch(self, process: Process, wanted: Callable[[], bool], pause_s: float = POLL_S) -> None:
        """Look at the starting agent while that is so."""
        while wanted() and process.running:
            await self._agent.look()
            await asyncio.sleep(pause_s)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """At most some seconds: the moment may not come."""
        deadline_s = time.monotonic() + 5.0
        while not holds() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - sampled
            await asyncio.sleep(0.002)

    def _adding(self) -> bool:
        return self._ledger.under_way[self._node, "ADD"] > 0

    def _deleting(self) -> bool:
        return self._ledger.under_way[self._node, "DEL"] > 0

    def _committing(self) -> bool:
        return time.monotonic() - self._ledger.policy_written_s < RECENT_S

    def _moment(self) -> str:
        problems = self._agent.problems
        if problems == {}:
            return self._work()
        if problems is None:
            return "start: imports, connection"
        dataplane = problems.get("dataplane", "")
        if not dataplane:
            return "start: lease, devices, CNI"
        return "start: lists" if self._agent.listing else "start: pods restored, first commit"

    def _work(self) -> str:
        if self._adding():
            return "ADD under way"
        if self._deleting():
            return "DEL under way"
        return "policy just written" if self._committing() else "between"
