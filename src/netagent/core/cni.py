"""The CNI protocol as values: what a call says, what an answer looks like. Source: the CNI specification.

Nothing here does I/O. A call is hostile until `parse_call` has accepted it: container IDs and interface names end up in
file and link names (hashed), paths are opened.
"""

import hashlib
import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from netagent.core.network.ipam import AddressRefusedError, canonical
from netagent.ports import NetagentError
from netagent.records import Endpoint, Key

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
PER_CONTAINER = ("ADD", "DEL", "CHECK")
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""Commands that older versions do not have."""

GATEWAY_V4 = "169.254.1.1"
"""Next hop in every pod; nobody owns it, the pod has a permanent neighbour entry for it."""
GATEWAY_V6 = "fe80::ecee:eeff:feee:eeee"
HOST_MAC = "ee:ee:ee:ee:ee:ee"
"""Of every host end of a pod's veth: pods keep working when theirs is made again."""

HOST_IFNAME = re.compile(r"nap[0-9a-f]{12}")
"""What `host_ifname` makes."""
CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,254}")
IFNAME = re.compile(r"[!-.0-9;-~]{1,15}")
"""The kernel takes any bytes but a slash, a colon and white space; names of pods' interfaces are plain text."""
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?")
POD_NAME = re.compile(r"[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?")
MAX_PATH = 4096
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that is none, or of another shape, or nested too deeply."""


class Code(IntEnum):
    """Error codes of the specification, and ours from 100 on."""

    INCOMPATIBLE_VERSION = 1
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO_FAILURE = 5
    BAD_JSON = 6
    BAD_CONFIG = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    """STATUS: no pod can be wired now."""
    SUBNET_FULL = 101
    ADDRESS_REFUSED = 102
    WIRING_FAILED = 103
    CHECK_FAILED = 104


class CniError(NetagentError):
    """A call that was refused or failed; becomes the CNI error object."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class Attachment(Struct, frozen=True, gc=False):
    """An element of GC's list of attachments that still exist."""

    container_id: str = field(name="containerID")
    ifname: str


class RuntimeConfig(Struct, frozen=True, gc=False):
    """What the runtime adds for the capabilities that our configuration list declares."""

    ips: tuple[str, ...] = ()


class CniArgs(Struct, frozen=True, gc=False):
    """`args.cni` of the network configuration."""

    ips: tuple[str, ...] = ()


class Args(Struct, frozen=True, gc=False):
    """`args` of the network configuration."""

    cni: CniArgs = CniArgs()


class NetConf(Struct, frozen=True, rename="camel"):
    """The fields of the network configuration that we read; others are ignored."""

    name: str = ""
    type: str = ""
    cni_version: str = "0.1.0"
    prev_result: Raw = Raw()
    """Empty or null: absent."""
    runtime_config: RuntimeConfig = RuntimeConfig()
    args: Args | None = None
    valid_attachments: tuple[Attachment, ...] | None = field(name="cni.dev/valid-attachments", default=None)

    @property
    def has_prev_result(self) -> bool:
        return bytes(self.prev_result) not in (b"", b"null")


class Call(Struct, frozen=True, kw_only=True):
    """One call that was accepted."""

    command: str
    conf: NetConf
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    """Path; empty is accepted for DEL."""
    args: Mapping[str, str] = {}
    """CNI_ARGS."""

    @property
    def host_ifname(self) -> str:
        return host_ifname(self.container_id, self.ifname)


def host_ifname(container_id: str, ifname: str) -> str:
    """Name of the host end of a pod's veth: `nap` and 48 bits of hash, 15 characters (the kernel's limit)."""
    return "nap" + hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()[:12]


def pod_mac(container_id: str, ifname: str) -> str:
    """MAC of the pod's end: locally administered, unicast, the same whenever it is made."""
    raw = bytearray(hashlib.sha256(f"{container_id}/{ifname}/mac".encode()).digest()[:6])
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")


def parse_call(environ: Mapping[str, str], body: bytes) -> Call:
    """`environ`: the CNI_* variables. Raises CniError."""
    command = environ.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_COMMAND={command[:32]!r}. Accepted: {', '.join(COMMANDS)}.")
    conf = _decode_conf(body)
    _check_version(command, conf.cni_version)
    if command not in PER_CONTAINER:
        return Call(command=command, conf=conf)
    if command == "ADD" and conf.has_prev_result:
        raise CniError(Code.BAD_CONFIG, "prevResult in an ADD: netagent must be the first plugin of the list.")
    return Call(
        command=command,
        conf=conf,
        container_id=_matched("CNI_CONTAINERID", environ, CONTAINER_ID),
        ifname=_ifname(environ),
        netns=_netns(environ, needed=command != "DEL"),
        args=_parse_args(environ.get("CNI_ARGS", "")),
    )


