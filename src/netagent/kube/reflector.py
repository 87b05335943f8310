"""One kind of object, listed once and then watched for ever, as a stream of changes.

Three duties, one inside the other: `frames` turns bytes into watch frames; `_list` and `_watch` turn pages and frames
into changes against what was delivered before; `run` decides what follows an end or a failure: resume, list again, or
wait.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Never

import msgspec
from msgspec import Raw, Struct

from netagent.config import ApiConfig
from netagent.kube import decode, leases
from netagent.kube.backoff import Backoff
from netagent.kube.client import ApiClient, ApiError, Silent, TimedOut, TooLarge, Unreachable
from netagent.kube.wire import MALFORMED, DecodeError, Frame, ListMeta, Page
from netagent.ports import NetagentError
from netagent.records import Change, Key, Kind, Listed, Removed, Undecodable, Upserted

WATCH_S = (300, 600)
"""Range of timeoutSeconds, as client-go has it: watches move to other servers after a while, not all at once."""
HEALTHY_S = 5.0
"""A watch that lived this long was a good one: its end is no failure and the backoff starts anew."""
STEADY_S = 1.0
"""A watch that is open for this long works, and what was wrong before is over. One that ends after it and before
HEALTHY_S is opened again within this time: news must not wait long, and the server is asked once a second at most."""
FRUITLESS = 3
"""After so many watches in a row that opened and broke without a frame, the collection is listed: some proxies let no
stream pass, and news would never come."""
RELIST_STATUS = (200, 400, 410, 422)
"""Answers to a watch that the same resourceVersion would get again: unreadable, refused, expired."""
GATEWAY_TIMEOUT = 504
"""Newer API servers answer so to a resourceVersion that they have not reached (ResourceVersionTooLarge)."""
SMALLER_PAGES = 16
"""Pages that are too slow or too large are halved down to this part: a server that hangs is no reason for thousands of
small ones afterwards."""
LARGER_PAGES = 8
"""Pages whose snapshot expires before the last one came are doubled up to this multiple: fewer take less time."""
LIST_SLICE = 32
"""Objects of a list delivered in one go (about half a millisecond) before other tasks get their turn."""
RELIST_REST_S = 0.001
"""Rest after each slice of a list that is not the first: an agent that serves has better things to do, and its threads
need the interpreter. 50,000 objects take two seconds more with it."""

log = logging.getLogger(__name__)


class Resource(Struct, frozen=True):
    """What to list and watch."""

    kind: Kind
    path: str
    """Collection on the API server."""
    params: Mapping[str, str] = {}
    """labelSelector, fieldSelector."""


class ReflectorStatus(Struct, frozen=True, kw_only=True):
    """A snapshot for readiness, metrics and /debug."""

    kind: Kind
    listed: bool
    """The first complete list was delivered."""
    connected: bool
    """A watch is open now."""
    last_error: str
    """Why the last list or watch failed; empty while all is well."""
    failing_s: float
    """How long it has been so; 0: all is well."""
    failures: int
    """Lists and watches so far that failed."""
    lists: int
    """Complete lists so far."""
    relists: int
    """Those after the first."""
    unreadable: int
    """Objects and frames so far that could not be decoded."""
    objects: int
    resource_version: str
    silent_s: float
    """Since the server last sent a list, a frame or a bookmark: what happened up to then is known here."""


class _Garbled(NetagentError):
    """The stream holds something that is no watch frame."""


class _Expired(NetagentError):
    """The server does not remember our resourceVersion any more, or never had it."""


class _Closed(NetagentError):
    """The server ended the watch as soon as it was open."""


def resources(lease_namespace: str) -> dict[Kind, Resource]:
    """Everything that the agent watches."""
    return {
        Kind.NAMESPACE: Resource(Kind.NAMESPACE, "/api/v1/namespaces"),
        Kind.POD: Resource(Kind.POD, "/api/v1/pods"),
        Kind.NODE: Resource(Kind.NODE, "/api/v1/nodes"),
        Kind.NETWORK_POLICY: Resource(Kind.NETWORK_POLICY, "/apis/networking.k8s.io/v1/networkpolicies"),
        Kind.LEASE: Resource(Kind.LEASE, leases.collection(lease_namespace), {"labelSelector": leases.SELECTOR}),
    }


class _Bookmark(Struct):
    metadata: ListMeta


class _Status(Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


_frame = msgspec.json.Decoder(Frame)
_bookmark = msgspec.json.Decoder(_Bookmark)
_status = msgspec.json.Decoder(_Status)


async def frames(
    api: ApiClient, resource: Resource, resource_version: str, *, silence_s: float, timeout_s: int
) -> AsyncGenerator[list[Frame], None]:
    """The frames of one watch, as lists of those that arrived together; the first list is empty: the watch is open.

    Raises _Garbled, and what `ApiClient.stream` raises. Ends when the server ends the watch.
    """
    stream = api.stream(
        resource.path,
        silence_s=silence_s,
        watch="true",
        allowWatchBookmarks="true",
        resourceVersion=resource_version,
        timeoutSeconds=timeout_s,
        **resource.params,
    )
    async with aclosing(stream) as batches:
        async for lines in batches:
            try:
                yield [_frame.decode(line) for line in lines if line.strip()]
            except MALFORMED as error:
                raise _Garbled(f"GET {resource.path}: the watch sent what is no watch frame: {error}.") from None


class Reflector:
    """Delivers every change of one resource to `emit`, in order, on the event loop's thread.

    `emit` gets each object of the first list as Upserted (or Undecodable), then Listed, then changes as they come. A
    later list is delivered as its difference from what was delivered before.
    """

    def __init__(
        self,
        api: ApiClient,
        resource: Resource,
        emit: Callable[[Change], None],
        settings: ApiConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._resource = resource
        self._kind = resource.kind
        self._emit = emit
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._backoff = Backoff(settings.backoff_cap_s, rng=rng)
        self._versions: dict[Key, str] = {}
        """resourceVersion of every object as it was delivered."""
        self._resume = ""
        """resourceVersion to watch from; empty: list first."""
        self._lists = 0
        self._unreadable = 0
        self._opened_s: float | None = None
        """When the server accepted the watch that is open now."""
        self._heard_s = clock()
        self._last_error = ""
        self._failing_since_s = 0.0
        self._failures = 0
        self._steady: asyncio.TimerHandle | None = None
        self._page_size = settings.page_size
        self._fits_one_answer = True
        """Whether a list without pages may still be asked for."""
        self._revision = 0
        """The newest resourceVersion that the server has named, as a number."""
        self._fruitless = 0
        """Watches since the last list or frame that were opened and broke."""
        self._doubted = False
        """Nothing came for too long, or 504: the server may count from an older state than ours."""

    @property
    def status(self) -> ReflectorStatus:
        return ReflectorStatus(
            kind=self._kind,
            listed=self._lists > 0,
            connected=self._opened_s is not None,
            last_error=self._last_error,
            failing_s=self._clock() - self._failing_since_s if self._last_error else 0.0,
            failures=self._failures,
            lists=self._lists,
            relists=max(0, self._lists - 1),
            unreadable=self._unreadable,
            objects=len(self._versions),
            resource_version=self._resume,
            silent_s=self._clock() - self._heard_s,
        )

    async def run(self) -> Never:
        """List and watch until cancelled. No failure of the server ends it."""
        while True:
            try:
                if self._doubted:
                    await self._compare()
                if not self._resume:
                    await self._list()
                await self._watch()
                pause_s = self._ended()
            except Silent as error:
                log.debug("%s watch: %s Watching again from resourceVersion %s.", self._kind, error, self._resume)
                self._doubted = True
                pause_s = 0.0 if self._opened_s is not None else self._failed(error)
            except (ApiError, Unreachable, _Garbled, _Expired) as error:
                pause_s = self._failed(error)
            finally:
                self._opened_s = None
                if self._steady is not None:
                    self._steady.cancel()
            await asyncio.sleep(pause_s)

    def _ended(self) -> float:
        """The server ended the watch without a word; the pause before the next one, seconds."""
        lived_s = self._clock() - self._opened_s if self._opened_s is not None else 0.0
        if lived_s < STEADY_S:
            why = f"GET {self._resource.path}: the server ended the watch after {lived_s:.2f} s."
            return self._failed(_Closed(why))
        return 0.0 if self._was_healthy() else STEADY_S * self._rng()

    def _was_healthy(self) -> bool:
        """The watch that ended had been open for long: failures start to count anew."""
        healthy = self._opened_s is not None and self._clock() - self._opened_s >= HEALTHY_S
        if healthy:
            self._backoff.reset()
        return healthy

    def _failed(self, error: NetagentError) -> float:
        """Remember and report a failure; the pause before the next attempt, seconds."""
        self._was_healthy()
        self._failures += 1
        pause_s = self._backoff.next_s(error.retry_after_s if isinstance(error, ApiError) else 0.0)
        self._fruitless += self._opened_s is not None
        self._doubted |= isinstance(error, ApiError) and error.status == GATEWAY_TIMEOUT
        refused = isinstance(error, ApiError) and error.status in RELIST_STATUS
        if self._fruitless >= FRUITLESS or refused or isinstance(error, _Expired | _Garbled):
            self._resume = ""
        # An expired resourceVersion is everyday life after an outage, and a second failure in a row is no news.
        expired = isinstance(error, _Expired) or (isinstance(error, ApiError) and error.gone)
        expected = expired and self._backoff.attempts == 1
        level = logging.DEBUG if self._last_error or expected else logging.WARNING
        if not expected:
            self._failing_since_s = self._failing_since_s if self._last_error else self._clock()
            self._last_error = str(error)
        known = f"{len(self._versions)} objects stay as they were last seen" if self._lists else "no list was read yet"
        log.log(level, "%s watch: %s For now %s; next attempt in %.1f s.", self._kind, error, known, pause_s)
        return pause_s

    def _heard(self) -> float:
        self._heard_s = self._clock()
        return self._heard_s

    def _recovered(self) -> None:
        if self._last_error:
            log.info("%s watch: works again.", self._kind)
            self._last_error = ""

    async def _compare(self) -> None:
        """After a silence: list anew where the server is behind us, or cannot be compared.

        An etcd that was set back to a backup counts from there. A watch from a resourceVersion that it has not reached
        yet is accepted, and says nothing until it has.
        """
        page = await self._page("", 1)
        self._heard()
        if _number(page.metadata.resource_version) < (_number(self._resume) or 1):
            self._resume = ""
        self._doubted = False

    def _note_revision(self, text: str) -> bool:
        """False: the server has been at a newer revision before."""
        number = _number(text)
        goes_on = number >= self._revision or not number
        self._revision = number or self._revision
        return goes_on

    async def _list(self) -> None:
        """Deliver the whole collection as a difference; afterwards the watch may start from its resourceVersion."""
        seen: set[Key] = set()
        token, limit = "", self._page_size
        while True:
            try:
                page = await self._page(token, limit)
            except (TooLarge, TimedOut):
                self._too_much(limit)
                raise
            except ApiError as error:
                if not (error.gone and token):
                    raise
                # The snapshot behind the token was compacted. A list without pages is sure to come to an end; where it
                # is too much for one answer, larger pages may get there in time.
                self._page_size = min(self._settings.page_size * LARGER_PAGES, limit * 2)
                if not self._fits_one_answer:
                    raise
                token, limit = "", 0
                seen.clear()
                continue
            if not self._note_revision(page.metadata.resource_version):
                log.warning("%s list: the API server went back to an older state; all is taken anew.", self._kind)
                # The same number may mean another state now.
                self._versions = dict.fromkeys(self._versions, "")
            await self._deliver(page, seen)
            before, token = token, page.metadata.continue_ or ""
            if not token:
                break
            if token == before:
                raise ApiError(f"GET {self._resource.path}", 200, "Undecodable", "a page that leads to itself")
        for index, key in enumerate(self._versions.keys() - seen):
            await self._give_way(index)
            del self._versions[key]
            self._emit(Removed(self._kind, key, self._heard_s))
        self._resume = page.metadata.resource_version
        self._page_size = min(self._settings.page_size, self._page_size * 2)
        self._lists += 1
        self._fruitless = 0
        if self._lists == 1:
            self._emit(Listed(self._kind))

    def _too_much(self, limit: int) -> None:
        """An answer of `limit` objects (0: all) was too large or too slow."""
        if limit:
            self._page_size = max(1, self._settings.page_size // SMALLER_PAGES, limit // 2)
        else:
            self._fits_one_answer = False

    async def _page(self, token: str, limit: int) -> Page:
        page = await self._api.get_json(
            self._resource.path,
            Page,
            **{"limit": limit or "", "continue": token, **self._resource.params},
        )
        expected = f"{self._kind}List"
        if page.kind != expected or not page.metadata.resource_version:
            # An empty list of something else would look like a cluster without policies.
            got = f"kind {page.kind[:64]!r}, resourceVersion {page.metadata.resource_version[:64]!r}"
            raise ApiError(f"GET {self._resource.path}", 200, "Undecodable", f"not a {expected}: {got}")
        return page

    async def _deliver(self, page: Page, seen: set[Key]) -> None:
        received_s = self._heard()
        for index, raw in enumerate(page.items or ()):
            await self._give_way(index)
            try:
                key, version = decode.head(raw)
            except DecodeError as error:
                # Without a name there is nothing to tell the others about it.
                self._unreadable += 1
                log.warning("%s list: an object without readable metadata was skipped: %s.", self._kind, error)
                continue
            seen.add(key)
            self._upsert(key, version, raw, received_s)

    async def _give_way(self, index: int) -> None:
        """To other tasks, after each slice of a list."""
        if index % LIST_SLICE == LIST_SLICE - 1:
            await asyncio.sleep(RELIST_REST_S if self._lists else 0)

    async def _watch(self) -> None:
        """Deliver what happens from `_resume` on until the server ends the watch."""
        low, high = WATCH_S
        timeout_s = int(low + (high - low) * self._rng())
        watch = frames(
            self._api, self._resource, self._resume, silence_s=self._settings.watch_silence_s, timeout_s=timeout_s
        )
        async with aclosing(watch) as batches:
            async for batch in batches:
                received_s = self._heard() if batch else self._clock()
                if self._opened_s is None:
                    self._opened_s = received_s
                    self._steady = asyncio.get_running_loop().call_later(STEADY_S, self._recovered)
                for frame in batch:
                    self._take(frame, received_s)
                    self._fruitless = 0

    def _take(self, frame: Frame, received_s: float) -> None:
        """Deliver one frame. Raises _Expired, _Garbled, ApiError."""
        if frame.type == "ERROR":
            self._refused(frame.object)
        elif frame.type == "BOOKMARK":
            self._go_on(self._bookmark_version(frame.object))
        elif frame.type in ("ADDED", "MODIFIED", "DELETED"):
            try:
                key, version = decode.head(frame.object)
            except DecodeError as error:
                raise _Garbled(f"a watch frame without readable metadata: {error}.") from None
            self._go_on(version)
            if frame.type != "DELETED":
                self._upsert(key, version, frame.object, received_s)
            elif self._versions.pop(key, None) is not None:
                self._emit(Removed(self._kind, key, received_s))
        else:
            raise _Garbled(f"a watch frame of unknown type {frame.type!r}.")

    def _go_on(self, version: str) -> None:
        """The watch has come to this resourceVersion. Raises _Expired where that is behind the one before."""
        before = self._revision
        if not self._note_revision(version):
            self._revision = before
            raise _Expired(f"the watch went back from resourceVersion {before} to {version}: the server was set back.")
        self._resume = version or self._resume

    def _upsert(self, key: Key, version: str, raw: Raw, received_s: float) -> None:
        if version and self._versions.get(key) == version:
            return
        try:
            record = decode.record(self._kind, raw)
        except DecodeError as error:
            self._versions[key] = version
            self._unreadable += 1
            log.warning(
                "%s %s cannot be read: %s. It is treated as unknown until it is corrected.", self._kind, key, error
            )
            self._emit(Undecodable(self._kind, key, str(error), received_s))
        else:
            # The record's own key: one object per name, here and in the view.
            self._versions[record.key] = version
            self._emit(Upserted(self._kind, record, received_s))

    def _bookmark_version(self, raw: Raw) -> str:
        try:
            return _bookmark.decode(raw).metadata.resource_version or self._resume
        except MALFORMED as error:
            raise _Garbled(f"a bookmark without resourceVersion: {error}.") from None

    def _refused(self, raw: Raw) -> Never:
        """An ERROR frame: the server ends the watch and says why."""
        try:
            status = _status.decode(raw)
        except MALFORMED as error:
            raise _Garbled(f"an ERROR frame without a Status: {error}.") from None
        refusal = ApiError(f"GET {self._resource.path}", status.code, status.reason, status.message)
        if refusal.gone:
            raise _Expired(str(refusal))
        raise refusal


def _number(resource_version: str) -> int:
    """For comparison, as etcd counts; 0: it is no number."""
    return int(resource_version) if resource_version.isdecimal() and len(resource_version) < 20 else 0
