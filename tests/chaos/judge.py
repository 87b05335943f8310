"""After the storm: what is on each node is what a fresh agent would have made, and nothing else."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

from chaos.killer import Agent
from chaos.ledger import Ledger
from chaos.policies import Weather
from chaos.town import NAMESPACE, RESIDENTS, Pair
from netagent.disk.allocations import NAME, Allocations
from netagent.disk.state import SubnetMemory
from netagent.lab.cluster import Lab
from netagent.lab.probe import Target

SETTLE_S = 60.0
"""Longer than the agent's look for addresses of pods that went without a DEL."""
STATE_DIR = "/var/lib/netagent"
TABLE = ("table", "inet", "netagent")


async def run(*command: str) -> str:
    """A program's output."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, command
    return output.decode()


def on(lab: Lab, node: int, *command: str) -> tuple[str, ...]:
    """A command in a node's network namespace."""
    return ("nsenter", f"--net=/proc/{lab.nodes[node].holder.pid}/ns/net", "--", *command)


async def judge_streams(ledger: Ledger, before: list[Pair], after: list[Pair]) -> None:
    """No allowed record lost, no denied one passed since `before`."""
    for old, new in zip(before, after, strict=True):
        link = new.link
        if not link.allowed:
            passed = new.received - old.received
            ledger.counts["denied packets sent"] += new.sent - old.sent if link.kind == "UDP" else 0
            if passed:
                ledger.blame(f"{passed} records passed: {link.name}")
            continue
        ledger.counts[f"allowed {link.kind} records sent"] += new.sent
        ledger.counts["records that found the reader's buffer full"] += new.overflows
        errors = f"{new.near['error']}{new.far['error']}"
        if new.lost or errors:
            gaps = [
                [round(at_s - ledger.began_s, 3), count] for end in (new.near, new.far) for at_s, count in end["gaps"]
            ]
            ledger.blame(f"{new.lost} of {new.sent} records lost: {link.name} {errors} (at s, records: {gaps})")


async def judge_addresses(lab: Lab, ledger: Ledger) -> None:
    """Claims, links and routes belong to living pods, and each of them has its own."""
    living = {
        tuple(sorted(entry["ip"] for entry in pod["status"]["podIPs"])): pod["spec"]["nodeName"]
        for pod in await lab.pods()
        if pod["metadata"]["namespace"] == NAMESPACE
    }
    for node in lab.nodes:
        wanted = sorted(ips for ips, name in living.items() if name == node.plan.name)
        deadline_s = time.monotonic() + SETTLE_S
        found = await _findings(lab, node.plan.index, wanted)
        while found and time.monotonic() < deadline_s:
            await asyncio.sleep(0.2)
            found = await _findings(lab, node.plan.index, wanted)
        for text in found:
            ledger.blame(f"{node.plan.name}: {text}")


async def _findings(lab: Lab, node: int, wanted: list[tuple[str, ...]]) -> list[str]:
    directory = lab.nodes[node].path(f"{STATE_DIR}/endpoints")
    names = sorted(path.name for path in directory.iterdir())
    found = [f"left in endpoints: {name}" for name in names if not NAME.fullmatch(name) or name.endswith(".damaged")]
    claims = {
        name.removesuffix(".json").split("+")[0]: tuple(sorted(name.removesuffix(".json").split("+")[1:]))
        for name in names
    }
    if sorted(claims.values()) != wanted:
        found.append(f"claims {sorted(claims.values())}, living pods {wanted}")
    links = {one["ifname"] for one in json.loads(await run(*on(lab, node, "ip", "-j", "link")))}
    if links := {name for name in links if name.startswith("nap")} ^ claims.keys():
        found.append(f"links and claims differ: {sorted(links)}")
    routes = {
        (one["dev"], one["dst"])
        for family in ("-4", "-6")
        for one in json.loads(await run(*on(lab, node, "ip", "-j", family, "route", "show", "proto", "78")))
        if one.get("dev", "").startswith("nap")
    }
    if routes := routes ^ {(name, ip) for name, ips in claims.items() for ip in ips}:
        found.append(f"routes and claims differ: {sorted(routes)}")
    return found


