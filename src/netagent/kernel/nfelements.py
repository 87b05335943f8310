"""Elements of sets and maps, and a new generation, in the bytes of nf_tables (linux/netfilter/nf_tables.h)."""

import socket
import struct
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from netagent.core.policy.frame import CURRENT, STAMP
from netagent.kernel.nfnetlink import (
    ATTRIBUTE,
    GENERIC,
    HEADER,
    NESTED,
    NFPROTO_INET,
    NFPROTO_UNSPEC,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    SUBSYSTEM_NFTABLES,
    attribute,
    message,
)
from netagent.ports import ElementChange, ElementTransaction, StampChange

BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEWRULE, DELRULE = SUBSYSTEM_NFTABLES << 8 | 6, SUBSYSTEM_NFTABLES << 8 | 8
NEWSETELEM, DELSETELEM = SUBSYSTEM_NFTABLES << 8 | 12, SUBSYSTEM_NFTABLES << 8 | 14
LIST_ELEM = 1
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS = 1, 2, 4
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
"""Of NEWSETELEM and DELSETELEM; without elements the latter flushes the set."""
ELEMENT_KEY, ELEMENT_DATA = 1, 2
ELEMENT = struct.Struct("=6H")
"""Lengths and types of the three attributes that stand before a key: element, key, value."""
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2
VERDICTS = {"drop": 0, "accept": 1, "continue": -1, "return": -5}
LEADING_VERDICTS = {"jump": -3, "goto": -4}
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
CT_DREG, CT_KEY, CT_SREG = 1, 2, 4
CT_KEY_MARK = 3
BITWISE_SREG, BITWISE_DREG, BITWISE_LEN, BITWISE_MASK, BITWISE_XOR = 1, 2, 3, 4, 5
REGISTER = 1

INTERFACE_NAME_BYTES = 16
ELEMENTS_PER_MESSAGE = 200
"""The list of elements is one attribute, whose length has 16 bits."""


class Part(Struct, frozen=True, gc=False):
    """One message of a batch, with what it is about."""

    type: int
    flags: int
    body: bytes
    what: str
    elements: tuple[str, ...] = ()
    offsets: tuple[int, ...] = ()
    """Where each element's attribute begins, counted from the message."""

    def named(self, offset: int | None) -> str:
        """What the error at that place of the message is about."""
        if offset is not None and offset in self.offsets:
            return f"{self.what} {self.elements[self.offsets.index(offset)]}"
        return f"{self.what} {self.elements[0]}" if len(self.elements) == 1 else self.what


# Encoding


def parts(table: str, transaction: ElementTransaction) -> list[Part]:
    """The messages between begin and end. Raises ValueError, which names the element, for one that is none."""
    made: list[Part] = []
    if transaction.stamp is not None:
        made += _generation(table, transaction.stamp)
    for change in transaction.changes:
        made += _change(table, change)
    return made


def batch(some: Sequence[Part], sequence: int) -> bytes:
    """The datagram. Begin has the sequence number given, part n the n-th after it, the last part asks for an answer."""
    made = [message(BATCH_BEGIN, 0, sequence, family=NFPROTO_UNSPEC, resource=SUBSYSTEM_NFTABLES)]
    for number, part in enumerate(some, start=1):
        flags = part.flags | (NLM_F_ACK if number == len(some) else 0)
        made.append(message(part.type, flags, sequence + number, family=NFPROTO_INET, body=part.body))
    end = sequence + len(some) + 1
    made.append(message(BATCH_END, 0, end, family=NFPROTO_UNSPEC, resource=SUBSYSTEM_NFTABLES))
    return b"".join(made)


def key_encoder(type_: str) -> Callable[[str], bytes]:
    """Of a set's elements, by the type of its key; parts of a concatenation are padded. Raises ValueError."""
    fields = type_.split(" . ")
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        raise ValueError(f"type {unknown[0]}")
    encoders = [_FIELDS[field] for field in fields]
    if len(encoders) == 1:
        return encoders[0]

    def concatenation(element: str) -> bytes:
        values = element.split(" . ")
        if len(values) != len(encoders):
            raise ValueError(f"{len(values)} parts where the type has {len(encoders)}")
        return b"".join(_padded(encode(value)) for encode, value in zip(encoders, values, strict=True))

    return concatenation


def verdict(words: str) -> bytes:
    """Attributes of a verdict: `drop`, `jump c`. Raises ValueError."""
    word, _, chain = words.partition(" ")
    code = LEADING_VERDICTS.get(word) if chain else VERDICTS.get(word)
    if code is None:
        raise ValueError(f"verdict {words!r}")
    made = attribute(VERDICT_CODE, struct.pack("!i", code))
    return made + (attribute(VERDICT_CHAIN, _name(chain)) if chain else b"")


def _change(table: str, change: ElementChange) -> Iterator[Part]:
    key_type, _, data_type = change.type.partition(" : ")
    try:
        encode = key_encoder(key_type)
    except ValueError as error:
        raise ValueError(f"set {change.name}: {error}") from None
    verdicts = {words: _nested(ELEMENT_DATA, _nested(DATA_VERDICT, verdict(words))) for words in _distinct(change)}
    yield from _messages(table, change.name, DELSETELEM, [(element, b"") for element in change.removed], encode)
    added = [(element, verdicts[words] if data_type else b"") for element, words in change.added.items()]
    yield from _messages(table, change.name, NEWSETELEM, added, encode)


