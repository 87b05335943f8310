"""A node of flannel with a running pod becomes one of netagent, and flannel's again: the agent as a process, an API
server, iptables-nft, the CNI executable, and a datagram each millisecond all the while."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, socket
from typing import Any

import pytest
import yaml

from support.flannelbed import FlannelNode, flow
from support.podnetbed import ECHO_PORT, Echo, Until, in_netns, sh, wait_until

pytestmark = pytest.mark.kernel
API = "http://127.0.0.1:6543"
START_S = 60.0
NETAGENT = ("-c", "import sys; from netagent.cli import main; sys.exit(main())")
FLANNEL_CONFLIST = {
    "name": "cbr0",
    "cniVersion": "0.3.1",
    "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
CHAINS = """
iptables-nft -t nat -N FLANNEL-POSTRTG
iptables-nft -t nat -A POSTROUTING -m comment --comment flanneld-masq -j FLANNEL-POSTRTG
iptables-nft -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -j RETURN
iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN
iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
iptables-nft -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE
iptables-nft -N FLANNEL-FWD
iptables-nft -A FORWARD -m comment --comment flanneld-forward -j FLANNEL-FWD
iptables-nft -A FLANNEL-FWD -s 10.244.0.0/16 -j ACCEPT
"""


class Migrating:
    """Node 1 of the pair, with everything that a node has besides its network."""

    def __init__(self, node: FlannelNode, peer: FlannelNode, home: Path) -> None:
        self.node = node
        self.peer = peer
        self.home = home
        self.conf_dir, self.reservations = home / "net.d", home / "networks"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.conf_dir.mkdir()
        (self.conf_dir / "10-flannel.conflist").write_text(json.dumps(FLANNEL_CONFLIST))
        (self.reservations / "cbr0").mkdir(parents=True)
        (self.reservations / "cbr0" / "lock").touch()
        for ip in node.pod_ips():
            (self.reservations / "cbr0" / ip).write_text("oldcontainer\r\neth0")
        for command in CHAINS.strip().splitlines():
            sh(f"ip netns exec {node.netns} {command}")
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": API}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (home / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        configuration = {
            "node_name": "node-1",
            "state_dir": str(home / "state"),
            "api": {"kubeconfig": str(home / "kubeconfig")},
            "network": {
                "mode": "auto",
                "pools": ["10.244.0.0/16", "fd44::/48"],
                "subnet_env": str(home / "subnet.env"),
                "host_local_dir": str(self.reservations),
            },
            "cni": {
                "socket": str(home / "cni.sock"),
                "bin_dir": str(home / "bin"),
                "conf_dir": str(self.conf_dir),
                "chained": [],
            },
        }
        (home / "config.yaml").write_text(yaml.safe_dump(configuration))

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        """A process of ours on the node."""
        output = (self.home / f"log{len(self.processes)}").open("wb")
        with output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.node.netns, sys.executable, *words], stdout=output, stderr=output
            )
        self.processes.append(process)
        return process

    def start_api(self) -> None:
        self.run("-m", "netagent.lab.apiserver", "--listen", API.removeprefix("http://"), "--bookmark-s", "1")
        wait_until(lambda: self.get(f"{API}/readyz") is not None, START_S)
        for node in (self.node, self.peer):
            self.create("/api/v1/nodes", self.node_body(node))
        self.create("/api/v1/namespaces/default/pods", self.pod_body("old", list(self.node.pod_ips())))

    def node_body(self, node: FlannelNode) -> dict[str, Any]:
        record = node.record()
        cidrs = list(record.pod_cidrs)
        return {
            "metadata": {"name": record.key.name, "annotations": dict(record.annotations)},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": [{"type": "InternalIP", "address": address} for address in record.addresses]},
        }

    def pod_body(self, name: str, ips: list[str]) -> dict[str, Any]:
        status = {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]} if ips else {}
        return {
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]},
            "status": status,
        }

    def create(self, path: str, body: dict[str, Any]) -> Any:
        made = self.request("POST", path, body)
        if body.get("status"):
            made["status"] = body["status"]
            made = self.request("PUT", f"{path}/{body['metadata']['name']}/status", made)
        return made

    def request(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(  # noqa: S310
            API + path,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json"},
            method=method,
        )
        return self.open(request)

    def get(self, url: str) -> Any:
        """The answer; None where there is none or it is not OK."""
        try:
            return self.open(urllib.request.Request(url))  # noqa: S310
        except OSError:
            return None

    def open(self, request: urllib.request.Request) -> Any:
        def work() -> Any:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                    return answer.read()
            except urllib.error.HTTPError as error:
                return OSError(f"{request.full_url}: {error.code} {error.read()!r}")
            except OSError as error:
                return error

        found = in_netns(self.node.netns, work)
        if isinstance(found, Exception):
            raise found
        try:
            return json.loads(found)
        except ValueError:
            return found

    def start_agent(self) -> None:
        process = self.run(*NETAGENT, "agent", "--config", str(self.home / "config.yaml"))
        log = self.home / f"log{len(self.processes) - 1}"
        wait_until(lambda: self.get("http://127.0.0.1:9099/readyz") is not None or process.poll() is not None, START_S)
        assert process.poll() is None, log.read_text()

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) is not None

    def migrate(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *NETAGENT, "migrate", *words, "--config", str(self.home / "config.yaml")]
        return subprocess.run(
            ["ip", "netns", "exec", self.node.netns, *command], capture_output=True, text=True, check=False
        )

    def cni(self, command: str, pod: dict[str, Any], container: str, netns: str) -> Any:
        """What the runtime does with today's configuration list."""
        conflist = json.loads((self.conf_dir / "10-netagent.conflist").read_text())
        conf = {"cniVersion": conflist["cniVersion"], "name": conflist["name"], **conflist["plugins"][0]}
        meta = pod["metadata"]
        arguments = (
            f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={meta['name']};K8S_POD_UID={meta['uid']};"
            f"K8S_POD_INFRA_CONTAINER_ID={container}"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", self.node.netns, str(self.home / "bin" / "netagent")],
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": f"/run/netns/{netns}",
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": arguments,
                "CNI_PATH": str(self.home / "bin"),
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    def nft(self) -> str:
        return sh(f"ip netns exec {self.node.netns} nft list ruleset")

    def reserved(self) -> set[str]:
        return {path.name for path in (self.reservations / "cbr0").iterdir()} - {"lock"}

    def own_node(self) -> Any:
        return self.request("GET", "/api/v1/nodes/node-1")

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
                process.wait(20)


@pytest.fixture
def migrating(pair: tuple[FlannelNode, FlannelNode], tmp_path: Path) -> Iterator[Migrating]:
    one, other = pair
    for node, peer in ((one, other), (other, one)):
        node.become_flannel()
        node.learn(peer.record())
    made = Migrating(one, other, tmp_path)
    try:
        made.start_api()
        yield made
    finally:
        made.close()


def wait_sent(state: Any, until: Until, more: int = 300) -> None:
    mark = state.sent
    until(lambda: state.sent > mark + more)


@pytest.mark.timeout(300)
def test_there_and_back(migrating: Migrating, until: Until) -> None:
    bed, node, peer = migrating, migrating.node, migrating.peer
    for address in peer.pod_ips():
        until.reaches(node, address)
    early = bed.migrate("--from", "flannel")
    assert early.returncode == 1
    assert "does not exist" in early.stderr or "network.mode is auto" in early.stderr
    with flow(node.pod, peer.pod_ips()[0]) as ours, flow(peer.pod, node.pod_ips()[1]) as theirs:
        until(lambda: len(ours.back) > 100 and len(theirs.back) > 100)
        bed.start_agent()
        until((bed.conf_dir / "10-netagent.conflist").exists)
        wait_sent(ours, until)
        dry = bed.migrate("--from", "flannel", "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert "FLANNEL-POSTRTG" in bed.nft()
        assert (bed.conf_dir / "10-flannel.conflist").exists()
        done = bed.migrate("--from", "flannel")
        assert done.returncode == 0, done.stderr
        wait_sent(ours, until)
    assert ours.lost() == []
    assert theirs.lost() == []
    assert sorted(path.name for path in bed.conf_dir.iterdir()) == [
        "10-flannel.conflist.replaced-by-netagent",
        "10-netagent.conflist",
    ]
    assert "FLANNEL" not in bed.nft()
    assert "ip saddr 192.0.2.0/24" in bed.nft()  # somebody else's rule in the same table
    assert bed.migrate("--from", "flannel").stdout == "nothing to do\n"
    assert (bed.home / "subnet.env").read_text() == (
        "FLANNEL_NETWORK=10.244.0.0/16\n"
        "FLANNEL_SUBNET=10.244.1.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd44::/48\n"
        "FLANNEL_IPV6_SUBNET=fd44:0:0:1::1/64\n"
        "FLANNEL_MTU=1430\n"
        "FLANNEL_IPMASQ=true\n"
    )
    told = bed.own_node()
    assert told["metadata"]["annotations"] == dict(node.record().annotations)
    condition = next(one for one in told["status"]["conditions"] if one["type"] == "NetworkUnavailable")
    assert (condition["status"], condition["reason"]) == ("False", "NetagentIsUp")

    new = bed.create("/api/v1/namespaces/default/pods", bed.pod_body("new", []))
    sh("ip netns add newpod")
    answer = bed.cni("ADD", new, "newcontainer", "newpod")
    ips = [entry["address"].partition("/")[0] for entry in answer["ips"]]
    assert not set(ips) & {*node.pod_ips(), "10.244.1.1", "fd44:0:0:1::1"}
    fresh = SimplePod("newpod")
    for own, old, far in zip(ips, node.pod_ips(), peer.pod_ips(), strict=True):
        until(functools.partial(fresh.reaches, old))
        until(functools.partial(fresh.reaches, far))
        until.reaches(node, own)  # from the bridge's pod, by the bridge's proxy
        until.reaches(peer, own)

    bed.create(
        "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
        {"metadata": {"name": "closed"}, "spec": {"podSelector": {"matchLabels": {"app": "old"}}}},
    )
    until(lambda: not fresh.reaches(node.pod_ips()[0]))
    until(lambda: not peer.reaches(node.pod_ips()[1]))
    assert fresh.reaches(peer.pod_ips()[0])
    bed.request("DELETE", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/closed")
    until(functools.partial(fresh.reaches, node.pod_ips()[0]))

    assert bed.migrate("--to", "flannel").returncode == 1  # the agent runs
    with flow(node.pod, peer.pod_ips()[0]) as ours, flow(peer.pod, node.pod_ips()[1]) as theirs:
        until(lambda: len(ours.back) > 100 and len(theirs.back) > 100)
        bed.stop(bed.processes[-1])
        wait_sent(ours, until)
        done = bed.migrate("--to", "flannel")
        assert done.returncode == 0, done.stderr
        wait_sent(ours, until)
    assert ours.lost() == []
    assert theirs.lost() == []
    assert [path.name for path in bed.conf_dir.iterdir()] == ["10-flannel.conflist"]
    assert bed.reserved() == {*node.pod_ips(), *ips}
    assert "inet netagent" not in bed.nft()
    routes = node.ip("-4 route show dev flannel.1") + node.ip("-6 route show dev flannel-v6.1")
    assert "10.244.2.0/24 via 10.244.2.0 onlink" in routes
    assert "proto 78" not in routes
    assert "blackhole" not in node.ip("-4 route") + node.ip("-6 route")
    for own in ips:
        until.reaches(peer, own)  # netagent's pod lives on
    fresh.close()


@pytest.mark.timeout(300)
def test_a_pod_of_flannels_ends_by_netagents_plugin(migrating: Migrating, until: Until) -> None:
    bed = migrating
    bed.start_agent()
    until((bed.conf_dir / "10-netagent.conflist").exists)
    assert bed.reserved() == set(bed.node.pod_ips())
    old = bed.request("GET", "/api/v1/namespaces/default/pods/old")
    bed.cni("DEL", old, "somebodyelse", "pod1")
    assert bed.reserved() == set(bed.node.pod_ips())
    bed.cni("DEL", old, "oldcontainer", "pod1")
    assert bed.reserved() == set()


class SimplePod:
    """A namespace that CNI has wired."""

    def __init__(self, netns: str) -> None:
        self._netns = netns
        self._echo = in_netns(netns, Echo)

    def reaches(self, address: str) -> bool:
        family = AF_INET6 if ":" in address else AF_INET
        with in_netns(self._netns, lambda: socket(family, SOCK_DGRAM)) as sock:
            sock.settimeout(0.3)
            for _ in range(3):
                try:
                    sock.sendto(b"x", (address, ECHO_PORT))
                    return sock.recv(64) == b"x"
                except OSError:
                    time.sleep(0.01)
        return False

    def close(self) -> None:
        self._echo.close(self._netns)
