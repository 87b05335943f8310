"""One examination of a node: every question, asked in an order in which later ones can use earlier answers."""

import contextlib
from collections.abc import Awaitable, Collection, Iterable, Mapping
from ipaddress import ip_network

from msgspec import structs

from netagent.commands.doctor import cluster, kernel, node, place
from netagent.config import Config, ConfigError
from netagent.core.addresses import Network
from netagent.core.doctor import hostchecks
from netagent.core.doctor.findings import Finding, unknown
from netagent.disk.atomic import DiskError
from netagent.disk.state import ModeMemory
from netagent.kernel import host
from netagent.ports import NetagentError

ROOT = "run it as root on the node, or in the agent's pod: kubectl -n kube-system exec POD -- netagent doctor"


def running_config() -> str:
    """The file that the agent of this node was started with; "" where that is not known."""
    agents = host.agents()
    return host.config_of(agents[0]) if agents else ""


def accepted(path: str) -> Finding:
    """What all other findings go by."""
    return Finding("config.file", "ok", path or "defaults and NETAGENT_* variables")


def refused(error: ConfigError) -> Finding:
    """The configuration cannot be read; what hangs on it is not looked at."""
    return Finding(
        "config.file",
        "error",
        str(error),
        "The agent does not start with it. Only the kernel's features were looked at.",
        "put it right; docs/configuration.md has all options",
    )


async def examine(config: Config, *, with_config: bool = True, with_api: bool = True) -> list[Finding]:
    """All findings. Nothing on the node is changed, whatever fails is a finding itself."""
    config = _decided(config)
    lacking = host.lacking_capabilities()
    found = [*_rights(lacking)]
    if not with_config:
        return [*found, *await _safely("kernel.features", kernel.examine(config))]
    may_list = node.LISTING not in lacking
    presence, parts = place.look(config, table=may_list and await node.has_table())
    running = presence.running
    found += place.examine(config, presence, parts)
    answers = await cluster.examine(config) if with_api else cluster.Cluster(())
    found += answers.findings
    found += await _safely("kernel.features", kernel.examine(config))
    found += await _safely("sysctl", node.settings(config, running=running))
    found += await _safely("links", node.network(config, answers.node))
    found += await _safely("firewall", node.filters(config, running=running, may_list=may_list))
    if config.network.mode != "off":
        found += await _safely("network.overlap", _overlaps(config, answers.others))
    return found


def _decided(config: Config) -> Config:
    """With the mode that was found for this node, where network.mode is auto and it was."""
    mode = None
    if config.network.mode == "auto":
        with contextlib.suppress(DiskError):  # a finding of its own says so
            mode = ModeMemory(config.state_dir).load()
    return structs.replace(config, network=structs.replace(config.network, mode=mode)) if mode else config


def _rights(lacking: Collection[str]) -> Iterable[Finding]:
    if lacking:
        yield unknown("process.capabilities", f"this process has not {', '.join(lacking)}", ROOT)


async def _overlaps(config: Config, others: Mapping[str, str]) -> Iterable[Finding]:
    """An address of a node is in a network of its own link too: that is said once."""
    networks = await node.others_networks(config)
    inside = [ip_network(cidr) for cidr in networks]
    rest = {cidr: what for cidr, what in others.items() if not _in_one_of(cidr, inside)}
    return hostchecks.overlaps(config.network.pools, {**networks, **rest})


def _in_one_of(cidr: str, networks: Iterable[Network]) -> bool:
    found = ip_network(cidr, strict=False)
    # An address of the other family is in no network.
    return any(found.network_address in one and found.prefixlen >= one.prefixlen for one in networks)


async def _safely(area: str, look: Awaitable[Iterable[Finding]]) -> list[Finding]:
    """What cannot be looked at does not keep from looking at the rest."""
    try:
        return list(await look)
    except (NetagentError, OSError) as error:
        return [unknown(area, str(error), ROOT)]
