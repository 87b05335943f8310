"""Pods of different nodes reach each other, and stop to when they should: real packets through real tunnels."""

import itertools

import pytest

pytestmark = pytest.mark.kernel


def test_pods_reach_each_other(cluster):
    for here, there in itertools.permutations(cluster.nodes, 2):
        for address in there.pod_ips():
            assert here.reaches(address)
