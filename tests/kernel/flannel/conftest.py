"""Two nodes on one underlay, as flannel and the bridge plugin leave them."""

import os
from collections.abc import Iterator

import pytest

from support.flannelbed import NODE_MODE, FlannelNode
from support.podnetbed import Until, sh


@pytest.fixture
def until() -> Until:
    return Until()


@pytest.fixture
def pair() -> Iterator[tuple[FlannelNode, FlannelNode]]:
    """Two nodes with a pod on cni0 each, no tunnels yet; netagent runs where a test starts it."""
    sh("ip link add bridge type bridge")
    sh("ip link set bridge up")
    made: list[FlannelNode] = []
    try:
        for number in (1, 2):
            made.append(FlannelNode(number, NODE_MODE))
        yield made[0], made[1]
    finally:
        try:
            for node in made:
                node.stop()
        finally:
            for node in made:
                node.echo.close(node.pod)
                sh(f"ip link delete up{node.number}")
            for name in os.listdir("/run/netns"):
                sh(f"ip netns delete {name}")
            sh("ip link delete bridge")
