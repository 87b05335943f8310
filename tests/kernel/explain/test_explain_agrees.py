"""On random small clusters the model's verdict is the kernel's, for every pair of ends, port and protocol."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from netagent.agent.dataplane.sync import Dataplane
from netagent.config import PolicyConfig
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.meaning import compile_policy
from netagent.core.policy.store import Store
from netagent.core.questions import explain
from netagent.core.questions.livecheck import Packet, livecheck
from netagent.core.questions.parties import ASKABLE, ICMP, cluster_of, frozen, parse_question
from netagent.core.questions.simulate import allowed
from netagent.kernel.nft import LibNftables
from netagent.metrics import Metrics
from netagent.records import Endpoint, Kind, Listed, Upserted
from support.views import OUTSIDE, PORTS, views

pytestmark = pytest.mark.kernel

EXAMPLES = int(os.environ.get("NETAGENT_EXPLAIN_EXAMPLES", "40"))


async def committed(nft: LibNftables, view: list[Upserted | Endpoint]) -> tuple[Store, list[dict[str, Any]]]:
    """The view as the dataplane has it, and the table that it made."""
    frame, kinds = FrameSettings(vxlan_port=8472), frozenset({Kind.POD})
    dataplane = Dataplane(nft, PolicyConfig(), frame, Metrics(), node_name="n1", kinds=kinds)
    for one in view:
        if isinstance(one, Endpoint):
            dataplane.restore((one,))
        else:
            dataplane.apply(one)
    dataplane.restore(())
    dataplane.apply(Listed(Kind.POD))
    loop = asyncio.create_task(dataplane.run())
    await dataplane.committed()
    loop.cancel()
    return dataplane.store, await nft.listing()


def questions(store: Store) -> Iterator[tuple[str, str, str, str]]:
    ips = sorted({ip for pod in store.pods.values() for ip in pod.ips} | set(OUTSIDE))
    for source in ips:
        for destination in ips:
            if (":" in source) == (":" in destination):
                for protocol in ASKABLE:
                    for port in PORTS if protocol != ICMP else (None,):
                        yield source, destination, str(port or ""), protocol


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(view=views())
def test_model_and_kernel_agree_on_every_question(nft: LibNftables, view: list[Upserted | Endpoint]) -> None:
    store, listing = asyncio.run(committed(nft, view))
    cluster = cluster_of(store, map(compile_policy, store.policies.values()), "n1", overlay=True)
    copy = frozen(cluster)
    for source, destination, port, protocol in questions(store):
        question = parse_question(source, destination, port, protocol)
        (answer,) = explain.explain(cluster, question).answers
        assert allowed(copy, explain.flows_of(copy, question)[0]) == answer.allowed, (question, answer)
        if explain.not_forwarded(cluster, answer):
            continue
        if answer.exempt and source != destination:
            continue
        packet = Packet(source=source, destination=destination, protocol=protocol, port=question.port)
        live = livecheck(listing, packet)
        assert explain.agrees(answer, live) is True, (question, answer, live)
