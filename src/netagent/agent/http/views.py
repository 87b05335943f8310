"""Sections of /debug/state about the dataplane: plain data out of the view, the compiler and the loop."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from netagent.agent.dataplane.sync import Dataplane


def plain(record: Any) -> Any:
    """A Struct, or several in a list, as plain data."""
    return msgspec.to_builtins(record)


def objects(dataplane: Dataplane) -> dict[str, int]:
    """How many of each kind the view holds."""
    store = dataplane.store
    return {
        "namespaces": len(store.namespaces),
        "pods": len(store.pods),
        "policies": len(store.policies),
        "nodes": len(store.nodes),
        "leases": len(store.leases),
    }


def endpoints(dataplane: Dataplane) -> list[dict[str, Any]]:
    """Pods of this node and the chains that judge them."""
    placements, compiler = dataplane.compiler.placements, dataplane.compiler
    return [
        {
            "pod": str(sandbox.endpoint.pod),
            "container_id": container,
            "ips": sandbox.endpoint.ips,
            "host_ifname": sandbox.endpoint.host_ifname,
            "known": sandbox.pod is not None,
            "chains": [compiler.chain_of(key) for key in placements[container].classes if key is not None],
        }
        for container, sandbox in dataplane.store.sandboxes.items()
        if container in placements
    ]


def policies(dataplane: Dataplane) -> dict[str, Any]:
    """What could not be honoured, and what could not be read."""
    undecodable = dataplane.store.undecodable
    return {
        "problems": {str(key): problems for key, problems in dataplane.compiler.problems.items()},
        "undecodable": {f"{kind} {key}": error for (kind, key), error in undecodable.items()},
    }


def sizes(dataplane: Dataplane) -> dict[str, Any]:
    """What is kept in memory, counted."""
    ruleset = dataplane.compiler.ruleset
    return {
        "objects": objects(dataplane),
        "undecodable": len(dataplane.store.undecodable),
        "endpoints": len(dataplane.store.sandboxes),
        "ruleset": {
            "sets": len(ruleset.sets),
            "elements": sum(len(one.values) for one in ruleset.sets.values()),
            "chains": len(ruleset.chains),
            "rules": sum(len(one.rules) for one in ruleset.chains.values()),
            "counters": len(ruleset.counters),
        },
        "transactions": len(dataplane.transactions),
        "slow_events": len(dataplane.slow_events),
    }


def agent(dataplane: Dataplane, version: str, node: str, started_s: float, not_ready: Mapping[str, str]) -> Any:
    """The agent as a whole."""
    return {
        "version": version,
        "node": node,
        "started_s": started_s,
        "now_s": time.time(),
        "not_ready": not_ready,
        "generation": dataplane.generation,
        "objects": objects(dataplane),
    }
