"""Walking a ruleset in nft's JSON: control flow, set elements, and `unknown` for whatever is not understood."""

from typing import Any

import pytest

from netagent.core.questions.livecheck import LiveAnswer, Packet, livecheck

Expressions = list[dict[str, Any]]

ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
RETURN: dict[str, Any] = {"return": None}
SOURCE = {"ct": {"key": "ip saddr", "dir": "original"}}
SERVER = {"ct": {"key": "ip saddr", "dir": "reply"}}
PORT = {"ct": {"key": "proto-src", "dir": "reply"}}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def table(*forward: Expressions, sets: dict[str, list[Any]] | None = None, **chains: list[Expressions]) -> list[Any]:
    listing: list[Any] = [{"metainfo": {}}, {"table": {"name": "netagent"}}]
    listing += [{"set": {"name": name, "elem": elements}} for name, elements in (sets or {}).items()]
    listing.append({"chain": {"name": "forward", "hook": "forward", "prio": 0, "policy": "accept"}})
    listing += [{"chain": {"name": name}} for name in chains]
    for name, rules in {"forward": list(forward), **chains}.items():
        listing += [{"rule": {"chain": name, "expr": rule}} for rule in rules]
    return listing


def ask(
    listing: list[Any],
    source: str = "10.0.0.1",
    destination: str = "10.0.0.2",
    protocol: str = "TCP",
    port: int | None = 80,
) -> LiveAnswer:
    return livecheck(listing, Packet(source=source, destination=destination, protocol=protocol, port=port))


def test_no_chain_and_the_policy_of_the_chain() -> None:
    assert ask([]).verdict == "accept"
    listing = table()
    listing[2]["chain"]["policy"] = "drop"
    assert ask(listing).verdict == "drop"


def test_jump_comes_back_goto_does_not() -> None:
    jump = table([{"jump": {"target": "c"}}], [DROP], c=[[RETURN], [ACCEPT]])
    assert ask(jump).verdict == "drop"
    goto = table([{"goto": {"target": "c"}}], [DROP], c=[[RETURN]])
    assert ask(goto).verdict == "accept"
    nested = table([{"jump": {"target": "c"}}], [DROP], c=[[{"goto": {"target": "d"}}], [ACCEPT]], d=[])
    assert ask(nested).verdict == "drop"


def test_path_names_the_rules_that_matched() -> None:
    listing = table([match(PORT, 81), DROP], [{"jump": {"target": "c"}}], c=[[match(PORT, 80), {"counter": "n"}, DROP]])
    assert ask(listing).path == ("forward rule 2: jump c", "c rule 1: drop")


@pytest.mark.parametrize(
    ("elements", "left", "found"),
    [
        (["10.0.0.1"], SOURCE, True),
        (["10.0.0.2"], SOURCE, False),
        ([{"prefix": {"addr": "10.0.0.0", "len": 8}}], SOURCE, True),
        ([{"prefix": {"addr": "11.0.0.0", "len": 8}}], SOURCE, False),
        ([{"range": ["10.0.0.0", "10.0.0.1"]}], SOURCE, True),
        ([{"range": ["10.0.0.2", "10.0.0.9"]}], SOURCE, False),
        ([{"elem": {"val": "10.0.0.1", "counter": {"packets": 0}}}], SOURCE, True),
        ([80], PORT, True),
        ([{"range": [70, 79]}, {"range": [80, 90]}], PORT, True),
        ([{"concat": ["10.0.0.2", 80]}], {"concat": [SERVER, PORT]}, True),
        ([{"concat": ["10.0.0.2", 81]}], {"concat": [SERVER, PORT]}, False),
        ([{"concat": ["10.0.0.2"]}], {"concat": [SERVER, PORT]}, False),
        (["tcp", "udp"], {"meta": {"key": "l4proto"}}, True),
        ([6], {"meta": {"key": "l4proto"}}, True),
        ([17], {"meta": {"key": "l4proto"}}, False),
    ],
)
def test_elements_of_named_and_anonymous_sets(elements: list[Any], left: Any, found: bool) -> None:
    for right in ("@s", {"set": elements}):
        listing = table([match(left, right), DROP], sets={"s": elements})
        assert ask(listing).verdict == ("drop" if found else "accept")
        listing = table([match(left, right, "!="), DROP], sets={"s": elements})
        assert ask(listing).verdict == ("accept" if found else "drop")


def test_field_of_the_other_ip_version_never_matches_not_even_negated() -> None:
    for op in ("==", "!="):
        listing = table([match(SOURCE, "@s", op), DROP], sets={"s": []})
        assert ask(listing, "fd00::1", "fd00::2").verdict == "accept"


