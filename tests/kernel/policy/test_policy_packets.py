"""What policies let through, asked with packets on this kernel. Every test also asks the whole truth table."""

import pytest
from msgspec import structs

from netagent.records import Record
from support.podbed import Bed
from support.words import block, key, namespace, namespaces, pod, pods, policy, port, rule, selector

pytestmark = pytest.mark.kernel

BOTH = (4, 6)


@pytest.fixture
async def town(bed: Bed) -> Bed:
    """x/a, x/b, y/a here, y/far on another node, that node and a host outside."""
    await bed.put(namespace("x", team="one"), namespace("y", team="two"))
    for name in ("x/a", "x/b", "y/a"):
        await bed.pod(name, app=name[-1], ports=[("web", 80, "TCP"), ("dns", 80, "UDP")])
    await bed.pod("y/far", remote=True, app="far", ports=[("web", 81, "TCP"), ("dns", 80, "UDP")])
    bed.outside("192.0.2.10", "2001:db8::10")
    bed.outside("172.30.0.12", "fd00:30::c")
    return bed


async def test_without_policies_everything_passes(town: Bed) -> None:
    assert await town.expect_oracle(versions=BOTH) > 200


async def test_ingress_by_pod_and_namespace_labels(town: Bed) -> None:
    await town.put(policy("x/p", selector(app="a"), ingress=[rule([pods(app="b"), namespaces(selector(team="two"))])]))
    await town.expect(
        allowed=[
            "x/b -> x/a 80/TCP",
            "y/a -> x/a 81/UDP",
            "y/far -> x/a 80/TCP v6",
            "x/b -> x/a ICMP",
            "x/a -> y/a 80/TCP",
        ],
        denied=["192.0.2.10 -> x/a 80/TCP", "172.30.0.12 -> x/a 80/TCP", "192.0.2.10 -> x/a ICMP v6"],
    )
    await town.expect_oracle(versions=BOTH)


async def test_egress(town: Bed) -> None:
    await town.put(policy("x/p", selector(app="a"), egress=[rule([pods(app="b")], [port(80)])], types=["Egress"]))
    await town.expect(
        allowed=["x/a -> x/b 80/TCP", "x/a -> x/b 80/TCP v6", "y/a -> x/a 80/TCP", "192.0.2.10 -> x/a 80/TCP"],
        denied=["x/a -> x/b 81/TCP", "x/a -> x/b 80/UDP", "x/a -> 192.0.2.10 80/TCP", "x/a -> x/b ICMP"],
    )
    await town.expect_oracle(versions=BOTH)


async def test_both_ends_must_allow(town: Bed) -> None:
    await town.put(
        policy("x/from", selector(app="a"), egress=[rule([namespaces(selector(team="two"))])], types=["Egress"]),
        policy("y/to", ingress=[rule([namespaces(selector(team="one"), selector(app="b"))])]),
    )
    await town.expect(
        denied=["x/a -> y/a 80/TCP", "x/a -> x/b 80/TCP"], allowed=["x/b -> y/a 80/TCP", "x/a -> y/far 80/TCP"]
    )
    await town.expect_oracle()
    await town.put(policy("y/too", ingress=[rule([namespaces(selector(team="one"))], [port(80)])]))
    await town.expect(allowed=["x/a -> y/a 80/TCP"], denied=["x/a -> y/a 81/TCP", "x/a -> y/a ICMP"])
    await town.expect_oracle()


async def test_default_deny_and_policies_that_add_up(town: Bed) -> None:
    await town.put(policy("x/deny", types=["Ingress", "Egress"]))
    await town.expect(
        denied=["x/a -> x/b 80/TCP", "y/a -> x/a 80/TCP", "x/a -> y/a ICMP"], allowed=["y/a -> y/far 80/TCP"]
    )
    await town.put(policy("x/in", ingress=[rule(None, [port(80)])]), policy("x/out", egress=[rule(None, [port(81)])]))
    await town.expect(
        allowed=["y/a -> x/a 80/TCP", "x/a -> y/a 81/TCP"], denied=["x/a -> x/b 80/TCP", "x/a -> x/b 81/TCP"]
    )
    await town.expect_oracle(versions=BOTH)
    await town.remove(*town.cluster.policies.values())
    await town.expect_oracle()


async def test_icmp_is_judged_and_has_no_port(town: Bed) -> None:
    await town.put(
        policy("x/p", ingress=[rule([pods()]), rule(None, [port(None), port(None, "UDP"), port(None, "SCTP")])])
    )
    await town.expect(
        allowed=["x/a -> x/b ICMP", "x/a -> x/b ICMP v6", "y/a -> x/b 80/TCP"],
        denied=["y/a -> x/b ICMP", "y/a -> x/b ICMP v6"],
    )


