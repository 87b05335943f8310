"""The CNI service: what the plugin's executable asks over the unix socket.

An ADD allocates addresses, writes them down, has the pod's policy committed, and only then wires the pod. A DEL goes
the same way back and frees the addresses last. Calls for one pod interface run one after another, others in parallel.
Every call may be repeated: the executable sends it again when the agent went away in the middle.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import orjson
from aiohttp import web
from msgspec import Struct

from netagent.agent.pods.cnisocket import exclusive_socket
from netagent.agent.pods.strays import stand_ins
from netagent.cni import install
from netagent.config import CniConfig
from netagent.core import cni
from netagent.core.cni import Call, CniError, Code
from netagent.core.network.ipam import AddressRefusedError, Pool, SubnetFullError, first_address
from netagent.disk.allocations import Allocations, Loaded
from netagent.disk.atomic import DiskError
from netagent.disk.hostlocal import HostLocal
from netagent.kernel.netns import NetnsError
from netagent.kernel.rtbatch import RtnetlinkError
from netagent.kernel.wiring import Wiring
from netagent.ports import NetagentError, PodNet, PodNetState, PolicyGate
from netagent.records import Endpoint

log = logging.getLogger("netagent.cni")

MAX_BODY_BYTES = 1 << 20
"""Of a network configuration, as in the executable."""
ADMIT_MARGIN_S = 0.5
"""After `admit_timeout_s` the policy itself gives up, and says what it waited for; a moment later nobody waits."""
POLL_S = 0.05
"""Between two looks at whether the pod network is ready."""
AUDIT_S = 30.0
"""Between two looks for addresses of pods that went without a DEL, and for a removed configuration list."""
RETRY_S = 5.0
"""Until the next attempt to write executable and configuration list."""
STOP_S = 10.0
"""A stopping agent gives running calls this long."""
HEADERS = {
    "CNI-Command": "CNI_COMMAND",
    "CNI-ContainerID": "CNI_CONTAINERID",
    "CNI-NetNS": "CNI_NETNS",
    "CNI-IfName": "CNI_IFNAME",
    "CNI-Args": "CNI_ARGS",
    "CNI-Path": "CNI_PATH",
}
CODES: tuple[tuple[type[Exception], Code], ...] = (
    (SubnetFullError, Code.SUBNET_FULL),
    (AddressRefusedError, Code.ADDRESS_REFUSED),
    (NetnsError, Code.BAD_ENVIRONMENT),
    (RtnetlinkError, Code.WIRING_FAILED),
    (DiskError, Code.IO_FAILURE),
    (NetagentError, Code.TRY_AGAIN),
)
"""The first that fits; the last stands for a policy that could not be committed."""
HTTP_STATUS = {Code.TRY_AGAIN: 503, Code.NOT_AVAILABLE: 503, Code.BAD_ENVIRONMENT: 400, Code.BAD_JSON: 400}


class CniStatus(Struct, kw_only=True):
    """For health and debug."""

    serving: bool = False
    """The socket accepts calls."""
    published: bool = False
    """Executable and configuration list are in place."""
    answered: int = 0
    failed: int = 0
    """Of the answered ones."""
    last_error: str = ""
    problems: tuple[str, ...] = ()
    """What was wrong with the state found at start, and what keeps the configuration list from being written."""


class _Others:
    """Addresses that are not ours to give: of another plugin's pods here, of pods elsewhere."""

    def __init__(self, here: Container[str], elsewhere: Callable[[str], bool]) -> None:
        self._here = here
        self._elsewhere = elsewhere

    def __contains__(self, ip: object) -> bool:
        return ip in self._here or self._elsewhere(str(ip))


