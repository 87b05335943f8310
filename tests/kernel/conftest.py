"""Each file of kernel tests begins in an empty network namespace, so that what one leaves behind meets no other."""

import ctypes
import os
import subprocess

import pytest

CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module", autouse=True)
def empty_network() -> None:
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare of the network namespace failed")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
