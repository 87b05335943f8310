"""A small API client for the lab's own processes: JSON in and out, and one watch loop."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import orjson

from netagent.lab.processes import LabError

Object = dict[str, Any]
RETRY_S = 0.2
"""Pause before a broken watch is tried again: the server is a process next door."""
FRAME_BYTES = 1 << 22
"""Longest watch event that is read."""


class ApiFailure(LabError):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One connection to one API server."""

    def __init__(self, url: str) -> None:
        self._session = aiohttp.ClientSession(url, read_bufsize=FRAME_BYTES, connector=aiohttp.TCPConnector(limit=64))
        self._paths: dict[tuple[str, str], tuple[str, bool]] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """The decoded answer. Raises ApiFailure, and aiohttp.ClientError where the server cannot be reached."""
        data = orjson.dumps(body) if body is not None else None
        headers = {"Content-Type": content_type} if data is not None else {}
        async with self._session.request(method, path, data=data, params=params, headers=headers) as response:
            text = await response.read()
            if response.status >= 400:
                raise ApiFailure(response.status, f"{method} {path}: {response.status} {_message(text)}")
            return orjson.loads(text)

    async def path(self, api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
        """The path of a collection or object. Raises ApiFailure where the server does not know the kind."""
        root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
        if (api_version, kind) not in self._paths:
            found = await self.request("GET", root)
            for entry in found["resources"]:
                if "/" not in entry["name"]:
                    self._paths[api_version, entry["kind"]] = (entry["name"], entry["namespaced"])
        if (api_version, kind) not in self._paths:
            raise ApiFailure(404, f"the API server has no kind {kind} in {api_version}")
        plural, namespaced = self._paths[api_version, kind]
        where = f"/namespaces/{namespace or 'default'}" if namespaced else ""
        return f"{root}{where}/{plural}" + (f"/{name}" if name else "")

    async def create(self, obj: Object) -> Object:
        """POST."""
        made: Object = await self.request("POST", await self._collection(obj), obj)
        return made

    async def put(self, obj: Object) -> Object:
        """Create, or replace the object as a whole."""
        try:
            return await self.create(obj)
        except ApiFailure as failure:
            if failure.status != 409:
                raise
        path = f"{await self._collection(obj)}/{obj['metadata']['name']}"
        current = await self.request("GET", path)
        meta = {**obj["metadata"], "resourceVersion": current["metadata"]["resourceVersion"]}
        replaced: Object = await self.request("PUT", path, {**obj, "metadata": meta})
        return replaced

    async def patch(self, path: str, patch: Any, kind: str = "merge") -> Object:
        """A merge patch (or `kind`: strategic-merge, json)."""
        content_type = f"application/{kind}-patch+json"
        patched: Object = await self.request("PATCH", path, patch, content_type=content_type)
        return patched

    async def list(self, path: str) -> list[Object]:
        """All objects of a collection."""
        items: list[Object] = (await self.request("GET", path))["items"]
        return items

    async def _collection(self, obj: Object) -> str:
        return await self.path(obj["apiVersion"], obj["kind"], obj["metadata"].get("namespace", ""))

    async def watch(
        self,
        path: str,
        seen: Callable[[Object], None],
        gone: Callable[[Object], None],
        listed: Callable[[], Awaitable[None]],
    ) -> None:
        """List and watch for ever. After every list, known objects that are missing in it are `gone`; then `listed`."""
        known: dict[str, Object] = {}
        while True:
            try:
                answer = await self.request("GET", path)
                now = {obj["metadata"]["uid"]: obj for obj in answer["items"]}
                for uid in known.keys() - now.keys():
                    gone(known[uid])
                known = now
                for obj in known.values():
                    seen(obj)
                await listed()
                await self._follow(path, answer["metadata"]["resourceVersion"], known, seen, gone)
            except (aiohttp.ClientError, ApiFailure, OSError, ValueError, TimeoutError):
                await asyncio.sleep(RETRY_S)

    async def _follow(
        self,
        path: str,
        version: str,
        known: dict[str, Object],
        seen: Callable[[Object], None],
        gone: Callable[[Object], None],
    ) -> None:
        """One watch, until it ends."""
        params = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
        async with self._session.get(path, params=params, timeout=timeout) as response:
            response.raise_for_status()
            async for line in response.content:
                event = orjson.loads(line)
                obj = event["object"]
                if event["type"] in ("ADDED", "MODIFIED"):
                    known[obj["metadata"]["uid"]] = obj
                    seen(obj)
                elif event["type"] == "DELETED":
                    known.pop(obj["metadata"]["uid"], None)
                    gone(obj)
                elif event["type"] == "ERROR":
                    return


def _message(text: bytes) -> str:
    try:
        message: str = orjson.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        return text[:200].decode(errors="replace")
    return message
