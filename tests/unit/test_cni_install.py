"""Plugins that the image brings to nodes."""

from pathlib import Path

import pytest

from netagent.cni.install import install_plugins
from netagent.config import CniConfig
from netagent.disk.atomic import DiskError
from netagent.kernel import sysctl


def made(tmp_path: Path, *, chained: tuple[str, ...] = ("portmap", "bandwidth")) -> CniConfig:
    """An image with loopback and portmap, and a node with an empty directory."""
    (tmp_path / "image").mkdir()
    (tmp_path / "node").mkdir()
    for name in ("loopback", "portmap", "firewall"):
        (tmp_path / "image" / name).write_text(f"{name} of the image")
    return CniConfig(bin_dir=str(tmp_path / "node"), plugin_dir=str(tmp_path / "image"), chained=chained)


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_those_needed_are_copied_and_executable(tmp_path: Path) -> None:
    config = made(tmp_path)
    assert install_plugins(config) == ["loopback", "portmap"]
    node = tmp_path / "node"
    assert contents(node) == {"loopback": "loopback of the image", "portmap": "portmap of the image"}
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in node.iterdir())
    assert install_plugins(config) == []


def test_those_of_the_node_stay(tmp_path: Path) -> None:
    config = made(tmp_path)
    (tmp_path / "node" / "portmap").write_text("portmap of the node")
    assert install_plugins(config) == ["loopback"]
    assert contents(tmp_path / "node")["portmap"] == "portmap of the node"


@pytest.mark.parametrize("missing", ["bin_dir", "plugin_dir"])
def test_nothing_is_copied_without_a_place(missing: str, tmp_path: Path) -> None:
    made(tmp_path)
    places = {"bin_dir": str(tmp_path / "node"), "plugin_dir": str(tmp_path / "image"), missing: ""}
    assert install_plugins(CniConfig(**places)) == []  # type: ignore[arg-type]
    assert contents(tmp_path / "node") == {}


def test_an_image_without_plugins_brings_none(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    config = CniConfig(bin_dir=str(tmp_path / "node"), plugin_dir=str(tmp_path / "absent"))
    assert install_plugins(config) == []


def test_a_failure_says_what_is_true_now(tmp_path: Path) -> None:
    config = made(tmp_path)
    (tmp_path / "node").rmdir()
    with pytest.raises(DiskError, match=r"cannot write .*/loopback: .*The file is as it was"):
        install_plugins(config)


def test_sysctls_are_written_where_the_node_s_are_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "IN_CONTAINER", tmp_path / "absent")
    assert sysctl.find_net() == Path("/proc/sys/net")
    monkeypatch.setattr(sysctl, "IN_CONTAINER", tmp_path)
    assert sysctl.find_net() == tmp_path
