"""The node's links, networks and open flows as an examination wants to see them. Reads only; needs no privileges."""

import array
import fcntl
import ipaddress
import os
import socket
import sys
from pathlib import Path
from struct import pack, unpack

from msgspec import Struct

from netagent.core.doctor.hostchecks import Device
from netagent.kernel import links
from netagent.kernel.links import SIOCETHTOOL
from netagent.kernel.rtnetlink import Rtnetlink, attributes

ETHTOOL_GDRVINFO = 0x3
DRVINFO_BYTES, DRIVER_BYTES = 196, 32
"""struct ethtool_drvinfo: a command, then the driver's name, then what does not matter here."""
IFLA_MASTER = 10
RT_TABLE_MAIN, RTPROT_RA = 254, 9
VXLAN_COLLECT_METADATA = 25
CAPABILITIES = {"NET_ADMIN": 12, "SYS_ADMIN": 21}
"""linux/capability.h: bits of those that the agent has."""
SELF = Path("/proc/self")


class Host(Struct, frozen=True):
    """Links and what they are connected to."""

    devices: tuple[Device, ...]
    networks: dict[str, str]
    """Network of each address of global scope (canonical CIDR) -> name of its link."""
    addresses: dict[str, str]
    """Each address of global scope -> name of its link."""


async def read_host() -> Host:
    """Of the network namespace of the process. Raises RtnetlinkError, OSError."""
    with Rtnetlink() as netlink, socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        answers = await netlink.dump(links.RTM_GETLINK, links.IFINFO.pack(0, 0, 0, 0, 0))
        found = [links.read_link(answer) for answer in answers]
        masters = [attributes(answer.body, links.IFINFO.size).get(IFLA_MASTER, b"") for answer in answers]
        names = {link.index: link.name for link in found}
        addresses = [
            one
            for one in await links.list_addresses(netlink)
            if one.scope == links.RT_SCOPE_UNIVERSE and not ipaddress.ip_address(one.address).is_loopback
        ]
        bridges = {link.index: link.name for link in found if link.kind == "bridge"}
        devices = tuple(
            _device(link, bridges.get(int.from_bytes(master, sys.byteorder), ""), control)
            for link, master in zip(found, masters, strict=True)
        )
    networks = {
        str(ipaddress.ip_network(f"{one.address}/{one.prefix_len}", strict=False)): names.get(one.index, "")
        for one in addresses
    }
    return Host(devices, networks, {one.address: names.get(one.index, "") for one in addresses})


def _device(link: links.Link, bridge: str, control: socket.socket) -> Device:
    vxlan = links.read_vxlan(link)
    options = attributes(link.info, 0) if link.kind == "vxlan" else {}
    return Device(
        name=link.name,
        kind=link.kind,
        mtu=link.mtu,
        up=link.up,
        vni=vxlan.vni,
        port=vxlan.port,
        bridge=bridge,
        external=options.get(VXLAN_COLLECT_METADATA) == b"\1",
        offload=links.read_offload(control, link.name) if link.kind == "vxlan" else "",
    )


def driver(device: str) -> str:
    """Name of the device's driver; "" where it does not say."""
    answer = array.array("B", pack("=I", ETHTOOL_GDRVINFO).ljust(DRVINFO_BYTES, b"\0"))
    request = pack("16sP16x", device.encode(), answer.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            fcntl.ioctl(control.fileno(), SIOCETHTOOL, request)
    except OSError:
        return ""
    (name,) = unpack(f"4x{DRIVER_BYTES}s{DRVINFO_BYTES - DRIVER_BYTES - 4}x", answer.tobytes())
    return bytes(name).rstrip(b"\0").decode(errors="replace")


def reverse_path(device: str) -> int:
    """rp_filter in force on a device: the larger of its own and that of all."""
    texts = (links.read_sysctl(f"net/ipv4/conf/{where}/rp_filter") for where in (device, "all"))
    return max(int(text) if text.isdigit() else 0 for text in texts)


async def has_learnt_default() -> bool:
    """Whether a default route of IPv6 came from a router's advertisement. Raises RtnetlinkError."""
    header = links.RTMSG.pack(socket.AF_INET6, 0, 0, 0, RT_TABLE_MAIN, RTPROT_RA, 0, 0, 0)
    with Rtnetlink() as netlink:
        found = await netlink.dump(links.RTM_GETROUTE, header)
    return any(links.RTMSG.unpack_from(one.body)[1] == 0 for one in found)


def udp_ports() -> frozenset[int]:
    """Ports with a UDP socket, the kernel's own among them."""
    found: set[int] = set()
    for name in ("udp", "udp6"):
        try:
            lines = (Path("/proc/net") / name).read_text().splitlines()[1:]
        except OSError:
            continue
        found |= {int(line.split()[1].rpartition(":")[2], 16) for line in lines}
    return frozenset(found)


def conntrack_use() -> tuple[int, int] | None:
    """Entries in use in this namespace, and how many there may be; None without connection tracking."""
    texts = [links.read_sysctl(f"net/netfilter/nf_conntrack_{what}") for what in ("count", "max")]
    return (int(texts[0]), int(texts[1])) if all(text.isdigit() for text in texts) else None


def lacking_capabilities() -> tuple[str, ...]:
    """Of those that looking at everything takes, the ones that this process has not."""
    try:
        lines = (SELF / "status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "CapEff":
            return tuple(one for one, bit in CAPABILITIES.items() if not int(value, 16) >> bit & 1)
    return tuple(CAPABILITIES)


def agents() -> tuple[int, ...]:
    """Processes of agents in this network namespace, of those that this process may see."""
    here = _namespace(SELF)
    return tuple(sorted(int(one.name) for one in Path("/proc").glob("[0-9]*") if _is_agent(one, here)))


def config_of(agent: int) -> str:
    """The file that a process of an agent was started with; "" where there is none, or it cannot be seen."""
    process = Path("/proc") / str(agent)
    try:
        words = [os.fsdecode(word) for word in (process / "cmdline").read_bytes().split(b"\0")]
        directory = (process / "cwd").readlink()
    except OSError:
        return ""
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return str(directory / word.partition("=")[2])
        if word == "--config" and index + 1 < len(words):
            return str(directory / words[index + 1])
    return ""


def _is_agent(process: Path, here: str) -> bool:
    """By its command line: `netagent agent ...` or `python -m netagent agent ...`."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    programs = [Path(os.fsdecode(word)).name for word in words[:3]]
    called = any(
        program == "netagent" and words[index + 1 : index + 2] == [b"agent"] for index, program in enumerate(programs)
    )
    return called and _namespace(process) == here


def _namespace(process: Path) -> str:
    try:
        return str((process / "ns/net").readlink())
    except OSError:
        return ""
