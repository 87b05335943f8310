"""Random small clusters for hypothesis, as a node's agent is shown them. Names, labels and addresses are few, so that
selectors match, addresses are claimed twice and ipBlocks hold pods."""

from hypothesis import strategies as st

from netagent.records import (
    ContainerPort,
    Endpoint,
    IPBlock,
    Key,
    Kind,
    LabelSelector,
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

NAMESPACES = ("shop", "test")
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
