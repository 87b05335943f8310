"""Allocations and subnets on disk: round trips, crashes in between, damage."""

import os
import stat
from pathlib import Path

import msgspec
import pytest

from netagent.core.cni import host_ifname
from netagent.disk import allocations as module
from netagent.disk.allocations import Allocations, Claim
from netagent.disk.atomic import DiskError, write_atomic
from netagent.disk.state import SubnetMemory
from netagent.records import Endpoint, Key


def endpoint(name: str, *ips: str) -> Endpoint:
    return Endpoint(
        pod=Key("default", name),
        pod_uid="u",
        container_id=name,
        ifname="eth0",
        host_ifname=host_ifname(name, "eth0"),
        ips=ips,
        netns=f"/run/netns/{name}",
    )


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "endpoints").iterdir())


def test_round_trip_and_permissions(tmp_path: Path) -> None:
    store = Allocations(tmp_path / "s", "boot1")
    store.load()
    one, two = endpoint("one", "10.0.0.1", "fd00::1"), endpoint("two", "10.0.0.2")
    store.save(one)
    store.save(two)
    store.free(two.host_ifname, two.ips)
    loaded = Allocations(tmp_path / "s", "boot1").load()
    assert loaded.endpoints == (one,)
    assert loaded.freed == ("10.0.0.2",)
    assert loaded.problems == ()
    assert loaded.earlier_boot == frozenset()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s").rglob("*") if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s", tmp_path / "s/endpoints")} == {0o700}


def test_an_earlier_boot_is_told_apart(tmp_path: Path) -> None:
    store = Allocations(tmp_path, "boot1")
    store.load()
    store.save(endpoint("one", "10.0.0.1"))
    assert Allocations(tmp_path, "boot2").load().earlier_boot == {host_ifname("one", "eth0")}


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 300, b"{", b"[]", b'{"version":1}', b'{"version":1,"boot_id":"b","endpoint":{"ips":7}}', b"\xff" * 9],
)
def test_garbage_still_claims_by_its_name(tmp_path: Path, content: bytes) -> None:
    store = Allocations(tmp_path, "b")
    store.load()
    good, bad = endpoint("good", "10.0.0.1"), endpoint("bad", "10.0.0.2", "fd00::2")
    store.save(good)
    store.save(bad)
    path = tmp_path / "endpoints" / f"{bad.host_ifname}+10.0.0.2+fd00::2.json"
    path.write_bytes(content)
    for _ in range(2):
        loaded = Allocations(tmp_path, "b").load()
        assert loaded.endpoints == (good,)
        assert loaded.damaged == (Claim(bad.host_ifname, bad.ips),)
        assert len(loaded.problems) == 1
        assert "10.0.0.2, fd00::2 stays taken" in loaded.problems[0]
    store.free(bad.host_ifname, bad.ips)
    assert len(files(tmp_path)) == 1


def test_content_under_another_name_is_damage(tmp_path: Path) -> None:
    store = Allocations(tmp_path, "b")
    store.load()
    one = endpoint("one", "10.0.0.1")
    store.save(one)
    (tmp_path / "endpoints" / f"{one.host_ifname}+10.0.0.1.json").rename(
        tmp_path / "endpoints" / f"{one.host_ifname}+10.0.0.9.json"
    )
    assert store.load().damaged == (Claim(one.host_ifname, ("10.0.0.9",)),)


@pytest.mark.parametrize(
    "content", [b"", b'{"version":2}', b'{"sandbox":[],"version":2,"endpoint":"of another shape"}']
)
def test_a_newer_version_is_refused_and_nothing_is_touched(tmp_path: Path, content: bytes) -> None:
    store = Allocations(tmp_path, "b")
    store.load()
    one = endpoint("one", "10.0.0.1")
    store.save(one)
    path = tmp_path / "endpoints" / f"{one.host_ifname}+10.0.0.1.json"
    newer = content or path.read_bytes().replace(b'"version":1', b'"version":2')
    path.write_bytes(newer)
    (path.parent / "nap000000000000+10.0.0.5.json").write_bytes(b"damaged")
    (path.parent / ".left-over").touch()
    before = files(tmp_path)
    with pytest.raises(DiskError, match=r"format 2, this one knows 1.*stays not ready.*Run the newer netagent"):
        store.load()
    assert path.read_bytes() == newer
    assert files(tmp_path) == before


