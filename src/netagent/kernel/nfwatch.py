"""Who else changes our nftables table: the kernel's notifications, without our own.

Each commit sends its objects to the group NFNLGRP_NFTABLES and then one NFT_MSG_NEWGEN that names the process. Every
message carries the port ID of the socket that the commit came through, so our own are told apart exactly. A socket
filter drops them in the kernel: however large a table of ours is, writing it cannot overflow our own receive buffer.
Of foreign commits only those that name our table are looked at; for all others one search in bytes is the whole cost.
"""

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable

from msgspec import Struct

from netagent.kernel.nfnetlink import (
    DATAGRAM_BYTES,
    NFPROTO_INET,
    SOL_NETLINK,
    SUBSYSTEM_NFTABLES,
    MalformedError,
    Message,
    NfnetlinkError,
    attributes,
    messages,
    number,
    open_socket,
    own_portids,
    text,
)

NETLINK_ADD_MEMBERSHIP = 1
SO_ATTACH_FILTER = 26
NFNLGRP_NFTABLES = 7
NEWGEN = SUBSYSTEM_NFTABLES << 8 | 15
NFTA_GEN_ID = 1
NFTA_GEN_PROC_PID = 2
NFTA_GEN_PROC_NAME = 3
NFTA_TABLE = 1
"""In the messages of every kind of object the table's name has this type (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, ...)."""
RECEIVE_BYTES = 8 << 20
"""Room for some ten thousand objects of a foreign commit between two turns of the event loop."""
DATAGRAMS_PER_TURN = 64
"""Read in a row before the event loop's other work gets its turn."""


class TableChange(Struct, frozen=True, gc=False):
    """A foreign commit that touched our table."""

    generation: int
    """Of the ruleset of the network namespace, after the commit."""
    pid: int
    """Of the thread, in the first PID namespace."""
    process: str


class Missed(Struct, frozen=True, gc=False):
    """Notifications were lost: anything may have happened to our table."""

    reason: str


class Notifications:
    """Reads the group's datagrams in their order."""

    def __init__(self, table: str, is_own: Callable[[int], bool]) -> None:
        """`table` is of the inet family; `is_own` says whether a port ID is of our process."""
        self._name = table.encode() + b"\0"
        self._is_own = is_own
        self._touched_by: int | None = None
        """Port ID of the foreign commit that touched our table and whose end is still to come."""

    def read(self, datagram: bytes) -> TableChange | None:
        """What a datagram tells of our table. Raises MalformedError."""
        if self._touched_by is None and not self._mentions(datagram):
            return None
        changed = None
        for message in messages(datagram):
            if message.type == NEWGEN:
                if message.portid == self._touched_by:
                    changed = _change(message)
                self._touched_by = None
            elif self._touched_by is None and self._concerns(message) and not self._is_own(message.portid):
                self._touched_by = message.portid
        return changed

    def forget(self) -> None:
        """Something was lost in between."""
        self._touched_by = None

    def _mentions(self, datagram: bytes) -> bool:
        """Whether a look into the messages can be worth it."""
        return self._name in datagram

    def _concerns(self, message: Message) -> bool:
        """Whether it is about what is watched."""
        if message.type >> 8 != SUBSYSTEM_NFTABLES or message.family != NFPROTO_INET:
            return False
        return attributes(message.body).get(NFTA_TABLE) == self._name


class NftWatch:
    """An open subscription."""

    def __init__(
        self,
        table: str,
        *,
        own: Callable[[], frozenset[int]] = own_portids,
        reader: Callable[[str, Callable[[int], bool]], Notifications] = Notifications,
    ) -> None:
        """Raises NfnetlinkError. `table` is of the inet family; `own` tells the port IDs of our own sockets; `reader`
        makes what decides which commits count."""
        self._notifications = reader(table, self._made_by_us)
        self._list_own = own
        self._own: frozenset[int] = frozenset()
        self._in_a_row = 0
        self._socket = open_socket(RECEIVE_BYTES)
        try:
            self._socket.setblocking(False)
            self.refresh()
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as error:
            self.close()
            raise NfnetlinkError(
                f"cannot subscribe to changes of nftables: {error.strerror}. What others change goes unseen until the "
                "next audit."
            ) from None

    def close(self) -> None:
        """End the subscription."""
        self._socket.close()

    def refresh(self) -> None:
        """Learn our own sockets anew."""
        own = self._list_own()
        if own != self._own:
            self._own = own
            _drop_senders(self._socket, own)

    async def next(self) -> TableChange | Missed:
        """The next foreign commit that touched our table. Raises NfnetlinkError where the socket is dead."""
        loop = asyncio.get_running_loop()
        while True:
            self._in_a_row += 1
            if self._in_a_row >= DATAGRAMS_PER_TURN:
                self._in_a_row = 0
                await asyncio.sleep(0)
            try:
                datagram = await loop.sock_recv(self._socket, DATAGRAM_BYTES)
                change = self._notifications.read(datagram)
            except MalformedError as error:
                self._notifications.forget()
                return Missed(str(error))
            except OSError as error:
                self._notifications.forget()
                if error.errno == errno.ENOBUFS:
                    return Missed("more changes of nftables at once than the receive buffer holds")
                raise NfnetlinkError(f"watching changes of nftables: {error.strerror}.") from None
            if change is not None:
                return change

    def _made_by_us(self, portid: int) -> bool:
        if portid not in self._own:
            self.refresh()
        return portid in self._own


def _change(message: Message) -> TableChange:
    found = attributes(message.body)
    return TableChange(
        number(found, NFTA_GEN_ID) or 0, number(found, NFTA_GEN_PROC_PID) or 0, text(found, NFTA_GEN_PROC_NAME)
    )


def _drop_senders(target: socket.socket, portids: frozenset[int]) -> None:
    """Attach a classic BPF program: datagrams whose first nlmsg_pid is one of these never reach the socket."""
    load_word, jump_equal, give_back = 0x20, 0x15, 0x06
    program = [(load_word, 0, 0, 12)]
    for index, portid in enumerate(sorted(portids)[:200]):
        # BPF loads in network order what the header has in host order.
        swapped = int.from_bytes(struct.pack("=I", portid), "big")
        to_drop = min(len(portids), 200) - index
        program.append((jump_equal, to_drop, 0, swapped))
    program += [(give_back, 0, 0, 0xFFFFFFFF), (give_back, 0, 0, 0)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    target.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    )
