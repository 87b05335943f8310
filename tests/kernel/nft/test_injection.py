"""Names of the API never become nft commands: with hostile names the kernel gets the same table as with tame ones.

An API server checks names. Nothing here relies on it: objects come as the bytes that a lax one could send.
"""

import functools
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.render import render, replacement
from netagent.core.policy.store import Dirty, Store
from netagent.kernel.nft import TABLE, LibNftables
from netagent.kube import decode
from netagent.kube.wire import DecodeError
from netagent.metrics import PolicyDenials
from netagent.ports import TableInventory
from netagent.records import Endpoint, Kind, Listed, Pod, Removed, Undecodable, Upserted

pytestmark = pytest.mark.kernel

MARK = "0x00010000"
OBJECT = re.compile(r"\b(p4|p6|n4|n6|in|eg|k|b4|b6|t)_[0-9a-f]{20}(?:_[a-z0-9_]*)?")
SLOTS = ("namespace", "pod", "peer", "policy", "key", "value", "port", "uid", "node", "container")
TAME = {slot: f"{slot}-1" for slot in SLOTS}
FRAGMENTS = (
    "}; delete table inet netagent; #",
    "; flush ruleset\n",
    "\nflush ruleset\n",
    '" accept comment "',
    "$(reboot)",
    "`id`",
    "../../../etc/passwd",
    "\\",
    "'",
    "\0",
    "\r",
    "\u2028",
    "\u202e",
    "\x1b[2J",
    "@current",
    "__generation__",
    "a,b=c",
    "a/b",
    " ",
    "x" * 300,
    "é",
)
PARTS = st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("".join).filter(bool)
HOSTILE = st.lists(NAMES, min_size=len(SLOTS), max_size=len(SLOTS), unique=True).map(
    lambda names: dict(zip(SLOTS, names, strict=True))
)


def meta(name: str, namespace: str = "", **more: object) -> dict[str, object]:
    return {"name": name, "namespace": namespace, "uid": f"u{name}", **more}


def objects(names: dict[str, str]) -> Iterator[tuple[Kind, bytes]]:
    """A namespace, a pod of this node, a peer, and a policy with labels, a named port and a namespace selector."""
    labels = {names["key"]: names["value"]}
    yield Kind.NAMESPACE, _bytes({"metadata": meta(names["namespace"], labels=labels)})
    for name, ip, node in ((names["pod"], "10.244.0.10", "node-0"), (names["peer"], "10.244.1.11", names["node"])):
        port = {"name": names["port"], "containerPort": 8080, "protocol": "TCP"}
        yield (
            Kind.POD,
            _bytes(
                {
                    "metadata": {**meta(name, names["namespace"], labels=labels), "uid": f"{names['uid']}{ip}"},
                    "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [port]}]},
                    "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
                }
            ),
        )
    peer = {"podSelector": {"matchLabels": labels}, "namespaceSelector": {"matchLabels": labels}}
    rule = [{"from": [peer], "ports": [{"port": names["port"]}]}]
    egress = [{"to": [{"podSelector": {"matchLabels": labels}}], "ports": [{"port": names["port"]}]}]
    spec = {"podSelector": {"matchLabels": labels}, "ingress": rule, "egress": egress}
    yield Kind.NETWORK_POLICY, _bytes({"metadata": meta(names["policy"], names["namespace"]), "spec": spec})


def _bytes(tree: object) -> bytes:
    return json.dumps(tree).encode()


def compiled(names: dict[str, str]) -> tuple[Compiler, Store]:
    store = Store()
    compiler = Compiler(store, FrameSettings(drop_log_group=78), "node-0")
    dirty = Dirty()
    for kind, raw in objects(names):
        record = decode.record(kind, raw)
        dirty.add(store.apply(Upserted(kind, record)))
        if isinstance(record, Pod) and record.node == "node-0":
            endpoint = Endpoint(
                pod=record.key,
                pod_uid=record.uid,
                container_id=names["container"],
                ifname="eth0",
                host_ifname="nap0123456789ab",
                ips=record.ips,
            )
            dirty.add(store.admit(endpoint))
    for kind in (Kind.NAMESPACE, Kind.POD, Kind.NETWORK_POLICY):
        store.apply(Listed(kind))
    compiler.update(dirty)
    return compiler, store


def in_kernel(nft: LibNftables, names: dict[str, str]) -> tuple[list[str], list[str]]:
    """The table of these names, and the one after the peer has gone, with neutral names of objects."""
    subprocess.run(["nft", f"add table {TABLE}; delete table {TABLE}; add table inet witness"], check=True)
    compiler, store = compiled(names)
    nft._run(replacement(compiler.ruleset.whole(), MARK, TableInventory(exists=False)))
    compiler.ruleset.take()
    whole = listed()
    gone = next(key for key, pod in store.pods.items() if pod.node != "node-0" or pod.ips == ("10.244.1.11",))
    compiler.update(store.apply(Removed(Kind.POD, gone)))
    delta = compiler.ruleset.take()
    nft._run(render(delta, compiler.ruleset.chains, MARK, new_mark=False))
    after = listed()
    subprocess.run(["nft", "list table inet witness"], check=True, capture_output=True)
    return whole, after