def test_icmp_has_no_port() -> None:
    listing = table([match({"payload": {"protocol": "tcp", "field": "dport"}}, 80, "!="), DROP])
    assert ask(listing, protocol="UDP").verdict == "accept"
    for version, name in (("10.0.0.", "icmp"), ("fd00::", "ipv6-icmp")):
        listing = table([match({"meta": {"key": "l4proto"}}, name), DROP])
        assert ask(listing, f"{version}1", f"{version}2", "ICMP", None).verdict == "drop"


def test_first_packet_is_new_and_unmarked() -> None:
    stamped = table([match({"ct": {"key": "mark"}}, {"prefix": {"addr": 0x1FD00000, "len": 16}}), DROP])
    assert ask(stamped).verdict == "accept"
    masked = table([match({"&": [{"ct": {"key": "mark"}}, 0xF0]}, 0x10), DROP])
    assert ask(masked).verdict == "accept"
    state = {"ct": {"key": "state"}}
    assert ask(table([match(state, ["invalid", "untracked"], "in"), DROP])).verdict == "accept"
    assert ask(table([match(state, ["established", "new"], "in"), DROP])).verdict == "drop"
    assert ask(table([match(state, "new"), DROP])).verdict == "drop"


def test_vmap_drops_in_its_direction_only() -> None:
    vmap = {"vmap": {"key": SOURCE, "data": "@egress4"}}
    elements = [["10.0.0.1", {"jump": {"target": "c"}}]]
    dropping = table([vmap], sets={"egress4": elements}, c=[[DROP]])
    assert ask(dropping) == LiveAnswer(
        verdict="drop", path=("forward rule 1, egress4 element: jump c", "c rule 1: drop"), dropped_by="egress"
    )
    passing = table([vmap], [DROP], sets={"egress4": elements}, c=[[RETURN]])
    assert (ask(passing).verdict, ask(passing).dropped_by) == ("drop", "")
    assert ask(table([vmap], sets={"egress4": []})).verdict == "accept"


def test_a_rule_without_a_verdict_is_passed_over_whatever_it_matches() -> None:
    limit: Expressions = [{"limit": {"rate": 100, "per": "second"}}, {"log": {"group": 5}}]
    assert ask(table(limit, [DROP])).verdict == "drop"
    assert ask(table([match({"meta": {"key": "random"}}, 1), {"counter": None}], [DROP])).verdict == "drop"


@pytest.mark.parametrize(
    "rule",
    [
        [match({"meta": {"key": "random"}}, 1), ACCEPT],
        [match({"ct": {"key": "daddr", "dir": "original"}}, "10.0.0.1"), ACCEPT],
        [match(SOURCE, "10.0.0.1", "<"), ACCEPT],
        [match(SOURCE, {"map": {}}), ACCEPT],
        [match(SOURCE, "@missing"), ACCEPT],
        [match(SOURCE, "somehost"), ACCEPT],
        [{"limit": {"rate": 1}}, ACCEPT],
        [{"queue": {"num": 1}}],
        [{"reject": None}],
        [{"mangle": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "value": "10.0.0.1"}}],
        [{"jump": {"target": "missing"}}],
        [{"vmap": {"key": SOURCE, "data": "@missing"}}],
        [{"vmap": {"key": {"meta": {"key": "cgroup"}}, "data": {"set": []}}}],
    ],
)
def test_what_is_not_understood_is_unknown_not_guessed(rule: Expressions) -> None:
    answer = ask(table(rule, [DROP]))
    assert answer.verdict == "unknown"
    assert answer.reason.startswith("unknown: ")


def test_mark_that_a_rule_has_written_is_unknown_afterwards() -> None:
    mark = {"ct": {"key": "mark"}}
    write = {"mangle": {"key": mark, "value": 1}}
    assert ask(table([write], [DROP])).verdict == "drop"
    assert ask(table([write], [match(mark, 1), ACCEPT])).verdict == "unknown"


def test_endless_jumps_end() -> None:
    assert ask(table([{"jump": {"target": "c"}}], c=[[{"jump": {"target": "c"}}]])).verdict == "unknown"


def test_lower_priority_chain_first_and_every_chain_must_let_it_pass() -> None:
    listing = table([ACCEPT])
    listing.append({"chain": {"name": "late", "hook": "forward", "prio": 10, "policy": "accept"}})
    listing.append({"rule": {"chain": "late", "expr": [DROP]}})
    assert ask(listing).path == ("forward rule 1: accept", "late rule 1: drop")
