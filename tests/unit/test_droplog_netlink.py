"""Netlink messages in bytes, also those that nobody should send."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.kernel.nflog import PACKET, LoggedPacket, PacketStream
from netagent.kernel.nfnetlink import MalformedError, attribute, attributes, message, messages, number, text
from netagent.kernel.nfwatch import NEWGEN, Notifications, TableChange

NEWTABLE = 10 << 8


def _stamped(raw: bytes, portid: int) -> bytes:
    return raw[:12] + struct.pack("=I", portid) + raw[16:]


def _touch(table: str, portid: int, family: int = 1) -> bytes:
    return _stamped(message(NEWTABLE, 0, 1, family=family, body=attribute(1, table.encode() + b"\0")), portid)


def _generation(portid: int, pid: int = 77, name: bytes = b"nft\0") -> bytes:
    body = attribute(1, struct.pack("!I", 9)) + attribute(2, struct.pack("!I", pid)) + attribute(3, name)
    return _stamped(message(NEWGEN, 0, 1, family=0, body=body), portid)


@pytest.fixture
def watch() -> Notifications:
    return Notifications("netagent", lambda portid: portid == 5)


def test_attributes_round() -> None:
    body = attribute(1, b"ab\0") + attribute(2, struct.pack("!I", 7)) + attribute(3, b"")
    found = attributes(body)
    assert (text(found, 1), number(found, 2), found[3], number(found, 9), text(found, 9)) == ("ab", 7, b"", None, "")


@pytest.mark.parametrize(
    "body", [b"\x01", b"\x03\0\x01\0", b"\xff\0\x01\0abcd", attribute(1, b"") * 2, b"\0\0\0\0"], ids=repr
)
def test_attributes_that_do_not_add_up(body: bytes) -> None:
    with pytest.raises(MalformedError):
        attributes(body)


def test_numbers_have_their_length() -> None:
    with pytest.raises(MalformedError, match="3 bytes, 4 expected"):
        number({1: b"abc"}, 1)


def test_text_is_printable() -> None:
    assert text({1: b"a\nb\x1b[0m\xff\0junk"}, 1) == "a?b?[0m?"


@pytest.mark.parametrize("raw", [b"\0" * 15, b"\0" * 16, struct.pack("=IHHII", 99, 0, 0, 0, 0)])
def test_messages_that_do_not_add_up(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        list(messages(raw))


def test_foreign_commit(watch: Notifications) -> None:
    assert watch.read(_touch("netagent", 8)) is None
    assert watch.read(_generation(8)) == TableChange(9, 77, "nft")
    assert watch.read(_generation(8)) is None, "said once"


def test_commits_that_are_not_drift(watch: Notifications) -> None:
    for touch in (_touch("netagent", 5), _touch("netagent2", 8), _touch("netagent", 8, family=2), _touch("kube", 8)):
        assert watch.read(touch) is None
        assert watch.read(_generation(8)) is None


def test_commit_between_ours(watch: Notifications) -> None:
    datagram = _touch("netagent", 5) + _generation(5) + _touch("netagent", 8) + _generation(8) + _touch("netagent", 5)
    assert watch.read(datagram) == TableChange(9, 77, "nft")


@given(st.binary(max_size=200))
def test_any_bytes_give_packets_or_are_counted(raw: bytes) -> None:
    made = PacketStream()
    for datagram in (raw, message(PACKET, 0, 1, family=2, body=raw)):
        batch = made.read(datagram)
        assert len(batch.packets) <= len(datagram) // 16 + 1
        assert batch.lost >= 0


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for datagram in (raw, message(NEWTABLE, 0, 1, family=1, body=raw), message(NEWGEN, 0, 1, family=0, body=raw)):
        made = Notifications("netagent", lambda _: False)
        made.read(_touch("netagent", 0))
        try:
            made.read(datagram)
        except MalformedError:
            continue


def _logged(sequence: int) -> bytes:
    body = attribute(10, b"k_x\0") + attribute(9, b"payload") + attribute(12, struct.pack("!I", sequence))
    return message(PACKET, 0, 0, family=2, body=body)


def test_logged_packets_and_gaps() -> None:
    reader = PacketStream()
    batch = reader.read(_logged(0xFFFFFFFE) + _logged(0xFFFFFFFF))
    assert batch.packets[0] == LoggedPacket("k_x", b"payload", 0, 0, 0, 0xFFFFFFFE)
    assert (batch.lost, batch.malformed) == (0, 0)
    assert reader.read(_logged(3)).lost == 3


def test_one_bad_packet_costs_only_itself() -> None:
    reader = PacketStream()
    bad = message(PACKET, 0, 0, family=2, body=attribute(4, b"short"))
    batch = reader.read(_logged(1) + bad + _logged(2) + b"\x01")
    assert [one.sequence for one in batch.packets] == [1, 2]
    assert batch.malformed == 2
