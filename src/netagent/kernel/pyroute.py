"""The parts of pyroute2 that are used here: its rtnetlink socket and messages, without the rest of the package.

`import pyroute2` also imports its database, its emulators and two dozen protocols: 0.1 s of CPU and 11 MB at every
start of the agent (0.9.7, Python 3.11). So the parts are imported under an empty parent package, which is taken away
again: a full import by others works afterwards and finds the same classes.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

PACKAGE = "pyroute2"


@contextmanager
def _empty_parent() -> Iterator[None]:
    if PACKAGE in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    parent = ModuleType(PACKAGE)
    parent.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[PACKAGE] = parent
    try:
        yield
    finally:
        del sys.modules[PACKAGE]


with _empty_parent():
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.rtnl import (
        RTM_DELLINK,
        RTM_GETLINK,
        RTM_GETROUTE,
        RTM_NEWADDR,
        RTM_NEWLINK,
        RTM_NEWNEIGH,
        RTM_NEWROUTE,
    )
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.ndmsg import ndmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = [
    "NLM_F_ACK",
    "NLM_F_CREATE",
    "NLM_F_EXCL",
    "NLM_F_REPLACE",
    "NLM_F_REQUEST",
    "RTM_DELLINK",
    "RTM_GETLINK",
    "RTM_GETROUTE",
    "RTM_NEWADDR",
    "RTM_NEWLINK",
    "RTM_NEWNEIGH",
    "RTM_NEWROUTE",
    "IPRoute",
    "NetlinkError",
    "ifaddrmsg",
    "ifinfmsg",
    "ndmsg",
    "rtmsg",
]
