"""Tables of the old iptables, which nftables does not see: what is there, and the policy of the FORWARD chain.

Only tables that exist are asked about: asking for another one would make it. Format: iptables' own way of reading,
linux/netfilter_ipv4/ip_tables.h (struct ipt_getinfo, ipt_get_entries, ipt_entry) and its IPv6 twin.
"""

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

from netagent.kernel.forward import LEGACY_TABLES

SO_GET_INFO, SO_GET_ENTRIES = 64, 65
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
TARGET_OFFSET_AT = {4: 88, 6: 140}
"""Of target_offset (16 bits) in an entry."""
ENTRIES_AT = 40
"""Of the first entry in struct ipt_get_entries."""
VERDICT_AT = 32
"""In a standard target, behind struct xt_entry_target."""
MAX_TABLE_BYTES = 64 << 20
NF_INET_FORWARD = 2
DROP, ACCEPT = -1, -2
"""Verdicts as a standard target holds them: -NF_DROP - 1, -NF_ACCEPT - 1."""

_INFO = struct.Struct("=32sI5I5III")
_libc = ctypes.CDLL(None, use_errno=True)


def tables(version: int) -> frozenset[str]:
    """Names of the tables that exist in this network namespace; empty where the kernel has none of it."""
    with contextlib.suppress(OSError):
        return frozenset(Path(LEGACY_TABLES[version]).read_text(encoding="ascii").split())
    return frozenset()


def forward_policy(version: int) -> str:
    """ACCEPT or DROP; "" where the filter table does not exist, cannot be read, or ends in something else."""
    if "filter" not in tables(version):
        return ""
    try:
        with socket.socket(AF[version], socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            return _policy(control, version)
    except OSError:
        return ""


def _policy(control: socket.socket, version: int) -> str:
    name = b"filter".ljust(32, b"\0")
    info = _INFO.unpack(_ask(control, version, SO_GET_INFO, name.ljust(_INFO.size, b"\0")))
    underflow, size = info[7 + NF_INET_FORWARD], info[13]
    if size > MAX_TABLE_BYTES:
        return ""
    request = (name + struct.pack("=I", size)).ljust(ENTRIES_AT + size, b"\0")
    entries = _ask(control, version, SO_GET_ENTRIES, request)[ENTRIES_AT:]
    (target,) = struct.unpack_from("=H", entries, underflow + TARGET_OFFSET_AT[version])
    (verdict,) = struct.unpack_from("=i", entries, underflow + target + VERDICT_AT)
    return {DROP: "DROP", ACCEPT: "ACCEPT"}.get(verdict, "")


def _ask(control: socket.socket, version: int, option: int, request: bytes) -> bytes:
    """getsockopt whose buffer is the question as well. Raises OSError."""
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))
    code = _libc.getsockopt(control.fileno(), LEVEL[version], option, buffer, ctypes.byref(length))
    if code != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw
