"""Which subnet a node takes: the decisions alone."""

import random
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.config import NetworkConfig
from netagent.core.network.lease import (
    Create,
    Exhausted,
    Keep,
    Plan,
    Pool,
    TakeOver,
    available,
    choose,
    expired,
    free_subnet,
    may_allocate,
    pools_by_family,
    renewal_due,
)
from netagent.records import Key, SubnetLease

NOW_S = 1_000_000.0


def lease(subnet: str, holder: str, renewed_s: float | None = NOW_S, duration_s: int | None = 60) -> SubnetLease:
    return SubnetLease(
        key=Key("kube-system", f"netagent-{subnet}"),
        uid="u",
        resource_version="1",
        subnet=subnet,
        holder=holder,
        duration_s=duration_s,
        renewed_s=renewed_s,
    )


def plan(*pools: str, subnet_len: int = 24, previous: tuple[str, ...] = (), reserved: tuple[str, ...] = ()) -> Plan:
    cut = tuple(Pool(ip_network(text), subnet_len) for text in pools or ("10.244.0.0/22",))
    return Plan("me", cut, previous, reserved, 30.0)


def first(_: int) -> int:
    return 0


def test_own_lease_comes_before_everything() -> None:
    mine = lease("10.244.2.0/24", "me", renewed_s=0.0)
    action = choose(plan(previous=("10.244.1.0/24",)), [lease("10.244.0.0/24", "other"), mine], NOW_S, pick=first)
    assert action == Keep(mine)


def test_of_two_own_leases_the_one_used_before_is_kept() -> None:
    old, new = lease("10.244.1.0/24", "me"), lease("10.244.3.0/24", "me")
    assert choose(plan(), [new, old], NOW_S, pick=first) == Keep(old)
    assert choose(plan(previous=("10.244.3.0/24",)), [old, new], NOW_S, pick=first) == Keep(new)


def test_the_previous_subnet_is_asked_for_again() -> None:
    assert choose(plan(previous=("10.244.3.0/24",)), [], NOW_S, pick=first) == Create("10.244.3.0/24")


@pytest.mark.parametrize(
    "previous",
    ["10.244.1.0/24", "10.244.1.0/25", "192.168.0.0/24", "fd00::/64", "10.244.2.0/24"],
    ids=["held by another", "of another length", "outside the pools", "of the other family", "reserved"],
)
def test_a_previous_subnet_that_does_not_fit_any_more_is_left(previous: str) -> None:
    seen = [lease("10.244.1.0/24", "other")]
    action = choose(plan(previous=(previous,), reserved=("10.244.2.0/23",)), seen, NOW_S, pick=first)
    assert action == Create("10.244.0.0/24")


def test_free_subnets_are_picked_over_the_whole_pool() -> None:
    seen = [lease("10.244.1.0/24", "other")]
    picks = iter(range(3))
    found = [choose(plan(), seen, NOW_S, pick=lambda _: next(picks)) for _ in range(3)]
    assert found == [Create("10.244.0.0/24"), Create("10.244.2.0/24"), Create("10.244.3.0/24")]


def test_a_full_pool_leads_to_the_next() -> None:
    seen = [lease("10.1.0.0/24", "other")]
    assert choose(plan("10.1.0.0/24", "10.2.0.0/24"), seen, NOW_S, pick=first) == Create("10.2.0.0/24")


def test_only_when_nothing_is_free_an_expired_lease_is_taken_over_and_only_after_the_grace() -> None:
    dead, fresh = lease("10.1.0.0/24", "gone", NOW_S - 100), lease("10.1.1.0/24", "alive", NOW_S - 59)
    assert choose(plan("10.1.0.0/22"), [dead, fresh], NOW_S, pick=first) == Create("10.1.2.0/24")
    assert choose(plan("10.1.0.0/23"), [dead, fresh], NOW_S, pick=first) == TakeOver(dead)
    assert isinstance(choose(plan("10.1.0.0/23"), [dead, fresh], NOW_S - 20, pick=first), Exhausted)


