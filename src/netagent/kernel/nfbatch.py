"""Small transactions over one long-lived netlink socket.

A batch is one datagram: NFNL_MSG_BATCH_BEGIN, the changes, NFNL_MSG_BATCH_END. The kernel works through it while it is
being sent, takes all of it or nothing, and has answered when `send` returns: an acknowledgement of the last change, or
an error for each message that it refused. Nothing is read before, so the cost is that of the change, however large the
table. The exceptions are a map element that leads to a chain and a rule of a new one: the kernel then walks all chains
for loops.
"""

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from netagent.kernel.nfnetlink import (
    DATAGRAM_BYTES,
    HEADER,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLMSG_ERROR,
    SOL_NETLINK,
    MalformedError,
    Message,
    NfnetlinkError,
    attributes,
    messages,
    open_socket,
    text,
)
from netagent.kernel.nfparts import Part, batch
from netagent.kernel.nftransaction import parts
from netagent.ports import NftError, SmallTransaction

NETLINK_CAP_ACK, NETLINK_EXT_ACK = 10, 11
EXTACK_MESSAGE, EXTACK_OFFSET = 1, 2
SO_SNDBUFFORCE = 32
RECEIVE_BYTES = 1 << 20
SEND_BYTES = 1 << 23
"""A batch is one datagram and has to fit. The kernel takes the memory only while it is being sent."""
REFUSALS_NAMED = 3


class Answer(Struct, frozen=True, gc=False):
    """What the kernel said about one message; error 0: taken."""

    sequence: int
    error: int
    reason: str = ""
    offset: int | None = None


def answers(datagrams: Iterable[bytes]) -> Iterator[Answer]:
    """Errors and acknowledgements (error 0). Raises MalformedError."""
    for datagram in datagrams:
        for one in messages(datagram):
            if one.type == NLMSG_ERROR:
                yield _answer(one)


def _answer(one: Message) -> Answer:
    if len(one.payload) < 4 + HEADER.size:
        raise MalformedError(f"netlink answer with {len(one.payload)} bytes.")
    (code,) = struct.unpack_from("=i", one.payload)
    length, _, _, sequence, _ = HEADER.unpack_from(one.payload, 4)
    if not one.flags & NLM_F_ACK_TLVS:
        return Answer(sequence, -code)
    said = HEADER.size if one.flags & NLM_F_CAPPED or not code else (length + 3) & ~3
    found = attributes(one.payload[4 + said :])
    offset = int.from_bytes(found[EXTACK_OFFSET], sys.byteorder) if EXTACK_OFFSET in found else None
    return Answer(sequence, -code, text(found, EXTACK_MESSAGE), offset)


class BatchSocket:
    """Commits to one inet table of the network namespace in which it is first used. Not for several threads at once."""

    def __init__(self, table: str, *, receive_bytes: int = RECEIVE_BYTES) -> None:
        self._table = table
        self._receive_bytes = receive_bytes
        self._socket: socket.socket | None = None
        self._sequence = 0

    def commit(self, transaction: SmallTransaction) -> None:
        """All of it or nothing. Raises NftError; then the kernel is unchanged, unless the answer is said to be lost."""
        try:
            some = parts(self._table, transaction)
        except (ValueError, struct.error) as error:
            raise NftError(
                f"a transaction on table inet {self._table} was not sent: {error}. The "
                "old rules stay in force; netagent reads the table back and tries again."
            ) from None
        if not some:
            return
        first = self._sequence
        self._sequence = (first + len(some) + 2) & 0x7FFFFFFF
        self._judge(some, first, *self._exchange(batch(some, first)))

    def open(self) -> None:
        """Have the socket now. Raises NftError."""
        if self._socket is None:
            try:
                self._socket = _open(self._receive_bytes)
            except (OSError, NfnetlinkError) as error:
                raise NftError(f"no socket for table inet {self._table}: {error}. Nothing was changed.") from None

    def close(self) -> None:
        """The next commit opens another socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, datagram: bytes) -> tuple[list[bytes], str]:
        """Send a batch; the datagrams that answer it, and why there may have been more."""
        try:
            if self._socket is None:
                self._socket = _open(self._receive_bytes)
            self._socket.send(datagram)
        except (OSError, NfnetlinkError) as error:
            self.close()
            raise NftError(f"{self._failed(str(error))} The old rules stay in force; netagent tries again.") from None
        received: list[bytes] = []
        lost = ""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    received.append(self._socket.recv(DATAGRAM_BYTES, socket.MSG_DONTWAIT))
                except BlockingIOError:
                    raise
                except OSError as error:  # told once, before what did not get lost
                    if lost:
                        break
                    lost = os.strerror(error.errno or 0)
        return received, lost

    def _judge(self, some: Sequence[Part], first: int, received: list[bytes], lost: str) -> None:
        try:
            found = list(answers(received))
        except MalformedError as error:
            self.close()
            raise NftError(self._lost(str(error))) from None
        if lost:
            self.close()
        refusals = [one for one in found if one.error]
        if refusals:
            why = "; ".join(_complaint(some, first, one) for one in refusals[:REFUSALS_NAMED])
            raise NftError(
                f"{self._failed(why)} The old rules stay in force; netagent reads the table back and tries again. "
                f"If it repeats: compare `nft list table inet {self._table}` with /debug/ruleset."
            )
        if lost or all(one.sequence != first + len(some) for one in found):
            self.close()
            raise NftError(self._lost(lost or "none came"))

    def _failed(self, why: str) -> str:
        return f"the kernel refused a small transaction on table inet {self._table}: {why}."

    def _lost(self, why: str) -> str:
        return (
            f"the answer to a small transaction on table inet {self._table} was lost: {why}. Either the old or "
            "the new rules are in force, whole; netagent replaces the table."
        )


def _open(receive_bytes: int) -> socket.socket:
    opened = open_socket(receive_bytes)
    try:
        opened.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        try:
            opened.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BYTES)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    except OSError:
        opened.close()
        raise
    return opened


def _complaint(some: Sequence[Part], first: int, one: Answer) -> str:
    """What was refused and why."""
    index = one.sequence - first - 1
    what = some[index].named(one.offset) if 0 <= index < len(some) else "the whole"
    name = errno.errorcode.get(one.error, str(one.error))
    return f"{what}: {one.reason or os.strerror(one.error)} ({name})"
