"""list and watch: which state a request asks for, pages of it, and the stream that follows it.

Source: apiserver's storage semantics (KEP-365 paging, KEP-956 bookmarks, KEP-3157 streaming lists).
"""

import asyncio
import base64
import binascii
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from msgspec import Struct

from netagent.lab.apiserver.faults import (
    ApiFault,
    bad_request,
    expired,
    invalid,
    not_allowed,
    too_large_revision,
    wrong,
)
from netagent.lab.apiserver.resources import Resource
from netagent.lab.apiserver.selectors import Predicate, both, field_selector, label_selector
from netagent.lab.apiserver.store import Compacted, Event, Key, Store, Stored, Watch
from netagent.lab.apiserver.views import View, watch_line

MIN_WATCH_S = 1800.0
"""A watch that does not say how long it lasts ends after once to twice this, as upstream's --min-request-timeout."""
CHUNK_EVENTS = 500
"""Events per write to a watch's connection."""

CONTINUE_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list "
    "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
    "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
    "modified, or deleted between the time the first chunk was returned and now may show up in the list."
)


class Query(Struct, frozen=True):
    """metav1.ListOptions, as far as they are understood."""

    namespace: str
    matches: Predicate | None
    revision: str = ""
    match: str = ""
    """resourceVersionMatch: Exact, NotOlderThan or unset."""
    limit: int = 0
    token: str = ""
    """The continue parameter."""
    timeout_s: float = 0.0
    bookmarks: bool = False
    initial_events: bool | None = None
    """sendInitialEvents."""


def parse_query(resource: Resource, namespace: str, name: str, query: Mapping[str, str], *, watching: bool) -> Query:
    """The options in a query string. Raises ApiFault 400 or 422."""
    fields = query.get("fieldSelector", "")
    if name:
        fields = f"{fields},metadata.name={name}" if fields else f"metadata.name={name}"
    parsed = Query(
        namespace=namespace,
        matches=both(label_selector(query.get("labelSelector", "")), field_selector(fields, resource.table)),
        revision=query.get("resourceVersion", ""),
        match=query.get("resourceVersionMatch", ""),
        limit=_number(query, "limit"),
        token=query.get("continue", ""),
        timeout_s=float(_number(query, "timeoutSeconds")),
        bookmarks=truth(query.get("allowWatchBookmarks")),
        initial_events=truth(query["sendInitialEvents"]) if "sendInitialEvents" in query else None,
    )
    _check(parsed, watching=watching)
    return parsed


