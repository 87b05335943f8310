"""Transactions that the kernel does not take, for want of memory, rights or peace: old or new, told, tried again."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
import pytest_asyncio
from msgspec import structs

from netagent.agent.dataplane.sync import UNREADY_AFTER
from netagent.kernel.nft import LibNftables
from netagent.ports import CounterValue, NftError, SmallTransaction, TableInventory
from support import faults
from support.cnibed import sh
from support.driftbed import WatchedBed
from support.words import key, pods, policy, put, rule, selector

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not faults.known_here(), reason="numbers of system calls are not known for this machine"),
]

Fault = Callable[[], None]
NEVER_SENT: dict[str, tuple[Fault, int]] = {
    "no memory for a script": (partial(faults.fail, "sendmsg", errno.ENOMEM), errno.ENOMEM),
    "no memory for a batch": (partial(faults.fail, "sendto", errno.ENOMEM), errno.ENOMEM),
    "busy": (partial(faults.fail, "sendmsg", errno.EBUSY), errno.EBUSY),
    "busy with a batch": (partial(faults.fail, "sendto", errno.EBUSY), errno.EBUSY),
    "invalid": (partial(faults.fail, "sendmsg", errno.EINVAL), errno.EINVAL),
    "invalid batch": (partial(faults.fail, "sendto", errno.EINVAL), errno.EINVAL),
    "not permitted": (faults.give_up_net_admin, errno.EPERM),
}
ANSWER_LOST: dict[str, Fault] = {
    "answer to a script": partial(faults.fail, "recvmsg", errno.ENOBUFS),
    "answer to a batch": partial(faults.fail, "recvfrom", errno.ENOBUFS),
}


class Faulty:
    """Our table, by way of a thread in which a system call fails while `broken` is set."""

    def __init__(self, good: LibNftables) -> None:
        self.broken = False
        self.attempts = 0
        self._good = good
        self._bad = LibNftables()

    def break_with(self, fault: Fault) -> None:
        self._bad._thread.submit(fault).result()
        self.broken = True

    def close(self) -> None:
        self._bad.close()

    @property
    def _now(self) -> LibNftables:
        self.attempts += self.broken
        return self._bad if self.broken else self._good

    async def run(self, commands: str) -> None:
        await self._now.run(commands)

    async def run_small(self, transaction: SmallTransaction) -> None:
        nft = self._now
        if nft is self._good:
            await nft.run_small(transaction)
        else:
            await nft._call(nft._batches.commit, transaction)

    async def inventory(self) -> TableInventory:
        return await self._now.inventory()

    async def counters(self) -> dict[str, CounterValue]:
        return await self._now.counters()

    async def text(self) -> str:
        return await self._now.text()


class Town(WatchedBed):
    """x/server takes x/near only."""

    nft_of_agent: Faulty


@pytest_asyncio.fixture
async def town() -> AsyncIterator[Town]:
    async with Town() as bed:
        await bed.pod("x/server", app="server")
        await bed.pod("x/near", remote=True, app="near")
        await bed.pod("x/far", remote=True, app="far")
        await bed.put(policy("x/p", selector(app="server"), ingress=[rule([pods(app="near")])]))
        await bed.stop()
        bed.nft_of_agent = Faulty(bed.nft)
        await bed.start(bed.nft_of_agent)
        yield bed
        bed.nft_of_agent.broken = False
        bed.nft_of_agent.close()


def change_elements(town: Town) -> None:
    """far becomes one of near's kind: an element comes."""
    record = town.record("x/far")
    town.cluster.pods[record.key] = new = structs.replace(record, labels={"app": "near"})
    town.dataplane.apply(put(new))


def change_rules(town: Town) -> None:
    """A second policy: another chain."""
    more = policy("x/q", selector(app="server"), ingress=[rule([pods(app="far")])])
    town.cluster.policies[key("x/q")] = more
    town.dataplane.apply(put(more))


