"""Rules of policy classes and of the generation, as nf_tables expressions: the bytes that libnftables makes of them.

Not all of nft's language, only the statements of classes (`core.policy.chains`, `core.policy.compiler`,
`core.policy.frame.told`); a test in `tests/kernel/nft` holds each of them against libnftables. Anything else is
refused, never guessed.
"""

import re
import struct
from collections.abc import Callable
from functools import lru_cache

from netagent.kernel.nfnetlink import attribute
from netagent.kernel.nfparts import DATA_VALUE, DATA_VERDICT, LIST_ELEM, nested, number, string, verdict
from netagent.ports import StampChange

EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
META_DREG, META_KEY = 1, 2
META_NFPROTO, META_L4PROTO = 15, 16
CT_DREG, CT_KEY, CT_DIRECTION, CT_SREG = 1, 2, 3, 4
CT_MARK, CT_PROTO_SRC = 3, 11
CT_SADDR = {"ip": 19, "ip6": 21}
CT_DIRECTIONS = {"original": 0, "reply": 1}
CMP_SREG, CMP_OP, CMP_DATA = 1, 2, 3
EQUAL, AT_MOST, AT_LEAST = 0, 3, 5
LOOKUP_SET, LOOKUP_SREG, LOOKUP_FLAGS = 1, 2, 5
LOOKUP_INVERTED = 1
IMMEDIATE_DREG, IMMEDIATE_DATA = 1, 2
OBJREF_TYPE, OBJREF_NAME = 1, 2
OBJECT_COUNTER = 1
LIMIT_RATE, LIMIT_UNIT, LIMIT_BURST, LIMIT_TYPE, LIMIT_FLAGS = 1, 2, 3, 4, 5
LIMIT_PACKETS = 0
LOG_GROUP, LOG_PREFIX, LOG_SNAPLEN = 1, 2, 3
BITWISE_SREG, BITWISE_DREG, BITWISE_LEN, BITWISE_MASK, BITWISE_XOR = 1, 2, 3, 4, 5

REGISTER_VERDICT, REGISTER = 0, 1
SECOND_REGISTER = {"ip": 9, "ip6": 2}
"""Where the second field of a key begins: after 4 bytes of the first register, or after all 16."""
FAMILIES = {"ipv4": 2, "ipv6": 10}
CACHED_STATEMENTS = 4096
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


def rule(words: str) -> bytes:
    """The list of expressions of a rule. Raises ValueError, which says from where on it is not understood."""
    made, place = [], 0
    while place < len(words):
        found = _STATEMENT.match(words, place)
        if found is None:
            raise ValueError(f"rule {words!r} from {words[place:]!r} on")
        made.append(_expressions(found[1]))
        place = found.end()
    return b"".join(made)


def stamp_rule(stamp: StampChange) -> bytes:
    """ct mark set ct mark and <not mask> or <mark>, in the expressions that nft makes of it."""
    change = number(BITWISE_SREG, REGISTER) + number(BITWISE_DREG, REGISTER) + number(BITWISE_LEN, 4)
    change += nested(BITWISE_MASK, attribute(DATA_VALUE, struct.pack("=I", ~stamp.mask & 0xFFFFFFFF)))
    change += nested(BITWISE_XOR, attribute(DATA_VALUE, struct.pack("=I", stamp.mark)))
    return (
        _expression("ct", number(CT_KEY, CT_MARK) + number(CT_DREG, REGISTER))
        + _expression("bitwise", change)
        + _expression("ct", number(CT_KEY, CT_MARK) + number(CT_SREG, REGISTER))
    )


@lru_cache(CACHED_STATEMENTS)
def _expressions(statement: str) -> bytes:
    for pattern, make in _STATEMENTS.items():
        found = re.fullmatch(pattern, statement, re.ASCII)
        if found:
            return make(*found.groups())
    raise ValueError(f"statement {statement!r}")


def _expression(name: str, data: bytes) -> bytes:
    return nested(LIST_ELEM, string(EXPRESSION_NAME, name) + nested(EXPRESSION_DATA, data))


def _meta(key: int, value: int) -> bytes:
    load = _expression("meta", number(META_DREG, REGISTER) + number(META_KEY, key))
    return load + _compare(EQUAL, bytes((value,)))


