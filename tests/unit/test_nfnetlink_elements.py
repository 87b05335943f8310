"""Element transactions in bytes, and the kernel's answers to them."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.core.policy.render import FAST_TYPES, SMALL, small
from netagent.core.policy.ruleset import Ruleset, SetDecl
from netagent.kernel.nfbatch import Answer, answers
from netagent.kernel.nfelements import DELSETELEM, ELEMENTS_PER_MESSAGE, KEY_TYPES, NEWSETELEM, key_encoder
from netagent.kernel.nfnetlink import NLM_F_ACK, MalformedError, attribute, attributes, messages
from netagent.kernel.nfparts import BATCH_BEGIN, BATCH_END, batch, verdict
from netagent.kernel.nftransaction import DELRULE, NEWRULE, parts
from netagent.ports import ElementChange, SmallTransaction, StampChange


def transaction(
    type_: str, *, removed: tuple[str, ...] = (), added: dict[str, str] | None = None, stamp: StampChange | None = None
) -> SmallTransaction:
    change = ElementChange(name="s", type=type_, removed=removed, added=added or {})
    return SmallTransaction(changes=(change,), stamp=stamp)


def elements(body: bytes) -> list[bytes]:
    """Contents of the elements of a message."""
    listed, found = attributes(body)[3], []
    while listed:
        (length,) = struct.unpack_from("=H", listed)
        found.append(listed[4:length])
        listed = listed[length:]
    return found


def key_of(element: bytes) -> bytes:
    return attributes(attributes(element)[1])[1]


def test_one_member_byte_by_byte() -> None:
    """As libnftnl writes it."""
    raw = batch(parts("netagent", transaction("ipv4_addr", added={"10.0.0.1": ""})), 7)
    begin, change, end = (raw[:20], raw[20:-20], raw[-20:])
    assert begin == struct.pack("=IHHII", 20, 0x10, 1, 7, 0) + b"\0\0\0\x0a"
    assert end == struct.pack("=IHHII", 20, 0x11, 1, 9, 0) + b"\0\0\0\x0a"
    body = (
        struct.pack("=HH", 13, 1) + b"netagent\0\0\0\0"
        + struct.pack("=HH", 6, 2) + b"s\0\0\0"
        + struct.pack("=HH", 20, 0x8003) + struct.pack("=HH", 16, 0x8001)
        + struct.pack("=HH", 12, 0x8001) + struct.pack("=HH", 8, 1) + bytes((10, 0, 0, 1))
    )  # fmt: skip
    header = struct.pack("=IHHII", 20 + len(body), 0x0A0C, 0x405, 8, 0) + b"\1\0\0\0"
    assert change == header + body


def test_messages_follow_in_order_and_the_last_asks_for_an_answer() -> None:
    stamp = StampChange(0xFFFF0000, 0x00070000)
    some = parts("netagent", transaction("ipv4_addr", removed=("10.0.0.1",), added={"10.0.0.2": ""}, stamp=stamp))
    found = list(messages(batch(some, 100)))
    kinds = [BATCH_BEGIN, DELSETELEM, NEWSETELEM, DELRULE, NEWRULE, DELSETELEM, NEWSETELEM, BATCH_END]
    assert [one.type for one in found] == kinds
    assert [one.sequence for one in found] == list(range(100, 108))
    assert [one.sequence for one in found if one.flags & NLM_F_ACK] == [106]


@pytest.mark.parametrize(
    ("type_", "element", "key"),
    [
        ("ipv4_addr", "10.1.2.3", b"\x0a\1\2\3"),
        ("ipv6_addr", "fd00::1", b"\xfd" + bytes(14) + b"\1"),
        ("inet_service", "80", b"\0\x50"),
        ("ifname", '"nap0"', b"nap0" + bytes(12)),
        ("ipv4_addr . ipv4_addr", "10.0.0.1 . 10.0.0.2", b"\x0a\0\0\1\x0a\0\0\2"),
        ("ipv4_addr . inet_service", "10.0.0.1 . 443", b"\x0a\0\0\1\1\xbb\0\0"),
        ("ifname . ipv6_addr", '"nap123456789abc" . ::1', b"nap123456789abc\0" + bytes(15) + b"\1"),
    ],
)
def test_keys(type_: str, element: str, key: bytes) -> None:
    assert key_encoder(type_)(element) == key
    (part,) = parts("t", transaction(type_, added={element: ""}))
    (encoded,) = elements(part.body)
    assert key_of(encoded) == key
    assert len(part.body) % 4 == 0


def test_every_type_that_needs_no_script_can_be_encoded() -> None:
    assert KEY_TYPES.keys() == FAST_TYPES


@pytest.mark.parametrize(
    ("words", "code", "chain"),
    [("drop", 0, None), ("accept", 1, None), ("jump c", -3, b"c\0"), ("goto c_d", -4, b"c_d\0")],
)
def test_verdicts(words: str, code: int, chain: bytes | None) -> None:
    found = attributes(verdict(words))
    assert (struct.unpack("!i", found[1])[0], found.get(2)) == (code, chain)
    (part,) = parts("t", transaction("ipv4_addr : verdict", added={"10.0.0.1": words}))
    (encoded,) = elements(part.body)
    assert attributes(attributes(encoded)[2])[2] == verdict(words)


@pytest.mark.parametrize(
    ("type_", "element", "value"),
    [
        ("ipv4_addr", "10.0.0", ""),
        ("ipv4_addr", "fd00::1", ""),
        ("ipv4_addr", "10.0.0.0/8", ""),
        ("ipv6_addr", "10.0.0.1", ""),
        ("inet_service", "65536", ""),
        ("inet_service", "http", ""),
        ("ifname", '"nap*"', ""),
        ("ifname", '"a-name-with-16-ch"', ""),
        ("ifname", '""', ""),
        ("ipv4_addr . inet_service", "10.0.0.1", ""),
        ("ipv4_addr . inet_service", "10.0.0.1 . 80 . 80", ""),
    ],
)
def test_an_element_that_does_not_fit_the_type_is_named(type_: str, element: str, value: str) -> None:
    for wrong in (transaction(type_, added={element: value}), transaction(type_, removed=(element,))):
        with pytest.raises(ValueError, match="of s") as caught:
            parts("t", wrong)
        assert element in str(caught.value)


@pytest.mark.parametrize("words", ["jump", "reject", "", "drop it"])
def test_a_verdict_that_is_none(words: str) -> None:
    with pytest.raises(ValueError, match="verdict"):
        verdict(words)


def test_long_lists_are_cut_where_an_attribute_ends() -> None:
    many = {
        f"fd00::{number:x} . fd00::{number:x}": f"goto {'c' * 100}" for number in range(2 * ELEMENTS_PER_MESSAGE + 1)
    }
    made = parts("netagent", transaction("ipv6_addr . ipv6_addr : verdict", added=many))
    assert [len(one.elements) for one in made] == [ELEMENTS_PER_MESSAGE, ELEMENTS_PER_MESSAGE, 1]
    keys = [key_of(element) for one in made for element in elements(one.body)]
    assert [int.from_bytes(key[-2:], "big") for key in keys] == list(range(len(many)))
    assert len(list(messages(batch(made, 1)))) == 5


def test_an_error_finds_its_element_by_the_place_in_the_message() -> None:
    (part,) = parts("netagent", transaction("ipv4_addr", removed=tuple(f"10.0.0.{number}" for number in range(9))))
    raw = batch([part], 1)[20:-20]
    for index in range(9):
        offset = raw.index(bytes((10, 0, 0, index))) - 12
        assert part.named(offset) == f"removing from s 10.0.0.{index}"
    assert part.named(None) == part.named(3) == "removing from s"


@given(st.sampled_from([0xFFFF0000, 0x0000FF00, 0x80000000, 0x00000003]), st.integers(min_value=1))
def test_the_stamp_keeps_the_bits_of_others(mask: int, some: int) -> None:
    mark = some & mask
    *_, rule = parts("t", SmallTransaction(changes=(), stamp=StampChange(mask, mark)))
    masked, flipped = (
        struct.unpack("=I", rule.body[at : at + 4])[0]
        for at in (rule.body.index(b"bitwise") + 44, rule.body.index(b"bitwise") + 56)
    )
    for before in (0, 0xFFFFFFFF, 0x12345678, mask):
        assert (before & ~mask & 0xFFFFFFFF & masked) ^ flipped == (before & ~mask & 0xFFFFFFFF) | mark
        assert ((before & masked) ^ flipped) & ~mask == before & ~mask
        assert ((before & masked) ^ flipped) & mask == mark


# What goes this way


def alone(decl: SetDecl, count: int = 1) -> SmallTransaction | None:
    ruleset = Ruleset()
    ruleset.declare("s", decl)
    ruleset.take()
    for number in range(count):
        ruleset.put("s", f"e{number}", "drop" if decl.is_map else "")
    return small(ruleset.take(), None)


def test_only_a_few_elements_of_plain_sets_go_without_a_script() -> None:
    for kind in ("ipv4_addr", "ifname . ipv6_addr", "ipv6_addr . inet_service", "ipv4_addr : verdict"):
        made = alone(SetDecl(kind), SMALL)
        assert made is not None
        assert (made.elements, made.changes[0].type) == (SMALL, kind)
    assert alone(SetDecl("ipv4_addr"), SMALL + 1) is None
    assert alone(SetDecl("ipv4_addr", flags="interval")) is None
    assert alone(SetDecl("ipv4_addr : mark")) is None
    assert alone(SetDecl("ether_addr")) is None
    assert alone(SetDecl("ipv4_addr . ether_addr")) is None


# Answers


def error(code: int, sequence: int, attached: bytes = b"", flags: int = 0, echoed: bytes = b"") -> bytes:
    payload = struct.pack("=i", -code) + struct.pack("=IHHII", 16 + len(echoed), NEWSETELEM, 1, sequence, 0) + echoed
    payload += bytes(-len(payload) % 4) + attached
    return struct.pack("=IHHII", 16 + len(payload), 2, flags, sequence, 5) + payload


def test_answers_with_and_without_the_message_they_are_about() -> None:
    told = attribute(1, b"no\0") + attribute(2, struct.pack("=I", 44))
    found = list(
        answers(
            [
                error(0, 3, flags=0x100),
                error(errno.ENOENT, 4, told, flags=0x300) + error(errno.EEXIST, 5),
                error(errno.ENOENT, 6, told, flags=0x200, echoed=b"12345"),
            ]
        )
    )
    assert found == [
        Answer(3, 0),
        Answer(4, errno.ENOENT, "no", 44),
        Answer(5, errno.EEXIST),
        Answer(6, errno.ENOENT, "no", 44),
    ]


@given(st.binary(max_size=80), st.integers(0, 0xFFFF))
def test_answers_that_are_none(rest: bytes, flags: int) -> None:
    raw = struct.pack("=IHHII", 16 + len(rest), 2, flags, 1, 0) + rest
    try:
        found = list(answers([raw]))
    except MalformedError:
        return
    assert len(found) == 1
