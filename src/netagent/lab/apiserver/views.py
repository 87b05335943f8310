"""How objects, lists and watch events leave: as they are, as rows of a Table, or as metadata alone."""

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from netagent.lab.apiserver.resources import Resource
from netagent.lab.apiserver.store import Event, EventType, Stored
from netagent.lab.apiserver.tables import column_definitions, table_cells


class View(Protocol):
    """One representation of a resource's objects."""

    def one(self, stored: Stored) -> bytes:
        """The body of an answer that is one object."""

    def many(self, rows: Sequence[Stored], metadata: dict[str, Any]) -> bytes:
        """The body of an answer that is a list."""

    def event(self, kind: EventType, event: Event) -> bytes:
        """One line of a watch."""

    def bookmark(self, revision: int, *, initial_end: bool) -> bytes:
        """A line that says: everything up to this revision has been sent."""


def watch_line(kind: str, obj: bytes) -> bytes:
    """One frame of a watch stream."""
    return b'{"type":"' + kind.encode() + b'","object":' + obj + b"}\n"


def _bookmark_metadata(revision: int, initial_end: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
    return {**metadata, "annotations": {"k8s.io/initial-events-end": "true"}} if initial_end else metadata


class Plain:
    """Objects as they are; a watch event is encoded once for all watches that want this view."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._head = resource.head

    def one(self, stored: Stored) -> bytes:
        return stored.encoded(self._head)

    def many(self, rows: Sequence[Stored], metadata: dict[str, Any]) -> bytes:
        kind = f'{{"kind":"{self._resource.kind}List","apiVersion":"{self._resource.api_version}","metadata":'.encode()
        if self._resource.custom:
            items = b",".join(row.encoded(self._head) for row in rows)
        else:
            items = b",".join([row.body for row in rows])
        return kind + orjson.dumps(metadata) + b',"items":[' + items + b"]}"

    def event(self, kind: EventType, event: Event) -> bytes:
        if kind != event.type:
            return watch_line(kind, event.now.encoded(self._head))
        if not event.line:
            event.line = watch_line(kind, event.now.encoded(self._head))
        return event.line

    def bookmark(self, revision: int, *, initial_end: bool) -> bytes:
        metadata = _bookmark_metadata(revision, initial_end)
        body = orjson.dumps({"metadata": metadata})
        return watch_line("BOOKMARK", self._head + body[1:])


class TableView:
    """Rows with the columns that kubectl prints."""

    def __init__(self, resource: Resource, include: str, now_s: float) -> None:
        self._resource = resource
        self._include = include
        self._now_s = now_s
        self._columns_sent = False

    def _row(self, stored: Stored) -> dict[str, Any]:
        row: dict[str, Any] = {"cells": table_cells(self._resource, stored.obj, self._now_s)}
        head = {"kind": self._resource.kind, "apiVersion": self._resource.api_version}
        if self._include == "Object":
            row["object"] = {**head, **stored.obj}
        elif self._include != "None":
            partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            row["object"] = {**partial, "metadata": stored.obj["metadata"]}
        return row

    def _table(self, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> bytes:
        columns = None if self._columns_sent else column_definitions(self._resource)
        table = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        return orjson.dumps({**table, "columnDefinitions": columns, "rows": rows})

    def one(self, stored: Stored) -> bytes:
        return self._table([self._row(stored)], {"resourceVersion": str(stored.revision)})

    def many(self, rows: Sequence[Stored], metadata: dict[str, Any]) -> bytes:
        return self._table([self._row(row) for row in rows], metadata)

    def event(self, kind: EventType, event: Event) -> bytes:
        line = watch_line(kind, self.one(event.now))
        self._columns_sent = True
        return line

    def bookmark(self, revision: int, *, initial_end: bool) -> bytes:
        head = {"kind": self._resource.kind, "apiVersion": self._resource.api_version}
        row = {"cells": [], "object": {**head, "metadata": _bookmark_metadata(revision, initial_end)}}
        return watch_line("BOOKMARK", self._table([row], {"resourceVersion": str(revision)}))


class Partial:
    """Metadata alone."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource

    def _partial(self, metadata: dict[str, Any]) -> dict[str, Any]:
        return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}

    def one(self, stored: Stored) -> bytes:
        return orjson.dumps(self._partial(stored.obj["metadata"]))

    def many(self, rows: Sequence[Stored], metadata: dict[str, Any]) -> bytes:
        head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        return orjson.dumps({**head, "items": [self._partial(row.obj["metadata"]) for row in rows]})

    def event(self, kind: EventType, event: Event) -> bytes:
        return watch_line(kind, self.one(event.now))

    def bookmark(self, revision: int, *, initial_end: bool) -> bytes:
        return watch_line("BOOKMARK", orjson.dumps(self._partial(_bookmark_metadata(revision, initial_end))))


def view_for(accept: str, resource: Resource, include: str, now_s: float) -> View:
    """The first representation in an Accept header that we have; JSON as it is otherwise."""
    for part in accept.split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        wanted = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        if media != "application/json" or wanted.get("g", "meta.k8s.io") != "meta.k8s.io":
            continue
        if wanted.get("as") == "Table" and wanted.get("v") in ("v1", "v1beta1"):
            return TableView(resource, include, now_s)
        if wanted.get("as", "").startswith("PartialObjectMetadata"):
            return Partial(resource)
        if "as" not in wanted:
            return Plain(resource)
    return Plain(resource)
