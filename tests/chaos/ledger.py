"""What was done, what went wrong, and which addresses live: shared by everybody who makes trouble."""

import collections
import time
from typing import Literal

from msgspec import Struct, field

Command = Literal["ADD", "DEL"]


class Kill(Struct, frozen=True):
    """One kill -9."""

    at_s: float
    node: int
    moment: str
    """What the agent was doing."""


class Ledger(Struct):
    """The account of one run. `wrong` is what must stay empty."""

    began_s: float = field(default_factory=time.monotonic)
    wrong: list[str] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    living: dict[str, str] = field(default_factory=dict)
    """Address -> container that was given it by an ADD and is not being removed."""
    under_way: collections.Counter[tuple[int, Command]] = field(default_factory=collections.Counter)
    """(node, command) -> calls that wait for their answer."""
    policy_written_s: float = 0.0

    def blame(self, text: str) -> None:
        """Something is not as promised."""
        self.wrong.append(f"{time.monotonic() - self.began_s:8.3f} s: {text}")

    def given(self, container: str, ips: tuple[str, ...]) -> None:
        """ADD has answered."""
        for ip in ips:
            if ip in self.living:
                self.blame(f"{ip} was given to {container[:12]} while {self.living[ip][:12]} has it")
            self.living[ip] = container

    def leaving(self, container: str) -> None:
        """DEL is about to be called, or the pod's network namespace to go."""
        for ip in [ip for ip, other in self.living.items() if other == container]:
            del self.living[ip]

    def moments(self) -> dict[str, int]:
        """Moment -> kills."""
        return dict(sorted(collections.Counter(kill.moment for kill in self.kills).items()))
