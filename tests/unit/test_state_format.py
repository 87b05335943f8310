"""State of a newer program is refused whole: by one number for the directory, and by one in a file of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from netagent.core.cni import host_ifname
from netagent.disk.allocations import Allocations
from netagent.disk.atomic import DiskError
from netagent.disk.state import ModeMemory, SubnetMemory
from netagent.records import Endpoint, Key

LINK = host_ifname("one", "eth0")
ENDPOINT = Endpoint(
    pod=Key("default", "one"), pod_uid="u", container_id="one", ifname="eth0", host_ifname=LINK, ips=("10.0.0.1",)
)
SUBNETS = ("10.0.0.0/24",)
Act = Callable[[Path], object]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A directory as an agent of today leaves it."""
    store = Allocations(tmp_path, "b")
    store.load()
    store.save(ENDPOINT)
    store.free("nap000000000000", ("10.0.0.7",))
    SubnetMemory(tmp_path).save(SUBNETS)
    ModeMemory(tmp_path).save("node")
    return tmp_path


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_agent_of_today_names_no_format(state: Path) -> None:
    assert "format" not in content(state)


@pytest.mark.parametrize("text", [None, "1", "1\n"])
def test_todays_format_is_read(state: Path, text: str | None) -> None:
    if text is not None:
        (state / "format").write_text(text)
    loaded = Allocations(state, "b").load()
    assert (loaded.endpoints, loaded.freed, loaded.problems) == ((ENDPOINT,), ("10.0.0.7",), ())
    assert SubnetMemory(state).load() == (SUBNETS, ())
    assert ModeMemory(state).load() == "node"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"2\n", r"a newer netagent keeps its state here \(format 2, this one knows 1\).*Run the newer netagent again"),
        (b"17", r"a newer netagent.*format 17"),
        (b"0\n", r"'0' is no format of netagent's.*remove this file alone if no newer one ever ran"),
        (b"", r"'' is no format"),
        (b"-2", r"is no format"),
        (b"two", r"is no format"),
        (b"2.0 {}", r"is no format"),
        (b"\xff\x00" * 9, r"is no format"),
        (b"9" * 4000, r"is no format"),
        (b"9" * 9000, r"larger than"),
        ("٢".encode(), r"is no format"),
    ],
)
def test_any_other_format_is_refused_before_anything_is_read_or_changed(state: Path, text: bytes, words: str) -> None:
    (state / "format").write_bytes(text)
    (state / "endpoints" / ".half.tmp1").write_bytes(b"x")
    (state / "endpoints" / "of-another-release").write_bytes(b"x")
    (state / "freed.log").write_bytes(b"10.0.0.7 2026-01-01\n")
    (state / "subnets.json").write_bytes(b"[4]")
    before = content(state)
    acts: tuple[Act, ...] = (
        lambda root: Allocations(root, "b").load(),
        lambda root: SubnetMemory(root).save(("10.0.9.0/24",)),
        lambda root: ModeMemory(root).load(),
        lambda root: ModeMemory(root).save("lease"),
    )
    for act in acts:
        with pytest.raises(DiskError, match=words):
            act(state)
    subnets, problems = SubnetMemory(state).load()
    assert subnets == ()
    assert "The subnets held before are not known" in problems[0]
    assert content(state) == before


@pytest.mark.parametrize("text", [b'{"version":2,"subnets":[]}', b'{"version":3,"families":{"4":[1]}}'])
def test_subnets_of_a_newer_version_stay_as_they_are(state: Path, text: bytes) -> None:
    (state / "subnets.json").write_bytes(text)
    memory = SubnetMemory(state)
    subnets, problems = memory.load()
    assert subnets == ()
    assert "a newer netagent wrote it" in problems[0]
    assert "remove the file" in problems[0]
    with pytest.raises(DiskError, match="It stays as it is"):
        memory.save(SUBNETS)
    assert (state / "subnets.json").read_bytes() == text
    assert not (state / "quarantine").exists()
    (state / "subnets.json").unlink()
    memory.save(SUBNETS)
    assert memory.load() == (SUBNETS, ())


@pytest.mark.parametrize("version", ["0", "-1"])
def test_a_version_of_subnets_that_never_was_is_damage(state: Path, version: str) -> None:
    (state / "subnets.json").write_text(f'{{"version":{version},"subnets":[]}}')
    subnets, problems = SubnetMemory(state).load()
    assert subnets == ()
    assert "was never in use" in problems[0]
    assert (state / "quarantine" / "subnets.json").exists()
