"""`netagent cleanup` on a node that an agent has worked on, and on which others have made things that look alike."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from netagent.lab.cluster import Lab
from netagent.lab.plan import Settings
from netagent.lab.processes import clean_environment

pytestmark = [pytest.mark.kernel, pytest.mark.lab]

CONFIG = "/run/lab/agent.json"
CONFLIST = "/etc/cni/net.d/10-netagent.conflist"
LOOKALIKES = """
nft add table inet netagent2
nft add table ip netagent
nft add chain ip netagent forward
ip link add napper type bridge
ip link add nap12345678 type bridge
ip link add netagent.7 type bridge
ip link add netagentx type vxlan id 77 dstport 4790 dev eth0
ip route add 10.1.0.0/16 dev eth0 protocol 79
ip route add blackhole 10.2.0.0/16 protocol boot
ip route add 10.3.0.0/16 via 172.30.0.1 table 100 protocol 78
iptables -A FORWARD -s 10.244.0.0/16 -j ACCEPT
iptables -A FORWARD -s 10.244.0.0/16 -m comment --comment netagent-like -j ACCEPT
"""
FOREIGN_FILES = {
    "/etc/cni/net.d/99-other.conflist": '{"cniVersion": "1.0.0", "name": "netagent", "plugins": [{"type": "ptp"}]}',
    "/opt/cni/bin/netagent-other": "#!/bin/sh\n",
    "/var/lib/netagent/notes.txt": "mine",
    "/run/netagent/other.sock.lock": "",
}


class Node:
    """Commands on the lab's one node."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pid = lab.nodes[0].holder.pid

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt", "--", *command]
        return subprocess.run(argv, check=check, capture_output=True, text=True, env=clean_environment(), timeout=60)

    def cleanup(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "netagent", "cleanup", "--config", CONFIG, *options, check=check)

    def items(self, *options: str) -> list[tuple[str, str]]:
        made = json.loads(self.cleanup("--output", "json", *options).stdout)
        assert not [item for item in made["items"] if item["problem"]]
        return [(item["kind"], item["name"]) for item in made["items"]]

    def path(self, inside: str) -> Path:
        return self.lab.nodes[0].path(inside)

    def state(self) -> str:
        """All of the kernel and the directories that may change."""
        while "tentative" in self.run("ip", "address").stdout:
            time.sleep(0.1)
        parts = [self.run("nft", "list", "ruleset").stdout]
        for command in ("link", "-4 route show table all", "-6 route show table all", "address"):
            parts.append(self.run("ip", *command.split()).stdout)
        parts.append(self.run("ip", "neighbour", "show", "nud", "permanent").stdout)
        directories = ("/etc/cni/net.d", "/opt/cni/bin", "/var/lib/netagent", "/run/netagent")
        parts.append(self.run("find", *(one for one in directories if self.path(one).exists())).stdout)
        return re.sub(r"packets \d+ bytes \d+|expires \d+sec|qlen \d+", "", "".join(parts))


@pytest.fixture(scope="module", autouse=True)
def lab_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETAGENT_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
        yield


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    """With a pod, a policy, a foreign FORWARD policy of drop, and a peer. The agent was killed."""
    async with Lab(Settings(nodes=2, families=(4, 6))) as lab:
        made = Node(lab)
        for tool in ("iptables", "ip6tables"):
            made.run(tool, "-P", "FORWARD", "DROP")
        container = {"name": "main", "image": "test", "ports": [{"containerPort": 80}]}
        for name, where in (("a", "node-0"), ("b", "node-1")):
            meta = {"namespace": "default", "name": name}
            await lab.create(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": meta,
                    "spec": {"nodeName": where, "containers": [container]},
                }
            )
        await lab.pods_ready()
        for family in (4, 6):
            assert (await lab.probe("default/b", "default/a", 80, family=family, timeout_s=20.0)).allowed
        yield made


