"""Counts per policy from counters that come and go."""

from netagent.core.policy.denials import GONE_KEPT_S, OTHER, DenialTally, Share
from netagent.core.policy.meaning import Direction
from netagent.ports import CounterValue
from netagent.records import Key

IN, OUT = Direction.INGRESS, Direction.EGRESS
P, Q, R = Key("x", "p"), Key("x", "q"), Key("x", "r")


class _Kernel:
    """What it shows, and the tally that looks."""

    def __init__(self, cap: int = 10) -> None:
        self.tally = DenialTally(cap)
        self.live: dict[Key, None] = dict.fromkeys((P, Q, R))
        self.shares = {"k_p": Share(IN, (P,)), "k_pq": Share(IN, (P, Q)), "k_r": Share(OUT, (R,))}
        self.now_s = 0.0
        self.tally.sample({}, {}, self.live, 0.0)

    def shows(self, **packets: int) -> dict[tuple[Key, Direction], int]:
        counters = {name: CounterValue(count, 0) for name, count in packets.items()}
        self.tally.sample(counters, self.shares, self.live, self.now_s)
        return self.tally.totals


def test_each_policy_of_a_class_counts() -> None:
    kernel = _Kernel()
    assert kernel.shows(k_p=1, k_pq=10, k_r=5) == {(P, IN): 11, (Q, IN): 10, (R, OUT): 5}
    assert kernel.shows(k_p=2, k_pq=10, k_r=5) == {(P, IN): 12, (Q, IN): 10, (R, OUT): 5}


def test_what_was_counted_before_the_start_is_not_ours() -> None:
    kernel = _Kernel()
    kernel.tally = DenialTally(10)
    kernel.tally.sample({"k_p": CounterValue(100, 0), "denied_ingress": CounterValue(100, 0)}, {}, {}, 0.0)
    assert kernel.shows(k_p=103)[P, IN] == 3


def test_counters_that_start_over() -> None:
    kernel = _Kernel()
    kernel.shows(k_p=10)
    assert kernel.shows(k_p=4)[P, IN] == 14
    assert kernel.shows()[P, IN] == 14
    assert kernel.shows(k_p=3)[P, IN] == 17


def test_class_that_left_the_ruleset_but_not_yet_the_kernel() -> None:
    kernel = _Kernel()
    kernel.shows(k_p=10)
    del kernel.shares["k_p"]
    assert kernel.shows(k_p=12)[P, IN] == 12
    kernel.shows()
    assert kernel.shows(k_p=99)[P, IN] == 12, "nobody knows any more what it counts"


def test_gone_policies_lose_their_series() -> None:
    kernel = _Kernel()
    kernel.shows(k_p=10)
    del kernel.live[P], kernel.shares["k_p"], kernel.shares["k_pq"]
    assert (P, IN) in kernel.shows()
    kernel.now_s = GONE_KEPT_S - 1
    assert (P, IN) in kernel.shows()
    kernel.now_s = GONE_KEPT_S
    assert (P, IN) not in kernel.shows()
    kernel.live[P] = None
    kernel.shares["k_p"] = Share(IN, (P,))
    assert kernel.shows(k_p=2)[P, IN] == 2


def test_cap() -> None:
    kernel = _Kernel(cap=1)
    kernel.shares = {f"k_{key.name}": Share(IN, (key,)) for key in (P, Q, R)}
    assert kernel.shows(k_p=1, k_q=2, k_r=4) == {(P, IN): 1, (OTHER, IN): 6}
    del kernel.live[P], kernel.shares["k_p"]
    totals = kernel.shows(k_q=3, k_r=4)
    assert (P, IN) not in totals, "who is gone makes room"
    assert totals[Q, IN] == 1
    assert totals[OTHER, IN] == 6
    assert kernel.shows(k_q=3, k_r=5) == {(Q, IN): 1, (OTHER, IN): 7}


def test_cap_of_nothing() -> None:
    kernel = _Kernel(cap=0)
    assert kernel.shows(k_p=1, k_pq=1, k_r=1) == {(OTHER, IN): 3, (OTHER, OUT): 1}
