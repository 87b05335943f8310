"""The HTTP face: from a request to a verb, and from its outcome or its refusal to an answer."""

import asyncio
import hmac
import logging
import time
from typing import Any
from urllib.parse import unquote

import orjson
import yaml
from aiohttp import web
from msgspec import Struct

from netagent.lab.apiserver import protobuf
from netagent.lab.apiserver.discovery import Discovery
from netagent.lab.apiserver.faults import (
    ApiFault,
    bad_request,
    invalid,
    method_not_allowed,
    no_such_path,
    required,
    unsupported_media,
)
from netagent.lab.apiserver.reading import WatchSettings, list_page, parse_query, serve_watch, truth
from netagent.lab.apiserver.registry import Deletion, Options, Outcome, PatchType, Registry, Target
from netagent.lab.apiserver.resources import Resource
from netagent.lab.apiserver.views import View, view_for

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 3 * 1024 * 1024
"""Source: apiserver's MaxRequestBodyBytes."""
PATCH_TYPES: dict[str, PatchType] = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}
JSON = "application/json"


class Faults(Struct):
    """Faults to inject, set by POST /lab/faults; each lasts until `until_s` (event loop time)."""

    status: int = 0
    """Answer every API request with this HTTP status."""
    hang: bool = False
    """Take requests and do not answer."""
    latency_s: float = 0.0
    """Answer this much later."""
    until_s: float = 0.0


