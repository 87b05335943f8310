"""Nodes joined by the code under test."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from support.podnetbed import DUAL_STACK, Cluster, Until, nodes


@pytest.fixture
def until() -> Until:
    return Until()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three joined nodes, IPv4 and IPv6."""
    for made in nodes(3, DUAL_STACK):
        made.join()
        yield made


@pytest.fixture
def pair() -> Iterator[Cluster]:
    """Two nodes, IPv4 and IPv6, whose agents have not started."""
    yield from nodes(2, DUAL_STACK)


@pytest.fixture
def flat() -> Iterator[Cluster]:
    """Three joined nodes with backend host-gw, IPv4 and IPv6."""
    for made in nodes(3, replace(DUAL_STACK, backend="host-gw")):
        made.join()
        yield made
