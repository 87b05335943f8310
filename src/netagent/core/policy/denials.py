"""Denied packets per policy, added up from counters that come and go.

The kernel counts per policy class; a class with several policies counts for each of them, because each isolates and
none admits. A counter starts over when its class or the table was gone in between, so differences are added up: a value
below the last one is a counter that started over. What a counter counted between the last sample and its end is lost.
"""

from collections.abc import Mapping

from msgspec import Struct

from netagent.core.policy.meaning import Direction
from netagent.ports import CounterValue
from netagent.records import Key

OTHER = Key("", "_other")
"""Stands for all policies beyond the cap."""
GONE_KEPT_S = 60.0
"""A policy that is gone keeps its series this long, so that its last packets are scraped; less where room is needed."""


class Share(Struct, frozen=True, gc=False):
    """What a counter counts for."""

    direction: Direction
    policies: tuple[Key, ...]


class DenialTally:
    """Totals since the start of the process."""

    def __init__(self, cap: int) -> None:
        """`cap`: policies with totals of their own."""
        self.totals: dict[tuple[Key, Direction], int] = {}
        self._cap = cap
        self._last: dict[str, int] | None = None
        self._shares: dict[str, Share] = {}
        self._own: dict[Key, float | None] = {}
        """Policies with totals of their own -> since when they are gone."""

    def sample(
        self,
        counters: Mapping[str, CounterValue],
        shares: Mapping[str, Share],
        live: Mapping[Key, object],
        now_s: float,
    ) -> None:
        """Add what was counted since the last sample; of the first one only later packets count.

        `shares` are the counters of the classes in use, `live` the policies that exist.
        """
        self._age(live, now_s)
        self._shares |= shares
        self._shares = {name: share for name, share in self._shares.items() if name in counters or name in shares}
        packets = {name: value.packets for name, value in counters.items()}
        first, last = self._last is None, self._last or {}
        for name, share in self._shares.items():
            now, before = packets.get(name, 0), last.get(name, 0)
            counted = 0 if first else now - before if now >= before else now
            for policy in share.policies:
                if policy in live or counted:
                    self._add(policy, share.direction, counted, gone=policy not in live, now_s=now_s)
        self._last = packets

    def _add(self, policy: Key, direction: Direction, packets: int, *, gone: bool, now_s: float) -> None:
        series = policy if policy in self._own or self._room() else OTHER
        if series is policy:
            self._own.setdefault(policy, now_s if gone else None)
        self.totals[series, direction] = self.totals.get((series, direction), 0) + packets

    def _room(self) -> bool:
        if len(self._own) >= self._cap:
            gone = {key: since for key, since in self._own.items() if since is not None}
            if gone:
                self._forget(min(gone, key=gone.__getitem__))
        return len(self._own) < self._cap

    def _age(self, live: Mapping[Key, object], now_s: float) -> None:
        for policy, since in list(self._own.items()):
            if policy in live:
                self._own[policy] = None
            elif since is None:
                self._own[policy] = now_s
            elif now_s - since >= GONE_KEPT_S:
                self._forget(policy)

    def _forget(self, policy: Key) -> None:
        del self._own[policy]
        for direction in Direction:
            self.totals.pop((policy, direction), None)