async def test_sctp_rules(town: Bed) -> None:
    await town.put(policy("x/p", ingress=[rule([namespaces(selector(team="two"))], [port(80, "SCTP")])]))
    await town.expect(
        allowed=["y/a -> x/a 80/SCTP"],
        denied=["y/a -> x/a 81/SCTP", "x/b -> x/a 80/SCTP", "y/a -> x/a 80/TCP", "y/a -> x/a 80/UDP"],
    )
    await town.put(policy("x/p", ingress=[rule(None, [port(81, "SCTP", end=90)])]))
    await town.expect(allowed=["y/a -> x/a 81/SCTP", "y/a -> x/a 90/SCTP"], denied=["y/a -> x/a 80/SCTP"])


async def test_port_ranges(town: Bed) -> None:
    await town.put(policy("x/p", ingress=[rule(None, [port(70, end=80), port(81, "UDP", end=81)])]))
    await town.expect(
        allowed=["y/a -> x/a 80/TCP", "y/a -> x/a 81/UDP"],
        denied=["y/a -> x/a 81/TCP", "y/a -> x/a 80/UDP", "y/a -> x/a 80/SCTP"],
    )
    await town.expect_oracle(versions=BOTH)


async def test_named_ports_of_ingress_are_each_pods_own(town: Bed) -> None:
    await town.put(structs.replace(town.record("x/b"), ports=pod("x/b", ports=[("web", 81, "TCP")]).ports))
    await town.put(policy("x/p", ingress=[rule(None, [port("web")])]))
    await town.expect(
        allowed=["y/a -> x/a 80/TCP", "y/a -> x/b 81/TCP"],
        denied=["y/a -> x/a 81/TCP", "y/a -> x/b 80/TCP", "y/a -> x/a 80/UDP"],
    )
    await town.put(policy("x/p", ingress=[rule(None, [port("dns", "UDP")])]))
    await town.expect(allowed=["y/a -> x/a 80/UDP"], denied=["y/a -> x/a 80/TCP", "y/a -> x/b 80/UDP"])
    await town.put(structs.replace(town.record("x/a"), ports=()))
    await town.expect(denied=["y/a -> x/a 80/UDP"])


async def test_named_ports_of_egress_are_the_destinations(town: Bed) -> None:
    await town.put(
        policy(
            "x/p",
            egress=[rule([namespaces(selector(team="two"))], [port("web")]), rule(None, [port("dns", "UDP")])],
            types=["Egress"],
        )
    )
    await town.expect(
        allowed=["x/a -> y/a 80/TCP", "x/a -> y/far 81/TCP", "x/a -> x/b 80/UDP", "x/a -> y/far 80/UDP v6"],
        denied=["x/a -> y/a 81/TCP", "x/a -> y/far 80/TCP", "x/a -> y/a 81/UDP", "x/a -> 192.0.2.10 80/UDP"],
    )
    await town.expect_oracle(versions=BOTH)


async def test_blocks_and_excepts(town: Bed) -> None:
    a, b, far = (town.places[name].ip() for name in ("x/a", "x/b", "y/far"))
    blocks = [block("10.244.0.0/16", f"{b}/32", f"{b}/32"), block(f"{far}/32"), block("192.0.2.0/24", "192.0.2.10/31")]
    await town.put(
        policy("x/p", selector(app="a"), ingress=[rule(blocks)], egress=[rule([block("0.0.0.0/0", f"{b}/32")])])
    )
    await town.expect(
        allowed=["y/a -> x/a 80/TCP", "y/far -> x/a 80/TCP", "x/a -> 192.0.2.10 80/TCP"],
        denied=["x/b -> x/a 80/TCP", "192.0.2.10 -> x/a 80/TCP", "x/a -> x/b 80/TCP", "y/a -> x/a 80/TCP v6"],
    )
    await town.expect_oracle(versions=BOTH)
    # Blocks that overlap or repeat come and go without taking the others' addresses along.
    await town.put(
        policy("x/q", selector(app="a"), ingress=[rule([block(f"{b}/32"), block("10.244.0.0/24"), block(f"{b}/32")])])
    )
    await town.expect(allowed=["x/b -> x/a 80/TCP"])
    await town.remove(town.cluster.policies[key("x/q")])
    await town.expect(denied=["x/b -> x/a 80/TCP"], allowed=["y/a -> x/a 80/TCP"])
    await town.put(policy("x/p", selector(app="a"), ingress=[rule([block(f"{a}/8", "10.244.1.0/24"), block("::/0")])]))
    await town.expect(allowed=["x/b -> x/a 80/TCP", "x/b -> x/a 80/TCP v6"], denied=["y/far -> x/a 80/TCP"])


async def test_the_own_node_always_reaches_its_pods(town: Bed) -> None:
    await town.put(policy("x/deny", types=["Ingress", "Egress"]))
    for suffix in ("80/TCP", "81/UDP", "ICMP", "80/TCP v6", "ICMP v6"):
        await town.expect(allowed=[f"node -> x/a {suffix}", f"x/a -> node {suffix}"])
        await town.expect(denied=[f"172.30.0.12 -> x/a {suffix}", f"x/a -> 172.30.0.12 {suffix}"])
    await town.put(policy("x/node", ingress=[rule([block("172.30.0.12/32")])]))
    await town.expect(allowed=["172.30.0.12 -> x/a 80/TCP"], denied=["172.30.0.12 -> x/a 80/TCP v6"])


