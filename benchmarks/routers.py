"""A client, a router and a server for each set of rules: all stand side by side, so that they can be measured in turns.

    client i  eth0 -- uplink  router i  nap<server's address> -- eth0  server i

Every triple has the same addresses and links; only the rules in the router's namespace differ. The server's link has
the name that the agent gives a pod's, so that what the rules do for links of pods is done.
"""

from pathlib import Path

from msgspec import Struct

from benchmarks import bed

GATEWAY = "169.254.1.1"
UPLINK = "uplink"
EVERY_PORT = "1024 65535"


class Router(Struct, frozen=True):
    """One triple of namespaces."""

    number: int

    @property
    def name(self) -> str:
        """Namespace that forwards."""
        return f"router{self.number}"

    @property
    def client(self) -> str:
        """Path of the namespace that asks."""
        return f"/run/netns/client{self.number}"

    @property
    def server(self) -> str:
        """Path of the namespace that answers."""
        return f"/run/netns/server{self.number}"

    def run(self, *command: str, text: str = "") -> str:
        """Standard output of a program in the router's namespace. Raises RuntimeError where it fails."""
        return bed.run("ip", "netns", "exec", self.name, *command, text=text)


def router(number: int, client_ip: str, server_ip: str) -> Router:
    """The triple of a number, forwarding, without rules."""
    made = Router(number)
    bed.run("ip", "netns", "add", made.name)
    _end(made, Path(made.client).name, UPLINK, client_ip)
    _end(made, Path(made.server).name, f"nap{server_ip}", server_ip)
    made.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    return made


def _end(one: Router, netns: str, link: str, ip: str) -> None:
    bed.run("ip", "netns", "add", netns)
    bed.run("ip", "-n", one.name, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", netns)
    outside = (f"address replace {GATEWAY}/32 dev lo", "link set lo up", f"link set {link} up")
    bed.run("ip", "-n", one.name, "-batch", "-", text="\n".join((*outside, f"route add {ip}/32 dev {link}")) + "\n")
    one.run("sysctl", "-qw", f"net.ipv4.conf.{link.replace('.', '/')}.proxy_arp=1")
    inside = (
        "link set lo up",
        "link set eth0 up",
        f"address add {ip}/32 dev eth0",
        f"route add {GATEWAY} dev eth0 scope link",
        f"route add default via {GATEWAY}",
    )
    bed.run("ip", "-n", netns, "-batch", "-", text="\n".join(inside) + "\n")
    bed.run("ip", "netns", "exec", netns, "sysctl", "-qw", f"net.ipv4.ip_local_port_range={EVERY_PORT}")
