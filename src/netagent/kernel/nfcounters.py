"""Named counters read by a netlink dump of their own.

libnftables reads every set of the table before it lists a counter: 50 ms at 40,000 elements, during which no commit
runs. The kernel's dump of the counters alone costs microseconds each.
"""

import errno
import os
import struct

from netagent.kernel.nfnetlink import (
    DATAGRAM_BYTES,
    NFPROTO_INET,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    SUBSYSTEM_NFTABLES,
    MalformedError,
    NfnetlinkError,
    attribute,
    attributes,
    message,
    messages,
    number,
    open_socket,
    text,
)
from netagent.ports import CounterValue, NftError

NEWOBJ = SUBSYSTEM_NFTABLES << 8 | 18
GETOBJ = SUBSYSTEM_NFTABLES << 8 | 19
OBJ_TABLE, OBJ_NAME, OBJ_TYPE, OBJ_DATA = 1, 2, 3, 4
COUNTER_BYTES, COUNTER_PACKETS = 1, 2
OBJECT_COUNTER = 1
RECEIVE_BYTES = 1 << 18
TIMEOUT_S = 5.0
ATTEMPTS = 5
"""The kernel says when a commit came in between; then the dump starts over, and the last one is taken as it is."""


def read_counters(table: str) -> dict[str, CounterValue]:
    """The named counters of an inet table; none where it is absent. Blocks. Raises NftError."""
    found: dict[str, CounterValue] = {}
    try:
        with open_socket(RECEIVE_BYTES) as link:
            link.settimeout(TIMEOUT_S)
            for attempt in range(1, ATTEMPTS + 1):
                link.send(_request(table, attempt))
                found, ended, interrupted = {}, False, False
                while not ended:
                    ended, cut = _take(link.recv(DATAGRAM_BYTES), attempt, found)
                    interrupted = interrupted or cut
                if not interrupted:
                    break
            return found
    except (OSError, MalformedError, NfnetlinkError) as error:
        raise NftError(f"reading the counters of table inet {table}: {error}. Nothing was changed.") from None


def _take(datagram: bytes, sequence: int, found: dict[str, CounterValue]) -> tuple[bool, bool]:
    """Take a part of the dump into `found`; whether it was the last, and whether a commit came in between."""
    interrupted = False
    for one in messages(datagram):
        if one.sequence != sequence:
            continue
        interrupted = interrupted or bool(one.flags & NLM_F_DUMP_INTR)
        if one.type in (NLMSG_DONE, NLMSG_ERROR):
            code = -int(struct.unpack_from("=i", one.payload)[0]) if len(one.payload) >= 4 else 0
            if code not in (0, errno.ENOENT):
                raise OSError(code, os.strerror(code))
            return True, interrupted
        if one.type == NEWOBJ:
            values = attributes(one.body)
            counter = attributes(values.get(OBJ_DATA, b""))
            packets, size_bytes = number(counter, COUNTER_PACKETS, 8), number(counter, COUNTER_BYTES, 8)
            found[text(values, OBJ_NAME)] = CounterValue(packets or 0, size_bytes or 0)
    return False, interrupted


def _request(table: str, sequence: int) -> bytes:
    body = attribute(OBJ_TABLE, table.encode() + b"\0") + attribute(OBJ_TYPE, struct.pack("!I", OBJECT_COUNTER))
    return message(GETOBJ, NLM_F_DUMP, sequence, family=NFPROTO_INET, body=body)
