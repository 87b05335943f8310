"""Open flows as ctnetlink tells them, from real sockets between two namespaces with a router between them."""

import asyncio
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from netagent.core.questions.simulate import OpenFlow
from netagent.kernel import conntrack
from support.places import Place, new_place, prepare_router

pytestmark = pytest.mark.kernel

SERVICE = "10.77.9.9"
TABLE = """
add table inet tracked
add chain inet tracked f { type filter hook forward priority 0; }
add rule inet tracked f ct mark set 0xabc00000 ct state new,established accept
add chain inet tracked d { type nat hook prerouting priority dstnat; }
add rule inet tracked d ip daddr 10.77.9.9 tcp dport 80 dnat ip to 10.77.2.2:8080
"""


class Routed(NamedTuple):
    """Two places; the namespace of the test forwards between them and tracks."""

    client: Place
    server: Place

    def sockets(self, version: int = 4, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        client, server = (place.inside(lambda: socket.socket(family, kind)) for place in self)
        return client, server


@pytest.fixture
def routed() -> Iterator[Routed]:
    prepare_router(())
    client = new_place("client", ("10.77.1.2", "fd77:1::2"), "ct")
    server = new_place("server", ("10.77.2.2", "fd77:2::2"), "ct")
    for place in (client, server):
        place.wire()
    subprocess.run(["nft", "-f", "-"], input=TABLE, text=True, check=True)
    yield Routed(client, server)
    subprocess.run(["nft", "delete", "table", "inet", "tracked"], check=True)
    for place in (client, server):
        place.close()


def flows_of(client: str) -> list[OpenFlow]:
    return [flow for flow in asyncio.run(conntrack.flows()) if flow.client == client]


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_flow_with_ports_mark_and_state(routed: Routed, version: int) -> None:
    server = routed.server.ip(version)
    one, listener = routed.sockets(version)
    with one, listener:
        listener.bind((server, 8080))
        listener.listen()
        one.settimeout(10)
        one.connect((server, 8080))
        expected = OpenFlow(
            protocol="TCP",
            client=routed.client.ip(version),
            client_port=one.getsockname()[1],
            service=server,
            service_port=8080,
            server=server,
            server_port=8080,
            mark=0xABC00000,
            state="ESTABLISHED",
        )
        found = flows_of(routed.client.ip(version))
        assert [flow for flow in found if flow.client_port == expected.client_port] == [expected]


def test_server_behind_dnat_is_the_one_that_answers(routed: Routed) -> None:
    one, listener = routed.sockets()
    with one, listener:
        listener.bind((routed.server.ip(), 8080))
        listener.listen()
        one.settimeout(10)
        one.connect((SERVICE, 80))
        (found,) = [flow for flow in flows_of(routed.client.ip()) if flow.service == SERVICE]
        assert (found.service_port, found.server, found.server_port) == (80, routed.server.ip(), 8080)


def test_many_udp_flows_come_in_several_messages(routed: Routed) -> None:
    ports = range(20000, 20500)
    one, other = routed.sockets(kind=socket.SOCK_DGRAM)
    with one, other:
        for port in ports:
            one.sendto(b"x", (routed.server.ip(), port))
    found = [flow for flow in flows_of(routed.client.ip()) if flow.protocol == "UDP"]
    assert {flow.server_port for flow in found} == set(ports)


def test_icmp_has_no_ports(routed: Routed) -> None:
    echo = struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 7, 7, 0)
    raw = routed.client.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with raw:
        raw.sendto(echo, (routed.server.ip(), 0))
    found = [flow for flow in flows_of(routed.client.ip()) if flow.protocol == "ICMP"]
    assert [(flow.server, flow.server_port, flow.state) for flow in found] == [(routed.server.ip(), None, "")]
