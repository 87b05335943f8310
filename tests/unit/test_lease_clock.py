"""The API server's clock, and when addresses may be given out by it."""

from email.utils import formatdate

import pytest
from msgspec import structs

from netagent.config import MIN_GRACE_S, Config, ConfigError, NetworkConfig, check
from netagent.core.network.lease import abandoned, allocatable_until_s, available
from netagent.kube.clock import AGREES_S, ServerClock
from netagent.records import Key, SubnetLease

EPOCH_S = 1_700_000_000.0


def lease(holder: str = "n1", renewed_s: float | None = EPOCH_S, duration_s: int | None = 60) -> SubnetLease:
    return SubnetLease(
        key=Key("kube-system", "netagent-10.1.0.0-24"),
        uid="u",
        resource_version="1",
        subnet="10.1.0.0/24",
        holder=holder,
        duration_s=duration_s,
        renewed_s=renewed_s,
    )


@pytest.mark.parametrize("wrong_s", [0.0, 0.4, -1.2, 7200.0, -7200.0, 5.0, -5.0])
@pytest.mark.parametrize("fraction_s", [0.0, 0.3, 0.99])
def test_every_node_lives_by_the_servers_time(wrong_s: float, fraction_s: float) -> None:
    server_s = EPOCH_S + fraction_s
    clock = ServerClock(local=lambda: server_s + wrong_s)
    clock.note(formatdate(server_s, usegmt=True))
    assert -AGREES_S[1] <= clock.now_s() - server_s <= AGREES_S[1]


def test_a_clock_that_is_right_is_not_touched_by_a_header_of_whole_seconds() -> None:
    local_s = EPOCH_S
    clock = ServerClock(local=lambda: local_s, elapsed=lambda: local_s)
    for tenths in range(100):
        local_s = EPOCH_S + tenths / 10
        clock.note(formatdate(int(local_s), usegmt=True))
        assert clock.now_s() == local_s


def test_a_clock_that_is_wrong_is_corrected_once_and_goes_on_evenly() -> None:
    local_s = 0.0
    clock = ServerClock(local=lambda: local_s, elapsed=lambda: local_s)
    seen = set()
    for tenths in range(100):
        local_s = EPOCH_S - 7200 + tenths / 10
        clock.note(formatdate(int(local_s + 7200), usegmt=True))
        seen.add(clock.offset_s)
    assert len(seen) == 1


def test_a_clock_that_is_set_right_is_taken_as_it_is() -> None:
    local_s, elapsed_s = EPOCH_S + 7200, 0.0
    clock = ServerClock(local=lambda: local_s, elapsed=lambda: elapsed_s)
    clock.note(formatdate(EPOCH_S, usegmt=True))
    assert clock.offset_s != 0
    local_s, elapsed_s = EPOCH_S + 1, 1.0
    clock.note(formatdate(EPOCH_S + 1, usegmt=True))
    assert clock.offset_s == 0


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0])
def test_a_clock_that_is_set_between_two_answers_changes_nothing(jump_s: float) -> None:
    now_s, wrong_s = EPOCH_S, 0.0
    clock = ServerClock(local=lambda: now_s + wrong_s, elapsed=lambda: now_s - 5000)
    clock.note(formatdate(now_s, usegmt=True))
    wrong_s, now_s = jump_s, EPOCH_S + 3600
    assert clock.now_s() == pytest.approx(now_s)
    clock.note(formatdate(now_s, usegmt=True))
    assert clock.now_s() == pytest.approx(now_s)
    assert clock.offset_s == pytest.approx(-jump_s)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 99 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 99999 0:0:0"])
def test_a_header_that_is_no_date_says_nothing(date: str | None) -> None:
    clock = ServerClock(local=lambda: EPOCH_S)
    clock.note(formatdate(EPOCH_S + 100, usegmt=True))
    before = clock.offset_s
    clock.note(date)
    assert clock.offset_s == pytest.approx(before, abs=1)
    assert before != 0


def test_the_holder_stops_before_anybody_may_take_over_for_any_two_clocks_that_agree_with_the_server() -> None:
    """The least grace that the configuration takes is enough for the worst pair of clocks."""
    slowest, fastest = -AGREES_S[1] + 0.5, AGREES_S[1]
    holder_stops = allocatable_until_s(lease(), MIN_GRACE_S) - slowest
    taken = next(s for s in range(200) if available(lease(), EPOCH_S + s + fastest, MIN_GRACE_S)) + EPOCH_S
    assert holder_stops < taken


def test_a_reservation_is_never_given_up() -> None:
    assert allocatable_until_s(lease(duration_s=None), 8.0) == float("inf")


def test_abandoned_leases_are_those_without_a_node() -> None:
    kept = [lease("n1"), lease(""), lease("gone", duration_s=None)]
    gone = lease("gone")
    assert abandoned([*kept, gone], {"n1": None}) == [gone]


@pytest.mark.parametrize(("duration_s", "grace_s", "least"), [(3, 7.9, "8"), (3600, 359.0, "360")])
def test_a_grace_that_is_too_short_is_refused(duration_s: int, grace_s: float, least: str) -> None:
    config = Config(network=NetworkConfig(lease_duration_s=duration_s, takeover_grace_s=grace_s))
    with pytest.raises(ConfigError, match=f"takeover_grace_s = {grace_s:g} .* at least {least}, so that"):
        check(config)
    check(structs.replace(config, network=structs.replace(config.network, takeover_grace_s=float(least))))
