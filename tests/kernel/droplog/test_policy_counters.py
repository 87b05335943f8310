"""netagent_policy_denied_packets_total against packets."""

import asyncio
import socket

import pytest

from support.dropbed import LoggedBed
from support.words import pods, policy, rule, selector

pytestmark = pytest.mark.kernel


async def _denied_packets(bed: LoggedBed, sender: str, count: int, ip: str = "10.244.0.10") -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for _ in range(count):
                out.sendto(b"x", (ip, 9999))

    await asyncio.to_thread(bed.places[sender].inside, send)


async def _counts(bed: LoggedBed, wanted: dict[str, int], direction: str = "ingress") -> None:
    found: dict[str, float | None] = {}
    for _ in range(500):
        found = {name: await bed.denied(name, direction) for name in wanted}
        if found == wanted:
            return
        await asyncio.sleep(0.01)
    assert found == wanted


async def test_every_isolating_policy_counts(bed: LoggedBed) -> None:
    bed.outside("192.0.2.10")
    await bed.put(policy("x/more", selector(app="a")))
    await _denied_packets(bed, "192.0.2.10", 5)
    await _denied_packets(bed, "x/c", 3)
    await _counts(bed, {"x/in": 5, "x/more": 5})
    await _counts(bed, {"x/out": 3}, "egress")


async def test_counts_survive_changes_of_the_rules(bed: LoggedBed) -> None:
    bed.outside("192.0.2.10")
    await _denied_packets(bed, "192.0.2.10", 5)
    await _counts(bed, {"x/in": 5})
    await bed.put(policy("x/in", selector(app="a"), ingress=[rule([pods(app="nobody")])]))
    await _denied_packets(bed, "192.0.2.10", 2)
    await _counts(bed, {"x/in": 7})
    await bed.put(policy("x/more", selector(app="a")))
    await _denied_packets(bed, "192.0.2.10", 1)
    await _counts(bed, {"x/in": 8, "x/more": 1})
    await bed.remove(bed.cluster.policies[policy("x/more").key])
    await _denied_packets(bed, "192.0.2.10", 1)
    await _counts(bed, {"x/in": 9})


async def test_counts_survive_the_table(bed: LoggedBed) -> None:
    bed.outside("192.0.2.10")
    await _denied_packets(bed, "192.0.2.10", 5)
    await _counts(bed, {"x/in": 5})
    bed.dataplane.distrust("the test says so")
    await bed.settled()
    await _denied_packets(bed, "192.0.2.10", 1)
    await _counts(bed, {"x/in": 6})
    await bed.nft.run("delete table inet netagent")
    bed.dataplane.distrust("the test deleted it")
    await bed.settled()
    await _denied_packets(bed, "192.0.2.10", 2)
    await _counts(bed, {"x/in": 8})


async def test_earlier_packets_do_not_count_twice_after_a_restart(bed: LoggedBed) -> None:
    bed.outside("192.0.2.10")
    await _denied_packets(bed, "192.0.2.10", 5)
    await _counts(bed, {"x/in": 5})
    await bed.stop()
    await bed.start()
    fresh = type(bed.counts)(bed.dataplane, bed.nft, bed.metrics, cap=100)
    await fresh.sample()
    bed.counts = fresh
    await _denied_packets(bed, "192.0.2.10", 2)
    await _counts(bed, {"x/in": 2})
