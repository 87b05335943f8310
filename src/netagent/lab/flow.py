"""A continuous exchange: one flow that sends every millisecond or so and knows when it was last answered."""

import asyncio
import contextlib
import socket
import time

from netagent.lab.namespaces import Sockets
from netagent.lab.probe import Target

CONNECT_TIMEOUT_S = 5.0
SILENCE_S = 0.2
"""So long without an answer is no hiccup of the machine."""


class Flow:
    """One TCP connection or one UDP five-tuple from a network namespace to a lab server.

    Times are monotonic seconds. A TCP message that is dropped is sent again by the kernel; one that is never answered,
    and all after it, count as unanswered.
    """

    def __init__(self, sockets: Sockets, source: int, target: Target, *, interval_ms: float = 1.0) -> None:
        """`source`: file descriptor of a network namespace; it is used by `start` only."""
        self._sockets = sockets
        self._source = source
        self._target = target
        self.interval_s = interval_ms / 1e3
        """Pause between messages."""
        self._sock: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._sent_s: list[float] = []
        self._gap_from_s = 0.0
        self._longest_gap_s = 0.0
        self._stopped_s: float | None = None
        self.answered = 0
        """Messages that were answered."""
        self.last_ok_s = 0.0
        """When the newest answered message was sent; 0.0 before the first."""
        self.last_answer_s = 0.0
        """When the newest answer arrived; 0.0 before the first."""
        self.resumed_s = 0.0
        """When the message was sent whose answer ended the latest silence of SILENCE_S or more; 0.0: none did."""
        self.error = ""
        """Why the flow ended by itself, e.g. a reset."""

    async def start(self) -> None:
        """Connect and begin. Raises OSError or TimeoutError where there is no connection to begin with."""
        is_tcp = self._target.protocol == "TCP"
        family = socket.AF_INET6 if ":" in self._target.ip else socket.AF_INET
        kind = socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM
        (self._sock,) = await self._sockets.open(self._source, family, kind)
        try:
            if is_tcp:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(self._sock, (self._target.ip, self._target.port))
        except (OSError, TimeoutError):
            self._sock.close()
            raise
        self._gap_from_s = time.monotonic()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    async def stop(self) -> None:
        """End the flow; its figures stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_gap()
        self._stopped_s = time.monotonic()
        if self._sock is not None:
            self._sock.close()

    def reset_gap(self) -> None:
        """Forget the gaps so far."""
        self._gap_from_s = time.monotonic()
        self._longest_gap_s = 0.0

    @property
    def longest_gap_ms(self) -> float:
        """Longest time without an answer, the one that lasts included."""
        lasting_s = 0.0 if self._stopped_s is not None else time.monotonic() - self._gap_from_s
        return max(self._longest_gap_s, lasting_s) * 1e3

    def silent_ms(self) -> float:
        """How long the newest answer is ago."""
        return (time.monotonic() - self.last_answer_s) * 1e3

    async def resumed(self, since_s: float, timeout_s: float = 10.0) -> float:
        """Send time of the message whose answer ended a silence, not earlier than `since_s`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.resumed_s < since_s:  # noqa: ASYNC110 - sampled at the flow's own pace
                await asyncio.sleep(self.interval_s)
        return self.resumed_s

    async def silent_for(self, quiet_s: float, timeout_s: float = 10.0) -> float:
        """Wait until nothing was answered for `quiet_s`; the send time of the last answered message.

        Raises TimeoutError where answers go on.
        """
        async with asyncio.timeout(timeout_s):
            while time.monotonic() - max(self.last_answer_s, self._gap_from_s) < quiet_s:  # noqa: ASYNC110 - as in resumed
                await asyncio.sleep(self.interval_s)
        return self.last_ok_s

    def _close_gap(self) -> None:
        now = time.monotonic()
        self._longest_gap_s = max(self._longest_gap_s, now - self._gap_from_s)
        self._gap_from_s = now

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._sock is not None  # noqa: S101 - set by start
        while not self.error:
            self._sent_s.append(time.monotonic())
            line = f"{len(self._sent_s) - 1}\n".encode()
            try:
                await loop.sock_sendall(self._sock, line)
            except OSError as error:
                # A UDP socket reports earlier refusals this way and goes on.
                if self._target.protocol == "TCP":
                    self.error = str(error)
            await asyncio.sleep(self.interval_s)

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._sock is not None  # noqa: S101 - set by start
        rest = b""
        while not self.error:
            try:
                data = await loop.sock_recv(self._sock, 65536)
            except OSError as error:
                if self._target.protocol == "TCP":
                    self.error = str(error)
                continue
            if not data and self._target.protocol == "TCP":
                self.error = "closed by the other side"
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._note(line)

    def _note(self, line: bytes) -> None:
        """An answered message (or the server's name)."""
        with contextlib.suppress(ValueError, IndexError):
            sent_s = self._sent_s[int(line)]
            self.answered += 1
            if time.monotonic() - self._gap_from_s >= SILENCE_S:
                self.resumed_s = sent_s
            self.last_ok_s = max(self.last_ok_s, sent_s)
            self.last_answer_s = time.monotonic()
            self._close_gap()
