"""Elements of sets and maps, in the bytes of nf_tables (linux/netfilter/nf_tables.h)."""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from netagent.kernel.nfnetlink import ATTRIBUTE, NESTED, NLM_F_CREATE, SUBSYSTEM_NFTABLES, attribute
from netagent.kernel.nfparts import DATA_VALUE, DATA_VERDICT, LIST_ELEM, Part, nested, number, string, verdict
from netagent.ports import ElementChange, NewSet

NEWSETELEM, DELSETELEM = SUBSYSTEM_NFTABLES << 8 | 12, SUBSYSTEM_NFTABLES << 8 | 14
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
"""Of NEWSETELEM and DELSETELEM; without elements the latter flushes the set."""
ELEMENT_KEY, ELEMENT_DATA, ELEMENT_FLAGS, ELEMENT_USERDATA = 1, 2, 3, 6
INTERVAL_END = 1
ELEMENT = struct.Struct("=6H")
"""Lengths and types of the three attributes that stand before a key: element, key, value."""
OPEN_INTERVAL = struct.pack("=BBI", 1, 4, 1)
"""What nft notes with an interval that ends with the last key of all, in its own format."""

INTERFACE_NAME_BYTES = 16
ELEMENTS_PER_MESSAGE = 200
"""The list of elements is one attribute, whose length has 16 bits."""

Encode = Callable[[str], bytes]
Encoded = tuple[str, bytes]
"""An element as nft writes it, and as a key or an attribute."""


def changed(table: str, change: ElementChange) -> Iterator[Part]:
    """Removals, then additions. Raises ValueError, which names the element, for one that is none."""
    key_type, _, data_type = change.type.partition(" : ")
    encode = _encoder(change.name, key_type)
    yield from _messages(table, change.name, DELSETELEM, _plain(change.name, change.removed, encode))
    added = _mapped(change.name, change.added, encode) if data_type else _plain(change.name, change.added, encode)
    yield from _messages(table, change.name, NEWSETELEM, added)


def first(table: str, new: NewSet) -> Iterator[Part]:
    """The elements that a new set begins with. Raises ValueError, as above."""
    encode = _encoder(new.name, new.type)
    made = (_intervals if new.interval else _plain)(new.name, new.elements, encode)
    yield from _messages(table, new.name, NEWSETELEM, made)


def key_encoder(type_: str) -> Encode:
    """Of a set's elements, by the type of its key; parts of a concatenation are padded. Raises ValueError."""
    fields = type_.split(" . ")
    unknown = [field for field in fields if field not in KEY_TYPES]
    if unknown:
        raise ValueError(f"type {unknown[0]}")
    encoders = [KEY_TYPES[field].encode for field in fields]
    if len(encoders) == 1:
        return encoders[0]

    def concatenation(element: str) -> bytes:
        values = element.split(" . ")
        if len(values) != len(encoders):
            raise ValueError(f"{len(values)} parts where the type has {len(encoders)}")
        return b"".join(_padded(encode(value)) for encode, value in zip(encoders, values, strict=True))

    return concatenation


def _encoder(name: str, key_type: str) -> Encode:
    try:
        return key_encoder(key_type)
    except ValueError as error:
        raise ValueError(f"set {name}: {error}") from None


def _plain(name: str, elements: Iterable[str], encode: Encode) -> list[Encoded]:
    """Keys alone, of which there are many."""
    keys = _keys(name, elements, encode)
    if not keys:
        return []
    head, tail = _around(len(keys[0][1]))
    return [(element, head + key + tail) for element, key in keys]


def _mapped(name: str, elements: Mapping[str, str], encode: Encode) -> list[Encoded]:
    keys = _keys(name, elements, encode)
    around: dict[str, tuple[bytes, bytes]] = {}
    for words in {*elements.values()}:
        data = nested(ELEMENT_DATA, nested(DATA_VERDICT, verdict(words)))
        head, tail = _around(len(keys[0][1]), len(data))
        around[words] = head, tail + data
    made = []
    for element, key in keys:
        head, tail = around[elements[element]]
        made.append((element, head + key + tail))
    return made


