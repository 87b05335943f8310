"""The tests run the plugin's executable as it is built from the source beside it."""

import subprocess

import pytest

from netagent.cni import install


@pytest.fixture(scope="session", autouse=True)
def shim() -> None:
    """Build the executable where it is missing or older than its source."""
    source = install.SHIM.with_name("shim.c")
    if not install.SHIM.exists() or install.SHIM.stat().st_mtime < source.stat().st_mtime:
        built = install.SHIM.with_suffix(".new")
        flags = ["-std=c11", "-Os", "-static", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *flags, "-o", str(built), str(source)], check=True)
        built.rename(install.SHIM)
