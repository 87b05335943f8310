"""What is desired beside what the kernel has, read so that both are of the same moment; `GET /debug/ruleset`.

The kernel is read by a libnftables of its own, in its own thread, so that no commit waits for it; the comparison runs
in a thread too. On the event loop only a copy is taken: some milliseconds for 200,000 elements.
"""

import asyncio
import contextlib
import io
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from aiohttp import web
from msgspec import Struct

from netagent.agent.dataplane.sync import Dataplane
from netagent.agent.http.guard import problem
from netagent.agent.http.pages import as_json
from netagent.core.questions.tabletext import Difference, Snapshot, Table, compare, desired, listed, snapshot, text
from netagent.ports import NftError
from netagent.printable import one_line

COMMIT_WAIT_S = 2.0
"""How long a reading waits for changes on their way to the kernel."""
PATIENCE_S = 5.0
HOLD_S = 5.0
ATTEMPTS = 3
"""Where a commit came in between, both sides are read again."""

T = TypeVar("T")


class Listing(Protocol):
    """What is read of nftables."""

    async def text(self) -> str:
        """Our table as `nft list table` prints it; empty where it is absent. Raises NftError."""

    async def json(self) -> str:
        """The same as `nft -j list table` prints it. Raises NftError."""


class PatientReader:
    """Reads our table beside commits, and gets through where they come faster than it can be read.

    libnftables starts over whenever a transaction comes in between. Under churn on a large table it would never end, so
    after PATIENCE_S commits are held, for HOLD_S at most.
    """

    def __init__(self, dataplane: Dataplane, nft: "Everything") -> None:
        """`nft`: not the one that commits go through."""
        self._dataplane = dataplane
        self._nft = nft
        self._one_at_a_time = asyncio.Lock()

    async def text(self) -> str:
        """Our table as `nft list table` prints it. Raises NftError."""
        return await self._through(self._nft.text)

    async def json(self) -> str:
        """The same as `nft -j list table` prints it. Raises NftError."""
        return await self._through(self._nft.json)

    async def listing(self) -> list[dict[str, Any]]:
        """The same, decoded. Raises NftError."""
        return await self._through(self._nft.listing)

    async def _through(self, reading: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._one_at_a_time:
            task = asyncio.create_task(reading())
            done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
            if not done:
                with self._dataplane.held():
                    await asyncio.wait({task}, timeout=HOLD_S)
            if not task.done():
                task.cancel()
                raise NftError(
                    f"table inet netagent could not be read within {PATIENCE_S + HOLD_S:g} s: nftables changes all "
                    "the time, by pods that start or another program (`nft monitor`). Nothing was changed; try again."
                )
            return task.result()


class Everything(Listing, Protocol):
    """All ways to read."""

    async def listing(self) -> list[dict[str, Any]]:
        """Our table as `nft -j list table` prints it, decoded. Raises NftError."""


class Kernel(Struct, frozen=True):
    """The table as the kernel has it."""

    text: str
    json: str
    """The same as JSON, where it was asked for."""


class Reading(Struct, Generic[T], frozen=True):
    """Both sides."""

    wanted: T
    kernel: Kernel | None
    """None: it could not be read; a note says why."""
    notes: tuple[str, ...]


def ruleset(dataplane: Dataplane) -> Snapshot:
    """What is desired now."""
    return snapshot(dataplane.compiler.ruleset, dataplane.mark)


async def read(dataplane: Dataplane, nft: Listing, capture: Callable[[], T], *, with_json: bool = False) -> Reading[T]:
    """The kernel's table beside what `capture` takes of the desired state."""
    notes: tuple[str, ...] = ()
    for _ in range(ATTEMPTS):
        caught_up = await _caught_up(dataplane)
        wanted, commits = capture(), dataplane.transactions[-1:]
        try:
            kernel = Kernel(await nft.text(), await nft.json() if with_json else "")
        except NftError as error:
            return Reading(wanted, None, (str(error),))
        if caught_up and dataplane.transactions[-1:] == commits:
            return Reading(wanted, kernel, ())
        notes = (_why(dataplane, caught_up),)
    return Reading(wanted, kernel, notes)


class RulesetPage:
    """The handler."""

    def __init__(self, dataplane: Dataplane, nft: Listing) -> None:
        self._dataplane = dataplane
        self._nft = nft
        self._one_at_a_time = asyncio.Lock()

    def add_routes(self, app: web.Application) -> None:
        """Serve it."""
        app.router.add_get("/debug/ruleset", self.get_ruleset)

    async def get_ruleset(self, request: web.Request) -> web.Response:
        """Desired ruleset against the kernel's: ?show=difference (default), desired or kernel; &format=text or json."""
        show = request.query.get("show", "difference")
        if show not in ("difference", "desired", "kernel"):
            return problem(f"show = {show!r}. Accepted: difference, desired, kernel.")
        async with self._one_at_a_time:
            reading = await read(self._dataplane, self._nft, lambda: ruleset(self._dataplane))
            if reading.kernel is None:
                return problem("; ".join(reading.notes), 503)
            tables = await asyncio.to_thread(both, reading.wanted, reading.kernel.text)
            if show != "difference":
                lines = text(tables[show == "kernel"])
                return web.Response(text=await asyncio.to_thread(lambda: "".join(f"{line}\n" for line in lines)))
            difference = await asyncio.to_thread(compare, *tables)
        return _told(request, tables, difference, reading.notes)


def both(wanted: Snapshot, kernel: str) -> tuple[Table, Table]:
    """Desired and kernel's table in one spelling. Blocks for seconds where they are very large."""
    return desired(wanted), listed(io.StringIO(kernel))


def summary(tables: tuple[Table, Table], difference: Difference, notes: tuple[str, ...]) -> dict[str, Any]:
    """The comparison as plain data."""
    return {
        "equal": difference.equal,
        "lacks": difference.lacks,
        "extra": difference.extra,
        "notes": notes,
        "desired": tables[0].sizes(),
        "kernel": tables[1].sizes(),
        "mismatches": [
            {"verb": one.verb, "kind": one.kind, "where": one.where, "text": one.text} for one in difference.mismatches
        ],
    }


def _told(
    request: web.Request, tables: tuple[Table, Table], difference: Difference, notes: tuple[str, ...]
) -> web.Response:
    wanted = request.query.get("format", "")
    if wanted == "text" or (not wanted and request.headers.get("Accept", "").startswith("text/plain")):
        return web.Response(text="\n".join(lines(difference, notes)) + "\n")
    return as_json(summary(tables, difference, notes))


def lines(difference: Difference, notes: tuple[str, ...]) -> list[str]:
    """The comparison for people."""
    head = "the kernel has what is desired"
    if not difference.equal:
        head = f"the kernel lacks {difference.lacks} and has {difference.extra} too much"
    left_out = difference.lacks + difference.extra - len(difference.mismatches)
    more = [f"and {left_out} more"] if left_out else []
    return [
        one_line(line) for line in (head, *(f"note: {note}" for note in notes), *map(str, difference.mismatches), *more)
    ]


async def _caught_up(dataplane: Dataplane) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(COMMIT_WAIT_S):
            await dataplane.committed()
    return dataplane.settled() is not None


def _why(dataplane: Dataplane, caught_up: bool) -> str:
    if caught_up:
        return "commits came while the kernel was read: some differences may be theirs"
    return f"the kernel may lag behind: {dataplane.problem or 'the last changes are not in it yet'}"
