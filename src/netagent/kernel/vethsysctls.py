"""Sysctls of a pod's link."""

import contextlib

from netagent.kernel import sysctl
from netagent.records import Endpoint


def host_sysctls(endpoint: Endpoint) -> dict[str, dict[str, int]]:
    # Loose: the ruleset drops spoofed sources, with a counter; strict filtering would hide them from it.
    wanted = {"ipv4": {"rp_filter": 2, "forwarding": 1, "proxy_arp": 0}}
    # No link-local address: it would be announced, and nobody talks to it.
    wanted["ipv6"] = {"addr_gen_mode": 1}
    if any(":" in ip for ip in endpoint.ips):
        wanted["ipv6"] |= {"disable_ipv6": 0, "accept_ra": 0, "forwarding": 1}
    return wanted


def set_host_sysctls(endpoint: Endpoint) -> None:
    for family, values in host_sysctls(endpoint).items():
        set_sysctls(family, endpoint.host_ifname, **values)


def set_sysctls(family: str, link: str, **values: int) -> None:
    """Set per-link sysctls of the calling thread's namespace. A kernel without the family has none to set."""
    directory = sysctl.NET / family / "conf" / link
    for name, value in values.items():
        with contextlib.suppress(FileNotFoundError), (directory / name).open("wb", buffering=0) as file:
            file.write(b"%d" % value)
