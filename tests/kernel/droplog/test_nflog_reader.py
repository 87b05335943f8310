"""The NFLOG reader on this kernel."""

import asyncio
import socket
import time

import pytest

from netagent.core.droplog import parse
from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.render import replacement
from netagent.core.policy.store import Store
from netagent.kernel.nflog import NflogReader
from netagent.kernel.nft import LibNftables

pytestmark = pytest.mark.kernel

GROUP = 4321
RULES = f"""
add table ip lost
add chain ip lost out {{ type filter hook output priority 0; policy accept; }}
add rule ip lost out udp dport 7777 meta mark set 0x2a log prefix "k_x" group {GROUP} snaplen 64
"""


def _send(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(count):
            out.sendto(bytes(500), ("127.0.0.1", 7777))


async def test_packets_arrive_with_prefix_mark_and_interface() -> None:
    nft = LibNftables()
    await nft.run(RULES)
    try:
        with NflogReader(GROUP) as reader:
            _send(3)
            packets = [*(await asyncio.wait_for(reader.receive(), 10)).packets]
            while len(packets) < 3:
                packets += (await asyncio.wait_for(reader.receive(), 10)).packets
            assert [(one.prefix, one.mark, len(one.payload)) for one in packets] == [("k_x", 0x2A, 64)] * 3
            assert packets[0].out_index == socket.if_nametoindex("lo")
            assert packets[0].in_index == 0
    finally:
        await nft.run("delete table ip lost")
        nft.close()


async def test_what_a_slow_reader_loses_is_counted() -> None:
    nft = LibNftables()
    await nft.run(RULES)
    sent, seen, lost = 40_000, 0, 0
    try:
        with NflogReader(GROUP) as reader:
            await asyncio.to_thread(_send, sent)
            await asyncio.sleep(0.5)
            deadline_s = time.monotonic() + 30
            while seen + lost < sent and time.monotonic() < deadline_s:
                try:
                    batch = await asyncio.wait_for(reader.receive(), 1)
                except TimeoutError:
                    _send(1)  # the gap shows with the next packet
                    sent += 1
                    continue
                seen, lost = seen + len(batch.packets), lost + batch.lost
                assert batch.malformed == 0
        assert lost > 0
        assert seen > 1000
        assert seen + lost == sent
    finally:
        await nft.run("delete table ip lost")
        nft.close()


async def test_vxlan_from_strangers_is_handed_over() -> None:
    ruleset = Compiler(Store(), FrameSettings(vxlan_port=8472, drop_log_group=GROUP), "node-0").ruleset
    nft = LibNftables()
    try:
        await nft.run(replacement(ruleset.whole(), "0x10000", await nft.inventory()))
        with NflogReader(GROUP) as reader:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                out.sendto(bytes(50), ("127.0.0.1", 8472))
            (packet,) = (await asyncio.wait_for(reader.receive(), 10)).packets
        assert packet.prefix == "unknown_vtep"
        assert parse(packet.payload).port == 8472
        assert (await nft.counters())["unknown_vtep"].packets == 1
    finally:
        await nft.run("add table inet netagent\ndelete table inet netagent")
        nft.close()
