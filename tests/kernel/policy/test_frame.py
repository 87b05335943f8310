"""The fixed rules: spoofed sources, packets without a flow, and marks that are not ours."""

import asyncio
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from netagent.config import PolicyConfig
from support.flows import Flow, flood, tcp_forth, udp_forth
from support.places import Place
from support.podbed import Bed
from support.probes import checksum
from support.words import block, pods, policy, port, rule, selector

pytestmark = pytest.mark.kernel


def give_address(place: Place, ip: str) -> None:
    """A second address that nobody assigned to the pod."""
    bits = 128 if ":" in ip else 32
    command = ["ip", "address", "add", f"{ip}/{bits}", "dev", "eth0", *(["nodad"] if ":" in ip else [])]
    place.inside(lambda: subprocess.run(command, check=True))


def sends_from(place: Place, source: str, dst: str, receiver: Place, number: int) -> Flow:
    """A flood whose source is `source`."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET

    def make(ip: str, bound: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((ip, bound))
        sock.settimeout(0.05)
        return sock

    sending = place.inside(lambda: make(source, 0))
    receiving = receiver.inside(lambda: make(dst, number))
    return Flow(lambda record: sending.sendto(record, (dst, number)), lambda: receiving.recv(2048), sending, receiving)


@pytest.mark.parametrize("source", ["192.0.2.66", "2001:db8::66", "neighbour", "neighbour6", "node"])
async def test_a_pod_sends_from_its_own_address_only(bed: Bed, source: str) -> None:
    a, b = await bed.pod("x/a"), await bed.pod("x/b")
    outside = bed.outside("192.0.2.10", "2001:db8::10")
    spoofed = {"neighbour": b.ip(), "neighbour6": b.ip(6), "node": "172.30.0.11"}.get(source, source)
    version = 6 if ":" in spoofed else 4
    give_address(a, spoofed)
    honest = bed.flow(sends_from(a, a.ip(version), outside.ip(version), outside, 7001))
    await bed.flowing(honest)
    before = (await bed.nft.counters())["spoofed"].packets
    lying = bed.flow(sends_from(a, spoofed, outside.ip(version), outside, 7002))
    await bed.until("packets were tried", lambda: lying.sent > 50)
    assert lying.received == 0
    assert (await bed.nft.counters())["spoofed"].packets - before >= 50
    assert honest.finish() == 0


def tcp_segment(src: str, dst: str, dport: int, flags: int) -> bytes:
    header = struct.pack("!HHIIBBHHH", 40000, dport, 1, 1, 5 << 4, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(header))
    return header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]


async def hears(place: Place, send_from: Place, segment: bytes) -> bool:
    """Whether a raw TCP segment arrives; it is sent several times."""
    make = lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)  # noqa: E731
    with place.inside(make) as ear, send_from.inside(make) as mouth:
        ear.setblocking(False)
        for _ in range(5):
            mouth.sendto(segment, (place.ip(), 0))
            await asyncio.sleep(0.05)
            try:
                while True:
                    packet = ear.recv(2048)
                    if packet[20:24] == segment[:4]:
                        return True
            except BlockingIOError:
                continue
    return False


async def test_invalid_packets_reach_no_isolated_pod(bed: Bed) -> None:
    isolated, free = await bed.pod("x/a", app="a"), await bed.pod("x/b")
    outside = bed.outside("192.0.2.10")
    await bed.put(policy("x/p", selector(app="a"), ingress=[rule([block("192.0.2.10/32")], [port(80)])]))
    await bed.expect(allowed=["192.0.2.10 -> x/a 80/TCP"])
    for flags in (0, 0x03, 0x29):  # no conntrack entry takes these
        assert not await hears(isolated, outside, tcp_segment("192.0.2.10", isolated.ip(), 80, flags))
        assert await hears(free, outside, tcp_segment("192.0.2.10", free.ip(), 80, flags))


async def test_untracked_packets_reach_no_isolated_pod(bed: Bed) -> None:
    await bed.nft.run(
        "add table inet untracking\n"
        "add chain inet untracking prerouting { type filter hook prerouting priority raw - 10; }\n"
        "add rule inet untracking prerouting udp dport { 7001, 7002 } notrack\n"
    )
    try:
        isolated, free = await bed.pod("x/a", app="a"), await bed.pod("x/b")
        outside = bed.outside("192.0.2.10")
        await bed.put(policy("x/p", selector(app="a"), ingress=[rule([block("192.0.2.10/32")], [port(7001, "UDP")])]))
        closed = bed.flow(flood(outside, isolated.ip(), isolated, 7001))
        passing = bed.flow(flood(outside, free.ip(), free, 7002))
        await bed.flowing(passing)
        await bed.until("packets were tried", lambda: closed.sent > 50)
        assert closed.received == 0
        await bed.put(policy("x/p", selector(app="a"), ingress=[rule()]))
        await bed.flowing(closed)
    finally:
        await bed.nft.run("delete table inet untracking\n")


@pytest.mark.parametrize("version", [4, 6])
async def test_untracked_packets_are_judged_at_both_ends(bed: Bed, version: int) -> None:
    """A client whose class admits everything does not open the server's."""
    await bed.nft.run(
        "add table inet untracking\n"
        "add chain inet untracking prerouting { type filter hook prerouting priority raw - 10; }\n"
        "add rule inet untracking prerouting udp dport { 7001, 7002 } notrack\n"
    )
    try:
        client, closed, free = await bed.pod("x/a", app="a"), await bed.pod("x/b", app="b"), await bed.pod("x/c")
        out = policy("x/out", selector(app="a"), egress=[rule()])
        door = [rule([pods(app="a")], [port(7001, "UDP")])]
        await bed.put(out, policy("x/in", selector(app="b"), ingress=door))
        tried = bed.flow(flood(client, closed.ip(version), closed, 7001))
        await bed.flowing(bed.flow(flood(client, free.ip(version), free, 7002)))
        await bed.until("packets were tried", lambda: tried.sent > 50)
        assert tried.received == 0
        await bed.put(policy("x/in", selector(app="b"), ingress=[rule()]))
        await bed.flowing(tried)
        moment_ns = await bed.put(policy("x/out", selector(app="a"), egress=door))
        sent = tried.sent
        await bed.until("packets were tried", lambda: tried.sent > sent + 50)
        assert tried.sent_after_and_received(moment_ns) == 0
    finally:
        await bed.nft.run("delete table inet untracking\n")


