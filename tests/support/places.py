"""Network namespaces around a router, which is the network namespace of the test process: pods, outside hosts, nodes.

    place eth0 <ip>/32 --veth-- router (no address on the link, one route per place)

Links are wired by the agent's own code. There is no process per place: a thread enters the namespace, opens sockets
there and ends; the sockets stay.
"""

import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from netagent.kernel import wiring
from netagent.kernel.netns import run_in_netns
from netagent.records import Endpoint, Key

CLONE_NEWNET = 0x40000000
MTU = 1450

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
T = TypeVar("T")


class Place:
    """A namespace with addresses, at most one per IP version; `netns` None: the router itself."""

    def __init__(self, name: str, ips: tuple[str, ...], netns: int | None, host_ifname: str = "") -> None:
        self.name = name
        self.ips = ips
        self.netns = netns
        self.host_ifname = host_ifname

    def ip(self, version: int = 4) -> str:
        """Its address of an IP version."""
        return next(ip for ip in self.ips if (":" in ip) == (version == 6))

    def inside(self, work: Callable[[], T]) -> T:
        """What `work` returns when called inside."""
        return work() if self.netns is None else run_in_netns(self.netns, work)

    def endpoint(self, pod: Key, pod_uid: str) -> Endpoint:
        """As CNI ADD would report it."""
        number = self.netns or 0
        return Endpoint(
            pod=pod,
            pod_uid=pod_uid,
            container_id=f"c-{self.host_ifname}",
            ifname="eth0",
            host_ifname=self.host_ifname,
            ips=self.ips,
            netns=f"/proc/self/fd/{number}",
            mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
        )

    def wire(self) -> None:
        """Connect it to the router."""
        wiring.wire(self.endpoint(Key("", self.name), ""), MTU)

    def unwire(self) -> None:
        """Disconnect it; its addresses are nobody's then."""
        if self.netns is not None:
            wiring.unwire(self.host_ifname)

    def close(self) -> None:
        """The namespace goes with its last socket."""
        if self.netns is not None:
            self.unwire()
            os.close(self.netns)
            self.netns = None


def new_place(name: str, ips: tuple[str, ...], link: str) -> Place:
    """A namespace not yet connected; the router's end of its link will be called `link` and a number."""
    return Place(name, ips, _new_netns(), f"{link}{next(_numbers):06d}")


def prepare_router(ips: tuple[str, ...]) -> Place:
    """Forwarding on, and addresses for the node itself."""
    for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", switch).write_text("1")
    for ip in ips:
        subprocess.run(["ip", "address", "replace", f"{ip}/{128 if ':' in ip else 32}", "dev", "lo"], check=True)
    return Place("node", ips, None)


def _new_netns() -> int:
    """A descriptor of a new network namespace whose loopback is up."""
    made: list[int] = []

    def make() -> None:
        if _libc.unshare(CLONE_NEWNET) == 0:
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise OSError("unshare of a network namespace failed")
    return made[0]
