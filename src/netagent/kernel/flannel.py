"""What flannel leaves in the kernel besides its devices, and how netagent's routes become flannel's again.

For the commands of the migration, with no agent at work on the same things.
"""

from collections.abc import Sequence
from typing import Any

from netagent.core.network import migrate
from netagent.core.network.podnet import FLANNEL_PROTOCOL, ROUTE_PROTOCOL, Route, RouteKey, Step, Verb
from netagent.kernel.entries import RT_TABLE_MAIN, Devices
from netagent.kernel.links import AF, RTMSG, list_links
from netagent.kernel.nft import TABLE, LibNftables
from netagent.kernel.podnet import GONE, RTM_GETROUTE
from netagent.kernel.rtnetlink import Rtnetlink
from netagent.ports import NftError


class FlannelRules(LibNftables):
    """flannel's rules in nftables, its own and those of iptables-nft, in the namespace of the process."""

    async def removals(self) -> list[str]:
        """nft commands that remove them. Raises NftError."""
        listing: list[dict[str, Any]] = []
        commands: list[str] = []
        for family, name in migrate.IPTABLES:
            listing += await self.query(f"list table {family} {name}")
        for family, name in migrate.TABLES:
            if await self.query(f"list table {family} {name}"):
                commands.append(f"delete table {family} {name}")
        return [*migrate.rule_removals(listing), *commands]

    async def remove(self, commands: list[str]) -> None:
        """Run them as one transaction. Raises NftError; then the kernel is unchanged."""
        try:
            await self._call(self._run, "".join(f"{command}\n" for command in commands))
        except NftError as error:
            raise NftError(
                "flannel's rules could not be removed, all of them stay: somebody else may have changed them meanwhile "
                f"(does flanneld still run?). Run the command again. {error}"
            ) from error

    async def masquerades(self) -> bool:
        """Whether our own table rewrites sources already. Raises NftError."""
        return "postrouting" in (await self.inventory()).chains

    async def remove_own_table(self) -> bool:
        """Take our table out, with all policy; whether it was there. Raises NftError."""
        if not (await self.inventory()).exists:
            return False
        await self._call(self._run, f"delete table {TABLE}\n")
        return True


async def peer_routes() -> tuple[list[Step], list[Step]]:
    """(what makes each of our routes over flannel's devices flannel's again, what removes our blackholes).

    Raises RtnetlinkError.
    """
    mine: list[Step] = []
    blackholes: list[Step] = []
    with Rtnetlink() as netlink:
        devices = await _devices(netlink)
        for family in AF.values():
            header = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, ROUTE_PROTOCOL, 0, 0, 0)
            for message in await netlink.dump(RTM_GETROUTE, header):
                entry = devices.route(message)
                if entry is None or not entry[2]:
                    continue
                key, route, _ = entry
                if route.kind == "blackhole":
                    blackholes.append(Step(Verb.DELETE, key, route))
                elif devices.owns(route.device):
                    mine.append(Step(Verb.CHANGE, key, _as_flannels(route)))
    return mine, blackholes


async def take_steps(steps: Sequence[Step]) -> list[str]:
    """Run steps on routes, each replaced where it stands. Returns what was refused. Raises RtnetlinkError."""
    with Rtnetlink() as netlink:
        devices = await _devices(netlink)
        requests = [request for step in steps for request in devices.requests(step)]
        refusals = await netlink.batch(requests)
    subnets = [step.key.subnet for step in steps if isinstance(step.key, RouteKey)]
    return [f"{subnets[index]}: {refusal.reason}" for index, refusal in refusals.items() if refusal.errno not in GONE]


async def left_to_flannel() -> list[str]:
    """Subnets whose route over a device of flannel's is still flannel's: no agent has taken it over."""
    found: list[str] = []
    with Rtnetlink() as netlink:
        devices = await _devices(netlink)
        for family in AF.values():
            header = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, FLANNEL_PROTOCOL, 0, 0, 0)
            for message in await netlink.dump(RTM_GETROUTE, header):
                entry = devices.route(message)
                if entry and entry[2] and devices.owns(entry[1].device):
                    found.append(entry[0].subnet)
    return found


async def _devices(netlink: Rtnetlink) -> Devices:
    devices = Devices(flannel=True)
    devices.know(link for link in await list_links(netlink) if devices.owns(link.name))
    return devices


def _as_flannels(route: Route) -> Route:
    return Route(kind=route.kind, via=route.via, device=route.device, onlink=route.onlink, protocol=FLANNEL_PROTOCOL)
