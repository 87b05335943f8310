"""System calls of one thread that fail, by the kernel's own means: seccomp and capabilities."""

import ctypes
import errno
import platform
import struct

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NUMBERS = {
    "x86_64": {"sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47},
    "aarch64": {"sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212},
}
CAPABILITY_VERSION = 0x20080522
CAP_NET_ADMIN = 12

_libc = ctypes.CDLL(None, use_errno=True)


def known_here() -> bool:
    """Whether the numbers of this machine's system calls are."""
    return platform.machine() in NUMBERS


def fail(call: str, code: int) -> None:
    """From now on this system call of this thread gives that error. There is no way back: use a thread of its own."""
    number = NUMBERS[platform.machine()][call]
    program = ((LOAD, 0, 0, 0), (JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, FAIL | code), (RETURN, 0, 0, ALLOW))
    text = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(text, len(text))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)), 0, 0))


def give_up_net_admin() -> None:
    """This thread may not change the network any more."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0))
    held = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, held))
    words = list(struct.unpack("=6I", held.raw))
    words[0] &= ~(1 << CAP_NET_ADMIN)
    _check(_libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *words), 24)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, errno.errorcode.get(number, str(number)))
