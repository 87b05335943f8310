"""The page of `netagent status`: problems are seen, and a long list does not hide them."""

import msgspec

from netagent.core.questions.status import SHOWN, State, Status, duration, status, text


def page(tree: object, **parts: str) -> tuple[Status, str]:
    found = status(
        msgspec.convert(tree, State),
        parts={"dataplane": "", **parts},
        remarks={"clock": "is fast"},
        drops={"spoofed": 3, "denied_ingress": 0},
        not_answered={},
    )
    return found, text(found)


def test_every_problem_is_shown() -> None:
    tree = {
        "agent": {"node": "n", "version": "9", "started_s": 100.0, "now_s": 3825.0, "generation": 7},
        "watches": [
            {"kind": "Pod", "connected": False, "last_error": "refused", "unreadable": 2},
            {"kind": "Node", "connected": True},
        ],
        "policies": {"problems": {"shop/odd": ["ports[0]: bad"]}, "undecodable": {"Pod x/y": "no name"}},
        "pod_network": {"interface": "eth0", "public_ips": ["192.0.2.1"], "mtu": 1450, "problems": ["no IPv6"]},
        "transactions": [{"at_s": 0.0}, {"at_s": 86400.0, "error": "EBUSY", "whole": True, "cause": "drift"}],
        "a section of a newer agent": [],
    }
    found, printed = page(tree, **{"pod network": "not joined yet"})
    assert not found.ready
    for line in (
        "node n: NOT READY, netagent 9, up 1h2m",
        "  + dataplane",
        "  - pod network: not joined yet",
        "  ! clock: is fast",
        "  ! watch of Pod: not connected: refused, 2 unreadable",
        "network   eth0 192.0.2.1, MTU 1450",
        "  ! no IPv6",
        "  ! shop/odd: ports[0]: bad",
        "  ! Pod x/y cannot be read: no name",
        "policy    generation 7, last transaction 1970-01-02 00:00:00 UTC: whole table, FAILED: EBUSY (drift)",
        "dropped   3 spoofed (packets since the table was made)",
    ):
        assert f"{line}\n" in printed
    assert "watch of Node" not in printed


def test_a_pod_that_the_api_does_not_show_is_closed() -> None:
    pods = [{"pod": f"x/{number}", "ips": ["10.0.0.1"], "known": number > 0} for number in range(SHOWN + 5)]
    printed = page({"endpoints": pods})[1]
    assert "closed: the API does not show it" in printed
    assert f"pods      {SHOWN + 5} on this node\n" in printed
    assert printed.endswith("  and 5 more (--output json has all)\n")


def test_without_the_debug_listener_readiness_is_still_known() -> None:
    found = status(None, parts={"cni": "waits"}, remarks={}, drops=None, not_answered={"state": "refused"})
    assert (found.ready, found.generation, found.drops, found.uptime_s) == (False, None, None, None)
    assert text(found).splitlines() == [
        "node unknown: NOT READY, netagent ",
        "  - cni: waits",
        "  ? state: refused",
        "pods      0 on this node",
    ]


def test_without_the_health_listener_the_state_says_it() -> None:
    state = msgspec.convert({"agent": {"not_ready": {"lease": "no subnet"}}}, State)
    assert not status(state, parts=None, remarks={}, drops=None, not_answered={}).ready
    assert status(State(), parts=None, remarks={}, drops=None, not_answered={}).ready


def test_durations() -> None:
    assert [duration(seconds) for seconds in (5, 65, 3725, 90061)] == ["5s", "1m5s", "1h2m", "1d1h"]
