"""rtnetlink in batches: who is refused, what is read, what is lost."""

import asyncio
import errno

import pytest

from netagent.core.network.podnet import NeighbourKey, Step, Verb
from netagent.kernel import links
from netagent.kernel.entries import Devices
from netagent.kernel.podnet import RTNLGRP_IPV4_IFADDR
from netagent.kernel.rtnetlink import Monitor, Request, Rtnetlink, RtnetlinkError

pytestmark = pytest.mark.kernel


async def test_refusals_name_their_request_across_chunks() -> None:
    want = [links.delete_link(f"absent{number}") for number in range(1001)]
    with Rtnetlink() as netlink:
        index = next(link.index for link in await links.list_links(netlink) if link.name == "lo")
        for good in (0, 399, 400, 1000):
            want[good] = links.add_address(4, index, f"10.1.{good >> 8}.{good & 255}")
        refusals = await netlink.batch(want)
        assert {number for number in range(1001) if number not in refusals} == {0, 399, 400, 1000}
        assert {refusal.errno for refusal in refusals.values()} == {errno.ENODEV}
        found = {address.address for address in await links.list_addresses(netlink)}
        assert {"10.1.0.0", "10.1.1.143", "10.1.1.144", "10.1.3.232"} <= found
        assert not await netlink.batch(
            [links.delete_address(4, index, address) for address in found if address.startswith("10.1.")]
        )


async def test_empty_batch_and_the_kernels_own_words() -> None:
    with Rtnetlink() as netlink:
        assert await netlink.batch([]) == {}
        refusals = await netlink.batch([links.delete_link("lo"), links.delete_link("x" * 20)])
    assert refusals[0].errno == errno.EOPNOTSUPP
    assert "IFNAME" in refusals[1].reason or refusals[1].errno == errno.ERANGE


async def test_refused_dump_is_an_error() -> None:
    with Rtnetlink() as netlink:
        with pytest.raises(RtnetlinkError) as caught:
            await netlink.dump(links.RTM_GETLINK, b"\xff" * 16)
        assert caught.value.errno == errno.EINVAL
        assert await links.list_links(netlink)


async def test_abandoned_request_does_not_confuse_the_next() -> None:
    with Rtnetlink() as netlink:
        task = asyncio.create_task(netlink.batch([links.delete_link("absent")] * 5000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert "lo" in {link.name for link in await links.list_links(netlink)}
        assert await links.find_link(netlink, "absent") is None


async def test_lost_notifications_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netagent.kernel.rtnetlink.RECEIVE_BUFFER_BYTES", 4096)
    woken = asyncio.Event()
    with Monitor([RTNLGRP_IPV4_IFADDR], woken.set) as monitor:
        monkeypatch.undo()
        with Rtnetlink() as netlink:
            index = next(link.index for link in await links.list_links(netlink) if link.name == "lo")
            addresses = [f"10.2.0.{number}" for number in range(200)]
            requests: list[Request] = [links.add_address(4, index, address) for address in addresses]
            assert not await netlink.batch(requests)
            await asyncio.wait_for(woken.wait(), 10)
            assert monitor.take()[1]
            assert not await netlink.batch([links.delete_address(4, index, address) for address in addresses])
            monitor.take()
            assert monitor.take() == ([], False)


def test_steps_on_a_device_that_is_gone_make_no_requests() -> None:
    step = Step(Verb.ADD, NeighbourKey(4, "netagent.1", "10.244.2.0"), "02:00:00:00:00:02")
    assert list(Devices().requests(step)) == []