CHANGES = {"elements": change_elements, "rules": change_rules}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cause", NEVER_SENT)
async def test_what_the_kernel_does_not_take_changes_nothing_and_is_tried_again(
    town: Town, cause: str, change: str
) -> None:
    fault, code = NEVER_SENT[cause]
    await town.expect(allowed=["x/near -> x/server 80/TCP"], denied=["x/far -> x/server 80/TCP"])
    before = await town.ruleset()
    tried = len(town.dataplane.transactions)
    town.nft_of_agent.break_with(fault)
    # Either change could go by the way that is not broken: a whole replacement takes both.
    town.dataplane.distrust("test")
    CHANGES[change](town)
    await town.until("it is not ready", lambda: not town.dataplane.ready, 30)
    assert os.strerror(code) in town.dataplane.problem
    assert town.dataplane._failures >= UNREADY_AFTER
    assert town.nft_of_agent.attempts <= 2 * town.dataplane._failures + 2
    assert all(one.error for one in town.dataplane.transactions[tried:])
    assert await town.ruleset() == before
    town.nft_of_agent.broken = False
    await town.settled()
    assert town.dataplane.ready
    assert town.dataplane.problem == ""
    await town.expect(allowed=["x/near -> x/server 80/TCP", "x/far -> x/server 80/TCP"])
    await as_new(town)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cause", [cause for cause in NEVER_SENT if "batch" in cause or cause == "not permitted"])
async def test_a_batch_that_cannot_be_sent_changes_nothing(town: Town, cause: str, change: str) -> None:
    """The fast way itself: no whole replacement comes before."""
    fault, code = NEVER_SENT[cause]
    before = await town.ruleset()
    tried = len(town.dataplane.transactions)
    town.nft_of_agent.break_with(fault)
    CHANGES[change](town)
    await town.until("an attempt failed", lambda: len(town.dataplane.transactions) > tried, 30)
    first = town.dataplane.transactions[tried]
    assert first.elements_only is (change == "elements")
    assert not first.whole
    assert os.strerror(code) in first.error
    assert await town.ruleset() == before
    town.nft_of_agent.broken = False
    await town.settled()
    await town.expect(allowed=["x/near -> x/server 80/TCP", "x/far -> x/server 80/TCP"])
    await as_new(town)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cause", ANSWER_LOST)
async def test_after_a_lost_answer_the_table_is_old_or_new_and_then_whole(town: Town, cause: str, change: str) -> None:
    town.nft_of_agent.break_with(ANSWER_LOST[cause])
    CHANGES[change](town)
    await asyncio.sleep(0.3)
    town.nft_of_agent.broken = False
    await town.settled()
    await town.expect(allowed=["x/near -> x/server 80/TCP", "x/far -> x/server 80/TCP"])
    await as_new(town)


@pytest.mark.parametrize(
    "rules",
    [
        "add rule inet netagent foreign jump {chain}",
        "add rule inet netagent foreign ip saddr @{peers} accept",
        'add rule inet netagent foreign counter name "{counter}"',
    ],
)
async def test_what_somebody_else_holds_on_to_is_busy_and_goes_all_the_same(town: Town, rules: str) -> None:
    """The kernel refuses to delete what a foreign rule in our table names; the replacement takes that rule along."""
    text = await town.nft.text()
    names = {
        "chain": next(word for word in text.split() if word.startswith("in_")),
        "peers": next(word for word in text.split() if word.startswith("p4_")),
        "counter": next(word.strip('"') for word in text.split() if word.strip('"').startswith("k_")),
    }
    await town.meddle("add chain inet netagent foreign", rules.format(**names))
    tried = len(town.dataplane.transactions)
    await town.remove(town.cluster.policies[key("x/p")])
    made = town.dataplane.transactions[tried:]
    assert "busy" in made[0].error
    assert made[-1].whole
    assert made[-1].error == ""
    assert "foreign" not in await town.nft.text()
    await town.expect(allowed=["x/near -> x/server 80/TCP", "x/far -> x/server 80/TCP"])
    await as_new(town)


async def test_a_thread_without_rights_says_so() -> None:
    """Each way for itself, with the error's name."""
    nft = LibNftables()
    nft._thread.submit(faults.give_up_net_admin).result()
    try:
        with pytest.raises(NftError, match="not permitted"):
            await nft.run("add table inet netagent\n")
        with pytest.raises(NftError, match="not permitted"):
            await nft.text()
    finally:
        nft.close()
    assert b"netagent" not in sh("nft", "list", "tables")


async def as_new(town: Town) -> None:
    """The table is what a whole replacement makes of it."""
    found = await town.ruleset()
    town.dataplane.distrust("comparison")
    await town.settled()
    assert await town.ruleset() == found