def test_a_lease_that_its_holder_gave_up_is_taken_at_once() -> None:
    left = lease("10.1.0.0/24", "")
    assert choose(plan("10.1.0.0/24"), [left], NOW_S, pick=first) == TakeOver(left)


@pytest.mark.parametrize("holder", ["", "operator"])
def test_a_reservation_is_never_taken_from_others(holder: str) -> None:
    reservation = lease("10.1.0.0/24", holder, renewed_s=0.0, duration_s=None)
    action = choose(plan("10.1.0.0/24"), [reservation], NOW_S, pick=first)
    assert action == Exhausted("no free subnet in 10.1.0.0/24 (/24 each)")


def test_a_reservation_for_this_node_is_its_lease() -> None:
    reservation = lease("10.1.0.0/24", "me", renewed_s=None, duration_s=None)
    assert choose(plan("10.1.0.0/24"), [reservation], NOW_S, pick=first) == Keep(reservation)
    assert not renewal_due(reservation, NOW_S)


def test_refused_subnets_count_as_taken() -> None:
    taken = frozenset({"10.1.0.0/24"})
    assert choose(plan("10.1.0.0/23"), [], NOW_S, refused=taken, pick=first) == Create("10.1.1.0/24")


def test_reserved_networks_are_not_taken_over_either() -> None:
    dead = lease("10.1.0.0/24", "gone", 0.0)
    action = choose(plan("10.1.0.0/24", reserved=("10.1.0.128/25",)), [dead], NOW_S, pick=first)
    assert isinstance(action, Exhausted)


def test_an_ipv6_pool_of_billions_is_not_enumerated() -> None:
    pool = Pool(ip_network("fd00::/16"), 64)
    asked: list[int] = []

    def last(n: int) -> int:
        asked.append(n)
        return n - 1

    assert free_subnet(pool, [ip_network("fd00:8000::/17")], last) == "fd00:7fff:ffff:ffff::/64"
    assert asked == [2**47]


def test_times() -> None:
    held = lease("10.1.0.0/24", "me", renewed_s=100.0, duration_s=60)
    assert [renewal_due(held, now_s) for now_s in (119.0, 120.0)] == [False, True]
    assert [expired(held, now_s) for now_s in (159.0, 160.0)] == [False, True]
    assert [available(held, now_s, 30.0) for now_s in (189.0, 190.0)] == [False, True]
    assert [may_allocate(held, now_s, 30.0) for now_s in (174.0, 175.0)] == [True, False]


def test_pools_of_a_configuration() -> None:
    config = NetworkConfig(pools=("10.0.0.0/16", "fd00::/48", "10.9.0.0/20"), subnet_len=26, subnet_len_v6=80)
    assert pools_by_family(config) == {
        4: (Pool(ip_network("10.0.0.0/16"), 26), Pool(ip_network("10.9.0.0/20"), 26)),
        6: (Pool(ip_network("fd00::/48"), 80),),
    }


@given(seed=st.integers(0, 2**32), taken=st.sets(st.integers(0, 63)), other=st.lists(st.sampled_from([22, 25, 26, 28])))
def test_a_free_subnet_overlaps_nothing_and_is_found_when_there_is_one(
    seed: int, taken: set[int], other: list[int]
) -> None:
    rng = random.Random(seed)  # noqa: S311
    pool = Pool(ip_network("10.0.0.0/20"), 26)
    subnets = [ip_network((int(pool.network.network_address) + 64 * index, 26)) for index in range(64)]
    blocked = [subnets[index] for index in taken]
    blocked += [ip_network(f"10.0.{rng.randrange(32)}.0/{length}", strict=False) for length in other]
    free = {str(subnet) for subnet in subnets if not any(subnet.overlaps(network) for network in blocked)}
    found = free_subnet(pool, blocked, rng.randrange)
    assert (found in free) if free else (found is None)
