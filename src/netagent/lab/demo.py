"""`netagent lab demo`: a cluster of three nodes, a policy, what it does to packets, measured; then all is removed."""

import asyncio
import ipaddress
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from netagent.lab import pods
from netagent.lab.client import Object
from netagent.lab.cluster import Lab
from netagent.lab.flow import Flow
from netagent.lab.plan import Settings
from netagent.lab.processes import LabError
from netagent.lab.traffic import Matrix

NODES = 3
CHANGES = 10
"""Policy changes that are timed, half of them close and half of them open."""
NAMESPACE = "shop"
PODS = {
    "web-0": ("web", 0),
    "web-1": ("web", 1),
    "shop-0": ("shop", 1),
    "shop-1": ("shop", 2),
    "db-0": ("db", 2),
    "batch-0": ("batch", 0),
}
"""Name -> (label app, node)."""
QUIET_S = 0.3
"""A flow without an answer for this long is cut: 300 messages."""
BOUND_MS = 1000.0
"""The slowest change that the demo passes."""
STEADY_GAP_MS = 500.0
"""Longest pause of a flow that must not notice anything: what a busy machine may take to schedule its processes."""


class Checks:
    """What was checked, and whether it held."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def expect(self, holds: bool, text: str) -> None:
        """Print the check."""
        print(f"  {'ok  ' if holds else 'FAIL'}  {text}", flush=True)
        if not holds:
            self.failed.append(text)


def title(text: str) -> None:
    """A heading."""
    print(f"\n== {text}", flush=True)


def pod(name: str, app: str, node: int) -> Object:
    """One of the demo's pods: listens on TCP and UDP port 80."""
    ports = [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP", "name": "udp"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": app}},
        "spec": {"nodeName": f"node-{node}", "containers": [{"name": "main", "image": "demo", "ports": ports}]},
    }


def policy(allowed_apps: Sequence[str]) -> str:
    """The manifest: only these apps reach the database."""
    peers = [{"podSelector": {"matchLabels": {"app": app}}} for app in allowed_apps]
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "db", "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "db"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": peers}],
        },
    }
    return orjson.dumps(manifest).decode()


def print_matrix(matrix: Matrix) -> None:
    """Rows are sources, columns destinations."""
    names = list(dict.fromkeys(source for source, _ in matrix))
    short = [name.partition("/")[2] for name in names]
    width = max(map(len, short)) + 2
    print("  " + "from \\ to".ljust(width + 3) + "".join(name.ljust(width) for name in short))
    for source, label in zip(names, short, strict=True):
        cells = ("-" if source == end else ("yes" if matrix[source, end].allowed else "no") for end in names)
        print("  " + label.ljust(width + 3) + "".join(cell.ljust(width) for cell in cells), flush=True)


def denied(matrix: Matrix) -> set[tuple[str, str]]:
    """(source, destination) pairs without a way, short names."""
    return {
        (source.partition("/")[2], destination.partition("/")[2])
        for (source, destination), verdict in matrix.items()
        if not verdict.allowed
    }


async def apply(lab: Lab, allowed_apps: Sequence[str]) -> float:
    """kubectl apply the policy; the monotonic time at which kubectl had returned."""
    await lab.kubectl("apply", "-f", "-", stdin=policy(allowed_apps))
    return time.monotonic()


async def show_cluster(lab: Lab, checks: Checks) -> None:
    """Pods, their addresses and the leases."""
    begin = time.monotonic()
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    manifests = [namespace, *(pod(name, app, node) for name, (app, node) in PODS.items())]
    everything = orjson.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}).decode()
    await lab.kubectl("apply", "-f", "-", stdin=everything)
    found = await lab.pods_ready()
    title(f"{len(found)} pods run ({time.monotonic() - begin:.1f} s after the first kubectl)")
    print(await lab.kubectl("get", "pods", "-n", NAMESPACE, "-o", "wide"))
    print(await lab.kubectl("get", "leases", "-A"))
    addresses = [ip for item in found for ip in pods.ips(item)]
    checks.expect(len(found) >= len(PODS) and len(set(addresses)) == len(found), "every pod has an address of its own")
    subnets = {node.plan.name: ipaddress.ip_network(node.plan.subnets[0]) for node in lab.nodes}
    homes = all(ipaddress.ip_address(pods.ips(item)[0]) in subnets[item["spec"]["nodeName"]] for item in found)
    checks.expect(homes, "every address is from its node's subnet")


async def settled_matrix(lab: Lab, expected: set[tuple[str, str]]) -> Matrix:
    """Everybody to everybody, TCP 80; tried again for a few seconds while it is not as expected."""
    names = [f"{NAMESPACE}/{name}" for name in PODS]
    deadline = time.monotonic() + 5.0
    while True:
        matrix = await lab.matrix(names, names, 80)
        if denied(matrix) == expected or time.monotonic() > deadline:
            return matrix