class CniServer:
    """Serves the plugin and owns the allocations."""

    def __init__(
        self,
        config: CniConfig,
        *,
        pod_net: PodNet,
        policy: PolicyGate,
        store: Allocations,
        wiring: Wiring | None = None,
        ready: Callable[[], bool] | None = None,
        observe: Callable[[str, float, int], None] | None = None,
        host_local: HostLocal | None = None,
        elsewhere: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`host_local`: addresses that another plugin has given to pods of this node. `elsewhere(ip)`: a pod of another
        node has the address, from the time when that node held our subnet. `ready`: whether the node can
        serve pods; until then no configuration list is written. Without it, the pod network alone decides.
        `observe(command, duration_s, code)` is called for each answer; code 0 is success."""
        self._config = config
        self._pod_net = pod_net
        self._policy = policy
        self._store = store
        self._wiring = wiring or Wiring()
        self._ready = ready or (lambda: pod_net.state() is not None)
        self._observe = observe
        self._host_local = host_local
        self._elsewhere = elsewhere
        self._pool = Pool()
        self._endpoints: dict[str, Endpoint] = {}
        self._strays: dict[str, Endpoint] = {}
        """Stand-ins for the links that have no readable record, by name."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._mtu = 0
        """Of the last pod network that there was."""
        self._start_problems: tuple[str, ...] = ()
        self.status = CniStatus()

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The pods that are wired."""
        return tuple(self._endpoints.values())

    async def mend(self, host_ifname: str) -> tuple[str, ...]:
        """Compare the node's end of a pod's link with what ADD made and put it right; what was wrong.

        Nothing is done for a pod that is gone. Raises NetagentError; also where others have put it wrong again.
        """
        async with self._exclusive(host_ifname):
            endpoint, state = self._endpoints.get(host_ifname), self._pod_net.state()
            problems = await self._wiring.check_host_side(endpoint) if endpoint else ()
            if endpoint is None or not problems:
                return ()
            self._mtu = state.mtu if state else self._mtu
            await self._wiring.mend(endpoint, self._mtu)
            if left := await self._wiring.check_host_side(endpoint):
                raise CniError(Code.CHECK_FAILED, f"{'; '.join(left)}, although it was just put right.")
        return problems

    async def run(self) -> None:
        """Serve until cancelled. Raises NetagentError where the socket cannot be had."""
        with exclusive_socket(self._config.socket) as listener:
            await self.restore()
            application = web.Application(client_max_size=MAX_BODY_BYTES + 1)
            application.router.add_post("/cni", self._answer)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_S)
            await runner.setup()
            try:
                await web.SockSite(runner, listener).start()
                self.status.serving = True
                await self._keep_house()
            finally:
                self.status.serving = False
                await runner.cleanup()
                self._wiring.close()

    async def restore(self) -> None:
        """Take over what earlier runs have wired, free what is gone."""
        loaded = await self._load()
        links = await self._wiring.links()
        owners = {ip: endpoint.host_ifname for endpoint in loaded.endpoints for ip in endpoint.ips}
        damaged = {ip: claim.host_ifname for claim in loaded.damaged for ip in claim.ips}
        strays = await self._wiring.routed(links - frozenset((owners | damaged).values()))
        self._pool = Pool(strays | owners | damaged, loaded.freed)
        self._endpoints = {endpoint.host_ifname: endpoint for endpoint in loaded.endpoints}
        self._strays = stand_ins(strays | damaged, links)
        self._start_problems = (
            *loaded.problems,
            *(
                f"link {name} has {ip} but no record; {ip} stays taken until the link goes"
                for ip, name in strays.items()
            ),
        )
        self.status.problems = self._start_problems
        for problem in self._start_problems:
            log.warning("%s", problem)
        try:
            await self._free_vanished(links, loaded.earlier_boot)
        except NetagentError as error:
            log.warning("freeing what is gone: %s", error)
        self._policy.restore((*self.endpoints(), *self._strays.values()))

    async def _load(self) -> Loaded:
        """What the disk holds. While it cannot be read the kernel keeps its last policy: the pods are not known."""
        while True:
            try:
                return await asyncio.to_thread(self._store.load)
            except DiskError as error:
                self.status.problems = (str(error),)
                log.warning("%s No pod can be wired; policy stays as it is. Next attempt in %g s.", error, RETRY_S)
            await asyncio.sleep(RETRY_S)

    # --- calls ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.Response:
        started_s = time.monotonic()
        version = cni.VERSIONS[0]
        command = request.headers.get("CNI-Command", "")[:8]
        code = 0
        try:
            call = cni.parse_call(_environ(request), await _body(request))
            version, command = call.conf.cni_version, call.command
            answer = await self._dispatch(call)
            body = b"" if answer is None else orjson.dumps(answer)
            response = web.Response(body=body, content_type="application/json")
        except Exception as failure:
            error = _as_cni_error(failure)
            code = int(error.code)
            self.status.failed += 1
            self.status.last_error = str(error)
            log.warning("%s %s: %s", command, request.headers.get("CNI-ContainerID", "")[:64], error)
            response = web.Response(
                status=HTTP_STATUS.get(error.code, 500),
                body=orjson.dumps(cni.render_error(version, error)),
                content_type="application/json",
            )
        self.status.answered += 1
        if self._observe:
            self._observe(command, time.monotonic() - started_s, code)
        return response

    async def _dispatch(self, call: Call) -> dict[str, Any] | None:
        match call.command:
            case "ADD":
                async with self._exclusive(call.host_ifname):
                    return await self._add(call)
            case "DEL":
                async with self._exclusive(call.host_ifname):
                    await self._delete(call.container_id, call.host_ifname)
            case "CHECK":
                async with self._exclusive(call.host_ifname):
                    await self._check(call)
            case "GC":
                await self._collect(call)
            case "STATUS":
                self._report()
            case _:
                return cni.render_versions(call.conf.cni_version)
        return None

    async def _add(self, call: Call) -> dict[str, Any]:
        state = await self._pod_net_state()
        known = self._known(call.container_id, call.host_ifname)
        if known and (known.netns, known.pod) == (call.netns, cni.pod_of(call)[0]):
            await self._repeat(known, state)
            return cni.render_result(call.conf.cni_version, known, state.mtu)
        if known or self._pool.addresses_of(call.host_ifname):
            await self._delete(call.container_id, call.host_ifname)
        endpoint = self._allocate(call, state)
        try:
            await asyncio.to_thread(self._store.save, endpoint)
            await self._admit(endpoint)
            await self._wiring.wire(endpoint, state.mtu)
        except BaseException:
            await self._roll_back(endpoint)
            raise
        self._endpoints[endpoint.host_ifname] = endpoint
        log.info("added %s: %s on %s", endpoint.pod, ", ".join(endpoint.ips), endpoint.host_ifname)
        return cni.render_result(call.conf.cni_version, endpoint, state.mtu)

    async def _repeat(self, endpoint: Endpoint, state: PodNetState) -> None:
        """An ADD that was done before, or was cut off by the death of the agent between its steps."""
        await self._admit(endpoint)
        if await self._wiring.check(endpoint):
            await self._wiring.wire(endpoint, state.mtu)

    async def _delete(self, container_id: str, host_ifname: str) -> None:
        if self._known(container_id, host_ifname) is None and self._host_local:
            # containerd asks the plugin of today to remove a pod that another one wired; its link goes with its netns.
            for ip in await asyncio.to_thread(self._host_local.release, container_id):
                log.info("removed container %s of host-local: %s is free", container_id, ip)
        await self._wiring.unwire(host_ifname)
        await self._forget(host_ifname)

    async def _check(self, call: Call) -> None:
        endpoint = self._known(call.container_id, call.host_ifname)
        if endpoint is None:
            raise CniError(Code.UNKNOWN_CONTAINER, f"container {call.container_id} has no {call.ifname} of ours.")
        problems = list(await self._wiring.check(endpoint))
        if call.conf.has_prev_result:
            missing = set(endpoint.ips) - set(cni.result_addresses(call.conf.prev_result))
            problems += [f"{ip} is not in prevResult" for ip in sorted(missing)]
        if problems:
            raise CniError(Code.CHECK_FAILED, f"{endpoint.pod}: {problems[0]}", "; ".join(problems))

    async def _collect(self, call: Call) -> None:
        if call.conf.valid_attachments is None:
            raise CniError(Code.BAD_CONFIG, "GC without cni.dev/valid-attachments. Nothing was removed.")
        valid = {cni.host_ifname(one.container_id, one.ifname) for one in call.conf.valid_attachments}
        for endpoint in self.endpoints():
            if endpoint.host_ifname not in valid:
                async with self._exclusive(endpoint.host_ifname):
                    await self._delete(endpoint.container_id, endpoint.host_ifname)

    def _report(self) -> None:
        if self._pod_net.state() is None or not self._ready():
            raise CniError(Code.NOT_AVAILABLE, "this node has no pod subnet yet, or its policy is not in force yet.")

    # --- steps ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _exclusive(self, host_ifname: str) -> AsyncIterator[None]:
        lock = self._locks.get(host_ifname)
        if lock is None:
            lock = self._locks[host_ifname] = asyncio.Lock()
        async with lock:
            yield

    def _known(self, container_id: str, host_ifname: str) -> Endpoint | None:
        endpoint = self._endpoints.get(host_ifname)
        if endpoint is not None and endpoint.container_id != container_id:
            raise CniError(
                Code.WIRING_FAILED,
                f"link name {host_ifname} of container {container_id} is in use by {endpoint.container_id}.",
            )
        return endpoint

    async def _pod_net_state(self) -> PodNetState:
        deadline_s = time.monotonic() + self._config.admit_timeout_s
        while (state := self._pod_net.state()) is None:
            if time.monotonic() > deadline_s:
                raise CniError(
                    Code.TRY_AGAIN, "this node has no pod subnet yet. The pod is not wired; try again later."
                )
            await asyncio.sleep(POLL_S)
        self._mtu = state.mtu
        return state

    def _allocate(self, call: Call, state: PodNetState) -> Endpoint:
        pod, uid = cni.pod_of(call)
        here: frozenset[str] = frozenset()
        if self._host_local:  # and the subnet's first address is its bridge's
            here = self._host_local.addresses() | {first_address(subnet) for subnet in state.subnets}
        others, asked = _Others(here, self._elsewhere), cni.requested_ips(call)
        return Endpoint(
            pod=pod,
            pod_uid=uid,
            container_id=call.container_id,
            ifname=call.ifname,
            host_ifname=call.host_ifname,
            ips=self._pool.allocate(state.subnets, call.host_ifname, asked, others=others),
            netns=call.netns,
            mac=cni.pod_mac(call.container_id, call.ifname),
        )

    async def _admit(self, endpoint: Endpoint) -> None:
        try:
            async with asyncio.timeout(self._config.admit_timeout_s + ADMIT_MARGIN_S):
                await self._policy.admit(endpoint)
        except TimeoutError:
            raise CniError(
                Code.TRY_AGAIN,
                f"the policy of {endpoint.pod} was not in the kernel after {self._config.admit_timeout_s:g} s. "
                f"The pod is not wired; try again later.",
            ) from None

    async def _roll_back(self, endpoint: Endpoint) -> None:
        """After a failed ADD. What cannot be undone stays recorded, so that the DEL that follows does it."""
        try:
            await self._wiring.unwire(endpoint.host_ifname)
            self._policy.withdraw(endpoint)
            await self._forget(endpoint.host_ifname)
        except NetagentError as error:
            self._endpoints[endpoint.host_ifname] = endpoint
            log.warning("%s: failed ADD is not undone: %s. Its DEL will do it.", endpoint.pod, error)

    async def _forget(self, host_ifname: str) -> None:
        """The pod has no link any more: withdraw its policy, then free its addresses."""
        endpoint = self._endpoints.get(host_ifname)
        if endpoint is not None:
            self._policy.withdraw(endpoint)
        if (stray := self._strays.pop(host_ifname, None)) is not None:
            self._policy.withdraw(stray)
        ips = self._pool.addresses_of(host_ifname)
        if ips:
            await asyncio.to_thread(self._store.free, host_ifname, ips)
        self._pool.release(host_ifname)
        if self._endpoints.pop(host_ifname, None) is not None and endpoint is not None:
            log.info("removed %s: %s is free", endpoint.pod, ", ".join(ips))

    # --- house keeping ----------------------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        while not self._ready():  # noqa: ASYNC110 - a question to others, who have no event for it
            await asyncio.sleep(POLL_S)
        while True:
            await asyncio.to_thread(self._publish)
            if not self.status.published:
                await asyncio.sleep(RETRY_S)
                continue
            await asyncio.sleep(AUDIT_S)
            try:
                await self._free_vanished(await self._wiring.links(), frozenset())
            except NetagentError as error:
                log.warning("looking for leaked addresses: %s", error)

    def _publish(self) -> None:
        try:
            if self._config.bin_dir and install.install(self._config.bin_dir):
                log.info("installed %s/%s", self._config.bin_dir, install.EXECUTABLE)
            for name in install.install_plugins(self._config):
                log.info("copied %s/%s", self._config.bin_dir, name)
            if install.write_conflist(self._config):
                log.info("wrote %s/%s", self._config.conf_dir, self._config.conf_name)
        except DiskError as error:
            self.status.published = False
            self.status.problems = (*self._start_problems, str(error))
            log.warning("%s New pods do not come to netagent; trying again in %g s.", error, RETRY_S)
        else:
            self.status.published = True
            self.status.problems = self._start_problems

    async def _free_vanished(self, links: frozenset[str], earlier_boot: frozenset[str]) -> None:
        """Free what belongs to pods that went without a DEL: no link, and no network namespace (of this boot)."""
        for name in set(self._pool.taken.values()) - links:
            async with self._exclusive(name):
                endpoint = self._endpoints.get(name)
                if endpoint and name not in earlier_boot and await asyncio.to_thread(os.path.exists, endpoint.netns):
                    continue
                ips = ", ".join(self._pool.addresses_of(name))
                log.warning("%s (%s) went without a DEL: freeing %s", endpoint.pod if endpoint else "a pod", name, ips)
                await self._forget(name)


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise CniError(Code.BAD_JSON, f"network configuration is larger than {MAX_BODY_BYTES} bytes.") from None
    except (ConnectionError, web.RequestPayloadError):
        raise CniError(Code.IO_FAILURE, "the caller went away before it had asked. Nothing was changed.") from None


def _environ(request: web.Request) -> dict[str, str]:
    return {variable: request.headers[header] for header, variable in HEADERS.items() if header in request.headers}


def _as_cni_error(failure: Exception) -> CniError:
    if isinstance(failure, CniError):
        return failure
    for kind, code in CODES:
        if isinstance(failure, kind):
            return CniError(code, str(failure))
    log.error("unexpected failure", exc_info=failure)
    return CniError(Code.WIRING_FAILED, f"unexpected {type(failure).__name__}: {failure}. See the agent's log.")
