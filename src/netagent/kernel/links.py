"""Links and addresses over rtnetlink, and sysctls: the messages that make them and what is read of them."""

import array
import fcntl
import ipaddress
import socket
from struct import Struct as Layout
from struct import pack, unpack

from msgspec import Struct

from netagent.core.network.podnet import Vxlan
from netagent.core.network.underlay import Way
from netagent.kernel import sysctl
from netagent.kernel.rtnetlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    MalformedError,
    Message,
    Refusal,
    Request,
    Rtnetlink,
    attribute,
    attributes,
    fields,
    nested,
    text,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_EXT_MASK = 1, 3, 4, 5, 18, 26, 29
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VXLAN_ID, VXLAN_LINK, VXLAN_LOCAL, VXLAN_LEARNING, VXLAN_PORT, VXLAN_LOCAL6, VXLAN_UDP_CSUM = 1, 3, 4, 7, 15, 17, 18
VXLAN_ZERO_CSUM6_TX = 19
RTEXT_FILTER_SKIP_STATS = 8
INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_DEPRECATED = 0x01, 0x02, 0x08, 0x20
"""IFA_F_SECONDARY is IFA_F_TEMPORARY of IPv6: a privacy address, which is replaced after hours."""
RT_SCOPE_UNIVERSE = 0
RTA_DST, RTA_OIF, RTA_PREFSRC = 1, 4, 7
SIOCETHTOOL, ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x8946, 0x16, 0x17
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
FAMILY = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}
PREFIX_BITS = {4: 32, 6: 128}
DOCUMENTATION_ADDRESS = {4: "192.0.2.1", 6: "2001:db8::1"}
"""RFC 5737 and RFC 3849: nothing but a default route leads to them."""

IFINFO = Layout("=BxHiII")
IFADDR = Layout("=BBBBI")
RTMSG = Layout("=BBBBBBBBI")


class Link(Struct, frozen=True, gc=False, kw_only=True):
    """A link as the kernel reports it."""

    index: int
    name: str
    flags: int
    mtu: int
    """Bytes."""
    mac: str
    kind: str
    """IFLA_INFO_KIND; "" for hardware and loopback."""
    parent: int
    info: bytes
    """IFLA_INFO_DATA, unread: most links are not ours."""

    @property
    def up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & IFF_UP)


class Address(Struct, frozen=True, gc=False, kw_only=True):
    """An address of a link."""

    family: int
    index: int
    address: str
    prefix_len: int
    scope: int
    flags: int


