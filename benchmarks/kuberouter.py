"""An emulation of kube-router's layout for the same pods and policies: iptables chains per pod and policy, ipsets.

Not kube-router itself: only what its network policy controller (2.x) would leave in the kernel. Every packet to or from
a pod runs along one rule per local pod until it finds its chain; that one lets established flows pass, then runs
through the chains of all of the pod's policies.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.routers import Router
from benchmarks.workload import Object

ALLOWED, CLEARED = "0x10000/0x10000", "0x20000/0x20000"
BLOCKS = "hash:net"


def apply(router: Router, local: Sequence[Object], pods: Sequence[Object], policies: Sequence[Object]) -> None:
    """Put the layout of all policies into the router's kernel; `local` are the pods of this node."""
    router.run("ipset", "restore", text="\n".join(sets(pods, policies)) + "\n")
    router.run("iptables-restore", text="\n".join(rules(local, policies)) + "\n")


def sets(pods: Sequence[Object], policies: Sequence[Object]) -> Iterator[str]:
    """Per policy: the pods it selects; per rule: its peers."""
    for number, policy in enumerate(policies):
        yield f"create {_target(number)} hash:ip"
        for pod in selected(policy["spec"]["podSelector"], pods):
            yield f"add {_target(number)} {pod['status']['podIP']}"
        for index, rule in enumerate(policy["spec"].get("ingress", ())):
            yield f"create {_peers(number, index)} {BLOCKS}"
            for member in dict.fromkeys(members(rule, pods)):
                yield f"add {_peers(number, index)} {member}"


def members(rule: Object, pods: Sequence[Object]) -> Iterator[str]:
    """Addresses and networks of a rule's peers; all pods are in one namespace."""
    for peer in rule["from"]:
        if "ipBlock" in peer:
            yield peer["ipBlock"]["cidr"]
            yield from (f"{cidr} nomatch" for cidr in peer["ipBlock"].get("except", ()))
        else:
            for pod in selected(peer.get("podSelector", {}), pods):
                yield pod["status"]["podIP"]


def selected(selector: Object, pods: Sequence[Object]) -> list[Object]:
    """Pods that match matchLabels."""
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]


def rules(local: Sequence[Object], policies: Sequence[Object]) -> Iterator[str]:
    """For iptables-restore."""
    chains = {number: list(policy_rules(number, policy)) for number, policy in enumerate(policies)}
    applying = {index: [n for n, policy in enumerate(policies) if _isolates(policy, pod)] for index, pod in _on(local)}
    yield from ("*filter", ":INPUT ACCEPT", ":FORWARD ACCEPT", ":OUTPUT ACCEPT", ":KUBE-ROUTER-FORWARD -")
    yield from (f":KUBE-NWPLCY-{number} -" for number in chains)
    yield from (f":KUBE-POD-FW-{index} -" for index, found in applying.items() if found)
    yield "-A FORWARD -j KUBE-ROUTER-FORWARD"
    for index, pod in _on(local):
        if applying[index]:
            for way in ("-d", "-s"):
                yield f"-A KUBE-ROUTER-FORWARD {way} {pod['status']['podIP']}/32 -j KUBE-POD-FW-{index}"
    yield f"-A KUBE-ROUTER-FORWARD -m mark --mark {CLEARED} -j ACCEPT"
    for found in chains.values():
        yield from found
    for index, pod in _on(local):
        if applying[index]:
            yield from pod_rules(f"KUBE-POD-FW-{index}", pod["status"]["podIP"], applying[index])
    yield "COMMIT"


def policy_rules(number: int, policy: Object) -> Iterator[str]:
    """One chain per policy, two rules per peer list and port."""
    chain = f"-A KUBE-NWPLCY-{number}"
    for index, rule in enumerate(policy["spec"].get("ingress", ())):
        match = f"-m set --match-set {_peers(number, index)} src -m set --match-set {_target(number)} dst"
        for port in rule["ports"]:
            what = f"-p {port['protocol'].lower()} --dport {port['port']}"
            yield f"{chain} {what} {match} -j MARK --set-xmark {ALLOWED}"
            yield f"{chain} {what} {match} -m mark --mark {ALLOWED} -j RETURN"


def pod_rules(chain: str, ip: str, policies: Sequence[int]) -> Iterator[str]:
    """One chain per pod."""
    yield f"-A {chain} -m conntrack --ctstate INVALID -j DROP"
    yield f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield f"-A {chain} -d {ip}/32 -m addrtype --src-type LOCAL -j ACCEPT"
    yield from (f"-A {chain} -d {ip}/32 -j KUBE-NWPLCY-{number}" for number in policies)
    yield f"-A {chain} -d {ip}/32 -m mark ! --mark {ALLOWED} -j REJECT"
    yield f"-A {chain} -j MARK --set-xmark 0x0/0x10000"
    yield f"-A {chain} -j MARK --set-xmark {CLEARED}"


def _isolates(policy: Object, pod: Object) -> bool:
    return bool(selected(policy["spec"]["podSelector"], [pod]))


def _on(local: Sequence[Object]) -> Iterator[tuple[int, Any]]:
    return enumerate(local)


def _target(number: int) -> str:
    return f"KUBE-DST-{number}"


def _peers(number: int, index: int) -> str:
    return f"KUBE-SRC-{number}-{index}"