class Frontend:
    """Answers HTTP requests."""

    def __init__(self, registry: Registry, discovery: Discovery, watches: WatchSettings, token: str) -> None:
        self._registry = registry
        self._discovery = discovery
        self._watches = watches
        self._token = token
        self._faults = Faults()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; what it refuses becomes a Status."""
        try:
            return await self._answer(request)
        except ApiFault as fault:
            return _json(fault.status(), fault.code)
        except Exception as error:
            log.exception("%s %s failed; nothing was changed by it", request.method, request.path)
            return _json(ApiFault(500, "InternalError", f"Internal error occurred: {error!r}").status(), 500)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path in ("/healthz", "/readyz", "/livez"):
            return web.Response(text="ok")
        if path.startswith("/lab/"):
            return await self._lab(request)
        await self._inject()
        self._authenticate(request)
        document = self._discovery.document(path, request.headers.get("Accept", ""), request.host)
        if document is not None:
            if request.method not in ("GET", "HEAD"):
                raise method_not_allowed()
            return web.Response(body=document.body, headers={"Content-Type": document.media})
        target, watch_prefix = self._target(path)
        return await self._verb(request, target, watching=watch_prefix or truth(request.query.get("watch")))

    async def _inject(self) -> None:
        faults = self._faults
        left_s = faults.until_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            return
        if faults.hang:
            await asyncio.sleep(left_s)
        if faults.latency_s:
            await asyncio.sleep(min(faults.latency_s, left_s))
        if faults.status:
            raise ApiFault(faults.status, "ServiceUnavailable", "the lab injects this fault")

    def _authenticate(self, request: web.BaseRequest) -> None:
        if not self._token:
            return
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise ApiFault(401, "Unauthorized", "Unauthorized")

    async def _lab(self, request: web.BaseRequest) -> web.Response:
        """The lab's own controls: /lab/compact and /lab/faults."""
        if request.method != "POST":
            raise method_not_allowed()
        tree = await _body(request) if request.body_exists else {}
        if not isinstance(tree, dict):
            raise bad_request("a JSON object is expected")
        store = self._registry.store
        try:
            if request.path == "/lab/compact":
                store.compact(int(tree.get("revision", store.revision)))
                return _json({"compacted": store.compacted, "revision": store.revision})
            if request.path == "/lab/faults":
                return _json(self._set_faults(tree))
        except (TypeError, ValueError) as error:
            raise bad_request(f"{request.path}: {error}") from None
        raise no_such_path()

    def _set_faults(self, tree: dict[str, Any]) -> dict[str, Any]:
        until_s = asyncio.get_running_loop().time() + float(tree.get("for_s", 3600.0))
        self._faults = Faults(
            status=int(tree.get("status", 0)),
            hang=bool(tree.get("hang", False)),
            latency_s=float(tree.get("latency_ms", 0.0)) / 1000,
            until_s=until_s,
        )
        closed = self._registry.store.close_watches() if tree.get("close_watches") else 0
        return {"watches_closed": closed}

    def _target(self, path: str) -> tuple[Target, bool]:
        """What a path names, and whether it has the deprecated /watch/ prefix. Raises ApiFault 404."""
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["api", "v1", *rest]:
                group, version = "", "v1"
            case ["apis", group, version, *rest]:
                pass
            case _:
                raise no_such_path()
        watch = rest[:1] == ["watch"]
        rest = rest[1:] if watch else rest
        namespace = ""
        if len(rest) >= 3 and rest[0] == "namespaces" and not (len(rest) == 3 and rest[2] in ("status", "finalize")):
            namespace, rest = rest[1], rest[2:]
        if not 1 <= len(rest) <= 3:
            raise no_such_path()
        resource = self._registry.catalogue.find(group, version, rest[0])
        if resource is None or (namespace and not resource.namespaced):
            raise no_such_path()
        name, subresource = (*rest[1:], "", "")[:2]
        return Target(resource, namespace, name, subresource), watch

    async def _verb(self, request: web.BaseRequest, target: Target, *, watching: bool) -> web.StreamResponse:
        resource = target.resource
        self._check_subresource(target, request.method)
        match request.method, bool(target.name):
            case ("GET" | "HEAD", has_name) if watching or not has_name:
                return await self._read_many(request, target, watching=watching)
            case ("GET" | "HEAD", True):
                stored = self._registry.get(resource, target.key)
                return web.Response(body=self._view(request, resource).one(stored), content_type=JSON)
            case ("POST", _):
                return await self._create(request, target)
            case ("PUT", True):
                tree = await _body(request)
                outcome = self._registry.update(target, tree, _options(request))
            case ("PATCH", True):
                outcome = await self._patch(request, target)
            case ("DELETE", True):
                return await self._delete(request, target)
            case ("DELETE", False):
                return await self._delete_collection(request, target)
            case _:
                raise method_not_allowed()
        return self._written(request, resource, outcome)

    def _check_subresource(self, target: Target, method: str) -> None:
        if not target.subresource:
            return
        if target.subresource == "status" and target.resource.has_status:
            if method not in ("GET", "PUT", "PATCH"):
                raise method_not_allowed()
        elif not (target.subresource == "binding" and target.resource.plural == "pods" and method == "POST"):
            raise no_such_path()

    def _view(self, request: web.BaseRequest, resource: Resource) -> View:
        include = request.query.get("includeObject", "Metadata")
        return view_for(request.headers.get("Accept", ""), resource, include, time.time())

    async def _read_many(self, request: web.BaseRequest, target: Target, *, watching: bool) -> web.StreamResponse:
        query = parse_query(target.resource, target.namespace, target.name, request.query, watching=watching)
        view = self._view(request, target.resource)
        if not watching:
            page = list_page(self._registry.store, target.resource.table, query)
            return web.Response(body=view.many(page.rows, page.metadata), content_type=JSON)
        response = web.StreamResponse(headers={"Content-Type": JSON, "Cache-Control": "no-cache, private"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            await serve_watch(
                self._registry.store, target.resource, query, view, send=response.write, settings=self._watches
            )
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            if not isinstance(request.transport, asyncio.Transport) or request.transport.is_closing():
                return response
            raise
        return response

    async def _create(self, request: web.BaseRequest, target: Target) -> web.Response:
        tree = await _body(request)
        if target.subresource == "binding":
            return self._bind(target, tree)
        if target.name:
            raise method_not_allowed()
        if target.resource.namespaced and not target.namespace:
            raise method_not_allowed()
        outcome = self._registry.create(target.resource, target.namespace, tree, _options(request))
        return self._written(request, target.resource, outcome)

    def _bind(self, target: Target, tree: Any) -> web.Response:
        node = ((tree.get("target") or {}) if isinstance(tree, dict) else {}).get("name", "")
        if not node:
            raise invalid("Binding", "", target.name, [required("target.name")])
        self._registry.get(target.resource, target.key)
        self._registry.bind(target.key, node)
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return _json(status, 201)

    async def _patch(self, request: web.BaseRequest, target: Target) -> Outcome:
        kind = PATCH_TYPES.get(request.content_type)
        if kind is None:
            raise unsupported_media(", ".join(PATCH_TYPES))
        if kind == "apply" and not request.query.get("fieldManager"):
            cause = required("fieldManager", "is required for apply patch")
            raise invalid("PatchOptions", "meta.k8s.io", "", [cause])
        patch = await _body(request)
        options = _options(request)
        return self._registry.patch(target, kind, patch, options)

    async def _delete(self, request: web.BaseRequest, target: Target) -> web.Response:
        options = await _deletion(request)
        outcome = self._registry.delete(target.resource, target.key, options)
        if not outcome.gone:
            return web.Response(body=self._view(request, target.resource).one(outcome.stored), content_type=JSON)
        details = {
            "name": target.name,
            "group": target.resource.group,
            "kind": target.resource.plural,
            "uid": outcome.stored.obj["metadata"]["uid"],
        }
        named = {key: value for key, value in details.items() if value}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": named}
        return _json(status)

    async def _delete_collection(self, request: web.BaseRequest, target: Target) -> web.Response:
        options = await _deletion(request)
        query = parse_query(target.resource, target.namespace, "", request.query, watching=False)
        outcomes = self._registry.delete_collection(target.resource, target.namespace, query.matches, options)
        metadata = {"resourceVersion": str(self._registry.store.revision)}
        view = self._view(request, target.resource)
        return web.Response(body=view.many([outcome.stored for outcome in outcomes], metadata), content_type=JSON)

    def _written(self, request: web.BaseRequest, resource: Resource, outcome: Outcome) -> web.Response:
        body = self._view(request, resource).one(outcome.stored)
        response = web.Response(body=body, status=201 if outcome.created else 200, content_type=JSON)
        if request.query.get("fieldValidation", "Warn") == "Warn":
            for name in outcome.dropped:
                response.headers.add("Warning", f'299 - "unknown field \\"{name}\\""')
        return response


def _json(tree: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(tree), status=status, content_type=JSON)


async def _body(request: web.BaseRequest) -> Any:
    """The decoded body. Raises ApiFault 400, 413 or 415."""
    too_large = ApiFault(413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY_BYTES}")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    if "protobuf" in request.content_type:
        return protobuf.decode(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "yaml" in request.content_type:
            return _yaml(body)
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from None


def _yaml(body: bytes) -> Any:
    try:
        return yaml.load(body, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise bad_request(f"error decoding YAML: {str(error).splitlines()[0]}") from None


def _options(request: web.BaseRequest) -> Options:
    query = request.query
    manager = query.get("fieldManager") or request.headers.get("User-Agent", "unknown").partition("/")[0]
    return Options(
        manager=manager[:128] or "unknown",
        dry_run=_dry_run(query.getall("dryRun", [])),
        strict=query.get("fieldValidation") == "Strict",
        force=truth(query.get("force")) if "force" in query else False,
    )


def _dry_run(values: list[str]) -> bool:
    if any(value != "All" for value in values):
        raise bad_request('dryRun: Unsupported value: supported values: "All"')
    return bool(values)


async def _deletion(request: web.BaseRequest) -> Deletion:
    """metav1.DeleteOptions from the body, the query in its absence."""
    tree = await _body(request) if request.body_exists and request.content_length != 0 else {}
    if not isinstance(tree, dict):
        raise bad_request("DeleteOptions: a JSON object is expected")
    query = request.query
    grace = tree.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    try:
        grace_s = int(grace) if grace is not None else None
    except (TypeError, ValueError):
        raise bad_request(f"gracePeriodSeconds = {grace!r}: a whole number is expected") from None
    if grace_s is not None and grace_s < 0:
        raise bad_request("gracePeriodSeconds must be greater than or equal to 0")
    conditions = tree.get("preconditions") or {}
    policy = tree.get("propagationPolicy") or query.get("propagationPolicy", "")
    return Deletion(
        grace_s=grace_s,
        uid=conditions.get("uid", ""),
        resource_version=conditions.get("resourceVersion", ""),
        orphan=policy == "Orphan" or tree.get("orphanDependents") is True,
        dry_run=_dry_run([*(tree.get("dryRun") or []), *query.getall("dryRun", [])]),
    )