@pytest.mark.parametrize("version", [b'"version":0', b'"version":-1', b'"version":null', b'"edition":1'])
def test_a_version_that_never_was_is_damage(tmp_path: Path, version: bytes) -> None:
    store = Allocations(tmp_path, "b")
    store.load()
    one = endpoint("one", "10.0.0.1")
    store.save(one)
    path = tmp_path / "endpoints" / f"{one.host_ifname}+10.0.0.1.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', version))
    assert store.load().damaged == (Claim(one.host_ifname, one.ips),)


def test_fields_of_a_newer_program_are_ignored(tmp_path: Path) -> None:
    store = Allocations(tmp_path, "b")
    store.load()
    one = endpoint("one", "10.0.0.1")
    store.save(one)
    path = tmp_path / "endpoints" / f"{one.host_ifname}+10.0.0.1.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":1,"later":{"x":[1]}'))
    loaded = store.load()
    assert (loaded.endpoints, loaded.problems) == ((one,), ())


def test_foreign_files_go_to_quarantine_and_half_written_ones_vanish(tmp_path: Path) -> None:
    store = Allocations(tmp_path, "b")
    store.load()
    for _ in range(2):
        (tmp_path / "endpoints" / "napzzz+10.0.0.1.json").write_text("x")
        (tmp_path / "endpoints" / ".nap+10.0.0.1.json.tmp7").write_text("x")
        assert len(store.load().problems) == 1
    assert files(tmp_path) == []
    assert sorted(os.listdir(tmp_path / "quarantine")) == ["napzzz+10.0.0.1.json", "napzzz+10.0.0.1.json.1"]


def test_names_are_never_built_from_anything_else(tmp_path: Path) -> None:
    store = Allocations(tmp_path, "b")
    store.load()
    bad = msgspec.structs.replace(endpoint("one", "10.0.0.1"), host_ifname="../../x")
    with pytest.raises(DiskError):
        store.save(bad)
    with pytest.raises(DiskError):
        store.save(msgspec.structs.replace(endpoint("one"), ips=("../x",)))
    assert files(tmp_path) == []


@pytest.mark.parametrize("torn", [b"10.0.0.3", b"10.0", b"\0\0\0", b"\xff\xfe"])
def test_torn_log(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "freed.log").write_bytes(b"10.0.0.1\n10.0.0.2\n10.0.0.1\n" + torn)
    store = Allocations(tmp_path, "b")
    assert store.load().freed[:2] == ("10.0.0.2", "10.0.0.1")
    store.free(host_ifname("x", "eth0"), ("10.0.0.9",))
    assert store.load().freed[-1] == "10.0.0.9"
    assert store.load().problems == ()


def test_log_is_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_LINES", 50)
    store = Allocations(tmp_path, "b")
    store.load()
    for number in range(500):
        store.free(host_ifname("x", "eth0"), (f"10.0.0.{number % 10}",))
    assert len((tmp_path / "freed.log").read_text().splitlines()) <= 61
    assert store.load().freed == tuple(f"10.0.0.{number}" for number in range(10))


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", no_space)
    with pytest.raises(DiskError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_subnets_are_remembered(tmp_path: Path) -> None:
    memory = SubnetMemory(tmp_path)
    assert memory.load() == ((), ())
    memory.save(("10.244.3.0/24", "fd00:3::/64"))
    assert SubnetMemory(tmp_path).load() == (("10.244.3.0/24", "fd00:3::/64"), ())


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version":0,"subnets":[]}', b"\0" * 100, b"x" * 70_000])
def test_unreadable_subnets_are_none_and_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "subnets.json").write_bytes(content)
    subnets, problems = SubnetMemory(tmp_path).load()
    assert subnets == ()
    assert len(problems) == 1
    assert (tmp_path / "quarantine" / "subnets.json").exists()
    assert SubnetMemory(tmp_path).load() == ((), ())
