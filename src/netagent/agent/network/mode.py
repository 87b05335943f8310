"""Which of lease mode and node mode a node is in where the configuration leaves it open (network.mode = auto)."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal

from msgspec import Raw, structs
from prometheus_client import CollectorRegistry

from netagent.agent.http.health import Health
from netagent.agent.http.server import HttpServer
from netagent.config import Config
from netagent.disk.atomic import DiskError
from netagent.disk.state import ModeMemory
from netagent.kube import decode
from netagent.kube.backoff import Backoff
from netagent.kube.client import ApiClient, ApiError, Unreachable
from netagent.kube.wire import DecodeError
from netagent.records import Kind, Node

POD_CIDR_WAIT_S = 10.0
"""kube-controller-manager sets spec.podCIDRs within moments of the Node's creation; without it nobody ever does."""
LOOK_S = 0.5
"""Between two looks at the Node."""
RETRY_S = 5.0
"""Between two looks at what was decided, where that is kept in a way that only a newer program can read."""

Mode = Literal["lease", "node"]
log = logging.getLogger(__name__)


async def choose_mode(
    api: ApiClient,
    node_name: str,
    memory: ModeMemory,
    *,
    wait_s: float = POD_CIDR_WAIT_S,
    tell: Callable[[str], None] = lambda _: None,
) -> Mode:
    """node where this Node has podCIDRs, lease where it has none `wait_s` after it was first seen.

    Decided once: a node that changed sides by itself would take addresses that others give out. So nothing is decided
    either while the Node does not exist or the API server is away, or while what was decided cannot be read here.
    `tell(why)`: for /readyz, where it waits for anything but the Node.
    """
    known = await _remembered(memory, tell)
    if known is not None:
        return known
    mode = await _ask(api, node_name, wait_s)
    log.info("network.mode is auto: this node is in %s mode from now on (%s).", mode, memory.path)
    try:
        memory.save(mode)
    except DiskError as error:
        log.warning("%s After a restart this node decides again.", error)
    return mode


async def _remembered(memory: ModeMemory, tell: Callable[[str], None]) -> Mode | None:
    while True:
        try:
            known = memory.load()
        except DiskError as error:
            tell(str(error))
            log.warning("%s Nothing is set up. Next attempt in %g s.", error, RETRY_S)
            await asyncio.sleep(RETRY_S)
        else:
            tell("")
            return known


async def _ask(api: ApiClient, node_name: str, wait_s: float) -> Mode:
    clock = asyncio.get_running_loop().time
    backoff, seen_s, told = Backoff(5.0), None, ""
    while True:
        try:
            node = decode.record(Kind.NODE, await api.get_json(f"/api/v1/nodes/{node_name}", Raw))
        except (ApiError, Unreachable, DecodeError) as error:
            if str(error) != told:
                told = str(error)
                log.warning("network.mode is auto and waits for Node %s: %s Nothing is set up yet.", node_name, error)
            await asyncio.sleep(backoff.next_s())
            continue
        if isinstance(node, Node) and node.pod_cidrs:
            return "node"
        seen_s = seen_s if seen_s is not None else clock()
        if clock() - seen_s >= wait_s:
            return "lease"
        await asyncio.sleep(min(LOOK_S, wait_s))


async def resolve_mode(config: Config, api: ApiClient, stop: asyncio.Event) -> Config | None:
    """The configuration with network.mode decided; None where the agent is stopped before that."""
    if config.network.mode != "auto":
        return config
    node_name = config.node_name or socket.gethostname()
    async with _undecided(config) as tell:
        asked = asyncio.create_task(choose_mode(api, node_name, ModeMemory(config.state_dir), tell=tell))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({asked, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not asked.done():
            asked.cancel()
            return None
        network = structs.replace(config.network, mode=await asked)
        return structs.replace(config, network=network)


@asynccontextmanager
async def _undecided(config: Config) -> AsyncIterator[Callable[[str], None]]:
    """Alive, not ready: an agent that cannot decide because the API server is away is not to be restarted.

    Yields what takes another reason; "" for the usual one.
    """

    async def nothing() -> None:
        pass

    why = ""

    def tell(reason: str) -> None:
        nonlocal why
        why = reason or "network.mode is auto and not decided yet: it waits for this node's Node object"

    tell("")
    server = HttpServer(
        config.http,
        alive=Health({"event loop": str}),
        ready=Health({"mode": lambda: why}),
        registry=CollectorRegistry(),
        before_scrape=nothing,
        debug=None,
    )
    serving = asyncio.create_task(server.run())
    try:
        yield tell
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