def truth(text: str | None) -> bool:
    """A boolean of a query string."""
    return text is not None and text.lower() in ("true", "1", "")


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if not text:
        return 0
    try:
        return max(0, int(text))
    except ValueError:
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def _check(query: Query, *, watching: bool) -> None:
    causes = []
    if watching and query.initial_events is not None:
        if query.match != "NotOlderThan":
            why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            causes.append(not_allowed("resourceVersionMatch", why))
        if query.initial_events and not query.bookmarks:
            why = "sendInitialEvents requires setting allowWatchBookmarks to true"
            causes.append(not_allowed("allowWatchBookmarks", why))
    elif query.initial_events is not None:
        causes.append(not_allowed("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    elif query.match and watching:
        causes.append(
            not_allowed(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )
        )
    elif query.match and not query.revision:
        causes.append(
            not_allowed("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided")
        )
    elif query.match == "Exact" and query.revision == "0":
        causes.append(
            not_allowed("resourceVersionMatch", 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
        )
    if causes:
        raise invalid("ListOptions", "meta.k8s.io", "", causes)


def parse_revision(text: str) -> int:
    """A resourceVersion; 0 where unset. Raises ApiFault 400 (upstream 1.20 answers 500 or 422 by kind of request)."""
    if not text:
        return 0
    if not text.isdecimal():
        cause = wrong("resourceVersion", text, f'strconv.ParseUint: parsing "{text}": invalid syntax')
        fault = invalid("ListOptions", "meta.k8s.io", "", [cause])
        raise ApiFault(400, "BadRequest", f"Invalid value: {fault.message}")
    return int(text)


# List


class Page(Struct, frozen=True):
    """What one list request is answered with."""

    rows: list[Stored]
    metadata: dict[str, Any]


def list_page(store: Store, table: str, query: Query) -> Page:
    """The list, or a page of it. Raises ApiFault 400, 410 or 504."""
    if query.token:
        return _continued(store, table, query)
    asked = parse_revision(query.revision)
    if asked > store.revision:
        raise too_large_revision(asked, store.revision)
    exact = query.match == "Exact" or (query.limit and asked and not query.match)
    revision = asked if exact and asked else store.revision
    return _page_at(store, table, query, revision, ("", ""))


def _page_at(store: Store, table: str, query: Query, revision: int, after: Key) -> Page:
    if not query.limit or query.matches:
        return _page(_rows_at(store, table, query, revision), query, revision, after)
    try:
        rows, left = store.page(table, query.namespace, after, query.limit, revision)
    except Compacted:
        raise _too_old(revision) from None
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    if left:
        metadata |= {"continue": _token(revision, rows[-1][0]), "remainingItemCount": left}
    return Page([row for _, row in rows], metadata)


def _rows_at(store: Store, table: str, query: Query, revision: int) -> list[tuple[Key, Stored]]:
    """The objects of a revision, in order."""
    if revision == store.revision:
        found = store.scan(table, query.namespace)
        rows = [((row.obj["metadata"].get("namespace", ""), row.obj["metadata"]["name"]), row) for row in found]
    else:
        try:
            past = store.snapshot(table, revision)
        except Compacted:
            raise _too_old(revision) from None
        rows = sorted(
            (item for item in past.items() if not query.namespace or item[0][0] == query.namespace),
            key=lambda item: item[0],
        )
    return rows


def _too_old(revision: int) -> ApiFault:
    return expired(f"The resourceVersion for the provided list is too old: {revision}.")


def _page(rows: list[tuple[Key, Stored]], query: Query, revision: int, after: Key) -> Page:
    chosen: list[Stored] = []
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    for index, (key, row) in enumerate(rows):
        if key <= after or (query.matches and not query.matches(row.obj)):
            continue
        chosen.append(row)
        if query.limit and len(chosen) == query.limit:
            left = len(rows) - index - 1
            if left:
                metadata["continue"] = _token(revision, key)
                if query.matches is None:
                    metadata["remainingItemCount"] = left
            break
    return Page(chosen, metadata)


def _token(revision: int, after: Key) -> str:
    return base64.urlsafe_b64encode(orjson.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": after})).decode()


def _continued(store: Store, table: str, query: Query) -> Page:
    if query.revision not in ("", "0"):
        raise bad_request("specifying resource version is not allowed when using continue")
    try:
        token = orjson.loads(base64.urlsafe_b64decode(query.token))
        revision, (namespace, name) = int(token["rv"]), token["start"]
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise bad_request("continue key is not valid: the continue token of an earlier answer is expected") from None
    if revision < 0:
        revision = store.revision
    elif revision < store.compacted:
        fault = expired(CONTINUE_EXPIRED)
        fault.list_continue = _token(-1, (namespace, name))
        raise fault
    return _page_at(store, table, query, revision, (namespace, name))


# Watch


Send = Callable[[bytes], Awaitable[None]]


class WatchSettings(Struct, frozen=True):
    """How watches are served."""

    bookmark_s: float = 10.0
    """Pause between bookmarks."""
    queue_events: int = 100_000
    """A client that is this many events behind is cut off."""


async def serve_watch(
    store: Store, resource: Resource, query: Query, view: View, *, send: Send, settings: WatchSettings
) -> None:
    """Send a watch's frames until its time is over, the server ends it, or the client falls too far behind."""
    watch = Watch(resource.table, query.namespace, query.matches, settings.queue_events)
    asked = parse_revision(query.revision)
    initial = query.initial_events if query.initial_events is not None else asked == 0
    since = store.revision if initial else max(asked, 0) or store.revision
    try:
        rows = list(store.scan(resource.table, query.namespace)) if initial else []
        store.watch(resource.table, since, watch)
    except Compacted:
        await send(_error(expired(f"too old resource version: {asked} ({store.compacted})")))
        return
    try:
        await _send_initial(rows, resource, query, view, send)
        if query.initial_events:
            await send(view.bookmark(since, initial_end=True))
        await _follow(store, watch, query, view, send=send, settings=settings)
    finally:
        store.unwatch(watch)


async def _send_initial(rows: list[Stored], resource: Resource, query: Query, view: View, send: Send) -> None:
    chosen = [row for row in rows if not query.matches or query.matches(row.obj)]
    for start in range(0, len(chosen), CHUNK_EVENTS):
        events = [
            Event("ADDED", resource.table, ("", ""), row.revision, row, None)
            for row in chosen[start : start + CHUNK_EVENTS]
        ]
        await send(b"".join([view.event("ADDED", event) for event in events]))


async def _follow(store: Store, watch: Watch, query: Query, view: View, *, send: Send, settings: WatchSettings) -> None:
    loop = asyncio.get_running_loop()
    lasts_s = query.timeout_s or MIN_WATCH_S * (1 + random.random())  # noqa: S311 spreads reconnects
    end_s = loop.time() + lasts_s
    bookmark_due_s = loop.time() + settings.bookmark_s
    while not watch.closed and (left_s := end_s - loop.time()) > 0:
        pause_s = min(left_s, bookmark_due_s - loop.time()) if query.bookmarks else left_s
        events = await watch.take(max(pause_s, 0.0))
        if watch.overrun:
            await send(_error(expired("too old resource version: the client did not keep up with the events")))
            return
        for start in range(0, len(events), CHUNK_EVENTS):
            await send(b"".join([view.event(kind, event) for kind, event in events[start : start + CHUNK_EVENTS]]))
        if query.bookmarks and loop.time() >= bookmark_due_s and not watch.pending:
            bookmark_due_s = loop.time() + settings.bookmark_s
            await send(view.bookmark(store.revision, initial_end=False))


def _error(fault: ApiFault) -> bytes:
    return watch_line("ERROR", orjson.dumps(fault.status()))
