"""The drop log: a line for a denied packet that says who wanted what of whom and which policies isolate.

The kernel hands denied packets over with the name of their counter, at most so many a second of each class. What goes
beyond policy.drop_log_rate is counted and said in the next line. Reading is paced: a flood costs the kernel's buffer,
never this process.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from netagent.agent.dataplane.sync import Dataplane
from netagent.config import PolicyConfig
from netagent.core.droplog import (
    REASONS,
    Drop,
    NotAPacketError,
    Party,
    TokenBucket,
    as_judged,
    parse,
    resolve,
)
from netagent.core.policy.compiler import ClassKey
from netagent.core.policy.frame import LOGGED_BYTES
from netagent.core.policy.meaning import Direction
from netagent.kernel.nflog import LoggedPacket, NflogReader, link_name
from netagent.kernel.nfnetlink import NfnetlinkError
from netagent.metrics import Metrics

log = logging.getLogger(__name__)
drops = logging.getLogger("netagent.drops")

KEPT = 200
"""Drops for /debug."""
CLASSES_KEPT = 10_000
"""Classes whose meaning is remembered for packets that come when they are gone."""
READ_PAUSE_S = 0.02
"""After each read of at most some dozen packets: bounds what a flood costs to a few percent of a processor."""
RETRY_S = 30.0


class DropLog:
    """Reads the group, writes the lines."""

    def __init__(
        self,
        config: PolicyConfig,
        dataplane: Dataplane,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recent: deque[Drop] = deque(maxlen=KEPT)
        """Drops that have a line, oldest first."""
        self.problem = "not started yet"
        """Why nothing is read; "" while it is."""
        self._config = config
        self._dataplane = dataplane
        self._metrics = metrics.drop_log
        self._clock = clock
        self._bucket = TokenBucket(config.drop_log_rate)
        self._left_out = 0
        self._classes: dict[str, ClassKey] = {}

    async def run(self) -> None:
        """Read until cancelled; where the group cannot be read, try again now and then."""
        while True:
            try:
                with NflogReader(self._config.drop_log_group, LOGGED_BYTES) as reader:
                    self.problem = ""
                    log.info("denied packets are logged from NFLOG group %d", self._config.drop_log_group)
                    await self._read(reader)
            except NfnetlinkError as error:
                self.problem = str(error)
                log.warning("%s Next attempt in %.0f s.", error, RETRY_S)
            await asyncio.sleep(RETRY_S)

    def view(self) -> dict[str, Any]:
        """For /debug."""
        return {
            "problem": self.problem,
            "left_out": self._left_out,
            "drops": [{"at_s": drop.at_s, "text": drop.text, **drop.fields} for drop in self.recent],
        }

    async def _read(self, reader: NflogReader) -> None:
        while True:
            batch = await reader.receive()
            self._leave_out("lost", batch.lost)
            self._leave_out("unreadable", batch.malformed)
            for packet in batch.packets:
                self.take(packet)
            await asyncio.sleep(READ_PAUSE_S)

    def take(self, packet: LoggedPacket) -> None:
        """Give a packet its line, or count it."""
        if not self._bucket.take(self._clock()):
            self._leave_out("left_out", 1)
            return
        try:
            drop = self.drop(packet)
        except NotAPacketError:
            self._leave_out("unreadable", 1)
            return
        self._left_out = 0
        self._metrics.labels("logged").inc()
        self.recent.append(drop)
        drops.info("%s", drop.text, extra={"fields": drop.fields})

    def drop(self, logged: LoggedPacket) -> Drop:
        """The packet, resolved. Raises NotAPacketError."""
        packet = parse(logged.payload)
        key = self._class_of(logged.prefix)
        answer = False
        if key is not None:
            packet, answer = as_judged(packet, key.direction, self._isolated(key))
        reason = logged.prefix if logged.prefix in REASONS else "policy"
        return Drop(
            at_s=time.time(),
            reason=reason,
            source=self._party(packet.source),
            destination=self._party(packet.destination),
            packet=packet,
            direction=str(key.direction) if key else "",
            policies=tuple(policy for policy, _ in key.policies) if key else (),
            answer=answer,
            interface=self._interface(logged.in_index) if reason == "spoofed" else "",
            left_out=self._left_out,
        )

    def _leave_out(self, result: str, packets: int) -> None:
        if packets:
            self._left_out += packets
            self._metrics.labels(result).inc(packets)

    def _class_of(self, counter: str) -> ClassKey | None:
        if counter in REASONS:
            return None
        if counter not in self._classes:
            if len(self._classes) >= CLASSES_KEPT:
                self._classes.clear()
            self._classes |= self._dataplane.compiler.counted()
        return self._classes.get(counter)

    def _isolated(self, key: ClassKey) -> set[str]:
        """Addresses of the pods that exactly these policies isolate in this direction."""
        at = 0 if key.direction is Direction.INGRESS else 1
        policies = [policy for policy, _ in key.policies]
        return {
            ip
            for placement in self._dataplane.compiler.placements.values()
            if (own := placement.classes[at]) is not None and [policy for policy, _ in own.policies] == policies
            for ip in placement.ips
        }

    def _party(self, ip: str) -> Party:
        return resolve(ip, self._dataplane.store.owner, self._node)

    def _node(self, ip: str) -> str:
        store = self._dataplane.store
        for node in store.nodes.values():
            if ip in node.addresses:
                return node.key.name
        for lease in store.leases.values():
            if lease.holder and ip == lease.subnet.partition("/")[0]:
                return lease.holder
        return ""

    def _interface(self, index: int) -> str:
        name = link_name(index)
        for sandbox in self._dataplane.store.sandboxes.values():
            if name and sandbox.endpoint.host_ifname == name:
                return f"{name} (pod {sandbox.endpoint.pod})"
        return name