def _distinct(change: ElementChange) -> set[str]:
    return {words for words in change.added.values() if words}


def _messages(
    table: str, name: str, kind: int, elements: Sequence[tuple[str, bytes]], encode: Callable[[str], bytes]
) -> Iterator[Part]:
    """Elements with the attribute of their data, a limited number to a message."""
    flags = NLM_F_CREATE if kind == NEWSETELEM else 0
    verb = "adding to" if kind == NEWSETELEM else "removing from"
    for start in range(0, len(elements), ELEMENTS_PER_MESSAGE):
        some = elements[start : start + ELEMENTS_PER_MESSAGE]
        head = _head(LIST_TABLE, table, LIST_SET, name)
        offset = HEADER.size + GENERIC.size + len(head) + 4
        offsets, encoded = [], []
        for element, data in some:
            offsets.append(offset)
            encoded.append(_element(name, element, data, encode))
            offset += len(encoded[-1])
        body = head + _nested(LIST_ELEMENTS, b"".join(encoded))
        yield Part(kind, flags, body, f"{verb} {name}", tuple(element for element, _ in some), tuple(offsets))


def _element(name: str, element: str, data: bytes, encode: Callable[[str], bytes]) -> bytes:
    try:
        value = encode(element)
    except (ValueError, OSError) as error:
        raise ValueError(f"element {element} of {name}: {error}") from None
    length = ATTRIBUTE.size + len(value)
    value = _padded(value)
    size = 2 * ATTRIBUTE.size + len(value)
    heads = size + ATTRIBUTE.size + len(data), LIST_ELEM | NESTED, size, ELEMENT_KEY | NESTED, length, DATA_VALUE
    return ELEMENT.pack(*heads) + value + data


def _generation(table: str, stamp: StampChange) -> Iterator[Part]:
    """The set of the value that passes, and the rule that writes it, as `core.policy.frame` has them."""
    current = _head(LIST_TABLE, table, LIST_SET, CURRENT)
    key = _nested(ELEMENT_KEY, attribute(DATA_VALUE, _host_order(stamp.mark)))
    yield Part(DELSETELEM, 0, current, f"flushing {CURRENT}")
    element = current + _nested(LIST_ELEMENTS, _nested(LIST_ELEM, key))
    yield Part(NEWSETELEM, NLM_F_CREATE, element, f"adding to {CURRENT}", (f"{stamp.mark:#010x}",))
    chain = _head(RULE_TABLE, table, RULE_CHAIN, STAMP)
    yield Part(DELRULE, 0, chain, f"flushing chain {STAMP}")
    rule = chain + _nested(RULE_EXPRESSIONS, _stamp_rule(stamp))
    yield Part(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, rule, f"rule of chain {STAMP}")


def _stamp_rule(stamp: StampChange) -> bytes:
    """ct mark set ct mark and <not mask> or <mark>, in the expressions that nft makes of it."""
    load = _number(CT_KEY, CT_KEY_MARK) + _number(CT_DREG, REGISTER)
    change = _number(BITWISE_SREG, REGISTER) + _number(BITWISE_DREG, REGISTER) + _number(BITWISE_LEN, 4)
    change += _nested(BITWISE_MASK, attribute(DATA_VALUE, _host_order(~stamp.mask & 0xFFFFFFFF)))
    change += _nested(BITWISE_XOR, attribute(DATA_VALUE, _host_order(stamp.mark)))
    store = _number(CT_KEY, CT_KEY_MARK) + _number(CT_SREG, REGISTER)
    return b"".join(
        _nested(LIST_ELEM, attribute(EXPRESSION_NAME, name + b"\0") + _nested(EXPRESSION_DATA, data))
        for name, data in ((b"ct", load), (b"bitwise", change), (b"ct", store))
    )


def _head(table_kind: int, table: str, kind: int, name: str) -> bytes:
    return attribute(table_kind, _name(table)) + attribute(kind, _name(name))


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | NESTED, value)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _host_order(mark: int) -> bytes:
    return struct.pack("=I", mark)


def _name(words: str) -> bytes:
    return words.encode() + b"\0"


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def _ipv4(words: str) -> bytes:
    return socket.inet_pton(socket.AF_INET, words)


def _ipv6(words: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, words)


def _service(words: str) -> bytes:
    number = int(words)
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"{number} is no port")
    return struct.pack("!H", number)


def _interface(words: str) -> bytes:
    name = words.strip('"').encode()
    if not 0 < len(name) < INTERFACE_NAME_BYTES or name.endswith(b"*"):
        raise ValueError(f"{words} is no interface name")
    return name.ljust(INTERFACE_NAME_BYTES, b"\0")


_FIELDS: dict[str, Callable[[str], bytes]] = {
    "ipv4_addr": _ipv4,
    "ipv6_addr": _ipv6,
    "inet_service": _service,
    "ifname": _interface,
}
