"""Steady streams between pods, in a process of its own, so that nothing that the caller does delays them.

`python streams.py SPEC` with SPEC as JSON: {"interval_s": float, "streams": [{"name": str, "kind": "UDP" or "TCP",
"near": fd, "far": fd}]}. Both ends of a stream send numbered records to each other and count what arrives. Commands on
standard input, each answered by one line of JSON: `report`, and `stop`, which stops sending, waits for what is under
way, reports and ends. Standard library only.
"""

import contextlib
import json
import selectors
import socket
import struct
import sys
import time
from typing import Any

RECORD = struct.Struct("=Q")
SO_MEMINFO = 55
SK_MEMINFO_DROPS = 8
QUIET_S = 1.0
"""Nothing arrived for so long: nothing is under way any more."""
DRAIN_S = 20.0
READ_BYTES = 1 << 16
GAPS_KEPT = 50


class End:
    """One end of a stream: what it sent, and what arrived at it."""

    def __init__(self, descriptor: int, kind: str) -> None:
        self.sock = socket.socket(fileno=descriptor)
        self.sock.setblocking(False)
        self.is_udp = kind == "UDP"
        self.sent = 0
        self.received = 0
        self.twice = 0
        self.error = ""
        self.gaps: list[tuple[float, int]] = []
        """(seconds on the monotonic clock, records) where some were missing at first."""
        self.longest_pause_s = 0.0
        self._missing: set[int] = set()
        self._expected = 0
        self._last_s = 0.0
        self._unsent = b""
        self._rest = b""

    def send(self) -> None:
        """One record; for TCP what does not fit goes later. A UDP record that the kernel refuses was not sent."""
        record = RECORD.pack(self.sent)
        try:
            if self.is_udp:
                self.sock.send(record)
            elif not self.error:
                self._unsent += record
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
            self.sent += 1
        except BlockingIOError:
            self.sent += not self.is_udp
        except OSError as error:
            if not self.is_udp:
                self.error = error.strerror or str(error)

    def receive(self, now_s: float) -> None:
        """Everything that is there."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    content = self.sock.recv(READ_BYTES)
                except ConnectionError as error:
                    self.error = "" if self.is_udp else str(error.strerror)
                    return
                if not content and not self.is_udp:
                    self.error = self.error or "closed by the other end"
                    return
                self._take(content, now_s)

    def _take(self, content: bytes, now_s: float) -> None:
        if self._last_s:
            self.longest_pause_s = max(self.longest_pause_s, now_s - self._last_s)
        self._last_s = now_s
        content = self._rest + content
        whole = len(content) - len(content) % RECORD.size
        self._rest = content[whole:]
        for (number,) in RECORD.iter_unpack(content[:whole]):
            self._count(number, now_s)

    def _count(self, number: int, now_s: float) -> None:
        self.received += 1
        if number == self._expected:
            self._expected += 1
        elif number > self._expected:
            self.gaps = [*self.gaps[-GAPS_KEPT:], (now_s, number - self._expected)]
            self._missing.update(range(self._expected, number))
            self._expected = number + 1
        elif number in self._missing:
            self._missing.remove(number)
        else:
            self.twice += 1

    def report(self) -> dict[str, Any]:
        """The figures so far. `overflows`: records that arrived and found the socket's buffer full."""
        meminfo = self.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (SK_MEMINFO_DROPS + 1))
        return {
            "sent": self.sent,
            "received": self.received,
            "expected": self._expected,
            "missing": len(self._missing),
            "twice": self.twice,
            "overflows": struct.unpack(f"={SK_MEMINFO_DROPS + 1}I", meminfo)[SK_MEMINFO_DROPS] if self.is_udp else 0,
            "gaps": self.gaps,
            "longest_pause_s": self.longest_pause_s,
            "error": self.error,
        }


class Streams:
    """All streams, in one loop."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._interval_s = spec["interval_s"]
        self._names = [stream["name"] for stream in spec["streams"]]
        self._ends = [End(stream[side], stream["kind"]) for stream in spec["streams"] for side in ("near", "far")]
        self._selector = selectors.DefaultSelector()
        for end in self._ends:
            self._selector.register(end.sock, selectors.EVENT_READ, end)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        self._late_s = 0.0
        self._arrived_s = 0.0

    def run(self) -> None:
        """Until told to stop, or nobody is left to tell."""
        next_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if now_s >= next_s:
                self._late_s = max(self._late_s, now_s - next_s)
                for end in self._ends:
                    end.send()
                next_s = max(next_s + self._interval_s, now_s)
            command = self._serve(max(0.0, next_s - time.monotonic()))
            if command == "report":
                self._print()
            elif command is not None:
                break
        stopped_s = self._arrived_s = time.monotonic()
        while time.monotonic() < min(self._arrived_s + QUIET_S, stopped_s + DRAIN_S):
            self._serve(0.05)
        self._print()

    def _serve(self, wait_s: float) -> str | None:
        """Receive; the command that came, "" where the caller has gone."""
        command = None
        for key, _ in self._selector.select(wait_s):
            if key.data is None:
                line = sys.stdin.readline()
                command = line.strip()
                if not line:
                    self._selector.unregister(sys.stdin.fileno())
            else:
                self._arrived_s = time.monotonic()
                key.data.receive(self._arrived_s)
                if key.data.error:
                    self._selector.unregister(key.data.sock)
        return command

    def _print(self) -> None:
        pairs = zip(self._names, self._ends[::2], self._ends[1::2], strict=True)
        streams = {name: {"near": near.report(), "far": far.report()} for name, near, far in pairs}
        print(json.dumps({"late_s": self._late_s, "streams": streams}), flush=True)


if __name__ == "__main__":
    Streams(json.loads(sys.argv[1])).run()
