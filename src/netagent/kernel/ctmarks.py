"""Takes stamps of long ago off the kernel's open flows, over ctnetlink.

A stamp is a number that comes round again. Before a value is used a second time no flow may still carry it from the
first: a flow that was silent all the while would pass unjudged.
"""

import asyncio
import socket
import sys
from collections.abc import Iterator

from netagent.kernel.conntrack import (
    CT_GET,
    MARK,
    NETLINK_NETFILTER,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    RECEIVE_TIMEOUT_S,
    REQUEST_DUMP,
    TUPLE_ORIG,
    ConntrackError,
)
from netagent.kernel.nfnetlink import MalformedError, attribute, attributes, message, messages

CT_NEW = 1 << 8
"""NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW: without NLM_F_CREATE it changes an entry that exists."""
REQUEST_ACK = 0x5
MARK_MASK, ZONE = 21, 18
BATCH = 64
"""Changes a datagram: their acknowledgements fit the receive buffer."""
ROUNDS = 5
"""Dumps until none carries an old stamp: entries move in the table while it is read."""
ENOENT = 2


async def clear_marks(mask: int, keep: int) -> int:
    """Zero the masked bits of every flow's mark where they are neither 0 nor `keep`; how many were changed.

    Other bits stay. Raises ConntrackError; then some may still carry an old stamp.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as link:
            link.settimeout(RECEIVE_TIMEOUT_S)
            return await asyncio.to_thread(_clear, link, mask, keep)
    except (OSError, MalformedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConntrackError(
            f"old stamps could not be taken off the kernel's open flows: {reason}. The rules stay as "
            "they are; netagent tries again. Is nf_conntrack_netlink available, and has the agent CAP_NET_ADMIN?"
        ) from None


def _clear(link: socket.socket, mask: int, keep: int) -> int:
    changed = 0
    for _ in range(ROUNDS):
        stale = list(_stale(link, mask, keep))
        if not stale:
            return changed
        for start in range(0, len(stale), BATCH):
            changed += _change(link, stale[start : start + BATCH], mask)
    raise ConntrackError(
        f"flows with old stamps are still there after {ROUNDS} rounds. The rules stay as they are; netagent tries "
        "again."
    )


def _stale(link: socket.socket, mask: int, keep: int) -> Iterator[tuple[int, bytes]]:
    """Family, and the attributes that name the entry, of each flow with an old stamp."""
    link.send(message(CT_GET, REQUEST_DUMP, 1, family=socket.AF_UNSPEC))
    while True:
        for one in messages(link.recv(RECEIVE_BYTES)):
            if one.type == NLMSG_DONE:
                return
            if one.type == NLMSG_ERROR:
                _raise(one.payload)
            found = attributes(one.body)
            stamp = int.from_bytes(found.get(MARK, b""), "big") & mask
            if stamp not in (0, keep) and TUPLE_ORIG in found:
                names = attribute(TUPLE_ORIG | 0x8000, found[TUPLE_ORIG])
                yield one.family, names + (attribute(ZONE, found[ZONE]) if ZONE in found else b"")


def _change(link: socket.socket, stale: list[tuple[int, bytes]], mask: int) -> int:
    zero = attribute(MARK, bytes(4)) + attribute(MARK_MASK, mask.to_bytes(4, "big"))
    link.send(
        b"".join(
            message(CT_NEW, REQUEST_ACK, number, family=family, body=names + zero)
            for number, (family, names) in enumerate(stale)
        )
    )
    answered = changed = 0
    while answered < len(stale):
        for one in messages(link.recv(RECEIVE_BYTES)):
            if one.type == NLMSG_ERROR:
                answered += 1
                changed += _raise(one.payload) == 0
    return changed


def _raise(payload: bytes) -> int:
    """The error number of an answer, where it is harmless: the flow may have ended meanwhile."""
    number = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
    if number not in (0, ENOENT):
        raise OSError(number, f"ctnetlink answered error {number}")
    return number
