"""Every test has a node of its own."""

import ctypes
from pathlib import Path

import pytest

from support.doctorbed import DoctorBed, sh

CLONE_NEWNET = 0x40000000


@pytest.fixture
def bed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> DoctorBed:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare of the network namespace failed")
    sh("ip link set lo up")
    return DoctorBed(tmp_path, capsys)
