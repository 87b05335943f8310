"""The status page of one node: a single document without anything from elsewhere, and the two answers it is drawn from.

Whatever the API says of names and labels is hostile input here. The document is the same for everybody and its policy
names it by hash, so that no other script or style runs; names reach it as JSON only and are written as text.
"""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import ETag, web
from msgspec import Struct

from netagent import __version__
from netagent.agent.dataplane.droplog import DropLog
from netagent.agent.dataplane.sync import Dataplane
from netagent.agent.http.clusterview import ClusterView
from netagent.agent.http.health import Health
from netagent.agent.http.slices import in_slices
from netagent.agent.network.podnetwork import PodNetwork
from netagent.core.latency import BUCKET_S, BUCKETS
from netagent.core.policy.compiler import ClassKey
from netagent.core.questions.reachability import Reachability, reachability
from netagent.records import SubnetLease

MAX_PEERS = 300
"""Peers that are shown; those with a problem first."""
MAX_DROPS = 50
NEVER_STORED = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
SECURITY = {
    **NEVER_STORED,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Matrix(Struct, frozen=True, kw_only=True):
    """The answer to /debug/reachability."""

    view: str
    """Of the cluster's state that it speaks of; equal texts, equal matrices."""
    reachability: Reachability
    notes: tuple[str, ...]
    """What to bear in mind when reading it."""


class StatusPage:
    """Its routes."""

    def __init__(
        self,
        dataplane: Dataplane,
        view: ClusterView,
        *,
        node_name: str,
        ready: Health,
        network: PodNetwork | None,
        drop_log: DropLog | None,
    ) -> None:
        """`network`: None where it is another's; `drop_log`: None where it is switched off."""
        self._dataplane = dataplane
        self._view = view
        self._node_name = node_name
        self._ready = ready
        self._network = network
        self._drop_log = drop_log
        self._started_s = time.time()
        self._one_at_a_time = asyncio.Lock()
        self._matrix: Matrix | None = None

    def add_routes(self, app: web.Application) -> None:
        """Serve the page and what it is drawn from."""
        app.router.add_get("/", self.get_root)
        app.router.add_get("/debug", self.get_root)
        app.router.add_get("/debug/", self.get_page)
        app.router.add_get("/debug/status", self.get_status)
        app.router.add_get("/debug/reachability", self.get_reachability)

    async def get_root(self, _: web.Request) -> web.Response:
        """Leads to the status page."""
        raise web.HTTPFound("/debug/")

    async def get_page(self, _: web.Request) -> web.Response:
        """Status page of this node, for a browser."""
        text, policy = document()
        headers = {**SECURITY, "Content-Security-Policy": policy}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def get_status(self, _: web.Request) -> web.Response:
        """What the status page shows besides the matrix."""
        body = msgspec.json.encode(self.status())
        return web.Response(body=body, content_type="application/json", headers=NEVER_STORED)

    async def get_reachability(self, request: web.Request) -> web.Response:
        """Who may reach whom: this node's pods among each other and with everybody else; cells[source][destination]."""
        matrix = await self.matrix()
        tag = ETag(matrix.view)
        headers = {**NEVER_STORED, "ETag": f'"{tag.value}"'}
        if tag in (request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        body = msgspec.json.encode(matrix)
        return web.Response(body=body, content_type="application/json", headers=headers)

    # The matrix

    async def matrix(self) -> Matrix:
        """Of the view as it is when this is called, or later."""
        async with self._one_at_a_time:
            if self._matrix is None or self._matrix.view != self._state():
                self._matrix = await self._judged()
            return self._matrix

    async def _judged(self) -> Matrix:
        await in_slices(self._view.prepare())
        state, notes = self._state(), tuple(self._notes())
        found = await in_slices(reachability(self._view.cluster()))
        return Matrix(view=state, reachability=found, notes=(*notes, *found.notes))

    def _state(self) -> str:
        """Text that changes when the view does, or what there is to bear in mind."""
        mark = "!" if self._dataplane.problem else ""
        return f"{int(self._started_s * 1000):x}-{self._dataplane.changes:x}{mark}"

    def _notes(self) -> Iterable[str]:
        if "forward" not in self._dataplane.compiler.ruleset.chains:
            yield "policy is switched off on this node: nothing is enforced"
        if self._dataplane.problem:
            yield f"the kernel may lag behind: {self._dataplane.problem}"

    # The rest

    def status(self) -> dict[str, Any]:
        """Plain data, bounded."""
        problems = self._ready.problems()
        return {
            "node": self._node_name,
            "version": __version__,
            "started_s": self._started_s,
            "now_s": time.time(),
            "view": self._state(),
            "parts": {name: problems.get(name, "") for name in self._ready.parts},
            "remarks": dict(self._ready.remarks()),
            "peers": self._peers(),
            "pods": self._pods(),
            "policy_problems": {str(key): texts for key, texts in self._dataplane.compiler.problems.items()},
            "latency": self._latency(),
            "drops": self._drops(),
        }

    def _peers(self) -> dict[str, Any] | None:
        if self._network is None:
            return None
        leases = [one for one in self._dataplane.store.leases.values() if one.holder not in ("", self._node_name)]
        problems = self._network.peer_problems
        shown = [one for one in leases if one.subnet in problems][:MAX_PEERS]
        shown += [one for one in leases if one.subnet not in problems][: MAX_PEERS - len(shown)]
        rows = [self._peer(lease, problems.get(lease.subnet, "")) for lease in shown]
        return {"shown": sorted(rows, key=lambda row: (not row["problem"], row["node"])), "total": len(leases)}

    def _peer(self, lease: SubnetLease, problem: str) -> dict[str, Any]:
        assert self._network is not None  # noqa: S101 - the caller knows
        return {
            "node": lease.holder,
            "subnet": lease.subnet,
            "public_ip": lease.public_ip,
            "way": self._network.way(lease.subnet),
            "problem": problem,
            "renewed_s": lease.renewed_s,
            "duration_s": lease.duration_s,
        }

    def _pods(self) -> list[dict[str, Any]]:
        placements = self._dataplane.compiler.placements
        pods = []
        for container, sandbox in self._dataplane.store.sandboxes.items():
            placement = placements.get(container)
            ingress, egress = placement.classes if placement is not None else (None, None)
            pods.append(
                {
                    "pod": str(sandbox.endpoint.pod),
                    "ips": sandbox.endpoint.ips,
                    "known": sandbox.pod is not None,
                    "committed": placement is not None,
                    "ingress": self._class(ingress),
                    "egress": self._class(egress),
                }
            )
        return sorted(pods, key=lambda pod: str(pod["pod"]))

    def _class(self, key: ClassKey | None) -> dict[str, Any] | None:
        """The policies that isolate, and their chain; None: not isolated."""
        if key is None:
            return None
        return {
            "chain": self._dataplane.compiler.chain_of(key),
            "policies": [str(policy) for policy, _ in key.policies],
        }

    def _latency(self) -> dict[str, Any]:
        now_s = time.monotonic()
        buckets = self._dataplane.latencies.buckets(now_s)
        rows = [(now_s - one.at_s, one.count, one.p50_s, one.max_s) for one in buckets]
        return {"bucket_s": BUCKET_S, "span_s": BUCKET_S * BUCKETS, "buckets": rows}

    def _drops(self) -> dict[str, Any]:
        if self._drop_log is None:
            return {"problem": "policy.drop_log is off", "drops": []}
        recent = list(self._drop_log.recent)[-MAX_DROPS:][::-1]
        drops = [{"at_s": drop.at_s, "text": drop.text, **drop.fields} for drop in recent]
        return {"problem": self._drop_log.problem, "drops": drops}


@cache
def document() -> tuple[str, str]:
    """The document, and the Content-Security-Policy under which nothing but its own script and style runs."""
    text = Path(__file__).with_name("page.html").read_text()
    style, script = (_hash(text, tag) for tag in ("style", "script"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return text, policy


def _hash(text: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
