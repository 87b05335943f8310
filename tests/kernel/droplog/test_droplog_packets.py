"""Denied packets and the lines they become."""

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from netagent.agent.dataplane.droplog import DropLog
from netagent.config import PolicyConfig
from support.dropbed import GROUP, LoggedBed
from support.flows import udp_back
from support.places import Place
from support.podbed import Bed
from support.words import policy, selector

pytestmark = pytest.mark.kernel


def _bound_groups() -> list[str]:
    return [line.split()[0] for line in Path("/proc/self/net/netfilter/nfnetlink_log").read_text().splitlines()]


def _datagrams(place: Place, ip: str, port: int, count: int) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for _ in range(count):
                out.sendto(b"x", (ip, port))

    place.inside(send)


async def test_who_wanted_what_of_whom(bed: LoggedBed) -> None:
    bed.outside("192.0.2.10", "2001:db8::10")
    await bed.expect(denied=["192.0.2.10 -> x/a 80/TCP"])
    line = await bed.line(protocol="TCP")
    assert line.pop("source_port") > 0
    line.pop("left_out", None)
    assert line == {
        "reason": "policy",
        "direction": "ingress",
        "source_kind": "outside",
        "source_ip": "192.0.2.10",
        "destination": "x/a",
        "destination_kind": "pod",
        "destination_ip": "10.244.0.10",
        "protocol": "TCP",
        "port": 80,
        "policies": ["x/in"],
    }
    assert (
        "ingress denied: outside 192.0.2.10 to pod x/a (10.244.0.10), TCP port 80; isolated by x/in" in bed.lines.text()
    )


async def test_egress_names_the_senders_policies(bed: LoggedBed) -> None:
    await bed.put(policy("x/nothing", selector(app="c"), types=["Egress"]))
    bed.outside("192.0.2.10")
    await bed.expect(denied=["x/c -> 192.0.2.10 81/UDP"])
    line = await bed.line(protocol="UDP")
    assert (line["direction"], line["source"], line["destination_ip"], line["port"], line["policies"]) == (
        ("egress", "x/c", "192.0.2.10", 81, ["x/nothing", "x/out"])
    )


async def test_ipv6_icmp_sctp(bed: LoggedBed) -> None:
    bed.outside("192.0.2.10", "2001:db8::10")
    await bed.expect(denied=["192.0.2.10 -> x/a ICMP", "192.0.2.10 -> x/a ICMP v6", "192.0.2.10 -> x/a 80/SCTP"])
    assert (await bed.line(protocol="ICMP"))["icmp_type"] == 8
    assert (await bed.line(protocol="ICMPv6"))["source_ip"] == "2001:db8::10"
    assert (await bed.line(protocol="SCTP"))["port"] == 80


async def test_allowed_packets_have_no_line(bed: LoggedBed) -> None:
    await bed.expect(allowed=["x/b -> x/a 80/TCP", "x/c -> x/b 80/UDP"])
    await bed.expect(denied=["x/c -> x/a 80/TCP"])
    await bed.line(source="x/c")
    assert {line["source"] for line in bed.lines.fields()} == {"x/c"}


async def test_answers_of_a_flow_that_lost_its_allow(bed: LoggedBed) -> None:
    flow = bed.flow(udp_back(bed.places["x/b"], bed.places["x/a"], 83))
    await bed.flowing(flow)
    await bed.put(policy("x/in", selector(app="a")))
    line = await bed.line(answer=True)
    assert (line["direction"], line["source"], line["destination"], line["port"], line["policies"]) == (
        ("ingress", "x/b", "x/a", 83, ["x/in"])
    )


async def test_spoofed_names_the_pod_behind_the_link(bed: LoggedBed) -> None:
    place = bed.places["x/b"]
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes([10, 244, 0, 99]), bytes([10, 244, 0, 10])
    )

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
            out.sendto(header + struct.pack("!HHHH", 1000, 53, 8, 0), ("10.244.0.10", 0))

    place.inside(send)
    line = await bed.line(reason="spoofed")
    assert (line["source_ip"], line["port"]) == ("10.244.0.99", 53)
    assert line["interface"] == f"{place.host_ifname} (pod x/b)"
    assert "policies" not in line


async def test_off_by_default() -> None:
    async with Bed() as bed:
        await bed.pod("x/a")
        await bed.put(policy("x/deny"))
        assert " log " not in await bed.nft.text()
        assert _bound_groups() == []


async def test_on_binds_its_group(bed: LoggedBed) -> None:
    assert f"group {GROUP} snaplen 128" in await bed.nft.text()
    assert _bound_groups() == [str(GROUP)]


async def test_taken_group_costs_only_the_lines(bed: LoggedBed) -> None:
    second = DropLog(bed.config, bed.dataplane, bed.metrics)
    task = asyncio.create_task(second.run())
    await bed.until("a problem", lambda: "read by another program" in second.problem)
    assert "policy.drop_log_group" in second.problem
    assert not task.done()
    await bed.expect(denied=["x/c -> x/a 80/TCP"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_rate_is_kept_and_the_rest_is_said() -> None:
    async with LoggedBed(rate=2.0) as bed:
        for name in ("x/a", "x/b"):
            await bed.pod(name, app=name[-1])
        await bed.put(policy("x/deny", selector(app="a")))
        await asyncio.to_thread(_datagrams, bed.places["x/b"], "10.244.0.10", 9999, 60)
        await bed.until("left out", lambda: bed.packets("left_out") + bed.packets("logged") >= 60)
        logged = len(bed.lines.records)
        assert logged < 30
        assert bed.packets("logged") == logged
        await asyncio.sleep(0.6)
        await asyncio.to_thread(_datagrams, bed.places["x/b"], "10.244.0.10", 9999, 1)
        await bed.until("the next line", lambda: len(bed.lines.records) > logged)
        said = sum(line.get("left_out", 0) for line in bed.lines.fields())
        assert said == bed.packets("left_out")
        assert "more left out before this one" in bed.lines.text()


async def test_recent_drops_for_debug(bed: LoggedBed) -> None:
    await asyncio.to_thread(_datagrams, bed.places["x/c"], "10.244.0.10", 9999, 50)
    await bed.line(source="x/c")
    view = bed.drop_log.view()
    assert view["problem"] == ""
    assert view["drops"][0]["source"] == "x/c"
    assert "pod x/c" in view["drops"][0]["text"]


def test_config_default() -> None:
    assert PolicyConfig().drop_log is False
