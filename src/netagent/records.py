"""The words everybody shares: what netagent keeps of the cluster, flat, small and frozen.

Addresses are canonical text (as `ipaddress` prints them), networks are canonical CIDR text without host bits.
Maps and tuples in a record are never changed after it was made.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct


class Kind(StrEnum):
    """The kinds of API object that the agent watches."""

    NAMESPACE = "Namespace"
    POD = "Pod"
    NODE = "Node"
    NETWORK_POLICY = "NetworkPolicy"
    LEASE = "Lease"


class Key(Struct, frozen=True, order=True, gc=False):
    """Names one object of a kind."""

    namespace: str
    """"" for cluster-scoped kinds."""
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ContainerPort(Struct, frozen=True, order=True, gc=False):
    """A port that a pod declares (all of its containers together)."""

    name: str
    """"" where the declaration has no name."""
    number: int
    protocol: str
    """TCP, UDP or SCTP."""


class Pod(Struct, frozen=True, gc=False, kw_only=True):
    """What we keep of a Pod."""

    key: Key
    uid: str
    node: str = ""
    """spec.nodeName; empty before the scheduler has chosen."""
    labels: Mapping[str, str] = {}
    ips: tuple[str, ...] = ()
    """status.podIPs; empty before CNI ADD."""
    phase: str = "Pending"
    """status.phase: Pending, Running, Succeeded, Failed, Unknown."""
    host_network: bool = False
    ports: tuple[ContainerPort, ...] = ()
    created: str = ""
    """metadata.creationTimestamp: RFC 3339 in UTC, so text order is time order."""
    terminating: bool = False
    """metadata.deletionTimestamp is set; the pod still owns its address until the object or the sandbox is gone."""
    mirror_of: str = ""
    """Annotation kubernetes.io/config.hash of a mirror pod: the UID by which the runtime knows the static pod."""


class Namespace(Struct, frozen=True, gc=False, kw_only=True):
    """What we keep of a Namespace."""

    key: Key
    uid: str
    labels: Mapping[str, str] = {}


class Node(Struct, frozen=True, gc=False, kw_only=True):
    """What we keep of a Node."""

    key: Key
    uid: str
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    """Only those whose name holds `flannel.` or `netagent.`, or ends as flannel's do."""
    addresses: tuple[str, ...] = ()
    """status.addresses of type InternalIP."""
    pod_cidrs: tuple[str, ...] = ()
    """spec.podCIDRs."""


# A NetworkPolicy stays close to the API's text (networking.k8s.io/v1): None means the field is absent or null, which
# differs from an empty list in several places. The policy compiler gives it its meaning.


class Requirement(Struct, frozen=True, gc=False):
    """One element of matchExpressions."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(Struct, frozen=True, gc=False, kw_only=True):
    """A metav1.LabelSelector: all of match_labels and all of match_expressions must hold; empty matches everything."""

    match_labels: Mapping[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()


class IPBlock(Struct, frozen=True, gc=False, kw_only=True):
    """CIDR with the networks cut out of it, as text from the API (host bits possible, validity unknown)."""

    cidr: str
    excepts: tuple[str, ...] = ()


class PolicyPeer(Struct, frozen=True, gc=False, kw_only=True):
    """One element of `from` or `to`."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None
    unknown_fields: tuple[str, ...] = ()
    """Fields of the peer that we do not know. Such a peer matches nothing."""


class PolicyPort(Struct, frozen=True, gc=False, kw_only=True):
    """One element of `ports`."""

    protocol: str = "TCP"
    port: int | str | None = None
    end_port: int | None = None


class PolicyRule(Struct, frozen=True, gc=False, kw_only=True):
    """An ingress or egress rule. None or empty `peers`: everybody. None or empty `ports`: every port."""

    peers: tuple[PolicyPeer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None


class NetworkPolicy(Struct, frozen=True, gc=False, kw_only=True):
    """What we keep of a NetworkPolicy."""

    key: Key
    uid: str
    pod_selector: LabelSelector = LabelSelector()
    policy_types: tuple[str, ...] = ()
    """As written; empty means absent (then Ingress always, Egress where an egress rule exists)."""
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()
    problem: str = ""
    """Why a part of the object could not be read. It then isolates what pod_selector selects and allows nothing."""


class SubnetLease(Struct, frozen=True, gc=False, kw_only=True):
    """A coordination.k8s.io/v1 Lease that reserves one pod subnet for one node."""

    key: Key
    uid: str
    resource_version: str
    subnet: str
    """Canonical CIDR, e.g. 10.244.3.0/24."""
    holder: str = ""
    """spec.holderIdentity: the node's name; empty: nobody holds it."""
    duration_s: int | None = None
    """spec.leaseDurationSeconds; None: a reservation, which never expires."""
    renewed_s: float | None = None
    """spec.renewTime as seconds since the epoch."""
    backend: str = ""
    """vxlan or host-gw."""
    vtep_mac: str = ""
    """MAC of the holder's VTEP for this subnet's family; lower case; empty before the device is up."""
    public_ip: str = ""
    """Where the holder receives this family's tunnelled packets."""
    sources: tuple[str, ...] = ()
    """Further addresses that the holder's tunnelled packets may come from."""
    transitions: int = 0
    """spec.leaseTransitions."""


Record = Namespace | Pod | Node | NetworkPolicy | SubnetLease


class Upserted(Struct, frozen=True, gc=False):
    """An object exists, in this state."""

    kind: Kind
    record: Record
    received_s: float = 0.0
    """Monotonic time when its bytes had arrived; the start of the convergence clock."""


class Removed(Struct, frozen=True, gc=False):
    """An object is gone."""

    kind: Kind
    key: Key
    received_s: float = 0.0


class Undecodable(Struct, frozen=True, gc=False):
    """An object exists but cannot be read: whatever was known of it does not hold any more."""

    kind: Kind
    key: Key
    error: str
    received_s: float = 0.0


class Listed(Struct, frozen=True, gc=False):
    """The first complete list of a kind has been delivered: from now on the view of it is whole."""

    kind: Kind


Change = Upserted | Removed | Undecodable | Listed


class Endpoint(Struct, frozen=True, gc=False, kw_only=True):
    """A pod of this node that CNI ADD has wired (or, in policy-only mode, that the API reports)."""

    pod: Key
    pod_uid: str
    """K8S_POD_UID; empty where the runtime does not pass it."""
    container_id: str
    ifname: str
    """Interface name inside the pod."""
    host_ifname: str
    """The veth end on the node."""
    ips: tuple[str, ...]
    netns: str = ""
    mac: str = ""
    """MAC of the pod's interface."""
