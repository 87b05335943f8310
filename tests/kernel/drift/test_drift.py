"""Somebody else changes our table: it is repaired, and the log says who."""

import asyncio
import logging
import re
import subprocess
import sys

import pytest

from support.driftbed import WatchedBed
from support.words import pods, policy, rule, selector

pytestmark = pytest.mark.kernel

TABLE = "inet netagent"


async def _rule_handle(chain: str) -> str:
    listing = await asyncio.to_thread(
        subprocess.run, ["nft", "-a", "list", "chain", "inet", "netagent", chain], check=True, capture_output=True
    )
    return str(re.findall(r"# handle (\d+)", listing.stdout.decode())[-1])


# One transaction each: a second one would already meet the repaired table.
MEDDLING = {
    "flush": [f"flush table {TABLE}"],
    "delete": [f"delete table {TABLE}"],
    "flush ruleset": ["flush ruleset"],
    "policy of a base chain": [f"chain {TABLE} forward {{ policy drop; }}"],
    "element removed": [f"delete element {TABLE} local4 {{ 10.244.0.10 }}"],
    "element added": [f"add element {TABLE} source4 {{ napfoo . 192.0.2.1 }}"],
    "rule added": [f"insert rule {TABLE} forward accept"],
    "rule added to a class": [f"insert rule {TABLE} judge accept"],
    "foreign chain": [
        f"add chain {TABLE} theirs {{ type filter hook forward priority -10; policy accept; }}; "
        f"add rule {TABLE} theirs drop"
    ],
    "foreign set": [f"add set {TABLE} theirs {{ type ipv4_addr; }}"],
    "dormant": [f"add table {TABLE} {{ flags dormant; }}"],
    "another hook": [
        f"flush chain {TABLE} forward; delete chain {TABLE} forward; "
        f"add chain {TABLE} forward {{ type filter hook input priority 5; policy accept; }}"
    ],
}

THOUSAND = """
import nftables
library = nftables.Nftables()
for i in range(1000):
    code, _, error = library.cmd(f"add chain ip kube c{i}; add element ip kube s {{ 10.0.{i // 250}.{i % 250} }}")
    assert code == 0, error
"""
"""Changes of a foreign table, a commit each."""


@pytest.mark.parametrize("commands", MEDDLING.values(), ids=MEDDLING.keys())
async def test_repaired(
    bed: WatchedBed, commands: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, before = await bed.ruleset(), bed.replacements
    with caplog.at_level(logging.WARNING, logger="netagent.agent.dataplane.drift"):
        await bed.meddle(*commands)
        took_s = await bed.repaired(wanted)
        await bed.until("counted", lambda: bed.repairs() >= 1)
    with capsys.disabled():
        print(f" [repaired {took_s * 1e3:.0f} ms after nft returned]", end="")
    assert re.search(r"process nft \(pid \d+\) changed it", caplog.text), caplog.text
    assert bed.replacements > before
    await bed.expect(allowed=["x/b -> x/a 80/TCP", "x/a -> x/c 80/TCP"], denied=["x/c -> x/a 80/TCP"])
    await asyncio.sleep(0.6)
    assert bed.repairs() <= len(commands) + 1
    assert "they" not in await bed.ruleset()


async def test_rule_deleted_by_handle(bed: WatchedBed) -> None:
    wanted = await bed.ruleset()
    for chain in ("forward", "from_pod", "judge"):
        await bed.meddle(f"delete rule {TABLE} {chain} handle {await _rule_handle(chain)}")
        await bed.repaired(wanted)
    await bed.expect(allowed=["x/b -> x/a 80/TCP"], denied=["x/c -> x/a 80/TCP"])


async def test_foreign_tables_cost_nothing(bed: WatchedBed) -> None:
    before = len(bed.dataplane.transactions)
    # Names that only look like ours: another table, another family, and ours as the name of another object.
    await bed.meddle(
        "add table inet netagent2",
        "add table ip netagent",
        "delete table ip netagent",
        "add table ip kube",
        "add chain ip kube netagent",
        "add set ip kube s { type ipv4_addr; }",
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", THOUSAND], check=True, timeout=100)
    await asyncio.sleep(0.5)
    assert len(bed.dataplane.transactions) == before
    assert bed.repairs("seen") == bed.repairs("missed") == 0


async def test_our_own_commits_are_not_drift(bed: WatchedBed) -> None:
    before = bed.replacements
    for n in range(60):
        await bed.put(policy(f"x/n{n % 7}", selector(app="bc"[n % 2]), ingress=[rule([pods(app=f"v{n}")])]))
    bed.dataplane.distrust("the test says so")
    await bed.settled()
    await asyncio.sleep(0.5)
    assert bed.replacements == before + 1
    assert bed.repairs("seen") == bed.repairs("missed") == 0


async def test_our_own_large_commits_do_not_overflow(bed: WatchedBed) -> None:
    elements = ", ".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(200_000))
    before = bed.replacements
    await bed.nft.run(
        f"add set {TABLE} b_large {{ type ipv4_addr; }}\nadd element {TABLE} b_large {{ {elements} }}\n"
        f"delete set {TABLE} b_large\n"
    )
    await asyncio.sleep(0.5)
    assert bed.replacements == before
    assert bed.repairs("seen") == bed.repairs("missed") == 0


async def test_meddling_during_our_commits_is_not_missed(bed: WatchedBed) -> None:
    """Both write the table as fast as they can; when they stop it is ours."""
    stop = False

    async def ours() -> int:
        count = 0
        while not stop:
            await bed.put(policy("x/churn", selector(app="b"), ingress=[rule([pods(app=f"v{count % 3}")])]))
            count += 1
        return count

    writing = asyncio.create_task(ours())
    for n in range(25):
        await bed.meddle(f"add element {TABLE} local4 {{ 192.0.2.{n + 1} }}")
    stop = True
    assert await writing >= 1
    await bed.until("no foreign element", lambda: not bed.drift.repairing)
    for _ in range(500):
        if "192.0.2." not in await bed.ruleset():
            break
        await asyncio.sleep(0.01)
    assert "192.0.2." not in await bed.ruleset()
    await bed.expect(allowed=["x/b -> x/a 80/TCP"], denied=["x/c -> x/a 80/TCP"])


async def test_audit_finds_what_nobody_told(bed: WatchedBed) -> None:
    wanted = await bed.ruleset()
    await bed.unwatch()
    await bed.meddle(f"add chain {TABLE} theirs")
    await bed.watch(audit_s=0.05)
    await bed.repaired(wanted)
    await bed.until("counted", lambda: bed.repairs("audit") >= 1)
    before = bed.replacements
    await asyncio.sleep(0.5)
    assert bed.replacements == before
