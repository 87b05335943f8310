"""flannel's words on a Node: annotations, byte for byte, and the lines of subnet.env.

flannel compares annotations as text and writes a node's anew where they differ from its own rendering, so what netagent
publishes is what flannel v0.2x would: `backend-data` is compact JSON, VNI before VtepMAC, the MAC in lower case.
"""

import ipaddress
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

DEFAULT_PREFIX = "flannel.alpha.coreos.com"
MANAGED = "true"
"""Value of kube-subnet-manager on a node that takes part."""
NO_DATA = "null"
"""backend-data of a backend without data (host-gw)."""
SHOWN_CHARS = 64
"""Of an unreadable annotation in a message."""


class Names(Struct, frozen=True):
    """The annotations' full names under one prefix."""

    prefix: str
    """With its separator at the end."""

    def __getitem__(self, name: str) -> str:
        return self.prefix + name

    @property
    def managed(self) -> str:
        """The node takes part; `true`."""
        return self["kube-subnet-manager"]

    @property
    def backend_type(self) -> str:
        """vxlan, host-gw, ..."""
        return self["backend-type"]

    def backend_data(self, family: int) -> str:
        """Where VNI and VTEP MAC of a family stand."""
        return self["backend-data" if family == 4 else "backend-v6-data"]

    def public_ip(self, family: int) -> str:
        """Where the node receives the family's tunnelled packets."""
        return self["public-ip" if family == 4 else "public-ipv6"]

    def wishes(self, family: int) -> tuple[str, str]:
        """Inputs: what operators set to have another public IP published, the stronger first."""
        public = self.public_ip(family)
        return f"{public}-overwrite", self[f"node-{public.removeprefix(self.prefix)}"]


class End(Struct, frozen=True):
    """One family's end of the tunnels, as a node publishes it."""

    mac: str
    """"" for a backend without a device."""
    public_ip: str


class _BackendData(Struct):
    vni: int | None = msgspec.field(default=None, name="VNI")
    vtep_mac: str = msgspec.field(default="", name="VtepMAC")


def names(prefix: str) -> Names:
    """flannel's rule: a prefix without "/" gets one; with it, a "-" before the name unless it ends in "/" or "-"."""
    if "/" not in prefix:
        prefix += "/"
    return Names(prefix if prefix.endswith(("/", "-")) else prefix + "-")


def render_backend_data(vni: int, mac: str) -> str:
    """What stands in backend-data of a vxlan node."""
    return f'{{"VNI":{vni},"VtepMAC":"{mac.lower()}"}}'


def read_backend_data(text: str) -> str:
    """The VTEP MAC in backend-data, with or without a VNI; "" where there is none; unreadable text as it is (cut)."""
    if text in ("", NO_DATA):
        return ""
    try:
        found = msgspec.json.decode(text, type=_BackendData)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text[:SHOWN_CHARS]
    return found.vtep_mac.lower().replace("-", ":")


def annotations(known: Names, *, backend: str, vni: int, ends: Mapping[int, End]) -> dict[str, str]:
    """What a node with these ends (by family) publishes."""
    wanted = {known.managed: MANAGED, known.backend_type: backend}
    for family, end in sorted(ends.items()):
        wanted[known.backend_data(family)] = render_backend_data(vni, end.mac) if end.mac else NO_DATA
        wanted[known.public_ip(family)] = end.public_ip
    return wanted


def changed(wanted: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """The annotations that must be written."""
    return {name: text for name, text in wanted.items() if there.get(name) != text}


def wished_public_ip(known: Names, there: Mapping[str, str], family: int) -> tuple[str, str]:
    """The public IP that the node's annotations ask for ("": none), and why a wish was not followed."""
    problem = ""
    for name in known.wishes(family):
        text = there.get(name, "")
        if not text:
            continue
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            address = None
        if address is not None and address.version == family and "%" not in text:
            return str(address), problem
        problem = problem or (
            f"annotation {name} = {text[:SHOWN_CHARS]!r} is not an IPv{family} address and is ignored; correct it."
        )
    return "", problem


def render_subnet_env(*, pools: Sequence[str], subnets: Sequence[str], mtu: int, masquerade: bool) -> str:
    """subnet.env as flannel writes it. `mtu` in bytes; a subnet is shown by its first usable address."""
    lines: list[str] = []
    for family, tag in ((4, ""), (6, "IPV6_")):
        for subnet in map(ipaddress.ip_network, subnets):
            if subnet.version != family:
                continue
            pool = next((text for text in pools if _contains(text, subnet)), str(subnet))
            lines.append(f"FLANNEL_{tag}NETWORK={pool}")
            lines.append(f"FLANNEL_{tag}SUBNET={subnet.network_address + 1}/{subnet.prefixlen}")
            break
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={str(masquerade).lower()}"]
    return "".join(f"{line}\n" for line in lines)


def _contains(pool: str, subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    network = ipaddress.ip_network(pool)
    return network.version == subnet.version and subnet.subnet_of(network)  # type: ignore[arg-type]
