"""Fuzzing in the test run."""

from collections.abc import Iterator

import pytest

from fuzz.scenes import silence


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with silence():
        yield
