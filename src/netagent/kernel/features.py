"""What the kernel can do, found out by doing it in a network namespace of its own, which is gone afterwards.

Nothing of the node's network is touched. The kernel may load modules for it, as it would for the agent.
"""

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import nftables
from msgspec import Struct

from netagent.core.network.podnet import Vxlan
from netagent.kernel import conntrack, links
from netagent.kernel.netns import CLONE_NEWNET
from netagent.kernel.nflog import NflogReader
from netagent.kernel.nft import brief
from netagent.kernel.rtnetlink import NLM_F_CREATE, NLM_F_EXCL, Request, Rtnetlink, nested, text
from netagent.ports import NetagentError

TABLE = "inet probe"
LOOPBACK_INDEX = 1
"""Of a new network namespace."""
GROUP = 78
"""Of NFLOG; whichever: the namespace is empty."""

Trial = Callable[[], str]
"""Does what is asked about; why it cannot be done, "" where it can. May raise OSError or NetagentError."""
_libc = ctypes.CDLL(None, use_errno=True)


class Feature(Struct, frozen=True):
    """Something that the kernel must be able to do."""

    name: str
    purpose: str
    trial: Trial


class NoNamespaceError(NetagentError):
    """No network namespace could be made, so nothing was tried."""


def probe(features: Iterable[Feature]) -> dict[str, str]:
    """Why each feature cannot be had, "" where it can, by name. Raises NoNamespaceError."""
    results: dict[str, str] = {}
    failures: list[NoNamespaceError] = []

    def work() -> None:
        if _libc.unshare(CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            failures.append(NoNamespaceError(f"a network namespace to try things in cannot be made: {reason}."))
            return
        for feature in features:
            results[feature.name] = _try(feature.trial)

    # The namespace is the thread's own and ends with it.
    thread = threading.Thread(target=work, name="features")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results


def _try(trial: Trial) -> str:
    try:
        return trial()
    except OSError as error:
        return error.strerror or str(error)
    except NetagentError as error:
        return str(error)


def script(*lines: str) -> Trial:
    """The lines as one nftables transaction on an empty table."""
    anew = (f"add table {TABLE}", f"delete table {TABLE}", f"add table {TABLE}")
    return whole_script("\n".join((*anew, *lines)) + "\n")


def whole_script(commands: str) -> Trial:
    """The commands as one transaction."""

    def run() -> str:
        library: Any = nftables.Nftables()
        code, _, error = library.cmd(commands)
        return _reason(error) if code else ""

    return run


def _reason(error: str) -> str:
    """libnftables' complaint without the command that it points to."""
    return brief(error).partition(";")[0].removeprefix("Error: ")


def link(kind: str) -> Trial:
    """A link of a kind that needs no further words."""
    info = nested(links.IFLA_LINKINFO, text(links.IFLA_INFO_KIND, kind))
    body = links.IFINFO.pack(0, 0, 0, 0, 0) + text(links.IFLA_IFNAME, f"p-{kind}"[:15]) + info
    return _requests([Request(links.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)])


def vxlan(vni: int, port: int, local: str) -> Trial:
    """A vxlan device as the agent makes it, up."""
    want = Vxlan(vni=vni, port=port, local=local, underlay=LOOPBACK_INDEX, mac="02:00:00:00:00:01", mtu=1400)
    create, _, up = links.add_vxlan("probe6" if ":" in local else "probe4", want)
    return _requests([create, up])


def _requests(requests: list[Request]) -> Trial:
    async def ask() -> str:
        with Rtnetlink() as netlink:
            refusals = await netlink.batch(requests)
        return next((refusal.reason for refusal in refusals.values()), "")

    return lambda: asyncio.run(ask())


def read_flows() -> str:
    """ctnetlink answers."""
    asyncio.run(conntrack.flows())
    return ""


def bind_nflog() -> str:
    """NFLOG hands packets to a socket."""
    NflogReader(GROUP).close()
    return ""


def ipv6_socket() -> str:
    """There is IPv6 at all."""
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    return ""
