"""Configuration: a YAML or JSON file, overridden by NETAGENT_* variables, overridden by flags.

Every option lives in one of the small Structs below; its docstring gives the unit, the default's reason and what is
accepted. Option `vni` of section `network` is `network: {vni: 1}` in the file, `NETAGENT_NETWORK_VNI=1` in the
environment and `--network-vni 1` on the command line. Lists are comma-separated in the latter two.
"""

import ipaddress
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from netagent.ports import NetagentError

ENV_PREFIX = "NETAGENT_"
LAB_PREFIX = "NETAGENT_LAB_"
"""Variables of the lab, which are no options of an agent."""
MAX_FILE_BYTES = 1 << 18
"""A configuration file larger than this is refused: ours is some hundred bytes."""
MAX_DEPTH = 20
"""Nesting of the file; a list in a section has three."""
SHOWN_CHARS = 300
"""Of a value or a complaint in an error."""

OBJECT_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.\-]{0,251}[A-Za-z0-9])?")
"""Wider than the API's own rule, which knows no upper case."""
FILE_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,254}")

MIN_GRACE_S = 8.0
"""Half of it is more than what two nodes' clocks may differ without being noticed (kube.clock.AGREES_S)."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]


class ConfigError(NetagentError):
    """The configuration was refused; nothing was started."""


class ApiConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach the API server."""

    kubeconfig: str = ""
    """Path of a kubeconfig file; empty: the pod's service account (in-cluster)."""
    page_size: Annotated[int, Meta(ge=1, le=10_000)] = 500
    """Objects per list page."""
    watch_silence_s: Seconds = 70.0
    """A watch with no byte (not even a bookmark, which servers send about once a minute) for this long is dead."""
    peer_timeout_s: Seconds = 30.0
    """A connection whose other end has acknowledged nothing for this long (TCP keepalive) is closed: a server without
    power, a network that drops."""
    request_timeout_s: Seconds = 30.0
    """For every request but a watch, its answer included. A page of a list that was not complete by then is asked for
    in smaller pages."""
    backoff_cap_s: Seconds = 10.0
    """Longest pause between two attempts; the server may ask for up to a minute (Retry-After)."""


class NetworkConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The pod network."""

    mode: Literal["lease", "node", "auto", "off"] = "lease"
    """lease: reserve subnets as Lease objects; node: take spec.podCIDRs of the Node and speak flannel's annotations;
    auto: node where this Node has podCIDRs at first sight, else lease, and the same ever after; off: another agent owns
    the pod network (policy only)."""
    pools: tuple[str, ...] = ("10.244.0.0/16",)
    """CIDRs that subnets are cut from, IPv4 and IPv6, disjoint. A family without a pool is off."""
    subnet_len: Annotated[int, Meta(ge=8, le=30)] = 24
    """Prefix length of a node's IPv4 subnet."""
    subnet_len_v6: Annotated[int, Meta(ge=32, le=126)] = 64
    """Prefix length of a node's IPv6 subnet."""
    reserved: tuple[str, ...] = ()
    """CIDRs within the pools that no node may take."""
    lease_namespace: str = "kube-system"
    """Namespace of the Lease objects."""
    lease_duration_s: Annotated[int, Meta(ge=3)] = 3600
    """spec.leaseDurationSeconds; renewed at a third of it."""
    takeover_grace_s: Annotated[float, Meta(ge=0)] = 600.0
    """An expired lease of another node is taken over only this long after it expired; its holder stops to give out
    addresses at half of it. At least 8, and a tenth of lease_duration_s; the same on all nodes."""
    backend: Literal["vxlan", "host-gw"] = "vxlan"
    """How nodes reach each other's pods. vxlan: tunnels over any network; host-gw: plain routes, for nodes that all are
    on one network, without the tunnels' overhead."""
    direct_routing: bool = False
    """With vxlan: a plain route to each node that is on the same network; tunnels to the others only."""
    vni: Annotated[int, Meta(ge=1, le=16_777_215)] = 1
    """VXLAN network identifier; 1 as flannel has."""
    vxlan_port: Annotated[int, Meta(ge=1, le=65535)] = 8472
    """UDP port of VXLAN; 8472 as flannel has."""
    vxlan_tx_checksum: bool = True
    """False: the checksums of tunnelled packets are computed here, for network cards that get them wrong (connections
    through Services then hang for a minute). Either is enforced on the vxlan devices."""
    mtu: Annotated[int, Meta(ge=0, le=65535)] = 0
    """MTU of the pods; 0: that of the underlay, with vxlan minus 50, or minus 70 where an IPv6 pool is set. Running
    pods follow a change."""
    annotation_prefix: Annotated[str, Meta(min_length=1, max_length=253)] = "flannel.alpha.coreos.com"
    """Of the Node annotations in node mode; flannel's --kube-annotation-prefix of the same cluster."""
    subnet_env: str | None = None
    """File that tells other programs this node's subnet as flannel does; empty: none. By default
    /run/flannel/subnet.env in node mode, none in lease mode."""
    host_local_dir: str = "/var/lib/cni/networks"
    """State of the IPAM plugin host-local, read in node mode: pods that it gave addresses to live on beside ours;
    empty: there are none."""
    interface: str = ""
    """Name of the interface between nodes. Empty, and so the three options below: the one with the node's InternalIP,
    else that of the default route. An address of the node in its annotation netagent.io/public-ip (-ipv6) goes before
    all of them."""
    interface_regex: str = ""
    """Regular expression that is found in the interface's name or, if in no name, in one of its addresses."""
    interface_cidr: tuple[str, ...] = ()
    """CIDRs, at most one per family, that hold the interface's address and so the address that other nodes use."""
    can_reach: str = ""
    """An address: the interface is the one over which the kernel sends packets there."""
    masquerade: bool = True
    """Rewrite the source of pod traffic that leaves the cluster."""
    non_masquerade_cidrs: tuple[str, ...] = ()
    """Destinations outside the pools that see pod addresses all the same."""
    forward_accept: bool = True
    """Accept the pools' traffic in forward chains of others that drop by default (Docker, ufw): rules with the comment
    `netagent` in those chains, at the top, or after the others' rules where policy.enabled is false."""


class PolicyConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NetworkPolicy."""

    enabled: bool = True
    """False: another agent enforces policy; pods start without waiting for it."""
    mark_mask: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)] = 0xFFFF0000
    """Bits of the conntrack mark that hold the generation stamp, contiguous, at least 4; the others are kept."""
    debounce_cap_ms: Annotated[float, Meta(ge=0, le=10_000)] = 100.0
    """Longest time that changes wait for company while many arrive; an idle agent commits at once."""
    drop_log: bool = False
    """Log denied packets, one line each, rate-limited."""
    drop_log_group: Annotated[int, Meta(ge=1, le=65535)] = 78
    """NFLOG group between the kernel and the agent; one that no other program of the node uses."""
    drop_log_rate: Annotated[float, Meta(gt=0, le=1000)] = 10.0
    """Lines per second, at most; what is left out is counted and said in the next line."""
    counter_cap: Annotated[int, Meta(ge=0, le=100_000)] = 1000
    """Policies that have series of their own in netagent_policy_denied_packets_total; the others share `_other`."""


class CniConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The CNI plugin."""

    enabled: bool = True
    """False: another plugin wires the pods."""
    socket: str = "/run/netagent/cni.sock"
    """Unix socket between the plugin's executable and the agent; 0600 in a directory of 0700."""
    bin_dir: str = "/opt/cni/bin"
    """Where the executable is installed; empty: it is installed by other means."""
    conf_dir: str = "/etc/cni/net.d"
    """Where the configuration list is written once the node can serve."""
    version: Literal["0.3.1", "0.4.0", "1.0.0", "1.1.0"] = "1.0.0"
    """cniVersion of the configuration list. 1.1.0, which has GC and STATUS, needs containerd 2.0 or CRI-O 1.31, and
    chained plugins that know it (containernetworking-plugins 1.6)."""
    conf_name: str = "10-netagent.conflist"
    """File name of the configuration list; runtimes take the first in alphabetical order."""
    chained: tuple[str, ...] = ("portmap",)
    """Plugins after ours in the list, left out where bin_dir has no such executable."""
    plugin_dir: str = "/usr/lib/cni"
    """Where they, and `loopback`, are copied from to a bin_dir that has none; empty: they are not."""
    admit_timeout_s: Seconds = 20.0
    """Longest time that an ADD waits for its pod's policy; then it fails and the kubelet tries again."""


class HttpConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Health, metrics and debug over HTTP."""

    address: str = "0.0.0.0"
    """Where /livez, /readyz and /metrics listen; the kubelet and Prometheus must reach it."""
    port: Port = 9099
    debug_address: str = "127.0.0.1"
    """Where /debug listens."""
    debug_port: Port = 9098
    debug_hosts: tuple[str, ...] = ()
    """Host names by which /debug may be asked, besides addresses and localhost: another name in a request may be a web
    page's that wants to read this node."""
    debug_write: Literal["loopback", "always", "never"] = "loopback"
    """Who may change log levels: whoever asks over loopback, everybody who reaches /debug, or nobody."""


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Logging to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration of one agent."""

    node_name: str = ""
    """Name of this node's Node object; empty: the host name."""
    state_dir: str = "/var/lib/netagent"
    """Allocations and what else must survive a restart; 0700."""
    api: ApiConfig = ApiConfig()
    network: NetworkConfig = NetworkConfig()
    policy: PolicyConfig = PolicyConfig()
    cni: CniConfig = CniConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()


