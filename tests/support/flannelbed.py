"""Nodes as flannel and the bridge plugin leave them: devices, neighbours, forwarding entries, routes and a pod on cni0,
made by hand with ip and bridge from what flannel is known to do."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOL_SOCKET, socket

from msgspec.structs import replace

from netagent.config import NetworkConfig
from netagent.core.network import flannel
from netagent.core.network.nodenet import leases_of
from netagent.records import Key, SubnetLease
from netagent.records import Node as NodeRecord
from support.podnetbed import ECHO_PORT, Echo, Node, in_netns, sh

NAMES = flannel.names(flannel.DEFAULT_PREFIX)
NODE_MODE = NetworkConfig(pools=("10.244.0.0/16", "fd44::/48"), mode="node")
DEVICES = {4: "flannel.1", 6: "flannel-v6.1"}
FLOW_SPACING_S = 0.001
SO_RCVBUFFORCE = 33


def device_mac(number: int, family: int) -> str:
    """The MAC that a flannel node's device has."""
    return f"12:c6:65:89:0{family}:0{number}"


class FlannelNode(Node):
    """A node whose pod hangs on cni0; `become_flannel` gives it the rest. `start` runs netagent there, in node mode."""

    def _pod(self) -> None:
        n, pod = self.number, f"pod{self.number}"
        self.pod = pod
        sh(f"ip netns add {pod}")
        self.ip("link add cni0 type bridge")
        self.ip("link set cni0 up")
        self.ip(f"link add veth0 type veth peer name eth0 netns {pod}")
        self.ip("link set veth0 master cni0 up")
        sh(f"ip -n {pod} link set lo up")
        sh(f"ip -n {pod} link set eth0 up")
        for address, length, gateway in zip(
            self.pod_ips(), (24, 64), (f"10.244.{n}.1", f"fd44:0:0:{n}::1"), strict=True
        ):
            self.ip(f"address add {gateway}/{length} dev cni0 nodad")
            sh(f"ip -n {pod} address add {address}/{length} dev eth0 nodad")
            sh(f"ip -n {pod} route add default via {gateway} dev eth0")
        for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0"):
            sh(f"ip netns exec {self.netns} sysctl -qw {setting}")
        self.echo = in_netns(pod, Echo)
        _widen(self.echo._sock)

    def become_flannel(self) -> None:
        """The devices, as flannel makes them."""
        n = self.number
        for family, local in zip((4, 6), self.addresses, strict=True):
            device, mtu = DEVICES[family], 1450 if family == 4 else 1430
            self.ip(f"link add {device} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning")
            self.ip(f"link set {device} address {device_mac(n, family)} mtu {mtu} up")
        self.ip(f"address add 10.244.{n}.0/32 dev flannel.1")
        self.ip(f"address add fd44:0:0:{n}::/128 dev flannel-v6.1 nodad")

    def learn(self, peer: NodeRecord) -> None:
        """A peer, out of its annotations."""
        for lease in leases_of(peer, NAMES):
            family = 6 if ":" in lease.subnet else 4
            data = json.loads(peer.annotations[NAMES.backend_data(family)])
            gateway, device = lease.subnet.partition("/")[0], DEVICES[family]
            self.ip(f"neighbour replace {gateway} lladdr {data['VtepMAC']} dev {device} nud permanent")
            self.bridge(f"fdb replace {data['VtepMAC']} dev {device} dst {lease.public_ip} self permanent")
            self.ip(f"-{family} route replace {lease.subnet} via {gateway} dev {device} onlink")

    def record(self) -> NodeRecord:
        """Its Node object with what flannel has published."""
        ends = {
            family: flannel.End(device_mac(self.number, family), address)
            for family, address in zip((4, 6), self.addresses, strict=True)
        }
        return self._record(ends)

    def told_record(self) -> NodeRecord:
        """Its Node object with what netagent there has told."""
        return self._record({6 if ":" in subnet else 4: flannel.End(*end) for subnet, end in self.told.items()})

    def _record(self, ends: dict[int, flannel.End]) -> NodeRecord:
        return NodeRecord(
            key=Key("", f"node-{self.number}"),
            uid=f"uid{self.number}",
            annotations=flannel.annotations(NAMES, backend="vxlan", vni=1, ends=ends),
            addresses=self.addresses,
            pod_cidrs=tuple(lease.subnet for lease in self.leases),
        )

    def take_over(self, *peers: NodeRecord) -> None:
        """Let netagent know this node's subnets, from its Node, and its peers."""
        self.leases = leases_of(self.record(), NAMES)
        self.update(tuple(lease for peer in peers for lease in leases_of(peer, NAMES)))

    def flannel_state(self) -> str:
        """Devices and what hangs on them as text, without what differs from look to look, and without protocols."""
        parts = [self.ip(f"-d link show dev {device}") for device in DEVICES.values()]
        parts += [self.ip(f"neighbour show dev {device} nud permanent") for device in DEVICES.values()]
        parts += [self.bridge(f"fdb show dev {device}") for device in DEVICES.values()]
        parts += [self.ip(f"address show dev {device} scope global") for device in DEVICES.values()]
        parts += [self.ip(f"-{family} route show dev {device}") for family, device in DEVICES.items()]
        text = re.sub(r" used \S+| proto \S+| (?:metric|qlen) \d+| +pref medium", "", "\n".join(parts))
        return "\n".join(sorted(line.strip() for line in text.splitlines()))


@dataclass
class Flow:
    """A datagram a millisecond from one pod to another's echo, and back."""

    sent: int = 0
    back: set[int] = field(default_factory=set)
    stopping: bool = False

    def lost(self) -> list[tuple[int, int]]:
        """Those that did not come back, as (first, last) of each run."""
        runs: list[tuple[int, int]] = []
        for number in range(self.sent):
            if number not in self.back:
                runs[-1:] = (
                    [(runs[-1][0], number)] if runs and runs[-1][1] == number - 1 else [*runs[-1:], (number,) * 2]
                )
        return runs


@contextmanager
def flow(netns: str, address: str) -> Iterator[Flow]:
    """Runs until the end of the block; then waits for the last answers."""
    state = Flow()
    sock = in_netns(netns, lambda: socket(AF_INET6 if ":" in address else AF_INET, SOCK_DGRAM))
    sock.connect((address, ECHO_PORT))
    sock.settimeout(1.0)
    _widen(sock)

    def send() -> None:
        while not state.stopping:
            sock.send(state.sent.to_bytes(8, "big"))
            state.sent += 1
            time.sleep(FLOW_SPACING_S)

    def receive() -> None:
        while True:
            try:
                state.back.add(int.from_bytes(sock.recv(64), "big"))
            except TimeoutError:
                if state.stopping:
                    return

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        state.stopping = True
        for thread in threads:
            thread.join()
        sock.close()


def _widen(sock: socket) -> None:
    """A process that does not get the processor for a second must not look like a lost packet."""
    sock.setsockopt(SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)


def as_peer(lease: SubnetLease, **changes: object) -> SubnetLease:
    """The record with something else in it."""
    return replace(lease, **changes)
