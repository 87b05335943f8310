"""How long changes wait for company before they are committed together."""

import asyncio
import contextlib
from collections.abc import Callable

from netagent.records import Change, Kind, Listed

FIRST_WINDOW_S = 0.002
"""Window after the first of several changes in a row; it doubles up to the cap while they go on."""
COST_WINDOWS = 10.0
"""Longest window in durations of the last commit: compiling and committing take a tenth of the time at most."""


class Debounce:
    """Not at all when idle; while commits follow one another, longer and longer."""

    def __init__(self, cap_s: float, clock: Callable[[], float]) -> None:
        self._cap_s = cap_s
        self._clock = clock
        self._window_s = 0.0
        self._last_commit_s = self._policy_s = float("-inf")
        """When the last commit ended, and when a policy last changed."""
        self._cost_s = 0.0

    async def settle(self, urgent: asyncio.Event) -> None:
        """Let changes gather while they come fast; at once when idle, and until somebody is in a hurry."""
        now_s = self._clock()
        cap_s = min(self._cap_s, max(FIRST_WINDOW_S, COST_WINDOWS * self._cost_s))
        if now_s - self._last_commit_s > max(2 * self._window_s, FIRST_WINDOW_S):
            self._window_s = 0.0
            return
        self._window_s = min(cap_s, max(FIRST_WINDOW_S, 2 * self._window_s))
        rest_s = self._last_commit_s + self._window_s - now_s
        if rest_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(urgent.wait(), rest_s)

    def committed(self, began_s: float) -> None:
        """A commit that began then (clock) has ended."""
        self._last_commit_s = self._clock()
        self._cost_s = self._last_commit_s - began_s

    def is_alone(self, change: Change) -> bool:
        """Whether a policy changes by itself: it does not wait for the company of pods."""
        if isinstance(change, Listed) or change.kind is not Kind.NETWORK_POLICY:
            return False
        now_s = self._clock()
        alone = now_s - self._policy_s > self._cap_s
        self._policy_s = now_s
        return alone
