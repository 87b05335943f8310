"""A generation comes round again: a flow that was silent for a whole cycle is judged all the same."""

import socket
from functools import partial

import pytest

from netagent.config import PolicyConfig
from netagent.kernel import ctmarks
from netagent.kernel.conntrack import flows
from support.podbed import Bed
from support.words import namespace, policy, rule, selector

pytestmark = pytest.mark.kernel

MASK = 0xF0000000
"""Fifteen generations, so that a cycle is short."""


async def test_a_silent_flow_is_judged_after_a_whole_cycle() -> None:
    async with Bed(config=PolicyConfig(mark_mask=MASK)) as bed:
        await bed.put(namespace("x"))
        await bed.pod("x/server", app="server")
        await bed.pod("x/client", app="client")
        client, server = bed.places["x/client"], bed.places["x/server"]
        catcher = server.inside(lambda: _udp(server.ips[0], 5300))
        sender = client.inside(lambda: _udp(client.ips[0], 5301))
        sender.connect((server.ips[0], 5300))
        sender.send(b"allowed")
        assert catcher.recv(16) == b"allowed"
        first = bed.dataplane.generation
        await bed.put(policy("x/deny", selector(app="server"), ingress=[]))
        number = 0
        while bed.dataplane.generation != first:
            number += 1
            await bed.put(policy("x/other", selector(app="client"), ingress=[rule(None, None)] * (number % 2)))
        assert number > 10
        sender.send(b"too late")
        with pytest.raises(TimeoutError):
            catcher.recv(16)
        sender.close()
        catcher.close()


async def test_only_old_stamps_go_and_other_bits_stay() -> None:
    async with Bed(config=PolicyConfig(mark_mask=MASK)) as bed:
        await bed.put(namespace("x"))
        await bed.pod("x/server", app="server")
        await bed.pod("x/client", app="client")
        client, server = bed.places["x/client"], bed.places["x/server"]
        sockets = [client.inside(partial(_udp, client.ips[0], port)) for port in (5401, 5402)]
        for one in sockets:
            one.sendto(b"hello", (server.ips[0], 5400))
        before = {flow.client_port: flow.mark for flow in await flows() if flow.server_port == 5400}
        stamp = before[5401] & MASK
        assert stamp == before[5402] & MASK != 0
        assert await ctmarks.clear_marks(MASK, stamp) == 0
        assert await ctmarks.clear_marks(MASK, 0) >= 2
        after = {flow.client_port: flow.mark for flow in await flows() if flow.server_port == 5400}
        assert after == {port: mark & ~MASK for port, mark in before.items()}
        for one in sockets:
            one.close()


def _udp(ip: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(0.5)
    sock.bind((ip, port))
    return sock