def marks(*words: str) -> set[int]:
    """Conntrack marks of the flows whose line holds all the words."""
    found = set()
    for line in Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines():
        if all(f" {word} " in line for word in words):
            found.add(int(line.split(" mark=")[1].split()[0]))
    return found


async def test_other_bits_of_the_mark_and_other_traffic_are_left_alone(bed: Bed) -> None:
    await bed.nft.run(
        "add table inet marking\nadd chain inet marking prerouting { type filter hook prerouting priority mangle; }\n"
        "add rule inet marking prerouting udp dport 7101-7102 ct mark 0 ct mark set 0x0000abcd\n"
        "add rule inet marking prerouting udp dport 7109 ct mark 0 ct mark set 0x7fffabcd\n"
    )
    try:
        pod, client = await bed.pod("x/a"), await bed.pod("x/b")
        near, far = bed.outside("192.0.2.10"), bed.outside("192.0.2.20")
        flows = [bed.flow(udp_forth(client, pod, 7101)), bed.flow(udp_forth(near, far, 7102))]
        flows.append(bed.flow(udp_forth(near, far, 7109)))
        await bed.flowing(*flows)
        generation = bed.dataplane.generation
        assert generation is not None
        assert marks("dport=7101") == {generation << 16 | 0xABCD}
        assert marks("dport=7102") == {0xABCD}
        await bed.put(policy("x/deny", ingress=[]))
        await bed.put(policy("x/deny", ingress=[rule()]))
        await bed.flowing(*flows)
        assert bed.dataplane.generation != generation
        assert marks("dport=7101") == {(bed.dataplane.generation or 0) << 16 | 0xABCD}
        assert marks("dport=7102") == {0xABCD}
        assert marks("dport=7109") == {0x7FFFABCD}
    finally:
        await bed.nft.run("delete table inet marking\n")


async def test_a_denied_flow_stays_denied_when_its_generation_returns() -> None:
    """With four bits every 16th revocation uses a mark again that flows of long ago may carry."""
    async with Bed(config=PolicyConfig(mark_mask=0xF0000000)) as bed:
        server, client = await bed.pod("x/server", app="server"), await bed.pod("x/client", app="client")
        await bed.pod("x/bystander", app="bystander")
        flows = [bed.flow(udp_forth(client, server, 9001)), bed.flow(tcp_forth(client, server, 9002))]
        await bed.flowing(*flows)
        moment_ns = await bed.put(policy("x/deny", selector(app="server"), ingress=[]))
        seen = set()
        for number in range(34):
            await bed.until("packets were tried", lambda sent=flows[0].sent: flows[0].sent > sent + 5)
            await bed.put(policy("x/churn", selector(app="bystander"), ingress=[rule([pods(app=f"r{number % 2}")])]))
            seen.add(bed.dataplane.generation)
        assert seen == set(range(1, 16))
        assert [flow.sent_after_and_received(moment_ns) for flow in flows] == [0, 0]
