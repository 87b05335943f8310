"""What our table holds, by dumps of nf_tables: names, the generation, named counters.

libnftables reads every element of every set before it lists anything of a table, and begins again when a commit comes
in between: 50 ms at 40,000 elements on a quiet node, and no end at all under churn. The kernel's own dumps of names and
counters cost microseconds an object.
"""

import struct
import sys
from collections.abc import Callable
from typing import TypeVar

from netagent.core.policy.frame import CURRENT
from netagent.kernel.nfdump import dump
from netagent.kernel.nfelements import ELEMENT_KEY, LIST_ELEMENTS, LIST_SET, LIST_TABLE, NEWSETELEM
from netagent.kernel.nfnetlink import (
    NFPROTO_INET,
    SUBSYSTEM_NFTABLES,
    MalformedError,
    Message,
    attribute,
    attributes,
    each_attribute,
    number,
    text,
)
from netagent.kernel.nfparts import DATA_VALUE, string
from netagent.kernel.nftransaction import (
    CHAIN_NAME,
    CHAIN_TABLE,
    COUNTER_BYTES,
    COUNTER_PACKETS,
    NEWCHAIN,
    NEWOBJ,
    NEWSET,
    OBJECT_COUNTER,
    OBJECT_DATA,
    OBJECT_NAME,
    OBJECT_TABLE,
    OBJECT_TYPE,
    SET_FLAGS,
    SET_NAME,
)
from netagent.ports import CounterValue, TableInventory

NEWTABLE, GETTABLE = SUBSYSTEM_NFTABLES << 8 | 0, SUBSYSTEM_NFTABLES << 8 | 1
GETCHAIN, GETSET = SUBSYSTEM_NFTABLES << 8 | 4, SUBSYSTEM_NFTABLES << 8 | 10
GETSETELEM, GETOBJ = SUBSYSTEM_NFTABLES << 8 | 13, SUBSYSTEM_NFTABLES << 8 | 19
TABLE_NAME = 1
SET_ANONYMOUS, SET_MAP = 0x1, 0x8

T = TypeVar("T")


def read_inventory(table: str) -> TableInventory:
    """Of an inet table, without elements. Blocks. Raises NftError."""
    of = f"of table inet {table}"
    tables = _dump((GETTABLE, NEWTABLE), lambda one: text(attributes(one.body), TABLE_NAME), what="the inet tables")
    if table not in tables:
        return TableInventory(exists=False)
    own = string(CHAIN_TABLE, table)
    chains = _dump((GETCHAIN, NEWCHAIN), lambda one: _named(one, CHAIN_NAME), own, what=f"the chains {of}")
    sets = _dump((GETSET, NEWSET), lambda one: (_named(one, SET_NAME), _flags(one)), own, what=f"the sets {of}")
    return TableInventory(
        exists=True,
        # Asked for those of a table, the kernel lists the chains of all.
        chains=frozenset(name for where, name in chains if where == table),
        sets=frozenset(name for (_, name), flags in sets if not flags & (SET_ANONYMOUS | SET_MAP)),
        maps=frozenset(name for (_, name), flags in sets if flags & SET_MAP and not flags & SET_ANONYMOUS),
        counters=frozenset(read_counters(table)),
        mark=_mark(table),
    )


def read_counters(table: str) -> dict[str, CounterValue]:
    """The named counters of an inet table; none where it is absent. Blocks. Raises NftError."""
    asked = string(OBJECT_TABLE, table) + attribute(OBJECT_TYPE, struct.pack("!I", OBJECT_COUNTER))
    return dict(_dump((GETOBJ, NEWOBJ), _counter, asked, what=f"the counters of table inet {table}"))


def _mark(table: str) -> int | None:
    """The value of the conntrack mark that passes; None where there is none."""
    asked = string(LIST_TABLE, table) + string(LIST_SET, CURRENT)
    found = _dump((GETSETELEM, NEWSETELEM), _marks, asked, what=f"set {CURRENT} of table inet {table}")
    return next((mark for marks in found for mark in marks), None)


def _dump(kinds: tuple[int, int], parse: Callable[[Message], T], asked: bytes = b"", *, what: str) -> list[T]:
    """`kinds`: of the question and of what answers it."""
    return dump(*kinds, parse, family=NFPROTO_INET, body=asked, what=what)


def _named(one: Message, kind: int) -> tuple[str, str]:
    """Names of the table and of the object."""
    found = attributes(one.body)
    return text(found, CHAIN_TABLE), text(found, kind)


def _flags(one: Message) -> int:
    return number(attributes(one.body), SET_FLAGS) or 0


def _counter(one: Message) -> tuple[str, CounterValue]:
    values = attributes(one.body)
    counter = attributes(values.get(OBJECT_DATA, b""))
    packets, size_bytes = number(counter, COUNTER_PACKETS, 8), number(counter, COUNTER_BYTES, 8)
    return text(values, OBJECT_NAME), CounterValue(packets or 0, size_bytes or 0)


def _marks(one: Message) -> list[int]:
    """The elements of a set of marks."""
    listed = attributes(one.body).get(LIST_ELEMENTS, b"")
    keys = [attributes(attributes(element).get(ELEMENT_KEY, b"")) for _, element in each_attribute(listed)]
    values = [key.get(DATA_VALUE, b"") for key in keys]
    if any(len(value) != 4 for value in values):
        raise MalformedError("a mark that has not four bytes.")
    return [int.from_bytes(value, sys.byteorder) for value in values]