def pod_of(call: Call) -> tuple[Key, str]:
    """The pod that the runtime names, and its UID ("" where it does not pass it). Raises CniError."""
    namespace = _matched("K8S_POD_NAMESPACE", call.args, NAMESPACE, "CNI_ARGS: ")
    name = _matched("K8S_POD_NAME", call.args, POD_NAME, "CNI_ARGS: ")
    uid = call.args.get("K8S_POD_UID", "")
    if len(uid) > 128 or not uid.isprintable():
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_ARGS: K8S_POD_UID={uid[:64]!r}. Accepted: up to 128 characters.")
    return Key(namespace, name), uid


def requested_ips(call: Call) -> tuple[str, ...]:
    """Addresses asked for: runtimeConfig.ips, else args.cni.ips, else IP in CNI_ARGS. Raises CniError."""
    in_args = call.conf.args.cni.ips if call.conf.args else ()
    in_environment = tuple(part for part in call.args.get("IP", "").split(",") if part)
    wanted = call.conf.runtime_config.ips or in_args or in_environment
    try:
        return tuple(canonical(text) for text in wanted)
    except AddressRefusedError as error:
        raise CniError(Code.BAD_CONFIG, str(error)) from None


def render_error(version: str, error: CniError) -> dict[str, Any]:
    """The error object."""
    return {"cniVersion": version, "code": int(error.code), "msg": f"netagent: {error}", "details": error.details}


def render_versions(version: str) -> dict[str, Any]:
    """The answer to VERSION."""
    return {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def render_result(version: str, endpoint: Endpoint, mtu: int) -> dict[str, Any]:
    """The success object of ADD in the shape of that version. Interface 0 is the host end, 1 the pod's."""
    host: dict[str, Any] = {"name": endpoint.host_ifname, "mac": HOST_MAC}
    inside: dict[str, Any] = {"name": endpoint.ifname, "mac": endpoint.mac, "sandbox": endpoint.netns}
    if version == "1.1.0":
        host["mtu"] = inside["mtu"] = mtu
    return {
        "cniVersion": version,
        "interfaces": [host, inside],
        "ips": [_render_ip(ip, with_version=version.startswith("0.")) for ip in endpoint.ips],
        "routes": [_render_route(ip) for ip in endpoint.ips],
        "dns": {},
    }


def result_addresses(raw: Raw) -> tuple[str, ...]:
    """Addresses in a prevResult, canonical, without prefix lengths. Raises CniError."""
    try:
        result = msgspec.json.decode(raw, type=_Result)
        return tuple(canonical(ip.address) for ip in result.ips)
    except (*MALFORMED, AddressRefusedError) as error:
        raise CniError(Code.BAD_JSON, f"prevResult: {error}") from None


class _ResultIp(Struct, gc=False):
    address: str


class _Result(Struct, gc=False):
    ips: tuple[_ResultIp, ...] = ()


def _render_ip(ip: str, *, with_version: bool) -> dict[str, Any]:
    six = ":" in ip
    rendered: dict[str, Any] = {"address": f"{ip}/128" if six else f"{ip}/32", "interface": 1}
    return {"version": "6" if six else "4", **rendered} if with_version else rendered


def _render_route(ip: str) -> dict[str, str]:
    return {"dst": "::/0", "gw": GATEWAY_V6} if ":" in ip else {"dst": "0.0.0.0/0", "gw": GATEWAY_V4}


def _decode_conf(body: bytes) -> NetConf:
    try:
        return msgspec.json.decode(body, type=NetConf)
    except MALFORMED as error:
        raise CniError(Code.BAD_JSON, f"network configuration does not decode: {error}") from None


def _check_version(command: str, version: str) -> None:
    if version not in VERSIONS:
        message = f"cniVersion {version[:32]!r} is not supported. Accepted: {', '.join(VERSIONS)}."
        raise CniError(Code.INCOMPATIBLE_VERSION, message)
    if VERSIONS.index(version) < VERSIONS.index(SINCE.get(command, VERSIONS[0])):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"{command} needs cniVersion {SINCE[command]}, got {version}.")


def _matched(name: str, source: Mapping[str, str], pattern: re.Pattern[str], where: str = "") -> str:
    value = source.get(name, "")
    if not pattern.fullmatch(value):
        raise CniError(Code.BAD_ENVIRONMENT, f"{where}{name}={value[:64]!r}. Accepted: {pattern.pattern}")
    return value


def _ifname(environ: Mapping[str, str]) -> str:
    name = _matched("CNI_IFNAME", environ, IFNAME)
    if name in (".", "..", "lo", "all", "default"):
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_IFNAME={name!r} cannot name a pod's interface, e.g. eth0.")
    return name


def _netns(environ: Mapping[str, str], *, needed: bool) -> str:
    path = environ.get("CNI_NETNS", "")
    if not path and not needed:
        return ""
    if not path.startswith("/") or len(path) > MAX_PATH or not path.isprintable():
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS={path[:64]!r}. Accepted: an absolute path, printable.")
    return path


def _parse_args(text: str) -> dict[str, str]:
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise CniError(
                Code.BAD_ENVIRONMENT, f"CNI_ARGS: {pair[:64]!r}. Accepted: NAME=VALUE pairs with ';' between."
            )
        args[name] = value
    return args