def judge_state(lab: Lab, ledger: Ledger) -> None:
    """Every state file can be read. The agents are idle."""
    for node in lab.nodes:
        directory = node.path(STATE_DIR)
        problems = [*Allocations(directory).load().problems, *SubnetMemory(directory).load()[1]]
        problems += [f"set aside: {path.name}" for path in (directory / "quarantine").glob("*")]
        problems += [f"left: {path.name}" for path in directory.rglob(".*.tmp*")]
        for problem in problems:
            ledger.blame(f"{node.plan.name}: {problem}")


async def judge_fickle(lab: Lab, ledger: Ledger, weather: Weather) -> None:
    """The policies that stayed are in force, on both nodes and in both families, on new connections."""
    places = await lab.places()
    allowed = {"friend": True, "captive": True, "stranger": False, "fickle": weather.fickle_allowed}
    for name, (app, _, _) in RESIDENTS.items():
        if app not in allowed:
            continue
        for server in ("server-0", "server-1"):
            for family in (4, 6):
                source, target = places[f"{NAMESPACE}/{name}"], Target(places[f"{NAMESPACE}/{server}"].ip(family), 80)
                deadline_s, right = time.monotonic() + SETTLE_S, False
                while not right and time.monotonic() < deadline_s:
                    right = (await lab.probe_from(source, target, timeout_s=0.5)).allowed == allowed[app]
                if not right:
                    ledger.blame(
                        f"{name} -> {server} over IPv{family} is not {'allowed' if allowed[app] else 'denied'}"
                    )


async def judge_rulesets(lab: Lab, ledger: Ledger) -> None:
    """The table of an agent that has been through it all is the table of one that starts from nothing."""
    for node in range(len(lab.nodes)):
        worn = await settled_ruleset(lab, node)
        await lab.stop_agent(node)
        await run(*on(lab, node, "nft", "delete", *TABLE))
        await lab.start_agent(node)
        await Agent(lab, node).ready()
        fresh = await settled_ruleset(lab, node)
        ledger.counts["objects in compared rulesets"] += len(worn)
        if worn != fresh:
            ledger.blame(f"node {node}: only in the worn ruleset {worn - fresh}, only in the fresh one {fresh - worn}")


async def settled_ruleset(lab: Lab, node: int) -> frozenset[str]:
    """The table's objects once they stay the same for a while."""
    before: frozenset[str] = frozenset()
    deadline_s = time.monotonic() + SETTLE_S
    while (now := await ruleset(lab, node)) != before:
        assert time.monotonic() < deadline_s, "the ruleset never comes to rest"
        before = now
        await asyncio.sleep(0.5)
    return now


async def ruleset(lab: Lab, node: int) -> frozenset[str]:
    """Each object of the table as text, rules in their order, without what differs between two equal tables."""
    listing = json.loads(await run(*on(lab, node, "nft", "-j", "list", *TABLE)))["nftables"]
    rules: dict[str, list[str]] = {}
    found = set()
    for item in listing:
        for kind, content in item.items():
            if kind == "rule":
                rules.setdefault(content["chain"], []).append(_plain(content["expr"]))
            elif kind != "metainfo":
                found.add(f"{kind} {_plain(content)}")
    return frozenset(found | {f"rules of {chain}: {texts}" for chain, texts in rules.items()})


def _plain(content: Any) -> str:
    """Sorted; without handles, counts and the generation."""
    if isinstance(content, dict):
        if content.get("name") == "current":
            content = {key: value for key, value in content.items() if key != "elem"}
        if "mangle" in content:
            content = {"mangle": re.sub(r"\d+", "N", json.dumps(content["mangle"]))}
        kept = {key: value for key, value in content.items() if key not in ("handle", "packets", "bytes")}
        return json.dumps({key: _plain(value) for key, value in sorted(kept.items())})
    if isinstance(content, list):
        return json.dumps(sorted(map(_plain, content)))
    return json.dumps(content)


def read_log(path: Path) -> list[str]:
    """Lines of an agent's log that no kill explains."""
    words = ("Traceback", "unexpected", "CRITICAL", "Task exception", "damaged")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if any(word in line for word in words)]


def judge_logs(lab: Lab, ledger: Ledger) -> None:
    """Nothing unexpected happened to the agents."""
    for node in lab.nodes:
        for line in read_log(node.log)[:5]:
            ledger.blame(f"log of {node.plan.name}: {line[:300]}")
