"""The tests run the plugin's executable as it is built from the source beside it."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from netagent.cni import install
from netagent.kernel import wiring
from support.cnibed import Bed, sh


@pytest.fixture(scope="session", autouse=True)
def shim() -> None:
    """Build the executable where it is missing or older than its source."""
    source = install.SHIM.with_name("shim.c")
    if not install.SHIM.exists() or install.SHIM.stat().st_mtime < source.stat().st_mtime:
        built = install.SHIM.with_suffix(".new")
        flags = ["-std=c11", "-Os", "-static", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", str(built), str(source)], check=True)
        built.rename(install.SHIM)


@pytest.fixture(autouse=True)
def _forwarding() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    bed = Bed(tmp_path)
    await bed.start()
    yield bed
    await bed.stop()
    for name in wiring.links():
        wiring.unwire(name)


@pytest.fixture
def pod_netns() -> Any:
    made: list[str] = []

    def make(name: str) -> str:
        sh("ip", "netns", "add", name)
        made.append(name)
        return f"/run/netns/{name}"

    yield make
    for name in made:
        if Path(f"/run/netns/{name}").exists():
            sh("ip", "netns", "del", name)
