"""What a transaction of nf_tables is made of: messages, each with what it is about, in one datagram."""

import struct
from collections.abc import Sequence

from msgspec import Struct

from netagent.kernel.nfnetlink import (
    ATTRIBUTE,
    GENERIC,
    HEADER,
    NESTED,
    NFPROTO_INET,
    NFPROTO_UNSPEC,
    NLM_F_ACK,
    SUBSYSTEM_NFTABLES,
    attribute,
    message,
)

BATCH_BEGIN, BATCH_END = 0x10, 0x11
LIST_ELEM = 1
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2
VERDICTS = {"drop": 0, "accept": 1}
LEADING_VERDICTS = {"jump": -3, "goto": -4}


class Part(Struct, frozen=True, gc=False):
    """One message of a batch, with what it is about."""

    type: int
    flags: int
    body: bytes
    what: str
    elements: tuple[str, ...] = ()
    begin: int = 0
    """Where the attribute of the first element begins in the body; 0: they have none."""

    def named(self, offset: int | None) -> str:
        """What the error at that place of the message is about."""
        found = self._element_at(offset - HEADER.size - GENERIC.size) if self.begin and offset is not None else ""
        if found or len(self.elements) != 1:
            return f"{self.what} {found}".rstrip()
        return f"{self.what} {self.elements[0]}"

    def _element_at(self, offset: int) -> str:
        place = self.begin
        for element in self.elements:
            if place == offset:
                return element
            length, _ = ATTRIBUTE.unpack_from(self.body, place)
            place += length + -length % 4
        return ""


def batch(some: Sequence[Part], sequence: int) -> bytes:
    """The datagram. Begin has the sequence number given, part n the n-th after it, the last part asks for an answer."""
    made = [message(BATCH_BEGIN, 0, sequence, family=NFPROTO_UNSPEC, resource=SUBSYSTEM_NFTABLES)]
    for number, part in enumerate(some, start=1):
        flags = part.flags | (NLM_F_ACK if number == len(some) else 0)
        made.append(message(part.type, flags, sequence + number, family=NFPROTO_INET, body=part.body))
    end = sequence + len(some) + 1
    made.append(message(BATCH_END, 0, end, family=NFPROTO_UNSPEC, resource=SUBSYSTEM_NFTABLES))
    return b"".join(made)


def verdict(words: str) -> bytes:
    """Attributes of a verdict: `drop`, `jump c`. Raises ValueError."""
    word, _, chain = words.partition(" ")
    code = LEADING_VERDICTS.get(word) if chain else VERDICTS.get(word)
    if code is None:
        raise ValueError(f"verdict {words!r}")
    made = attribute(VERDICT_CODE, struct.pack("!i", code))
    return made + (string(VERDICT_CHAIN, chain) if chain else b"")


def nested(kind: int, value: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(kind | NESTED, value)


def number(kind: int, value: int) -> bytes:
    """32 bits, in network order."""
    return attribute(kind, struct.pack("!I", value))


def string(kind: int, words: str) -> bytes:
    """Text that ends with a zero byte."""
    return attribute(kind, words.encode() + b"\0")
