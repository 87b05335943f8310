"""`GET /debug/dump`: everything that on-call would ask for, in one tar.gz that `netagent replay dump` reads.

    about.json          format, version, node, when, notes
    situation.json      what the compiler needs beside the view (core.questions.replay.Situation)
    view/*.jsonl        the records of the view, a line each, in files of VIEW_LINES
    ruleset/kernel.nft  our table as `nft list table` prints it, and kernel.json; difference.txt
    state.json tasks.json memory.json config.json metrics.txt log.jsonl

It is made in a thread, member by member, and sent as it is made.
"""

import asyncio
import gzip
import io
import logging
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from netagent import __version__, logs
from netagent.agent.dataplane.sync import Dataplane
from netagent.agent.http.pages import Pages, encoded, tasks
from netagent.agent.http.reading import Listing, Reading, both, lines, read, ruleset
from netagent.core.questions.replay import FORMAT, TOP, About, Situation, View, view_of
from netagent.core.questions.tabletext import Snapshot, compare

log = logging.getLogger(__name__)

VIEW_LINES = 5000
COMPRESSION = 5
PIECE_BYTES = 1 << 18
UNREAD_S = 30.0
"""Longest time for a piece to be taken: 9 KB/s."""


class _Moment(Struct, frozen=True):
    """The desired side, all of one moment."""

    situation: Situation
    view: View
    ruleset: Snapshot


Member = tuple[str, Callable[[], bytes]]


class DumpPage:
    """The handler."""

    def __init__(
        self,
        dataplane: Dataplane,
        nft: Listing,
        pages: Pages,
        *,
        situation: Callable[[], Situation],
        metrics: Callable[[], Awaitable[bytes]],
    ) -> None:
        self._dataplane = dataplane
        self._nft = nft
        self._pages = pages
        self._situation = situation
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()

    def add_routes(self, app: web.Application) -> None:
        """Serve it."""
        app.router.add_get("/debug/dump", self.get_dump)

    async def get_dump(self, request: web.Request) -> web.StreamResponse:
        """Everything here as one archive, for `netagent replay dump`."""
        name = f"netagent-dump-{self._situation().node}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
        headers = {"Content-Type": "application/gzip", "Content-Disposition": f'attachment; filename="{name}"'}
        async with self._one_at_a_time:
            members = await self._members()
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            archive = _Archive()
            try:
                for member, content in members:
                    await _send(response, await asyncio.to_thread(archive.add, member, content))
                await _send(response, await asyncio.to_thread(archive.close))
            except TimeoutError:
                log.warning("dump: the client reads nothing for %g s. It got a part; ask again.", UNREAD_S)
                if request.transport is not None:
                    request.transport.abort()
                return response
        await response.write_eof()
        return response

    async def _members(self) -> list[Member]:
        """Names and what makes the contents; what belongs to the event loop is looked at here."""
        reading = await read(self._dataplane, self._nft, self._moment, with_json=True)
        moment, kernel = reading.wanted, reading.kernel
        about = About(
            format=FORMAT, version=__version__, node=moment.situation.node, at_s=time.time(), notes=reading.notes
        )
        plain = {
            "about.json": about,
            "situation.json": moment.situation,
            "tasks.json": tasks(),
            "memory.json": await self._pages.memory(),
            "config.json": self._pages.configuration(),
        }
        state, metrics, recent = self._pages.state(), await self._metrics(), list(logs.recent.lines())
        members: list[Member] = [(name, lambda one=one: msgspec.json.encode(one)) for name, one in plain.items()]  # type: ignore[misc]
        members += _view(moment.view)
        if kernel is not None:
            members.append(("ruleset/kernel.nft", kernel.text.encode))
            members.append(("ruleset/kernel.json", kernel.json.encode))
            members.append(("ruleset/difference.txt", lambda: _difference(reading)))
        members.append(("state.json", lambda: encoded(state)))
        members.append(("metrics.txt", lambda: metrics))
        members.append(("log.jsonl", lambda: _lines(recent)))
        return members

    def _moment(self) -> _Moment:
        return _Moment(self._situation(), view_of(self._dataplane.store), ruleset(self._dataplane))


async def _send(response: web.StreamResponse, data: bytes) -> None:
    """Raises TimeoutError where the client takes none of it: others wait, and all of the dump is kept meanwhile."""
    for start in range(0, len(data), PIECE_BYTES):
        async with asyncio.timeout(UNREAD_S):
            await response.write(data[start : start + PIECE_BYTES])


class _Archive:
    """A compressed tar that gives away what it has so far."""

    def __init__(self) -> None:
        self._made = io.BytesIO()
        self._gzip = gzip.GzipFile(fileobj=self._made, mode="wb", compresslevel=COMPRESSION)
        self._tar = tarfile.open(fileobj=self._gzip, mode="w|")  # noqa: SIM115 - closed by close

    def add(self, name: str, content: Callable[[], bytes]) -> bytes:
        """What there is more of the archive."""
        data = content()
        member = tarfile.TarInfo(f"{TOP}/{name}")
        member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
        self._tar.addfile(member, io.BytesIO(data))
        return self._taken()

    def close(self) -> bytes:
        """The rest."""
        self._tar.close()
        self._gzip.close()
        return self._taken()

    def _taken(self) -> bytes:
        made = self._made.getvalue()
        self._made.seek(0)
        self._made.truncate()
        return made


def _view(view: View) -> Iterator[Member]:
    for kind in View.__struct_fields__:
        records = getattr(view, kind)
        for number, start in enumerate(range(0, len(records), VIEW_LINES)):
            some = records[start : start + VIEW_LINES]
            yield f"view/{kind}-{number:05}.jsonl", lambda some=some: _lines(some)  # type: ignore[misc]


def _lines(records: Sequence[Any]) -> bytes:
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


def _difference(reading: Reading[_Moment]) -> bytes:
    assert reading.kernel is not None  # noqa: S101 - the caller knows
    difference = compare(*both(reading.wanted.ruleset, reading.kernel.text))
    return ("\n".join(lines(difference, reading.notes)) + "\n").encode()
