"""Every test process runs in network and mount namespaces of its own, so that no test can touch the machine.

A private, empty /run/netns hides the machine's named namespaces; loopback is up. Child processes inherit all of it, and
everything in it vanishes with the process.
"""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a change is judged by what it does, not by the luck of the draw. To search on:
# HYPOTHESIS_PROFILE=search.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000


def pytest_configure(config: pytest.Config) -> None:
    if os.geteuid() != 0 or os.environ.get("TEST_ISOLATED_PID") == str(os.getpid()):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare of network and mount namespaces failed; the tests need root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ["TEST_ISOLATED_PID"] = str(os.getpid())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("envtest") and not os.environ.get("KUBEBUILDER_ASSETS"):
            item.add_marker(pytest.mark.skip(reason="KUBEBUILDER_ASSETS is not set: no real kube-apiserver"))
        if item.get_closest_marker("kernel") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and nftables"))