def options() -> Iterator[tuple[str, str, Any]]:
    """Every option as (section, field, type); section is "" for those at the top."""
    for name, kind in typing.get_type_hints(Config, include_extras=True).items():
        if isinstance(kind, type) and issubclass(kind, Struct):
            for field, field_type in typing.get_type_hints(kind, include_extras=True).items():
                yield name, field, field_type
        else:
            yield "", name, kind


def option_name(section: str, field: str) -> str:
    """`network`, `vni` -> `network.vni`, as messages name it."""
    return f"{section}.{field}" if section else field


def load(path: str, environ: Mapping[str, str], flags: Mapping[tuple[str, str], str]) -> Config:
    """Read the file (if any), lay the environment and then the flags over it, and check the result.

    `flags` maps (section, field) to the flag's text. Raises ConfigError.
    """
    tree = _read(path) if path else {}
    known = {(section, field): kind for section, field, kind in options()}
    by_variable = {_variable(section, field): (section, field) for section, field in known}
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX) and not variable.startswith(LAB_PREFIX):
            if variable not in by_variable:
                raise ConfigError(f"{variable}: no such option. Accepted: {', '.join(sorted(by_variable))}.")
            _overlay(tree, by_variable[variable], text, known[by_variable[variable]], variable)
    for name, text in flags.items():
        _overlay(tree, name, text, known[name], "--" + option_name(*name).replace(".", "-").replace("_", "-"))
    config = decode(tree, path or "configuration")
    check(config)
    return config


def origins(path: str, environ: Mapping[str, str], flags: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Option -> where its value comes from, by the same arguments as load, which must have succeeded."""
    tree = _read(path) if path else {}
    found = {}
    for section, field, _ in options():
        part = tree.get(section, {}) if section else tree
        found[option_name(section, field)] = (
            "flag"
            if (section, field) in flags
            else variable
            if (variable := _variable(section, field)) in environ
            else path
            if field in part
            else "default"
        )
    return found


def decode(tree: Any, source: str) -> Config:
    """A Config from plain data. Raises ConfigError that names the key, its value and what is accepted."""
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error, tree)}") from None
    except UnicodeError as error:
        raise ConfigError(f"{source}: an option holds text that is no UTF-8: {error.args[-1]}.") from None


def check(config: Config) -> None:
    """What types alone cannot say. Raises ConfigError."""
    network = config.network
    seen: list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network]] = []
    for index, text in enumerate(network.pools):
        pool = parse_cidr(f"network.pools[{index}]", text)
        for other_name, other in seen:
            if pool.version == other.version and pool.overlaps(other):
                raise ConfigError(
                    f"network.pools[{index}] = {text!r} overlaps {other_name} = {str(other)!r}. Pools must be disjoint."
                )
        length = network.subnet_len if pool.version == 4 else network.subnet_len_v6
        option = "network.subnet_len" if pool.version == 4 else "network.subnet_len_v6"
        if length < pool.prefixlen:
            raise ConfigError(
                f"{option} = {length} is larger than its pool network.pools[{index}] = {text!r}. "
                f"Accepted: {pool.prefixlen} to {30 if pool.version == 4 else 126}."
            )
        seen.append((f"network.pools[{index}]", pool))
    if network.mode == "off" and config.cni.enabled:
        raise ConfigError(
            "cni.enabled = true with network.mode = 'off': our plugin would have no addresses to give. Accepted: "
            "cni.enabled = false (another plugin wires the pods), or network.mode = 'lease'."
        )
    if network.mode != "off" and not seen:
        raise ConfigError(f"network.pools = [] with network.mode = {network.mode!r}. Accepted: at least one CIDR.")
    _check_grace(network)
    if network.annotation_prefix.count("/") > 1:
        raise ConfigError(f"network.annotation_prefix = {network.annotation_prefix!r}. Accepted: at most one slash.")
    _check_interface(network)
    _check_finite(config)
    _check_names(config)
    for name in ("reserved", "non_masquerade_cidrs", "interface_cidr"):
        for index, text in enumerate(getattr(network, name)):
            parse_cidr(f"network.{name}[{index}]", text)
    mask = config.policy.mark_mask
    run = mask >> (mask & -mask).bit_length() - 1
    if run & (run + 1) or run < 0xF:
        raise ConfigError(
            f"policy.mark_mask = {mask:#010x} is not a contiguous run of at least 4 bits. Accepted: e.g. 0xffff0000 = "
            f"{0xFFFF0000}."
        )
    for name in ("state_dir",):
        if not Path(getattr(config, name)).is_absolute():
            raise ConfigError(f"{name} = {getattr(config, name)!r}. Accepted: an absolute path.")


def _check_grace(network: NetworkConfig) -> None:
    least_s = max(MIN_GRACE_S, network.lease_duration_s / 10)
    if network.mode in ("lease", "auto") and network.takeover_grace_s < least_s:
        raise ConfigError(
            f"network.takeover_grace_s = {network.takeover_grace_s:g} with network.lease_duration_s = "
            f"{network.lease_duration_s}. Accepted: at least {least_s:g}, so that a node that is cut off stops to give "
            f"out addresses before another one may take its subnet."
        )


def _check_finite(config: Config) -> None:
    for section, field, _ in options():
        value = getattr(getattr(config, section) if section else config, field)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{option_name(section, field)} = {value}. Accepted: a finite number.")


def _check_names(config: Config) -> None:
    """What becomes part of a path, on disk or on the API server."""
    for name, text in (("node_name", config.node_name), ("network.lease_namespace", config.network.lease_namespace)):
        if text and not OBJECT_NAME.fullmatch(text):
            raise ConfigError(f"{name} = {_shown(text)}. Accepted: a name of letters, digits, '-' and '.'.")
    for index, text in enumerate((config.cni.conf_name, *config.cni.chained)):
        name = f"cni.chained[{index - 1}]" if index else "cni.conf_name"
        if not FILE_NAME.fullmatch(text):
            raise ConfigError(f"{name} = {_shown(text)}. Accepted: a file name without a directory.")
    for section, field, kind in options():
        value = getattr(getattr(config, section) if section else config, field)
        if kind in (str, str | None) and value and not value.isprintable():
            raise ConfigError(f"{option_name(section, field)} = {_shown(value)}. Accepted: printable text.")


def _check_interface(network: NetworkConfig) -> None:
    try:
        re.compile(network.interface_regex)
    except re.error as error:
        raise ConfigError(
            f"network.interface_regex = {network.interface_regex!r}: {error}. Accepted: a regular expression like ^eth."
        ) from None
    try:
        if network.can_reach:
            ipaddress.ip_address(_without_zone(network.can_reach))
    except ValueError:
        raise ConfigError(f"network.can_reach = {network.can_reach!r}. Accepted: an IPv4 or IPv6 address.") from None


def parse_cidr(name: str, text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network without host bits. Raises ConfigError."""
    try:
        return ipaddress.ip_network(_without_zone(text))
    except ValueError as error:
        raise ConfigError(
            f"{name} = {_shown(text)}: {str(error)[:SHOWN_CHARS]}. Accepted: a CIDR without host bits, "
            "e.g. 10.244.0.0/16."
        ) from None


def _without_zone(text: str) -> str:
    """`ipaddress` takes any text behind a percent sign, and prints it again. Raises ValueError."""
    if "%" in text:
        raise ValueError("it has a zone")
    return text


def _read(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Nothing was started; give a readable file.") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes. Nothing was started; is it the right file?")
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML or JSON: {' '.join(str(error).split())[:SHOWN_CHARS]}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}. Accepted: a mapping of options.")
    return tree


