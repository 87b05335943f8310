"""What the kernel holds, asked without libnftables: the same names as it tells, and an end under churn."""

import asyncio
from collections.abc import Iterator

import orjson
import pytest

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import CURRENT, FrameSettings
from netagent.core.policy.generation import Stamp
from netagent.core.policy.render import replacement
from netagent.core.policy.ruleset import ChainDecl, SetDecl
from netagent.core.policy.store import Store
from netagent.kernel.nft import TABLE, LibNftables
from netagent.ports import NftError, SmallTransaction, TableInventory
from support.cnibed import sh
from support.waiting import until

pytestmark = pytest.mark.kernel

STAMP = Stamp(0xFFFF0000, 7)
NOTHING = TableInventory(exists=False)
DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def no_tables() -> Iterator[None]:
    """None before and after."""
    sh("nft", "flush ruleset")
    yield
    sh("nft", "flush ruleset")


async def fill(nft: LibNftables, classes: int = 0, members: int = 0) -> None:
    """Our table, with chains of that many classes, a peer set and a counter for each."""
    ruleset = Compiler(Store(), FrameSettings(masquerade=True, pools=("10.0.0.0/9", "10.200.0.0/16")), "node-0").ruleset
    for one in range(classes):
        ruleset.declare(f"p4_{one}", SetDecl("ipv4_addr"))
        for member in range(members):
            ruleset.put(f"p4_{one}", f"10.{one >> 8}.{one & 255}.{member}")
        ruleset.use_counter(f"k_{one}")
        rules = (f"ct original ip saddr @p4_{one} goto admitted", f"counter name k_{one} goto denied_ingress")
        ruleset.put_chain(f"in_{one}", ChainDecl(rules))
    await nft.run(replacement(ruleset.whole(), STAMP.mark, NOTHING))


async def test_names_are_those_that_nft_lists(nft: LibNftables) -> None:
    await fill(nft, classes=30, members=3)
    # Sets without a name, and a neighbour with names like ours.
    commands = f"add rule {TABLE} stray tcp dport {{ 80, 443 }} accept; add table inet other; add chain inet other more"
    more = "; add counter inet other more; add map inet other more { type ipv4_addr : verdict; }"
    sh("nft", commands + more)
    listed = sh("nft", "-j", "list", "table", *TABLE.split())
    names: dict[str, set[str]] = {"chain": set(), "set": set(), "map": set(), "counter": set()}
    for item in orjson.loads(listed)["nftables"]:
        for kind in names.keys() & item.keys():
            names[kind].add(item[kind]["name"])
    found = await nft.inventory()
    assert (found.exists, found.mark) == (True, STAMP.bits)
    told = {"chain": found.chains, "set": found.sets, "map": found.maps, "counter": found.counters}
    assert told == names
    assert {"in_29", "forward"} <= found.chains
    assert {"p4_29", CURRENT} <= found.sets
    assert "ingress4" in found.maps


async def test_what_is_not_there_is_not_told(nft: LibNftables) -> None:
    assert await nft.inventory() == NOTHING
    sh("nft", "add table inet other; add chain inet other more")
    assert await nft.inventory() == NOTHING
    sh("nft", f"add table {TABLE}; add set {TABLE} {CURRENT} {{ type mark; }}")
    assert await nft.inventory() == TableInventory(exists=True, sets=frozenset({CURRENT}))


async def test_names_and_counters_are_told_while_commit_follows_commit(nft: LibNftables) -> None:
    """libnftables begins its list anew after each; the audit and every scrape would wait as long as that goes on."""
    await fill(nft, classes=300, members=50)
    enough = asyncio.Event()
    commits = 0

    async def churn() -> None:
        nonlocal commits
        while not enough.is_set():
            await nft.run_small(SmallTransaction(new_chains={"in_new": ("goto admitted",)}))
            await nft.run_small(SmallTransaction(old_chains=("in_new",)))
            commits += 2

    task = asyncio.create_task(churn())
    try:
        await until(lambda: commits >= 10, "some commits")
        found = await asyncio.wait_for(nft.inventory(), DEADLINE_S)
        counters = await asyncio.wait_for(nft.counters(), DEADLINE_S)
        before = commits
        await until(lambda: commits >= before + 10, "more of them")
    finally:
        enough.set()
        await task
    assert {f"in_{one}" for one in range(300)} <= found.chains
    assert {f"k_{one}" for one in range(300)} <= counters.keys()


@pytest.mark.parametrize("rules", [1, 3000])
async def test_a_refusal_is_told_as_one_however_many_answers_there_are(nft: LibNftables, rules: int) -> None:
    """More than the receive buffer holds: one that arrived says that nothing was changed."""
    await fill(nft)
    before = await nft.text()
    bad = SmallTransaction(new_chains={"in_new": ("ct original ip saddr @nowhere drop",) * rules})
    with pytest.raises(NftError, match=r"@nowhere drop: .*The old rules stay in force"):
        await nft.run_small(bad)
    assert await nft.text() == before
    await nft.run_small(SmallTransaction(new_chains={"in_new": ("goto admitted",)}))


@pytest.mark.parametrize("rule", ["meta l4proto tcp ct reply proto-src 70000 goto admitted", "ct mark 1 accept"])
async def test_a_rule_that_cannot_be_written_is_not_sent(nft: LibNftables, rule: str) -> None:
    await fill(nft)
    with pytest.raises(NftError, match="was not sent"):
        await nft.run_small(SmallTransaction(new_chains={"in_new": (rule,)}))
    assert "in_new" not in (await nft.inventory()).chains
