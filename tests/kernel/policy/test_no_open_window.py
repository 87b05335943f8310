"""A pod meets its policy with its first packet, and nobody reaches it before."""

import asyncio

import pytest

from netagent.agent.dataplane.admission import NotAdmittedError
from netagent.kernel.nft import LibNftables
from netagent.ports import CounterValue, NftError, SmallTransaction, TableInventory
from netagent.records import Key, Pod
from support import words
from support.flows import flood
from support.places import Place, new_place
from support.podbed import Bed
from support.words import block, policy, rule

pytestmark = pytest.mark.kernel


class Slow:
    """The real thing, later, or never."""

    def __init__(self, real: LibNftables) -> None:
        self._real = real
        self.open = asyncio.Event()
        self.open.set()
        self.refusing = False
        self.waiting = 0

    async def run(self, commands: str) -> None:
        self.waiting += 1
        await self.open.wait()
        await self._real.run(commands + ("add rule inet netagent nowhere accept\n" if self.refusing else ""))

    async def run_small(self, transaction: SmallTransaction) -> None:
        self.waiting += 1
        await self.open.wait()
        if self.refusing:
            raise NftError("the test refuses")
        await self._real.run_small(transaction)

    async def inventory(self) -> TableInventory:
        return await self._real.inventory()

    async def counters(self) -> dict[str, CounterValue]:
        return await self._real.counters()

    async def text(self) -> str:
        return await self._real.text()


def unwired(bed: Bed, name: str, ip: str, **labels: str) -> tuple[Place, Pod]:
    """A pod that the API shows, with a namespace of its own and no link yet."""
    place = new_place(name, (ip,), "nap")
    bed.places[name] = place
    record = words.pod(name, ip, labels=labels)
    bed.cluster.pods[record.key] = record
    bed.dataplane.apply(words.put(record))
    return place, record


async def test_admit_returns_after_the_commit(bed: Bed) -> None:
    await bed.stop()
    slow = Slow(bed.nft)
    await bed.start(slow)
    await bed.put(words.namespace("x"), policy("x/deny", types=["Ingress", "Egress"]))
    place, record = unwired(bed, "x/a", "10.244.0.9")
    slow.open.clear()
    before = slow.waiting
    admission = asyncio.create_task(bed.dataplane.admit(place.endpoint(record.key, record.uid)))
    await bed.until("the commit is under way", lambda: slow.waiting > before)
    assert not admission.done()
    assert "10.244.0.9 : goto" not in await bed.nft.text()
    slow.open.set()
    await admission
    assert "10.244.0.9 : goto in_" in await bed.nft.text()


async def test_a_refused_commit_admits_nobody(bed: Bed) -> None:
    await bed.stop()
    slow = Slow(bed.nft)
    await bed.start(slow)
    bed.dataplane._admit_timeout_s = 0.5
    place, record = unwired(bed, "x/a", "10.244.0.9")
    slow.refusing = True
    with pytest.raises(NotAdmittedError, match="x/a"):
        await bed.dataplane.admit(place.endpoint(record.key, record.uid))
    slow.refusing = False
    await bed.settled()
    assert "10.244.0.9" not in await bed.nft.text()
    await bed.dataplane.admit(place.endpoint(record.key, record.uid))
    with pytest.raises(NftError):
        await bed.nft.run("add rule inet netagent nowhere accept\n")


async def test_a_pod_waits_until_the_api_shows_it(bed: Bed) -> None:
    await bed.put(words.namespace("x"), policy("x/deny", types=["Ingress", "Egress"]))
    place = new_place("x/a", ("10.244.0.9",), "nap")
    bed.places["x/a"] = place
    admission = asyncio.create_task(bed.dataplane.admit(place.endpoint(Key("x", "a"), "second")))
    await bed.put(words.pod("x/a", "10.244.0.8", uid="first"))
    await asyncio.sleep(0.05)
    assert not admission.done()
    await bed.put(words.pod("x/a", uid="second"))
    await admission
    assert "10.244.0.9 : goto in_" in await bed.nft.text()


async def test_no_packet_passes_from_before_the_link_exists(bed: Bed) -> None:
    outside = bed.outside("192.0.2.10", "2001:db8::10")
    await bed.put(words.namespace("x"), policy("x/deny", types=["Ingress", "Egress"]))
    for number in range(20, 25):
        place, record = unwired(bed, f"x/p{number}", f"10.244.0.{number}")
        inward = bed.flow(flood(outside, place.ip(), place, 7000))
        outward = bed.flow(flood(place, "192.0.2.10", outside, 7000 + number))
        await bed.until("the floods run", lambda inward=inward: inward.sent > 5)
        await bed.dataplane.admit(place.endpoint(record.key, record.uid))
        await asyncio.to_thread(place.wire)
        tried = outward.sent
        await bed.until("packets were tried", lambda outward=outward, tried=tried: outward.sent > tried + 50)
        assert (inward.received, outward.received) == (0, 0)
    await bed.put(policy("x/open", ingress=[rule([block("192.0.2.10/32")])], types=["Ingress"]))
    await bed.flowing(inward)
    assert outward.received == 0


async def test_a_link_that_was_never_admitted_sends_nothing(bed: Bed) -> None:
    outside = bed.outside("192.0.2.10")
    place, record = unwired(bed, "x/a", "10.244.0.9")
    await asyncio.to_thread(place.wire)
    outward = bed.flow(flood(place, "192.0.2.10", outside, 7000))
    await bed.until("packets were tried", lambda: outward.sent > 50)
    assert outward.received == 0
    assert (await bed.nft.counters())["spoofed"].packets > 0
    await bed.dataplane.admit(place.endpoint(record.key, record.uid))
    await bed.flowing(outward)


async def test_a_sandbox_without_an_api_object_is_closed(bed: Bed) -> None:
    """As after a restart of the agent, when the pod was deleted while it was away."""
    await bed.pod("x/a")
    await bed.pod("x/b")
    bed.outside("192.0.2.10", "2001:db8::10")
    await bed.expect(allowed=["x/b -> x/a 80/TCP", "192.0.2.10 -> x/a 80/TCP"])
    lost = bed.places["x/a"].endpoint(Key("x", "a"), "uid-x/a")
    await bed.stop()
    del bed.cluster.pods[Key("x", "a")]
    await bed.start()
    bed.dataplane.restore((lost,))
    await bed.settled()
    await bed.expect(
        allowed=["node -> x/a 80/TCP", "x/b -> 192.0.2.10 80/TCP"],
        denied=["x/b -> x/a 80/TCP", "192.0.2.10 -> x/a ICMP", "x/a -> 192.0.2.10 80/UDP", "x/a -> x/b 80/TCP v6"],
    )
    await bed.put(words.pod("x/a", *bed.places["x/a"].ips))
    await bed.expect(allowed=["x/b -> x/a 80/TCP", "x/a -> 192.0.2.10 80/UDP"])


async def test_policy_only_mode_follows_the_api() -> None:
    async with Bed(wired_by_cni=False) as bed:
        await bed.pod("x/a")
        await bed.pod("y/b")
        await bed.put(policy("x/deny", ingress=[]))
        await bed.expect(denied=["y/b -> x/a 80/TCP"], allowed=["x/a -> y/b 80/TCP"])
        await bed.remove(*bed.cluster.policies.values())
        await bed.expect(allowed=["y/b -> x/a 80/TCP"])
