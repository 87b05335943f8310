"""Every decoder gives a result or its own error, whatever comes."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutate import mutated
from fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
SEEDS = {name: tuple(path.read_bytes() for path in sorted((CORPUS / name).iterdir())) for name in TARGETS}
EXAMPLES = {"cni_http": 25, "watch": 60}
USUAL_EXAMPLES = 100
MUTANTS = 4
"""Of each example; they cost less than drawing it."""

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_left_of_them(name: str) -> None:
    for seed in SEEDS[name]:
        for end in {len(seed), len(seed) - 1, len(seed) // 2, 1, 0}:
            TARGETS[name](seed[:end])


@pytest.mark.parametrize("name", TARGETS)
def test_mutants_of_valid_messages(name: str) -> None:
    examples = EXAMPLES.get(name, USUAL_EXAMPLES)

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(SEEDS[name]), st.integers(0, 2**32))
    def check(seed: bytes, number: int) -> None:
        random = Random(number)  # noqa: S311 - repeatable
        for _ in range(MUTANTS):
            TARGETS[name](mutated(seed, random))

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    @settings(max_examples=EXAMPLES.get(name, USUAL_EXAMPLES), suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=600))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