async def show_policy(lab: Lab, checks: Checks) -> None:
    """The reachability matrix before and after a policy."""
    title("who reaches whom on TCP port 80, without a policy")
    before = await settled_matrix(lab, set())
    print_matrix(before)
    checks.expect(not denied(before), "everybody reaches everybody")
    title("the same after `kubectl apply` of a policy: only app=shop reaches app=db")
    await apply(lab, ["shop"])
    expected = {(name, "db-0") for name, (app, _) in PODS.items() if app not in ("shop", "db")}
    after = await settled_matrix(lab, expected)
    print_matrix(after)
    checks.expect(denied(after) == expected, "exactly web-0, web-1 and batch-0 are kept from db-0")


async def show_latency(lab: Lab, checks: Checks) -> None:
    """Time from kubectl apply returning to the first packet that obeys."""
    title(f"kubectl apply has returned -> first packet obeys ({CHANGES} changes, one UDP packet per millisecond)")
    flow = await lab.flow(f"{NAMESPACE}/web-0", f"{NAMESPACE}/db-0", 80, "UDP")
    delays_ms: list[float] = []
    try:
        await flow.silent_for(QUIET_S)
        for number in range(CHANGES):
            opens = number % 2 == 0
            began_s = time.monotonic()
            returned = await apply(lab, ["shop", "web"] if opens else ["shop"])
            obeyed_s = await first_obeying(flow, opens, began_s)
            delays_ms.append(max(0.0, (obeyed_s - returned) * 1e3))
            print(f"  {'open ' if opens else 'close'}  {delays_ms[-1]:6.1f} ms", flush=True)
    finally:
        await flow.stop()
    print(f"  median {statistics.median(delays_ms):.1f} ms, worst {max(delays_ms):.1f} ms (0: before kubectl was back)")
    checks.expect(max(delays_ms) <= BOUND_MS, f"every change took effect within {BOUND_MS:.0f} ms")


async def first_obeying(flow: Flow, opens: bool, began_s: float) -> float:
    """When the first packet that obeyed was sent: the one that ended the silence, or the one after the last answered.

    Raises TimeoutError.
    """
    return await flow.resumed(began_s) if opens else await flow.silent_for(QUIET_S) + flow.interval_s


async def show_revocation(lab: Lab, checks: Checks) -> None:
    """An open TCP connection is cut by a policy change while an allowed one goes on."""
    title("two open TCP connections to db-0; then the policy stops allowing one of them")
    await apply(lab, ["shop", "web"])
    cut, kept = await asyncio.gather(
        connected(lab, f"{NAMESPACE}/web-1", f"{NAMESPACE}/db-0"),
        connected(lab, f"{NAMESPACE}/shop-0", f"{NAMESPACE}/db-0"),
    )
    try:
        await asyncio.sleep(0.5)
        checks.expect(cut.silent_ms() < QUIET_S * 1e3 and kept.silent_ms() < QUIET_S * 1e3, "both exchange data")
        kept.reset_gap()
        returned = await apply(lab, ["shop"])
        last_ok_s = await cut.silent_for(QUIET_S)
        await asyncio.sleep(1.0)
        delay_ms = max(0.0, (last_ok_s - returned) * 1e3)
        checks.expect(
            cut.last_ok_s == last_ok_s, f"web-1's connection is cut, {delay_ms:.1f} ms after kubectl returned"
        )
        alive = not kept.error and kept.silent_ms() < QUIET_S * 1e3 and kept.longest_gap_ms < STEADY_GAP_MS
        checks.expect(alive, f"shop-0's goes on ({kept.answered} answers, longest pause {kept.longest_gap_ms:.0f} ms)")
    finally:
        await cut.stop()
        await kept.stop()


async def connected(lab: Lab, source: str, destination: str) -> Flow:
    """A TCP flow, tried again while a policy change is still under way. Raises LabError."""
    for _ in range(20):
        try:
            return await lab.flow(source, destination, 80)
        except (OSError, TimeoutError):
            await asyncio.sleep(0.1)
    raise LabError(f"{source} does not get a connection to {destination}; the policy should allow it.")


async def run(name: str, checks: Checks) -> None:
    """All of it."""
    begin = time.monotonic()
    async with Lab(Settings(name=name or f"demo-{os.getpid()}", nodes=NODES)) as lab:
        directory, holders = lab.directory, [lab.outside.pid, *(node.holder.pid for node in lab.nodes)]
        title(f"{NODES} nodes are up after {time.monotonic() - begin:.1f} s, each with its agent")
        print(await lab.kubectl("get", "nodes", "-o", "wide"))
        await show_cluster(lab, checks)
        await show_policy(lab, checks)
        await show_latency(lab, checks)
        await show_revocation(lab, checks)
        title("removing everything")
    checks.expect(not directory.exists() and not any(map(alive, holders)), "nothing of the lab is left")
    print(f"\n{time.monotonic() - begin:.0f} s in all.", flush=True)


def alive(pid: int) -> bool:
    """A process has this PID."""
    return Path(f"/proc/{pid}").exists()


def report(failed: Sequence[str]) -> int:
    """The last words; the exit status."""
    for text in failed:
        print(f"FAILED: {text}", file=sys.stderr)
    return 1 if failed else 0


def main(name: str) -> int:
    """The command; its exit status."""
    checks = Checks()
    try:
        asyncio.run(run(name, checks))
    except (LabError, OSError, TimeoutError) as error:
        checks.failed.append(f"the demo could not go on: {type(error).__name__}: {error}")
    return report(checks.failed)