async def test_host_network_pods_are_their_node(town: Bed) -> None:
    there = pod("y/host", "172.30.0.12", labels={"app": "host"}, host_network=True, node="node-1")
    here = pod("x/host", "172.30.0.11", labels={"app": "a"}, host_network=True)
    await town.put(there, here)
    await town.put(policy("x/p", selector(app="a"), ingress=[rule([namespaces(selector(team="two"))])]))
    await town.expect(denied=["172.30.0.12 -> x/a 80/TCP"], allowed=["node -> x/a 80/TCP", "192.0.2.10 -> node 80/TCP"])


async def test_finished_pods_are_nobody_and_their_address_is_free(town: Bed) -> None:
    far = town.record("y/far")
    await town.put(
        policy("x/p", ingress=[rule([pods(app="new"), namespaces(selector(team="two"), selector(app="far"))])])
    )
    await town.expect(allowed=["y/far -> x/a 80/TCP"])
    for phase in ("Succeeded", "Failed"):
        await town.put(structs.replace(far, phase=phase))
        await town.expect(denied=["y/far -> x/a 80/TCP"])
    reuser = pod("x/new", *far.ips, labels={"app": "new"}, node="node-1", created="2025-01-01T00:00:00Z")
    await town.put(reuser)
    await town.expect(allowed=["y/far -> x/a 80/TCP"])
    await town.remove(far)
    await town.expect(allowed=["y/far -> x/a 80/TCP"])
    await town.remove(reuser)
    await town.expect(denied=["y/far -> x/a 80/TCP"])


async def test_relabelled_pods_and_namespaces(town: Bed) -> None:
    await town.put(
        policy("x/p", selector(app="a"), ingress=[rule([namespaces(selector(team="two"), selector(app="a"))])])
    )
    await town.expect(allowed=["y/a -> x/a 80/TCP"], denied=["x/b -> x/a 80/TCP", "y/far -> x/a 80/TCP"])
    await town.put(namespace("x", team="two"), structs.replace(town.record("x/b"), labels={"app": "a"}))
    await town.expect(allowed=["x/a -> x/b 80/TCP"], denied=["y/far -> x/b 80/TCP"])
    await town.put(namespace("y", team="three"), structs.replace(town.record("y/far"), labels={"app": "a"}))
    await town.expect(denied=["y/a -> x/a 80/TCP", "y/far -> x/a 80/TCP"])
    await town.expect_oracle()


async def test_a_namespace_goes_with_all_in_it(town: Bed) -> None:
    await town.put(policy("x/p", ingress=[rule([namespaces(selector())])]), policy("y/p", ingress=[]))
    await town.expect(allowed=["y/far -> x/a 80/TCP"], denied=["x/a -> y/a 80/TCP"])
    await town.unplug("y/a")
    gone: list[Record] = [
        town.cluster.policies[key("y/p")],
        town.record("y/a"),
        town.record("y/far"),
        town.cluster.namespaces["y"],
    ]
    await town.remove(*gone)
    await town.expect(denied=["y/far -> x/a 80/TCP"], allowed=["x/b -> x/a 80/TCP", "x/a -> y/far 80/TCP"])


async def test_a_recreated_pod_is_judged_by_its_new_labels(town: Bed) -> None:
    await town.put(policy("x/p", selector(role="closed"), ingress=[]))
    await town.expect(allowed=["y/a -> x/a 80/TCP"])
    ips = town.places["x/a"].ips
    await town.unplug("x/a")
    await town.remove(town.record("x/a"))
    await town.pod("x/a", ips=ips, role="closed")
    await town.expect(denied=["y/a -> x/a 80/TCP"], allowed=["node -> x/a 80/TCP"])
    await town.expect_oracle()


async def test_very_long_names(town: Bed) -> None:
    name = "x/" + "n" * 253
    await town.put(policy(name, ingress=[rule([pods(**{"k" * 63: "v" * 63}), pods(app="b")], [port("web")])]))
    await town.expect(allowed=["x/b -> x/a 80/TCP"], denied=["x/b -> x/a 81/TCP", "y/a -> x/a 80/TCP"])
    long = await town.pod("x/" + "p" * 253)
    await town.put(structs.replace(town.record(long.name), labels={"k" * 63: "v" * 63}))
    await town.expect(allowed=[f"{long.name} -> x/a 80/TCP"])


async def test_broken_policies_close_their_own_pods_only(town: Bed) -> None:
    await town.put(policy("y/broken", selector(("k", "Like", ["v"])), ingress=[rule()], egress=[rule()]))
    await town.expect(denied=["x/a -> y/a 80/TCP", "y/a -> x/a 80/TCP"], allowed=["x/a -> x/b 80/TCP"])
    await town.put(policy("x/partly", ingress=[rule([block("10.0.0.0/99"), pods(app="b")], [port(99999), port(80)])]))
    await town.expect(allowed=["x/b -> x/a 80/TCP"], denied=["x/b -> x/a 81/TCP", "192.0.2.10 -> x/a 80/TCP"])
    await town.expect_oracle()
