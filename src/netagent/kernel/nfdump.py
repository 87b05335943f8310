"""A dump of nf_tables objects over a socket of its own: what libnftables reads whole sets for, or does not tell."""

import errno
import os
import struct
from collections.abc import Callable
from typing import TypeVar

from netagent.kernel.nfnetlink import (
    DATAGRAM_BYTES,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    MalformedError,
    Message,
    NfnetlinkError,
    message,
    messages,
    open_socket,
)
from netagent.ports import NftError

T = TypeVar("T")

RECEIVE_BYTES = 1 << 18
TIMEOUT_S = 5.0
ATTEMPTS = 5
"""The kernel says when a commit came in between; then the dump starts over, and the last one is taken as it is."""


def dump(kind: int, answer: int, parse: Callable[[Message], T], *, family: int, body: bytes, what: str) -> list[T]:
    """What `parse` makes of the messages of type `answer` to a dump request of type `kind`; none of no table.

    `what` says in an error what was read. Blocks. Raises NftError, also where the messages make no sense.
    """
    try:
        with open_socket(RECEIVE_BYTES) as link:
            link.settimeout(TIMEOUT_S)
            for attempt in range(1, ATTEMPTS + 1):
                link.send(message(kind, NLM_F_DUMP, attempt, family=family, body=body))
                found: list[Message] = []
                interrupted = ended = False
                while not ended:
                    ended, cut = _take(link.recv(DATAGRAM_BYTES), answer, attempt, found)
                    interrupted = interrupted or cut
                if not interrupted:
                    break
            return [parse(one) for one in found]
    except (OSError, MalformedError, NfnetlinkError) as error:
        raise NftError(f"reading {what}: {error}. Nothing was changed.") from None


def _take(datagram: bytes, answer: int, sequence: int, found: list[Message]) -> tuple[bool, bool]:
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
        if one.type == answer:
            found.append(one)
    return False, interrupted
