"""Documents about the server itself: groups, resources, version and OpenAPI."""

from collections.abc import Callable
from typing import Any

import orjson
from msgspec import Struct

from netagent.lab.apiserver.openapi import group_document, index_document, v2_protobuf
from netagent.lab.apiserver.resources import (
    Catalogue,
    api_group,
    api_group_list,
    api_resource_list,
    api_versions,
)

VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0+netagent-lab",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2025-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux/amd64",
}
"""What the API resembles; clients choose their behaviour by it."""
V2_MEDIA = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


class Document(Struct, frozen=True):
    """An encoded answer."""

    body: bytes
    media: str = "application/json"


class Discovery:
    """Looks documents up by path."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def document(self, path: str, accept: str, host: str) -> Document | None:
        """The document at a path; None where the path names something else."""
        parts = path.strip("/").split("/")
        if parts[0] == "openapi":
            return self._openapi(parts[1:], accept)
        tree = self._tree(parts, host)
        return Document(orjson.dumps(tree)) if tree is not None else None

    def _tree(self, parts: list[str], host: str) -> Any:
        fixed: dict[str, Callable[[], Any]] = {
            "": lambda: {"paths": self._paths()},
            "version": lambda: VERSION,
            "api": lambda: api_versions(host),
            "apis": lambda: api_group_list(self._catalogue),
            "api/v1": lambda: api_resource_list(self._catalogue, "", "v1"),
        }
        make = fixed.get("/".join(parts))
        return make() if make is not None else self._group_tree(parts)

    def _group_tree(self, parts: list[str]) -> Any:
        groups = self._catalogue.groups()
        match parts:
            case ["apis", group] if group in groups:
                return {"kind": "APIGroup", "apiVersion": "v1", **api_group(group, groups[group])}
            case ["apis", group, version] if version in groups.get(group, ()):
                return api_resource_list(self._catalogue, group, version)
        return None

    def _paths(self) -> list[str]:
        groups = [f"/apis/{group}" for group in self._catalogue.groups()]
        versions = [f"/apis/{group}/{version}" for group, version in self._catalogue.group_versions() if group]
        return [
            "/api",
            "/api/v1",
            "/apis",
            *groups,
            *versions,
            "/healthz",
            "/livez",
            "/openapi/v2",
            "/readyz",
            "/version",
        ]

    def _openapi(self, parts: list[str], accept: str) -> Document | None:
        if parts == ["v2"]:
            if "protobuf" in accept:
                return Document(v2_protobuf(), V2_MEDIA)
            empty = {
                "swagger": "2.0",
                "info": {"title": "netagent lab", "version": "v1"},
                "paths": {},
                "definitions": {},
            }
            return Document(orjson.dumps(empty))
        if parts == ["v3"]:
            return Document(orjson.dumps(index_document(self._catalogue)))
        if parts[:1] == ["v3"]:
            tree = group_document(self._catalogue, "/".join(parts[1:]))
            return Document(orjson.dumps(tree)) if tree is not None else None
        return None