def _intervals(name: str, elements: Iterable[str], encode: Encode) -> list[Encoded]:
    """Disjoint, ascending ranges that do not touch each other: where each begins, and the key after its last.

    As nft has it, what is before the first range has an end too, and a range up to the last key has none.
    """
    end = number(ELEMENT_FLAGS, INTERVAL_END)
    made: list[Encoded] = []
    for element in elements:
        lowest, _, highest = element.partition("-")
        (_, start), (_, last) = _keys(name, (lowest, highest or lowest), encode)
        if last < start:
            raise ValueError(f"element {element} of {name}: it ends before it begins")
        if not made and any(start):
            made.append((element, _element(bytes(len(start)), end)))
        after = int.from_bytes(last, "big") + 1
        if after >> 8 * len(last):
            made.append((element, _element(start, attribute(ELEMENT_USERDATA, OPEN_INTERVAL))))
        else:
            made.append((element, _element(start, b"")))
            made.append((element, _element(after.to_bytes(len(last), "big"), end)))
    return made


def _messages(table: str, name: str, kind: int, elements: Sequence[Encoded]) -> Iterator[Part]:
    """A limited number of elements to a message."""
    flags = NLM_F_CREATE if kind == NEWSETELEM else 0
    verb = "adding to" if kind == NEWSETELEM else "removing from"
    head = string(LIST_TABLE, table) + string(LIST_SET, name)
    for start in range(0, len(elements), ELEMENTS_PER_MESSAGE):
        some = elements[start : start + ELEMENTS_PER_MESSAGE]
        body = head + nested(LIST_ELEMENTS, b"".join([encoded for _, encoded in some]))
        names = tuple([element for element, _ in some])
        yield Part(kind, flags, body, f"{verb} {name}", names, len(head) + ATTRIBUTE.size)


def _keys(name: str, elements: Iterable[str], encode: Encode) -> list[Encoded]:
    made: list[Encoded] = []
    element = ""
    try:
        for element in elements:
            made.append((element, encode(element)))
    except (ValueError, OSError) as error:
        raise ValueError(f"element {element} of {name}: {error}") from None
    return made


def _element(key: bytes, more: bytes) -> bytes:
    """`more`: attributes other than its key."""
    head, tail = _around(len(key), len(more))
    return head + key + tail + more


def _around(key_bytes: int, more_bytes: int = 0) -> tuple[bytes, bytes]:
    """What stands before a key, and its padding."""
    padding = bytes(-key_bytes % 4)
    size = 2 * ATTRIBUTE.size + key_bytes + len(padding)
    heads = size + ATTRIBUTE.size + more_bytes, LIST_ELEM | NESTED, size, ELEMENT_KEY | NESTED
    return ELEMENT.pack(*heads, ATTRIBUTE.size + key_bytes, DATA_VALUE), padding


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def _ipv4(words: str) -> bytes:
    return socket.inet_pton(socket.AF_INET, words)


def _ipv6(words: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, words)


def _service(words: str) -> bytes:
    port = int(words)
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"{port} is no port")
    return struct.pack("!H", port)


def _interface(words: str) -> bytes:
    name = words.strip('"').encode()
    if not 0 < len(name) < INTERFACE_NAME_BYTES or name.endswith(b"*"):
        raise ValueError(f"{words} is no interface name")
    return name.ljust(INTERFACE_NAME_BYTES, b"\0")


class KeyType(Struct, frozen=True, gc=False):
    """Of a key, or of a field of one."""

    number: int
    """libnftables' own."""
    size_bytes: int
    encode: Encode


KEY_TYPES = {
    "ipv4_addr": KeyType(7, 4, _ipv4),
    "ipv6_addr": KeyType(8, 16, _ipv6),
    "inet_service": KeyType(13, 2, _service),
    "ifname": KeyType(41, INTERFACE_NAME_BYTES, _interface),
}
"""Those of `core.policy.render.FAST_TYPES`."""
