"""`GET /debug/ruleset`: desired against the kernel's, equal or with the difference, without holding up the agent."""

import asyncio
import subprocess

import pytest

from support.debugbed import DebugBed
from support.words import pod, policy, rule, selector

pytestmark = pytest.mark.kernel


async def nft(*commands: str) -> None:
    for command in commands:
        await asyncio.to_thread(subprocess.run, ["nft", command], check=True, timeout=60)


async def test_equal_after_all_kinds_of_changes(bed: DebugBed) -> None:
    for number in range(3):
        await bed.put(policy(f"x/q{number}", selector(app="b"), egress=[rule()], types=["Egress"]))
        answer = await bed.json("/debug/ruleset")
        assert (answer["equal"], answer["mismatches"], answer["notes"]) == (True, [], [])
        assert answer["desired"] == answer["kernel"]
        assert answer["kernel"]["rules"] > 20
    await bed.unplug("x/c")
    status, text = await bed.get("/debug/ruleset", Accept="text/plain")
    assert (status, text) == (200, "the kernel has what is desired\n")


async def test_every_kind_of_difference_is_told(bed: DebugBed) -> None:
    ip = bed.places["x/b"].ip(4)
    text = (await bed.get("/debug/ruleset?show=desired"))[1]
    peers = next(line.split()[1] for line in text.splitlines() if line.startswith("set p4_"))
    (chain,) = (line.split()[1] for line in text.splitlines() if line.startswith("chain in_"))
    await nft(
        f"delete element inet netagent {peers} {{ {ip} }}",
        "add element inet netagent local4 { 203.0.113.1 }",
        "add chain inet netagent foreign",
        "add rule inet netagent foreign drop",
        "add set inet netagent strange { type ipv4_addr; }",
        f"insert rule inet netagent {chain} ip saddr 203.0.113.1 accept",
        "flush chain inet netagent admitted",
    )
    answer = await bed.json("/debug/ruleset")
    told = {(one["verb"], one["kind"], one["where"], one["text"]) for one in answer["mismatches"]}
    assert not answer["equal"]
    assert {
        ("lacks", "element", peers, ip),
        ("extra", "element", "local4", "203.0.113.1"),
        ("extra", "chain", "foreign", ""),
        ("extra", "set", "strange", ""),
        ("extra", "rule", chain, "ip saddr 203.0.113.1 accept"),
        ("lacks", "rule", "admitted", "accept"),
    } <= told
    assert answer["lacks"] == len([one for one in told if one[0] == "lacks"]) == 3
    assert answer["extra"] == 4
    _, text = await bed.get("/debug/ruleset?format=text")
    assert text.startswith("the kernel lacks 3 and has 4 too much\n")
    assert f"lacks  element {peers}: {ip}\n" in text


async def test_verdicts_and_a_table_that_is_gone(bed: DebugBed) -> None:
    ip = bed.places["x/a"].ip(4)
    await nft(
        f"delete element inet netagent ingress4 {{ {ip} }}",
        f"add element inet netagent ingress4 {{ {ip} : drop }}",
    )
    answer = await bed.json("/debug/ruleset")
    told = {(one["verb"], one["where"]): one["text"] for one in answer["mismatches"]}
    assert told["extra", "ingress4"] == f"{ip} : drop"
    assert told["lacks", "ingress4"].startswith(f"{ip} : goto in_")
    await nft("delete table inet netagent")
    _, text = await bed.get("/debug/ruleset?format=text")
    assert text == "the kernel lacks 1 and has 0 too much\nlacks  table inet netagent\n"


async def test_both_sides_can_be_had_whole(bed: DebugBed) -> None:
    wanted, found = [(await bed.get(f"/debug/ruleset?show={side}"))[1] for side in ("desired", "kernel")]
    assert wanted == found
    assert "chain forward\n    type filter hook forward priority filter; policy accept;\n" in wanted
    status, text = await bed.get("/debug/ruleset?show=x")
    assert status == 400
    assert "Accepted: difference, desired, kernel." in text


@pytest.fixture
async def large(bed: DebugBed) -> DebugBed:
    """131,072 elements more."""
    ruleset = bed.dataplane.compiler.ruleset
    for third in range(256):
        for fourth in range(256):
            ruleset.put("vtep4", f"10.9.{third}.{fourth}")
            ruleset.put("overlay4", f"10.10.{third}.{fourth}")
    bed.dataplane.distrust("test")
    await bed.settled()
    return bed


async def test_a_large_table_does_not_hold_up_the_event_loop(large: DebugBed) -> None:
    page = asyncio.create_task(large.json("/debug/ruleset"))
    turns = 0
    while not page.done():
        await asyncio.sleep(0.002)
        turns += 1
    answer = await page
    assert answer["equal"]
    assert answer["kernel"]["elements"] > 131_000
    assert turns > 40


async def test_commits_in_quick_succession_do_not_keep_a_large_table_from_being_read(
    large: DebugBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transaction makes libnftables start over; held for a moment, they let it through, and go on."""
    monkeypatch.setattr("netagent.agent.http.reading.PATIENCE_S", 0.5)
    monkeypatch.setattr("netagent.agent.http.reading.HOLD_S", 60.0)
    page = asyncio.create_task(large.json("/debug/ruleset"))
    changes = 0
    while not page.done():
        await large.put(pod("x/far", f"10.244.1.{100 + changes % 100}", labels={"app": "b"}, node="node-1"))
        changes += 1
    assert (await page)["kernel"]["elements"] > 131_000
    assert changes > 1
    await large.put(policy("x/q", selector(app="b"), egress=[rule()], types=["Egress"]))
    assert (await large.json("/debug/ruleset"))["equal"]


async def test_a_pod_that_starts_waits_for_no_reader(bed: DebugBed) -> None:
    with bed.dataplane.held():
        async with asyncio.timeout(30):
            await bed.pod("x/late", app="late")
