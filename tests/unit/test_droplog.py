"""Headers of denied packets, their lines, the rate."""

import ipaddress
import json
import logging
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.core.droplog import Drop, DroppedPacket, NotAPacketError, Party, TokenBucket, as_judged, parse, resolve
from netagent.core.policy.meaning import Direction
from netagent.logs import JsonLines
from netagent.records import Key

PORTS = struct.pack("!HH", 40000, 443)


def _v4(protocol: int, rest: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    start = struct.pack("!BBHHHBBH", 0x40 | words, 0, 20 + len(rest), 0, fragment, 64, protocol, 0)
    return start + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + options + rest


def _v6(next_header: int, rest: bytes) -> bytes:
    ends = ipaddress.IPv6Address("fd00::1").packed + ipaddress.IPv6Address("fd00::2").packed
    return struct.pack("!IHBB", 6 << 28, len(rest), next_header, 64) + ends + rest


@pytest.mark.parametrize(("number", "name"), [(6, "TCP"), (17, "UDP"), (132, "SCTP")])
def test_ports(number: int, name: str) -> None:
    assert parse(_v4(number, PORTS)) == DroppedPacket("10.0.0.1", "10.0.0.2", name, 40000, 443)
    assert parse(_v6(number, PORTS)) == DroppedPacket("fd00::1", "fd00::2", name, 40000, 443)


def test_without_ports() -> None:
    assert parse(_v4(47, b"\0" * 8)) == DroppedPacket("10.0.0.1", "10.0.0.2", "47")
    assert parse(_v4(1, b"\x08\0\0\0")).icmp_type == 8
    assert parse(_v6(58, b"\x80\0\0\0")) == DroppedPacket("fd00::1", "fd00::2", "ICMPv6", icmp_type=128)
    assert parse(_v4(6, b"\x01")).port is None


def test_ipv4_options_and_fragments() -> None:
    assert parse(_v4(6, PORTS, options=b"\x01" * 8)).port == 443
    assert parse(_v4(17, PORTS, fragment=0x2000)).port == 443, "the first fragment has the header"
    assert parse(_v4(17, PORTS, fragment=100)).port is None


def test_ipv6_extension_headers() -> None:
    hop_by_hop = bytes([60, 0]) + b"\0" * 6
    destination = bytes([6, 1]) + b"\0" * 14
    assert parse(_v6(0, hop_by_hop + destination + PORTS)).port == 443
    first = bytes([17, 0]) + struct.pack("!H", 1) + b"\0" * 4
    later = bytes([17, 0]) + struct.pack("!H", 8 << 3) + b"\0" * 4
    assert parse(_v6(44, first + PORTS)).port == 443
    assert parse(_v6(44, later + PORTS)) == DroppedPacket("fd00::1", "fd00::2", "UDP")
    authentication = bytes([6, 4]) + b"\0" * 22
    assert parse(_v6(51, authentication + PORTS)).port == 443
    assert parse(_v6(0, (bytes([0, 0]) + b"\0" * 6) * 20)).protocol == "0", "followed only so far"


@pytest.mark.parametrize("payload", [b"", b"\x45", b"\x45" * 19, b"\x60" * 39, b"\x00" * 60, b"\x41" + b"\0" * 40])
def test_no_packet(payload: bytes) -> None:
    with pytest.raises(NotAPacketError):
        parse(payload)


@given(st.one_of(st.binary(max_size=128), st.builds(bytes.__add__, st.sampled_from([b"\x45", b"\x60"]), st.binary())))
def test_any_bytes_give_a_packet_or_the_error(payload: bytes) -> None:
    try:
        packet = parse(payload)
    except NotAPacketError:
        return
    ipaddress.ip_address(packet.source)
    assert packet.port is None or 0 <= packet.port <= 65535


def test_answers_are_turned() -> None:
    forth = DroppedPacket("10.0.0.1", "10.0.0.2", "TCP", 40000, 443)
    back = DroppedPacket("10.0.0.2", "10.0.0.1", "TCP", 443, 40000)
    assert as_judged(forth, Direction.INGRESS, {"10.0.0.2"}) == (forth, False)
    assert as_judged(back, Direction.INGRESS, {"10.0.0.2"}) == (forth, True)
    assert as_judged(forth, Direction.EGRESS, {"10.0.0.1"}) == (forth, False)
    assert as_judged(back, Direction.EGRESS, {"10.0.0.1"}) == (forth, True)
    assert as_judged(forth, Direction.INGRESS, {"10.0.0.1", "10.0.0.2"}) == (forth, False)
    assert as_judged(forth, Direction.INGRESS, set()) == (forth, False)


def test_parties() -> None:
    owners = {"10.0.0.1": Key("x", "a")}
    nodes = {"172.16.0.1": "node-1"}

    def party(ip: str) -> Party:
        return resolve(ip, owners.get, lambda one: nodes.get(one, ""))

    assert str(party("10.0.0.1")) == "pod x/a (10.0.0.1)"
    assert str(party("172.16.0.1")) == "node node-1 (172.16.0.1)"
    assert str(party("192.0.2.1")) == "outside 192.0.2.1"


def _drop(**changes: object) -> Drop:
    fields: dict[str, object] = {
        "at_s": 0.0,
        "reason": "policy",
        "source": Party("192.0.2.1", "outside"),
        "destination": Party("10.0.0.2", "pod", "x/a"),
        "packet": DroppedPacket("192.0.2.1", "10.0.0.2", "TCP", 40000, 443),
        "direction": "ingress",
        "policies": (Key("x", "p"), Key("x", "q")),
    }
    return Drop(**(fields | changes))  # type: ignore[arg-type]


def test_line() -> None:
    assert _drop(left_out=7).text == (
        "ingress denied: outside 192.0.2.1 to pod x/a (10.0.0.2), TCP port 443; isolated by x/p, x/q; "
        "7 more left out before this one"
    )
    assert _drop(answer=True).text.split("; ")[0].endswith("TCP port 443, an answer")
    many = tuple(Key("x", f"p{number}") for number in range(20))
    assert _drop(policies=many).text.endswith("x/p7 and 12 more")
    assert len(_drop(policies=many).fields["policies"]) == 20
    assert "policies that are gone" in _drop(policies=(), direction="").text
    spoofed = _drop(reason="spoofed", direction="", policies=(), interface="nap1 (pod x/b)")
    assert spoofed.text.endswith("not the address of the pod behind nap1 (pod x/b)")


def test_line_as_json() -> None:
    drop = _drop()
    record = logging.LogRecord("netagent.drops", logging.INFO, "", 0, "%s", (drop.text,), None)
    record.__dict__["fields"] = drop.fields | {"message": "not ours to set"}
    line = json.loads(JsonLines().format(record))
    assert (line["policies"], line["port"], line["destination"]) == (["x/p", "x/q"], 443, "x/a")
    assert line["message"] == drop.text
    assert "answer" not in line


def test_token_bucket() -> None:
    bucket = TokenBucket(2.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(0.4), bucket.take(0.6), bucket.take(0.6)] == [False, True, False]
    assert [bucket.take(100.0) for _ in range(3)] == [True, True, False]
    assert bucket.take(50.0) is False, "a clock that goes back gives nothing"
    slow = TokenBucket(0.1)
    assert [slow.take(0.0), slow.take(5.0), slow.take(10.5)] == [True, False, True]


@given(st.lists(st.floats(0, 1), max_size=200), st.floats(0.5, 50))
def test_token_bucket_keeps_its_rate(pauses_s: list[float], rate: float) -> None:
    bucket, now_s, taken = TokenBucket(rate), 0.0, 0
    for pause_s in pauses_s:
        now_s += pause_s
        taken += bucket.take(now_s)
    assert taken <= max(1.0, rate) + now_s * rate + 1e-6
