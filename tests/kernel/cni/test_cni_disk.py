"""A state directory that is full or read-only: ADD fails and says so, pods can still go, all comes back with it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent.core.cni import host_ifname
from netagent.disk.allocations import Allocations
from netagent.kernel import wiring
from support.cnibed import Bed, Netns, addresses, has_link

pytestmark = pytest.mark.kernel

IO_FAILURE = 5


class Disk:
    """A small file system under the state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def mount(self, options: str = "size=64k") -> None:
        self.path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)], check=True)

    def unmount(self) -> None:
        """The last one that was mounted."""
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def fill(self) -> None:
        """Not one page is left."""
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        self._filler.unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)

    def claims(self) -> list[str]:
        found = self.path / "endpoints"
        return sorted(os.listdir(found)) if found.exists() else []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "state")
    made.mount()
    yield made
    made.unmount()


@pytest.fixture
def node(disk: Disk, tmp_path: Path) -> Iterator[Bed]:
    """Not started; its state is on the small disk."""
    yield Bed(tmp_path)
    for name in wiring.links():
        wiring.unwire(name)


async def refused(node: Bed, name: str, words: str) -> None:
    """An ADD fails for want of the disk and leaves nothing anywhere."""
    status, answer = await node.call("ADD", name)
    assert (status, answer["code"]) == (1, IO_FAILURE)
    assert words in answer["msg"]
    assert not has_link(host_ifname(name, "eth0"))
    assert host_ifname(name, "eth0") not in node.gate.admitted
    assert name not in {one.container_id for one in node.server.endpoints()}
    assert node.server.status.last_error == answer["msg"].removeprefix("netagent: ")


async def test_without_room_no_pod_comes_and_every_pod_can_go(node: Bed, disk: Disk, pod_netns: Netns) -> None:
    for name in ("one", "two", "three"):
        pod_netns(name)
    await node.start()
    first = addresses(await node.add("one"))
    await node.add("two")
    disk.fill()
    await refused(node, "three", "No space left")
    await node.delete("three")
    assert len(disk.claims()) == 2
    assert await node.call("CHECK", "one", conf={"prevResult": {"ips": [{"address": ip} for ip in first]}}) == (0, None)
    await node.delete("one")
    assert len(disk.claims()) == 1
    assert not has_link(host_ifname("one", "eth0"))
    disk.make_room()
    assert set(addresses(await node.add("three"))).isdisjoint(first)
    assert len(disk.claims()) == 2
    assert [name for name in os.listdir(disk.path / "endpoints") if name.startswith(".")] == []
    await node.stop()


async def test_an_agent_starts_on_a_full_disk_with_what_is_there(node: Bed, disk: Disk, pod_netns: Netns) -> None:
    for name in ("one", "two"):
        pod_netns(name)
    await node.start()
    await node.add("one")
    await node.stop()
    disk.fill()
    await node.start()
    assert [one.container_id for one in node.gate.restored] == ["one"]
    await refused(node, "two", "No space left")
    await node.delete("one")
    assert disk.claims() == []
    disk.make_room()
    await node.add("two")
    await node.stop()


async def test_an_agent_starts_where_its_directories_cannot_be_made(node: Bed, disk: Disk, pod_netns: Netns) -> None:
    pod_netns("one")
    disk.mount("size=64k,nr_inodes=2")  # the root and the filler: none is left for a directory
    disk.fill()
    await node.start()
    assert node.gate.restored == ()
    assert "No space left" in node.server.status.problems[0]
    await refused(node, "one", "No space left")
    disk.unmount()
    await node.add("one")
    assert len(disk.claims()) == 1
    await node.stop()


async def test_on_a_read_only_disk_links_go_and_addresses_wait(node: Bed, disk: Disk, pod_netns: Netns) -> None:
    for name in ("one", "two", "three"):
        pod_netns(name)
    await node.start()
    first = addresses(await node.add("one"))
    disk.remount("ro")
    await refused(node, "two", "Read-only file system")
    await node.delete("two")  # nothing of it was written
    status, answer = await node.call("DEL", "one")
    assert (status, answer["code"]) == (1, IO_FAILURE)
    assert "Read-only file system" in answer["msg"]
    assert not has_link(host_ifname("one", "eth0"))
    assert host_ifname("one", "eth0") not in node.gate.admitted
    await node.stop()
    await node.start()  # what is gone cannot be freed; the rest is served
    assert [one.container_id for one in node.gate.restored] == ["one"]
    disk.remount("rw")
    assert set(addresses(await node.add("three"))).isdisjoint(first)
    await node.delete("one")
    assert len(disk.claims()) == 1
    assert Allocations(disk.path).load().freed == tuple(first)
    await node.stop()


async def test_half_a_line_in_the_log_of_freed_addresses_spoils_no_other(disk: Disk) -> None:
    store = Allocations(disk.path, "boot")
    store.load()
    (disk.path / "freed.log").write_bytes(b"10.0.0.100\n" * 372)  # 4 bytes are left of its page
    disk.fill()
    store.free(host_ifname("x", "eth0"), ("10.0.0.1",))
    disk.make_room()
    store.free(host_ifname("x", "eth0"), ("10.0.0.2",))
    loaded = store.load()
    assert loaded.problems == ()
    assert loaded.freed == ("10.0.0.100", "10.0.0.2")
