"""Leases as other releases may write them: what they mean here, and that only the odd one is left out."""

import json
from typing import Any

import pytest

from netagent.core.network.peers import PeerTable, Self
from netagent.core.policy.store import Store
from netagent.kube import decode, leases
from netagent.kube.wire import MALFORMED, DecodeError
from netagent.records import Kind, SubnetLease, Undecodable, Upserted

NODE = Self(node_name="node-1", devices={4: "netagent.1"}, pools=("10.244.0.0/16",), subnets=("10.244.1.0/24",))
ODD, GOOD = "10.244.2.0/24", "10.244.3.0/24"


def written(subnet: str, number: int) -> dict[str, Any]:
    """As the release of today writes it."""
    notes = leases.notes("vxlan", f"02:00:00:00:00:{number:02x}", f"192.0.2.{number}")
    tenant = leases.Tenant(f"node-{number}", f"uid-{number}", 60)
    body = leases.body(subnet, "kube-system", tenant, 1_700_000_000.0, notes)
    body["metadata"] |= {"uid": f"lease-{number}", "resourceVersion": "7"}
    return body


def changed(annotations: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """None takes a field out."""
    body = written(ODD, 2)
    for fields, changes in ((body["metadata"]["annotations"], annotations or {}), (body["spec"], spec)):
        fields.update(changes)
        for name in [name for name, value in fields.items() if value is None]:
            del fields[name]
    return body


def without_annotations() -> dict[str, Any]:
    body = written(ODD, 2)
    del body["metadata"]["annotations"]
    return body


def later() -> dict[str, Any]:
    body = changed({"netagent.io/later": "x"}, strategy="OldestEmulationVersion", preferredHolder="node-9", more=[{}])
    return body | {"status": {"phase": "x"}, "later": 1}


def view(*bodies: dict[str, Any]) -> tuple[Store, PeerTable]:
    """What the agent makes of them: read as from the wire, kept, offered to the kernel."""
    store, table = Store(), PeerTable(NODE)
    for body in bodies:
        raw = json.dumps(body).encode()
        try:
            store.apply(Upserted(Kind.LEASE, decode.record(Kind.LEASE, raw)))
        except (DecodeError, *MALFORMED) as error:
            store.apply(Undecodable(Kind.LEASE, leases.key(ODD, "kube-system"), str(error)))
    table.update(store.leases.values())
    return store, table


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (changed({leases.BACKEND: "wireguard"}), "its backend is wireguard, which netagent does not have"),
        (changed({leases.VTEP_MAC: None}), "no VTEP MAC"),
        (changed({leases.PUBLIC_IP: None}), "no VTEP MAC or public IP yet"),
        (changed({leases.BACKEND: None, leases.VTEP_MAC: None, leases.PUBLIC_IP: None}), "no VTEP MAC or public IP"),
        (changed({leases.VTEP_MAC: "hello"}), "VTEP MAC 'hello' is not"),
        (changed({leases.VTEP_MAC: "02:00:00:00:00:02:03:04"}), "is not a lower-case unicast MAC"),
        (changed({leases.PUBLIC_IP: "fd00::1"}), "is not a unicast IPv4 address"),
    ],
)
def test_a_neighbour_that_cannot_be_reached_is_named_and_the_others_have_their_ways(
    body: dict[str, Any], why: str
) -> None:
    store, table = view(body, written(GOOD, 3))
    assert why in table.problems[ODD]
    assert (table.way(ODD), table.way(GOOD)) == ("", "vxlan")
    assert {lease.subnet for lease in store.leases.values()} == {ODD, GOOD}, "it is held all the same"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (without_annotations(), "annotation netagent.io/subnet: '' is no CIDR"),
        (changed({leases.SUBNET: "10.244.2.7/24"}), "is no CIDR without host bits"),
        (changed({leases.SUBNET: GOOD}), "belongs to a Lease named"),
        (changed({leases.PUBLIC_IP: "192.0.2.2,fd00::2"}), "annotation netagent.io/public-ip"),
        (changed({leases.BACKEND: 7}), "annotations"),
        (changed(renewTime="yesterday"), "is no RFC 3339 time"),
        (changed(leaseDurationSeconds=2**40), "leaseDurationSeconds"),
        (changed(holderIdentity={"node": "node-2"}), "holderIdentity"),
    ],
)
def test_a_lease_that_cannot_be_read_costs_only_itself(body: dict[str, Any], why: str) -> None:
    store, table = view(written(ODD, 2), written(GOOD, 3), body)
    ((kind, key), error), *rest = store.undecodable.items()
    assert (kind, key, rest) == (Kind.LEASE, leases.key(ODD, "kube-system"), [])
    assert why in error
    assert (table.way(ODD), table.way(GOOD)) == ("", "vxlan")


@pytest.mark.parametrize("body", [later(), changed({leases.BACKEND: None}), changed(leaseTransitions=None)])
def test_what_is_more_or_less_than_we_write_does_no_harm(body: dict[str, Any]) -> None:
    store, table = view(body, written(GOOD, 3))
    assert not store.undecodable
    assert not table.problems
    assert (table.way(ODD), table.way(GOOD)) == ("vxlan", "vxlan")


def test_renewing_keeps_what_a_newer_release_wrote() -> None:
    body = leases.renewed(later(), ODD, leases.Tenant("node-2", "uid-2", 60), 1_700_000_030.0)
    assert body["metadata"]["annotations"]["netagent.io/later"] == "x"
    assert (body["spec"]["strategy"], body["spec"]["more"]) == ("OldestEmulationVersion", [{}])
    assert isinstance(decode.record(Kind.LEASE, json.dumps(body).encode()), SubnetLease)


@pytest.mark.parametrize("subnet", ["10.244.3.0/24", "10.0.0.0/8", "fd00:1::/64", "::/0", "2001:db8::8/125"])
def test_a_name_tells_the_subnet(subnet: str) -> None:
    assert leases.subnet_named(leases.name(subnet)) == subnet


@pytest.mark.parametrize(
    "name",
    ["", "netagent", "netagent-10.244.3.0", "netagent-10.244.3.7-24", "10.244.3.0-24", "netagent-fd00--64", "leader",
     "netagent-10.244.3.0-024", "netagent-" + "f" * 300],
)  # fmt: skip
def test_other_names_tell_nothing(name: str) -> None:
    assert leases.subnet_named(name) == ""