async def test_all_of_ours_goes_and_nothing_of_others(node: Node) -> None:
    await node.lab.stop_agent(0, signal.SIGKILL)
    before = node.state()
    assert "table inet netagent {" in before
    for line in LOOKALIKES.strip().splitlines():
        node.run(*line.split())
    for path, content in FOREIGN_FILES.items():
        node.path(path).write_text(content)
    intended = node.items("--dry-run", "--pods", "--state")
    assert "table inet netagent {" in node.state()
    assert node.items("--pods", "--state") == intended
    after = node.state()
    for trace in (
        *(
            "table inet netagent {",
            'comment "netagent"',
            "netagent.1",
            "netagent6.1",
            CONFLIST,
            "cni.sock",
            "endpoints",
        ),
        *("subnets.json", "/opt/cni/bin/netagent\n", "10.244.1.", "fd00:10:244"),
    ):
        assert trace in before + "/opt/cni/bin/netagent\n"
        assert trace not in after, trace
    assert not re.search(r"\bnap[0-9a-f]{12}@", after)
    assert len(re.findall(r"proto (?:78|N)\b", after)) == 1
    for trace in ("table inet netagent2", "table ip netagent", "napper", "nap12345678", "netagent.7", "netagentx"):
        assert trace in after, trace
    for trace in ("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"):
        assert trace in after, trace
    assert len(re.findall(r"-A FORWARD", node.run("iptables", "-S").stdout)) == 2
    for path, content in FOREIGN_FILES.items():
        assert node.path(path).read_text() == content
    assert node.items("--pods", "--state") == []
    assert "nothing of netagent's is here" in node.cleanup().stdout
    assert node.state() == after


async def test_what_is_not_asked_for_stays(node: Node) -> None:
    """Without --pods and --state the pods keep their links and the next agent knows them: it takes over again."""
    await node.lab.stop_agent(0)
    told = node.cleanup().stdout
    assert "removed table inet netagent\n" in told
    assert "removed vxlan device netagent6.1\n" in told
    assert "pod link" not in told
    state = node.state()
    assert re.search(r"\bnap[0-9a-f]{12}@", state)
    assert "endpoints" in state
    assert not node.path(CONFLIST).exists()
    await node.lab.start_agent(0)
    for family in (4, 6):
        assert (await node.lab.probe("default/b", "default/a", 80, family=family, timeout_s=30.0)).allowed


async def test_it_refuses_while_an_agent_runs(node: Node) -> None:
    before = node.run("nft", "list", "chains").stdout
    refused = node.cleanup(check=False)
    assert refused.returncode == 1
    assert "Nothing was removed" in refused.stderr
    agent = node.lab.nodes[0].agent
    assert agent is not None
    assert agent.running
    assert node.run("nft", "list", "chains").stdout == before
    assert node.items("--dry-run")
    assert node.run("nft", "list", "chains").stdout == before
    forced = node.cleanup("--force")
    assert "removed table inet netagent\n" in forced.stdout


async def test_a_running_agent_without_a_socket_is_seen_too() -> None:
    """Policy-only mode serves no socket; a second agent and cleanup are kept off all the same."""
    modes = {"network": {"mode": "off"}, "cni": {"enabled": False}}
    async with Lab(Settings(nodes=1, agents=False, agent=modes)) as lab:
        await lab.start_agent(0)
        node = Node(lab)
        for _ in range(200):
            if node.path("/run/netagent/cni.sock.lock").exists():
                break
            node.run("sleep", "0.1")
        refused = node.cleanup(check=False)
        assert "runs on this node" in refused.stderr
        second = node.run(
            sys.executable, "-m", "netagent", "agent", "--config", CONFIG, "--http-port", "0", check=False
        )
        assert second.returncode == 1
        assert "another agent" in second.stderr


async def test_what_cannot_be_removed_is_said(node: Node) -> None:
    await node.lab.stop_agent(0)
    node.run("mount", "--bind", CONFLIST, CONFLIST)
    done = node.cleanup(check=False)
    assert done.returncode == 1
    assert f"could not remove file {CONFLIST}: Device or resource busy" in done.stdout
    assert "removed table inet netagent\n" in done.stdout
    assert node.path(CONFLIST).exists()
    assert node.items("--dry-run") == [("file", CONFLIST)]


async def test_a_file_under_our_name_that_is_not_ours_stays(node: Node) -> None:
    await node.lab.stop_agent(0)
    node.path(CONFLIST).write_text('{"name": "x", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}')
    node.path("/opt/cni/bin/netagent").write_text("#!/bin/sh\n")
    node.cleanup()
    assert node.path(CONFLIST).exists()
    assert node.path("/opt/cni/bin/netagent").exists()
