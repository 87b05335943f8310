"""Logging to stderr, as text or one JSON object a line; levels can be changed while the agent runs.

The `fields` of a record (`extra={"fields": {...}}`) are further keys of its JSON object; its message says the same in
words. The last lines are kept for /debug.
"""

import json
import logging
import sys
import textwrap
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

from netagent.config import LogConfig
from netagent.printable import one_line

LEVELS = ("debug", "info", "warning", "error")
KEPT = 1000
"""Lines in memory; with KEPT_CHARS each, 2 MB at most and 200 KB as a rule."""
KEPT_CHARS = 2000


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = as_fields(record)
        try:
            return orjson.dumps(fields, default=str).decode()
        except TypeError:  # text that is no Unicode, such as half of a surrogate pair
            return json.dumps(fields, default=str)


class TextLines(logging.Formatter):
    """One line a record; what follows it of an exception is indented, so that no text can pass for a record."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, info: Any) -> str:
        return textwrap.indent(super().formatException(info), "    ", lambda _: True)


class Recent(logging.Handler):
    """Keeps the last lines, short ones."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[tuple[float, str, str, str]] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message += f" [{type(record.exc_info[1]).__name__}: {record.exc_info[1]}]"
            self._lines.append((record.created, record.levelname.lower(), record.name, message[:KEPT_CHARS]))
        except Exception:
            self.handleError(record)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Oldest first."""
        for at_s, level, logger, message in list(self._lines):
            yield {"time": _time(at_s), "level": level, "logger": logger, "message": message}


recent = Recent()
"""Of this process."""


def as_fields(record: logging.LogRecord) -> dict[str, Any]:
    """A record as the keys of a JSON object."""
    line = {
        "time": _time(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    line = getattr(record, "fields", {}) | line
    if record.exc_info:
        line["exception"] = logging.Formatter().formatException(record.exc_info)
    return line


def set_up(config: LogConfig) -> None:
    """Send every log of the process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if config.format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler, recent]
    root.setLevel(config.level.upper())


def set_level(level: str, logger: str = "") -> None:
    """From now on; empty: the root's. `level` is one of LEVELS, or empty for a logger that follows those above it.

    Raises ValueError for anything else.
    """
    if level not in LEVELS and (level or not logger):
        raise ValueError(f"level = {level!r}. Accepted: {', '.join(LEVELS)}{', or empty' if logger else ''}.")
    if logger and logger not in logging.root.manager.loggerDict:
        raise ValueError(f"logger = {logger!r}: there is no such logger. Accepted: {', '.join(_known())}.")
    logging.getLogger(logger or None).setLevel(level.upper() if level else logging.NOTSET)


def levels() -> dict[str, str]:
    """Logger -> level, of those that have one of their own; "" is the root."""
    found = {"": logging.getLogger()} | {name: logging.getLogger(name) for name in _known()}
    return {name: logging.getLevelName(one.level).lower() for name, one in found.items() if one.level}


def toggle_debug(config: LogConfig) -> str:
    """Between debug and what is configured; the level from now on."""
    usual = config.level if config.level != "debug" else "info"
    level = usual if logging.getLogger().level <= logging.DEBUG else "debug"
    set_level(level)
    return level


def _known() -> list[str]:
    return sorted(name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "netagent")


def _time(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s)) + f".{int(at_s % 1 * 1000):03d}Z"
