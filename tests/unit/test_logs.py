"""Levels that change while the process runs, and the last lines in memory."""

import json
import logging
from collections.abc import Iterator

import pytest

from netagent import logs
from netagent.config import LogConfig


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("netagent.test.a").setLevel(logging.NOTSET)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]


def test_one_logger_can_say_more_than_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(LogConfig(format="json"))
    a, b = logging.getLogger("netagent.test.a"), logging.getLogger("netagent.test.b")
    a.debug("too early")
    logs.set_level("debug", "netagent.test.a")
    a.debug("heard")
    b.debug("not heard")
    logs.set_level("error")
    b.warning("not heard either")
    logs.set_level("", "netagent.test.a")
    a.warning("silent again")
    logs.set_level("debug")
    b.debug("all heard")
    assert lines(capsys) == ["heard", "all heard"]
    assert logs.levels() == {"": "debug"}


@pytest.mark.parametrize(
    ("level", "logger", "complaint"),
    [
        ("loud", "", "Accepted: debug, info, warning, error."),
        ("", "", "Accepted: debug, info, warning, error."),
        ("WARN", "netagent.test.a", "or empty."),
        ("debug", "netagent.nowhere", "there is no such logger"),
    ],
)
def test_what_is_no_level_changes_nothing(level: str, logger: str, complaint: str) -> None:
    logging.getLogger("netagent.test.a")
    logs.set_up(LogConfig())
    with pytest.raises(ValueError, match=complaint):
        logs.set_level(level, logger)
    assert logs.levels() == {"": "info"}


@pytest.mark.parametrize(("configured", "others"), [("info", "debug"), ("error", "debug"), ("debug", "info")])
def test_toggle_goes_to_debug_and_back(configured: str, others: str) -> None:
    config = LogConfig(level=configured)  # type: ignore[arg-type]
    logs.set_up(config)
    assert [logs.toggle_debug(config) for _ in range(3)] == [others, configured, others]
    assert logs.levels()[""] == others


def test_the_last_lines_are_kept_and_bounded() -> None:
    logs.set_up(LogConfig(format="json"))
    log = logging.getLogger("netagent.test.a")
    for number in range(logs.KEPT + 5):
        log.info("line %d %s", number, "x" * 2 * logs.KEPT_CHARS)
    try:
        int("seven")
    except ValueError:
        log.exception("failed")
    kept = list(logs.recent.lines())
    assert len(kept) == logs.KEPT
    assert kept[0]["message"].startswith("line 6 x")
    assert max(len(one["message"]) for one in kept) == logs.KEPT_CHARS
    assert kept[-1]["message"] == "failed [ValueError: invalid literal for int() with base 10: 'seven']"
    assert (kept[-1]["level"], kept[-1]["logger"]) == ("error", "netagent.test.a")