class _Loader(yaml.SafeLoader):
    """Without aliases, by which a small file becomes a huge tree, without keys that come twice, not deep."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not accepted", event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            where = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH}", where)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                where = key.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} comes twice", where)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep=deep)


def _variable(section: str, field: str) -> str:
    return ENV_PREFIX + (f"{section}_{field}" if section else field).upper()


def _overlay(tree: dict[str, Any], name: tuple[str, str], text: str, kind: Any, source: str) -> None:
    section, field = name
    target = tree.setdefault(section, {}) if section else tree
    if not isinstance(target, dict):
        raise ConfigError(f"{section} = {target!r}. Accepted: a mapping of options.")
    target[field] = _parse(text, kind, source)


def _parse(text: str, kind: Any, source: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _parse(text, typing.get_args(kind)[0], source)
    if origin is tuple:
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ConfigError(f"{source} = {text!r}. Accepted: true, false.")
        return text.lower() in ("true", "1")
    if kind in (int, float) and not isinstance(kind, types.UnionType):
        try:
            return int(text, 0) if kind is int else float(text)
        except ValueError:
            raise ConfigError(
                f"{source} = {text!r}. Accepted: {'a whole number' if kind is int else 'a number'}."
            ) from None
    return text


def _explain(error: msgspec.ValidationError, tree: Any) -> str:
    """msgspec's message with the key's dotted name and its value."""
    message, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    if message.startswith("Object contains unknown field"):
        field = message.split("`")[1]
        known = [name for section, name, _ in options() if section == path]
        if not path:
            known = list(Config.__struct_fields__)
        return f"{option_name(path, field)}: no such option. Accepted here: {', '.join(known)}."
    value: Any = tree
    for part in path.replace("[", ".[").split("."):
        try:
            value = value[int(part[1:-1])] if part.startswith("[") else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            break
    return f"{path} = {_shown(value)}: {message}."


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
