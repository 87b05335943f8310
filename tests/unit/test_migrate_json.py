"""`netagent migrate --output json`: what was done before a step failed is said, with why no more was."""

import json
from pathlib import Path

import pytest

from netagent.commands.migration import Step, run_as_json
from netagent.disk.atomic import DiskError


def removing(path: Path) -> Step:
    def remove() -> None:
        try:
            path.unlink()
        except OSError as error:
            raise DiskError(f"cannot remove {path}: {error.strerror}.") from error

    return Step(f"remove {path.name}", remove)


def test_steps_until_one_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "c"):
        (tmp_path / name).touch()
    steps = [removing(tmp_path / name) for name in ("a", "b", "c")]
    assert run_as_json(steps, dry_run=True) == 0
    assert json.loads(capsys.readouterr().out) == {
        "dry_run": True,
        "steps": ["remove a", "remove b", "remove c"],
        "problem": "",
    }
    assert (tmp_path / "a").exists()
    assert run_as_json(steps, dry_run=False) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["steps"] == ["remove a"]
    assert "cannot remove" in answer["problem"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
