"""Debug pages of the process itself: state by section, tasks, memory, configuration, log; and the index of them all.

Everything here reads, except `PUT /debug/log`.
"""

import asyncio
import gc
import inspect
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson
from aiohttp import web
from msgspec import Struct

from netagent import logs
from netagent.agent.http.guard import may_write, problem
from netagent.config import Config, option_name, options

View = Callable[[], Any]
"""Plain data for a section of /debug/state."""

TASKS_SHOWN = 500
ALLOCATIONS_SHOWN = 30


class Pages:
    """What the debug listener tells of the process. `sections` are those of /debug/state."""

    def __init__(
        self, config: Config, origins: Mapping[str, str], sections: Mapping[str, View], sizes: Callable[[], Any]
    ) -> None:
        """`origins`: option -> where its value comes from; `sizes`: how much of everything is kept in memory."""
        self._config = config
        self._origins = origins
        self._sections = sections
        self._sizes = sizes

    def add_routes(self, app: web.Application) -> None:
        """Serve them."""
        app.router.add_get("/debug/index", self.get_index)
        app.router.add_get("/debug/state", self.get_state)
        app.router.add_get("/debug/state/{section}", self.get_section)
        app.router.add_get("/debug/tasks", self.get_tasks)
        app.router.add_get("/debug/memory", self.get_memory)
        app.router.add_get("/debug/config", self.get_config)
        app.router.add_get("/debug/log", self.get_log)
        app.router.add_put("/debug/log", self.put_log)

    async def get_index(self, request: web.Request) -> web.Response:
        """Every endpoint of this listener and what it tells."""
        found = {}
        for route in request.app.router.routes():
            if route.method != "HEAD" and route.resource is not None:
                words = (inspect.getdoc(route.handler) or "").partition("\n")[0]
                found[f"{route.method} {route.resource.canonical}"] = words
        return as_json({"endpoints": found, "sections": sorted(self._sections)})

    async def get_state(self, _: web.Request) -> web.Response:
        """What the agent knows and does, all sections."""
        return as_json(self.state())

    async def get_section(self, request: web.Request) -> web.Response:
        """One section of the state."""
        section = request.match_info["section"]
        if section not in self._sections:
            return as_json({"error": f"no section {section!r}", "sections": sorted(self._sections)}, 404)
        return as_json(self._sections[section]())

    async def get_tasks(self, _: web.Request) -> web.Response:
        """Tasks of the event loop and where each of them waits."""
        return as_json(tasks())

    async def get_memory(self, _: web.Request) -> web.Response:
        """Memory of the process and what it is used for; PYTHONTRACEMALLOC=1 adds the largest allocations."""
        return as_json(await self.memory())

    async def get_config(self, _: web.Request) -> web.Response:
        """Effective configuration and where each value comes from."""
        return as_json(self.configuration())

    async def get_log(self, _: web.Request) -> web.Response:
        """Levels of the log and its last lines."""
        return as_json({"levels": logs.levels(), "lines": list(logs.recent.lines())})

    async def put_log(self, request: web.Request) -> web.Response:
        """Change a level until the agent ends: {"level": "debug", "logger": "netagent.agent.dataplane.sync"}."""
        if refusal := may_write(request, self._config.http):
            return problem(refusal, 403)
        try:
            wanted = msgspec.json.decode(await request.content.read(1 << 12), type=_Level)
            logs.set_level(wanted.level, wanted.logger)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            return problem(f"{error} Nothing was changed.")
        return as_json({"levels": logs.levels()})

    def state(self) -> dict[str, Any]:
        """All sections."""
        return {name: view() for name, view in self._sections.items()}

    def configuration(self) -> dict[str, dict[str, Any]]:
        """Option -> value and origin. No option holds a secret: credentials are named by their files."""
        found = {}
        for section, field, _ in options():
            part = getattr(self._config, section) if section else self._config
            name = option_name(section, field)
            found[name] = {"value": getattr(part, field), "from": self._origins.get(name, "")}
        return found

    async def memory(self) -> dict[str, Any]:
        """Bytes and counts."""
        return {
            "process": _process(),
            "garbage_collector": {
                "counts": gc.get_count(),
                "generations": gc.get_stats(),
                "frozen": gc.get_freeze_count(),
            },
            "kept": self._sizes(),
            "allocations": await asyncio.to_thread(_allocations) if tracemalloc.is_tracing() else "not traced",
        }


class _Level(Struct, forbid_unknown_fields=True):
    level: str
    logger: str = ""


def tasks() -> list[dict[str, str]]:
    """Name, coroutine and the place where it waits."""
    found = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    return [
        {"name": task.get_name(), "runs": _named(task.get_coro()), "at": " <- ".join(_places(task))}
        for task in found[:TASKS_SHOWN]
    ]


def as_json(data: Any, status: int = 200) -> web.Response:
    """For people and programs."""
    return web.Response(body=encoded(data), status=status, content_type="application/json")


def encoded(data: Any) -> bytes:
    """Indented JSON; what JSON does not know is written as text."""
    return orjson.dumps(data, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)


def _named(coroutine: Any) -> str:
    return str(getattr(coroutine, "__qualname__", coroutine))


def _places(task: asyncio.Task[Any]) -> list[str]:
    """Frames of the task, innermost first, three at most."""
    found: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None and len(found) < 64:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return found[::-1][:3]


def _process() -> dict[str, int]:
    status = dict(_status_lines())
    return {
        "rss_bytes": status.get("VmRSS", 0) * 1024,
        "peak_rss_bytes": status.get("VmHWM", 0) * 1024,
        "swapped_bytes": status.get("VmSwap", 0) * 1024,
        "threads": threading.active_count(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "modules": len(sys.modules),
    }


def _status_lines() -> Iterator[tuple[str, int]]:
    """Lines of /proc/self/status that are a number of kilobytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            yield name, int(value.split()[0])


def _allocations() -> list[dict[str, Any]]:
    statistics = tracemalloc.take_snapshot().statistics("lineno")
    return [
        {"at": str(one.traceback), "bytes": one.size, "blocks": one.count} for one in statistics[:ALLOCATIONS_SHOWN]
    ]
