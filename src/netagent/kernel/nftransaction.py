"""A small transaction as messages of nf_tables, in the order of the script that would do the same.

Sets carry what libnftables notes with them for itself, so that any nft lists them as it lists its own.
"""

import struct
from collections.abc import Iterator

from netagent.core.policy.frame import CURRENT, STAMP
from netagent.kernel import nfelements, nfrules
from netagent.kernel.nfelements import KEY_TYPES, LIST_ELEMENTS, LIST_SET, LIST_TABLE
from netagent.kernel.nfnetlink import NLM_F_APPEND, NLM_F_CREATE, SUBSYSTEM_NFTABLES, attribute
from netagent.kernel.nfparts import DATA_VALUE, LIST_ELEM, Part, nested, number, string
from netagent.ports import NewSet, SmallTransaction, StampChange

NEWCHAIN, DELCHAIN = SUBSYSTEM_NFTABLES << 8 | 3, SUBSYSTEM_NFTABLES << 8 | 5
NEWRULE, DELRULE = SUBSYSTEM_NFTABLES << 8 | 6, SUBSYSTEM_NFTABLES << 8 | 8
NEWSET, DELSET = SUBSYSTEM_NFTABLES << 8 | 9, SUBSYSTEM_NFTABLES << 8 | 11
NEWOBJ, DELOBJ = SUBSYSTEM_NFTABLES << 8 | 18, SUBSYSTEM_NFTABLES << 8 | 20
CHAIN_TABLE, CHAIN_NAME = 1, 3
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS = 1, 2, 4
SET_TABLE, SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN, SET_ID, SET_USERDATA = 1, 2, 3, 4, 5, 10, 13
SET_INTERVAL = 4
OBJECT_TABLE, OBJECT_NAME, OBJECT_TYPE, OBJECT_DATA = 1, 2, 3, 4
OBJECT_COUNTER = 1
COUNTER_BYTES, COUNTER_PACKETS = 1, 2

FIELD_BITS = 6
"""Of the number of a concatenation's type, for that of each field."""
BIG_ENDIAN, HOST_ENDIAN = 2, 1
NOTE_BYTEORDER, NOTE_KEY = 0, 3
CONCATENATION = 13
"""libnftables' number of that kind of expression."""


def parts(table: str, transaction: SmallTransaction) -> list[Part]:
    """The messages between begin and end. Raises ValueError, which names it, for what cannot be written."""
    made = [_counter(table, name) for name in transaction.new_counters]
    made += (_set(table, new, number) for number, new in enumerate(transaction.new_sets, start=1))
    made += (_chain(table, name) for name in transaction.new_chains)
    for name, rules in transaction.new_chains.items():
        made += (_rule(table, name, rule) for rule in rules)
    if transaction.stamp is not None:
        made += _generation(table, transaction.stamp)
    for new in transaction.new_sets:
        made += nfelements.first(table, new)
    for change in transaction.changes:
        made += nfelements.changed(table, change)
    for name in transaction.old_chains:
        named = string(CHAIN_TABLE, table) + string(CHAIN_NAME, name)
        made.append(Part(DELCHAIN, 0, named, f"deleting chain {name}"))
    for name in transaction.old_sets:
        named = string(SET_TABLE, table) + string(SET_NAME, name)
        made.append(Part(DELSET, 0, named, f"deleting set {name}"))
    for name in transaction.old_counters:
        named = string(OBJECT_TABLE, table) + string(OBJECT_NAME, name) + number(OBJECT_TYPE, OBJECT_COUNTER)
        made.append(Part(DELOBJ, 0, named, f"deleting counter {name}"))
    return made


def _counter(table: str, name: str) -> Part:
    zero = attribute(COUNTER_BYTES, bytes(8)) + attribute(COUNTER_PACKETS, bytes(8))
    body = string(OBJECT_TABLE, table) + string(OBJECT_NAME, name) + number(OBJECT_TYPE, OBJECT_COUNTER)
    return Part(NEWOBJ, NLM_F_CREATE, body + nested(OBJECT_DATA, zero), f"counter {name}")


def _set(table: str, new: NewSet, identifier: int) -> Part:
    """`identifier` is for this batch only."""
    fields = new.type.split(" . ")
    if not KEY_TYPES.keys() >= set(fields) or (new.interval and len(fields) > 1):
        raise ValueError(f"set {new.name}: type {new.type}{' with intervals' if new.interval else ''}")
    key_type = key_length = 0
    for field in fields:
        one = KEY_TYPES[field]
        key_type = key_type << FIELD_BITS | one.number
        key_length += one.size_bytes + (-one.size_bytes % 4 if len(fields) > 1 else 0)
    body = string(SET_TABLE, table) + string(SET_NAME, new.name) + number(SET_FLAGS, SET_INTERVAL * new.interval)
    body += number(SET_KEY_TYPE, key_type) + number(SET_KEY_LEN, key_length) + number(SET_ID, identifier)
    return Part(NEWSET, NLM_F_CREATE, body + attribute(SET_USERDATA, _note(fields)), f"set {new.name}")


def _note(fields: list[str]) -> bytes:
    """libnftables' own note: the byte order of a key, and of a concatenation that it is one."""
    if len(fields) > 1:
        kind = struct.pack("=BBIBB", 0, 4, CONCATENATION, 1, 0)
        return struct.pack("=BBI", NOTE_BYTEORDER, 4, 0) + struct.pack("=BB", NOTE_KEY, len(kind)) + kind
    order = HOST_ENDIAN if fields[0] == "ifname" else BIG_ENDIAN
    return struct.pack("=BBI", NOTE_BYTEORDER, 4, order)


def _chain(table: str, name: str) -> Part:
    return Part(NEWCHAIN, NLM_F_CREATE, string(CHAIN_TABLE, table) + string(CHAIN_NAME, name), f"chain {name}")


def _rule(table: str, chain: str, words: str) -> Part:
    body = string(RULE_TABLE, table) + string(RULE_CHAIN, chain) + nested(RULE_EXPRESSIONS, nfrules.rule(words))
    return Part(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, f"rule of chain {chain}", (words,))


def _generation(table: str, stamp: StampChange) -> Iterator[Part]:
    """The set of the value that passes, and the rule that writes it, as `core.policy.frame` has them."""
    current = string(LIST_TABLE, table) + string(LIST_SET, CURRENT)
    key = nested(nfelements.ELEMENT_KEY, attribute(DATA_VALUE, struct.pack("=I", stamp.mark)))
    yield Part(nfelements.DELSETELEM, 0, current, f"flushing {CURRENT}")
    element = current + nested(LIST_ELEMENTS, nested(LIST_ELEM, key))
    yield Part(nfelements.NEWSETELEM, NLM_F_CREATE, element, f"adding to {CURRENT}", (f"{stamp.mark:#010x}",))
    chain = string(RULE_TABLE, table) + string(RULE_CHAIN, STAMP)
    yield Part(DELRULE, 0, chain, f"flushing chain {STAMP}")
    rule = chain + nested(RULE_EXPRESSIONS, nfrules.stamp_rule(stamp))
    yield Part(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, rule, f"rule of chain {STAMP}")