def address_bytes(address: str) -> bytes:
    """Network order."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def address_text(family: int, raw: bytes) -> str:
    """As `ipaddress` prints it. Raises MalformedError."""
    if len(raw) * 8 != PREFIX_BITS[family]:
        raise MalformedError(f"an IPv{family} address of {len(raw)} bytes.")
    found = socket.inet_ntop(AF[family], raw)
    # inet_ntop writes the tail of some IPv6 addresses as IPv4.
    return str(ipaddress.ip_address(raw)) if family == 6 and "." in found else found


def mac_bytes(mac: str) -> bytes:
    """aa:bb:cc:dd:ee:ff -> 6 bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def read_link(message: Message) -> Link:
    """A Link out of RTM_NEWLINK or RTM_DELLINK. Raises MalformedError."""
    _, _, index, flags, _ = fields(IFINFO, message)
    found = attributes(message.body, IFINFO.size)
    info = attributes(found.get(IFLA_LINKINFO, b""), 0)
    return Link(
        index=index,
        name=_text(found.get(IFLA_IFNAME, b"")),
        flags=flags,
        mtu=_number(found.get(IFLA_MTU)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        kind=_text(info.get(IFLA_INFO_KIND, b"")),
        parent=_number(found.get(IFLA_LINK)),
        info=info.get(IFLA_INFO_DATA, b""),
    )


def read_vxlan(link: Link) -> Vxlan:
    """What a link is, in the words of what we want of it; of a link that is no vxlan device, its kind."""
    found = attributes(link.info, 0) if link.kind == "vxlan" else {}
    local = ""
    if VXLAN_LOCAL6 in found:
        local = address_text(6, found[VXLAN_LOCAL6])
    elif VXLAN_LOCAL in found:
        local = address_text(4, found[VXLAN_LOCAL])
    return Vxlan(
        kind=link.kind,
        vni=_number(found.get(VXLAN_ID)),
        port=int.from_bytes(found.get(VXLAN_PORT, b""), "big"),
        local=local,
        underlay=_number(found.get(VXLAN_LINK)),
        mac=link.mac,
        mtu=link.mtu,
        learning=found.get(VXLAN_LEARNING) == b"\1",
        checksum=found.get(VXLAN_ZERO_CSUM6_TX) != b"\1" if ":" in local else found.get(VXLAN_UDP_CSUM) == b"\1",
        up=link.up,
    )


def read_address(message: Message) -> Address | None:
    """An Address out of RTM_NEWADDR or RTM_DELADDR; None for other families than IPv4 and IPv6.

    Raises MalformedError.
    """
    family_number, prefix_len, flags, scope, index = fields(IFADDR, message)
    found = attributes(message.body, IFADDR.size)
    raw = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
    family = FAMILY.get(family_number)
    if family is None or raw is None:
        return None
    flags = _number(found.get(IFA_FLAGS)) or flags
    return Address(
        family=family,
        index=index,
        address=address_text(family, raw),
        prefix_len=prefix_len,
        scope=scope,
        flags=flags,
    )


async def list_links(netlink: Rtnetlink) -> list[Link]:
    """Every link of the namespace."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return [read_link(message) for message in await netlink.dump(RTM_GETLINK, body)]


async def find_link(netlink: Rtnetlink, name: str) -> Link | None:
    """One link by its name."""
    body = IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    answer = await netlink.get(RTM_GETLINK, body)
    return None if isinstance(answer, Refusal) else read_link(answer)


async def list_addresses(netlink: Rtnetlink) -> list[Address]:
    """Every IPv4 and IPv6 address of the namespace."""
    found = [read_address(message) for message in await netlink.dump(RTM_GETADDR, IFADDR.pack(0, 0, 0, 0, 0))]
    return [address for address in found if address is not None]


async def default_way(netlink: Rtnetlink) -> Way | None:
    """Where packets to everywhere else go; IPv4 first. None without a default route."""
    for address in DOCUMENTATION_ADDRESS.values():
        if found := await way_to(netlink, address):
            return found
    return None


async def way_to(netlink: Rtnetlink, address: str) -> Way | None:
    """Where packets to the address go. None where there is no route, or it leads to this node itself."""
    family = 6 if ":" in address else 4
    body = RTMSG.pack(AF[family], PREFIX_BITS[family], 0, 0, 0, 0, 0, 0, 0)
    answer = await netlink.get(RTM_GETROUTE, body + attribute(RTA_DST, address_bytes(address)))
    if isinstance(answer, Refusal):
        return None
    found = attributes(answer.body, RTMSG.size)
    index, source = _number(found.get(RTA_OIF)), found.get(RTA_PREFSRC)
    return Way(index, address_text(family, source) if source else "") if index else None


def add_vxlan(name: str, want: Vxlan) -> list[Request]:
    """Make the device, give it no link-local address, and take it up."""
    data = [
        u32(VXLAN_ID, want.vni),
        u32(VXLAN_LINK, want.underlay),
        _local(want.local),
        attribute(VXLAN_PORT, pack(">H", want.port)),
        attribute(VXLAN_LEARNING, bytes([want.learning])),
    ]
    if ":" in want.local:
        data.append(attribute(VXLAN_ZERO_CSUM6_TX, bytes([not want.checksum])))
    else:
        data.append(attribute(VXLAN_UDP_CSUM, bytes([want.checksum])))
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "vxlan"), nested(IFLA_INFO_DATA, *data))
    # A MAC that is given, not drawn by the kernel, is left alone by udev's MACAddressPolicy.
    body = text(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, mac_bytes(want.mac)) + u32(IFLA_MTU, want.mtu) + info
    create = Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, IFINFO.pack(0, 0, 0, 0, 0) + body)
    return [create, no_link_local(name), *change_link(name, want, want)]


def no_link_local(name: str) -> Request:
    """The device needs no link-local address: its neighbours are permanent. Refused where the kernel has no IPv6."""
    mode = attribute(INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_MODE_NONE]))
    spec = nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return Request(RTM_SETLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name) + spec)


def change_link(name: str, want: Vxlan, have: Vxlan) -> list[Request]:
    """Set what can be set in place and differs: see `core.network.podnet.needs_new_device`."""
    data = []
    if want.underlay != have.underlay:
        data.append(u32(VXLAN_LINK, want.underlay))
    if want.local != have.local:
        data.append(_local(want.local))
    if want.learning != have.learning:
        data.append(attribute(VXLAN_LEARNING, bytes([want.learning])))
    body = text(IFLA_IFNAME, name)
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "vxlan"), nested(IFLA_INFO_DATA, *data))
    # The kernel reads IFLA_LINKINFO in RTM_NEWLINK only (without NLM_F_CREATE: of what is there), never with an MTU.
    changes = [Request(RTM_NEWLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + body + info)] if data else []
    if want.mac != have.mac:  # setting even the same MAC flushes the device's neighbours
        body += attribute(IFLA_ADDRESS, mac_bytes(want.mac))
    if want.mtu != have.mtu:
        body += u32(IFLA_MTU, want.mtu)
    return [*changes, Request(RTM_SETLINK, 0, IFINFO.pack(0, 0, 0, IFF_UP if want.up else 0, IFF_UP) + body)]


def _local(address: str) -> bytes:
    return attribute(VXLAN_LOCAL6 if ":" in address else VXLAN_LOCAL, address_bytes(address))


def delete_link(name: str) -> Request:
    """Remove a device."""
    return Request(RTM_DELLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, name))


def read_offload(control: socket.socket, device: str) -> str:
    """Whether the device may leave transmit checksums to the network card: on or off; "" where it is not there."""
    value = array.array("I", [ETHTOOL_GTXCSUM, 0])
    try:
        _ethtool(control, device, value)
    except OSError:
        return ""
    return "on" if value[1] else "off"


def write_offload(control: socket.socket, device: str, value: str) -> None:
    """Allow (on) or forbid (off) it. Raises OSError."""
    _ethtool(control, device, array.array("I", [ETHTOOL_STXCSUM, value == "on"]))


def _ethtool(control: socket.socket, device: str, command: "array.array[int]") -> None:
    """linux/ethtool.h, struct ethtool_value behind struct ifreq; `control` says in which network namespace."""
    request = pack("16sP16x", device.encode(), command.buffer_info()[0])
    fcntl.ioctl(control.fileno(), SIOCETHTOOL, request)


def add_address(family: int, index: int, address: str) -> Request:
    """Add a host address (/32, /128), without duplicate address detection: nobody else can have it."""
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address_body(family, index, address))


def delete_address(family: int, index: int, address: str) -> Request:
    """Remove a host address."""
    return Request(RTM_DELADDR, 0, _address_body(family, index, address))


def _address_body(family: int, index: int, address: str) -> bytes:
    raw = address_bytes(address)
    flags = IFA_F_NODAD if family == 6 else 0
    header = IFADDR.pack(AF[family], PREFIX_BITS[family], flags, RT_SCOPE_UNIVERSE, index)
    return header + attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw)


def read_sysctl(path: str) -> str:
    """Text of a file below /proc/sys (net/...), "" where the kernel has none. The thread's network namespace counts."""
    try:
        return (sysctl.NET.parent / path).read_text().strip()
    except OSError:
        return ""


def write_sysctl(path: str, value: str) -> None:
    """Set a sysctl. Raises OSError."""
    (sysctl.NET.parent / path).write_text(value)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _number(raw: bytes | None) -> int:
    return int(unpack("=I", raw)[0]) if raw is not None and len(raw) == 4 else 0