def _family(word: str) -> bytes:
    return _meta(META_NFPROTO, FAMILIES[word])


def _protocol(word: str) -> bytes:
    return _meta(META_L4PROTO, PROTOCOLS[word])


def _compare(operator: int, value: bytes) -> bytes:
    data = nested(CMP_DATA, attribute(DATA_VALUE, value))
    return _expression("cmp", number(CMP_SREG, REGISTER) + number(CMP_OP, operator) + data)


def _ct(key: int, direction: str, register: int = REGISTER) -> bytes:
    where = attribute(CT_DIRECTION, bytes((CT_DIRECTIONS[direction],)))
    return _expression("ct", number(CT_DREG, register) + number(CT_KEY, key) + where)


def _look_up(name: str, *, inverted: bool = False) -> bytes:
    flags = number(LOOKUP_FLAGS, LOOKUP_INVERTED) if inverted else b""
    return _expression("lookup", string(LOOKUP_SET, name) + number(LOOKUP_SREG, REGISTER) + flags)


def _address(direction: str, word: str, negation: str | None, name: str) -> bytes:
    return _ct(CT_SADDR[word], direction) + _look_up(name, inverted=negation is not None)


def _address_and_port(direction: str, word: str, name: str) -> bytes:
    port = _ct(CT_PROTO_SRC, "reply", SECOND_REGISTER[word])
    return _ct(CT_SADDR[word], direction) + port + _look_up(name)


def _port_in_set(name: str) -> bytes:
    return _ct(CT_PROTO_SRC, "reply") + _look_up(name)


def _port(first: str, last: str | None) -> bytes:
    lowest = struct.pack("!H", int(first))
    load = _ct(CT_PROTO_SRC, "reply")
    if last is None:
        return load + _compare(EQUAL, lowest)
    return load + _compare(AT_LEAST, lowest) + _compare(AT_MOST, struct.pack("!H", int(last)))


def _told(rate: str, burst: str, prefix: str, group: str, snaplen: str) -> bytes:
    limit = attribute(LIMIT_RATE, struct.pack("!Q", int(rate))) + attribute(LIMIT_UNIT, struct.pack("!Q", 1))
    limit += number(LIMIT_BURST, int(burst)) + number(LIMIT_TYPE, LIMIT_PACKETS) + number(LIMIT_FLAGS, 0)
    log = string(LOG_PREFIX, prefix) + attribute(LOG_GROUP, struct.pack("!H", int(group)))
    return _expression("limit", limit) + _expression("log", log + number(LOG_SNAPLEN, int(snaplen)))


def _counter(name: str) -> bytes:
    return _expression("objref", number(OBJREF_TYPE, OBJECT_COUNTER) + string(OBJREF_NAME, name))


def _verdict(words: str) -> bytes:
    data = nested(IMMEDIATE_DATA, nested(DATA_VERDICT, verdict(words)))
    return _expression("immediate", number(IMMEDIATE_DREG, REGISTER_VERDICT) + data)


_ADDRESS = r"ct (original|reply) (ip6?) saddr"
_PORT = r"ct reply proto-src"
_NAME = r"(\w+)"
_TOLD = rf'limit rate (\d+)/second burst (\d+) packets log prefix "{_NAME}" group (\d+) snaplen (\d+)'
_STATEMENTS: dict[str, Callable[..., bytes]] = {
    f"meta l4proto ({'|'.join(PROTOCOLS)})": _protocol,
    f"meta nfproto ({'|'.join(FAMILIES)})": _family,
    rf"{_ADDRESS} \. {_PORT} @{_NAME}": _address_and_port,
    f"{_ADDRESS} (!= )?@{_NAME}": _address,
    f"{_PORT} @{_NAME}": _port_in_set,
    rf"{_PORT} (\d+)(?:-(\d+))?": _port,
    _TOLD: _told,
    f"counter name {_NAME}": _counter,
    r"((?:goto|jump) \w+|accept|drop)": _verdict,
}
"""What makes the expressions of a statement from the groups of its pattern."""
_STATEMENT = re.compile(f"({'|'.join(_STATEMENTS)})(?: |$)", re.ASCII)
