"""On random small clusters the model's verdict is the kernel's, for every pair of ends, port and protocol."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netagent.agent.sync import Dataplane
from netagent.config import PolicyConfig
from netagent.core import explain
from netagent.core.frame import FrameSettings
from netagent.core.livecheck import Packet, livecheck
from netagent.core.parties import ASKABLE, ICMP, cluster_of, frozen, parse_question
from netagent.core.policy import compile_policy
from netagent.core.simulate import allowed
from netagent.core.store import Store
from netagent.kernel.nft import LibNftables
from netagent.metrics import Metrics
from netagent.records import (
    ContainerPort,
    Endpoint,
    IPBlock,
    Key,
    Kind,
    LabelSelector,
    Listed,
    Namespace,
    NetworkPolicy,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Requirement,
    SubnetLease,
    Upserted,
)

pytestmark = pytest.mark.kernel

NAMESPACES = ("shop", "test")
EXAMPLES = int(os.environ.get("NETAGENT_EXPLAIN_EXAMPLES", "40"))
PORTS = (80, 81, 8080)
OUTSIDE = ("10.244.2.0", "192.168.0.2", "10.9.0.1", "fd00:2::", "2001:db8::1")

labels = st.dictionaries(st.sampled_from(("app", "tier")), st.sampled_from(("a", "b")), max_size=2)
requirements = st.one_of(
    st.builds(Requirement, st.sampled_from(("app", "tier")), st.sampled_from(("Exists", "DoesNotExist", "Bogus"))),
    st.builds(
        Requirement,
        st.sampled_from(("app", "tier")),
        st.sampled_from(("In", "NotIn")),
        st.sampled_from((("a",), ("b",))),
    ),
)
selectors = st.builds(
    LabelSelector, match_labels=labels, match_expressions=st.lists(requirements, max_size=1).map(tuple)
)
maybe_selectors = st.none() | selectors
blocks = st.builds(
    IPBlock,
    cidr=st.sampled_from(
        ("0.0.0.0/0", "10.0.0.0/8", "10.244.1.0/30", "192.168.0.0/24", "10.9.0.1/32", "::/0", "fd00::/16")
    ),
    excepts=st.lists(
        st.sampled_from(("10.244.1.2/31", "10.244.0.0/16", "192.168.0.2/32", "fd00::2/127")), max_size=2
    ).map(tuple),
)
peers = st.one_of(
    st.builds(PolicyPeer, pod_selector=maybe_selectors, namespace_selector=maybe_selectors),
    st.builds(PolicyPeer, ip_block=blocks),
)
ports = st.one_of(
    st.builds(PolicyPort, protocol=st.sampled_from(("TCP", "UDP", "SCTP")), port=st.sampled_from((None, 80, "http"))),
    st.just(PolicyPort(port=80, end_port=81)),
)
rules = st.builds(
    PolicyRule,
    peers=st.none() | st.lists(peers, max_size=2).map(tuple),
    ports=st.none() | st.lists(ports, max_size=2).map(tuple),
)
policies = st.builds(
    NetworkPolicy,
    key=st.builds(Key, st.sampled_from(NAMESPACES), st.sampled_from(("p1", "p2", "p3"))),
    uid=st.just("p"),
    pod_selector=selectors,
    policy_types=st.sampled_from(((), ("Ingress",), ("Egress",), ("Ingress", "Egress"))),
    ingress=st.lists(rules, max_size=2).map(tuple),
    egress=st.lists(rules, max_size=2).map(tuple),
)
declared = st.lists(
    st.builds(ContainerPort, st.just("http"), st.sampled_from(PORTS), st.sampled_from(("TCP", "UDP"))), max_size=2
).map(tuple)
addresses = st.integers(1, 5).flatmap(
    lambda n: st.sampled_from(((f"10.244.1.{n}",), (f"10.244.1.{n}", f"fd00::{n}"), (f"fd00::{n}",)))
)
pods = st.builds(
    Pod,
    key=st.builds(Key, st.sampled_from(NAMESPACES), st.sampled_from(("a", "b", "c"))),
    uid=st.sampled_from(("u1", "u2")),
    node=st.sampled_from(("n1", "n1", "n2")),
    labels=labels,
    ips=addresses,
    phase=st.sampled_from(("Running", "Running", "Running", "Succeeded")),
    host_network=st.sampled_from((False, False, False, True)),
    ports=declared,
    created=st.sampled_from(("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")),
)


@st.composite
def views(draw: st.DrawFn) -> list[Upserted | Endpoint]:
    """A small cluster; pods of n1 are wired, some of them as another incarnation than the API shows."""
    view: list[Upserted | Endpoint] = []
    for name in draw(st.sets(st.sampled_from(NAMESPACES), min_size=1)):
        view.append(Upserted(Kind.NAMESPACE, Namespace(key=Key("", name), uid=name, labels=draw(labels))))
    for subnet, ip in (("10.244.2.0/24", "192.168.0.2"), ("fd00:2::/64", "fd00:ffff::2")):
        lease = SubnetLease(
            key=Key("", subnet), uid=subnet, resource_version="1", subnet=subnet, holder="n2", public_ip=ip
        )
        view.append(Upserted(Kind.LEASE, lease))
    for number, pod in enumerate(draw(st.lists(pods, min_size=2, max_size=6))):
        view.append(Upserted(Kind.POD, pod))
        if pod.node == "n1" and not pod.host_network:
            uid = draw(st.sampled_from((pod.uid, pod.uid, "", "u3")))
            view.append(
                Endpoint(
                    pod=pod.key, pod_uid=uid, container_id=f"c{number}", ifname="eth0", host_ifname="", ips=pod.ips
                )
            )
    view += (Upserted(Kind.NETWORK_POLICY, policy) for policy in draw(st.lists(policies, min_size=1, max_size=4)))
    return view


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