@functools.cache
def tame_tables() -> tuple[list[str], list[str]]:
    nft = LibNftables()
    try:
        return in_kernel(nft, TAME)
    finally:
        nft.close()


def listed() -> list[str]:
    text = subprocess.run(["nft", "list", "table", *TABLE.split()], check=True, capture_output=True, text=True).stdout
    text = re.sub(r"elements = \{([^}]*)\}", _in_order, OBJECT.sub(r"\1", text))
    return sorted(line.strip() for line in text.splitlines() if line.strip())


def _in_order(found: re.Match[str]) -> str:
    return f"elements = {', '.join(sorted(map(str.strip, found[1].split(','))))}"


@settings(max_examples=25, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))
@given(HOSTILE)
@example({slot: f"{slot}}}; delete table inet witness; #\n" for slot in SLOTS})
def test_the_kernel_gets_the_same_table(names: dict[str, str]) -> None:
    nft = LibNftables()
    try:
        wanted, got = tame_tables(), in_kernel(nft, names)
    finally:
        nft.close()
    assert any("10.244.1.11" in line for line in wanted[0])
    assert not any("10.244.1.11" in line for line in wanted[1])
    for there, here in zip(wanted, got, strict=True):
        assert Counter(here) - Counter(there) == Counter()
        assert Counter(there) - Counter(here) == Counter()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": "1", "b": "2"}, {"a": "1,b=2"}),
        ({"a": "x in (y)"}, {"a": "x", " in (y)": ""}),
    ],
)
def test_selectors_that_read_alike_have_sets_of_their_own(one: dict[str, str], other: dict[str, str]) -> None:
    """Labels that no API server takes could otherwise make two sets one, and let in whom the other lets in."""
    store = Store()
    compiler = Compiler(store, FrameSettings(), "node-0")
    dirty = Dirty()
    for number, labels in enumerate((one, other)):
        selects = {"podSelector": {"matchLabels": {"app": str(number)}}}
        spec = {**selects, "ingress": [{"from": [{"podSelector": {"matchLabels": labels}}]}]}
        for kind, tree in (
            (Kind.NETWORK_POLICY, {"metadata": meta(f"p{number}", "x"), "spec": spec}),
            (
                Kind.POD,
                {
                    "metadata": meta(f"s{number}", "x", labels={"app": str(number)}),
                    "spec": {"nodeName": "node-0"},
                    "status": {"podIPs": [{"ip": f"10.244.0.{number + 1}"}]},
                },
            ),
        ):
            record = decode.record(kind, _bytes(tree))
            dirty.add(store.apply(Upserted(kind, record)))
            if isinstance(record, Pod):
                endpoint = Endpoint(
                    pod=record.key,
                    pod_uid=record.uid,
                    container_id=str(number),
                    ifname="eth0",
                    host_ifname=f"nap{number:012x}",
                    ips=record.ips,
                )
                dirty.add(store.admit(endpoint))
    compiler.update(dirty)
    assert len([name for name in compiler.ruleset.sets if name.startswith("p4_")]) == 2


@pytest.mark.parametrize("ip", ["fe80::1%x }; flush ruleset; #", "fe80::1%\n", "10.0.0.1/8", "10.0.0.1 }", "::1\n"])
def test_what_is_no_address_costs_its_own_pod_alone(ip: str) -> None:
    raw = _bytes({"metadata": meta("bad", "x"), "status": {"podIPs": [{"ip": ip}]}})
    with pytest.raises(DecodeError, match=r"status\.podIPs"):
        decode.record(Kind.POD, raw)
    compiler, store = compiled(TAME)
    key, _ = decode.head(raw)
    before = dict(compiler.ruleset.sets)
    compiler.update(store.apply(Undecodable(Kind.POD, key, "no address")))
    assert compiler.ruleset.sets == before


@pytest.mark.parametrize("number", [-5, 0, 65536, 10**30])
def test_what_is_no_port_is_left_out(number: int) -> None:
    ports = [{"name": "a", "containerPort": number}, {"name": "a", "containerPort": 80}]
    raw = _bytes({"metadata": meta("p", "x"), "spec": {"containers": [{"ports": ports}]}})
    pod = decode.record(Kind.POD, raw)
    assert isinstance(pod, Pod)
    assert [one.number for one in pod.ports] == [80]


@settings(max_examples=50)
@given(NAMES, NAMES)
def test_labels_of_metrics_are_one_label_each(namespace: str, policy: str) -> None:
    registry = CollectorRegistry()
    denials = PolicyDenials()
    registry.register(denials)
    denials.totals = [(namespace, policy, "ingress", 3)]
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    samples = [one for family in families for one in family.samples if one.name.endswith("_total")]
    assert [(one.labels["namespace"], one.labels["policy"], one.value) for one in samples] == [(namespace, policy, 3)]
