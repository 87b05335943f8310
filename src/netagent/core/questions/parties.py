"""Who stands behind an address: what questions about the policy need to know of both ends of a flow.

An address plays two parts. As the subject it is a pod that policies select; on this node that is the pod of the sandbox
wired with the address, elsewhere the pod that owns it. As a peer it is the pod that owns it, or, for ipBlock, a bare
address; other nodes' addresses in the overlay count as their nodes'.
"""

import ipaddress
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct, structs

from netagent.core.policy.meaning import PROTOCOLS, Policy
from netagent.core.policy.peersets import version_of
from netagent.core.policy.store import FINISHED, Store
from netagent.ports import NetagentError
from netagent.records import Key, Namespace, Pod

ICMP = "ICMP"
"""Both ICMP and ICMPv6, by the addresses' family."""
ASKABLE = (*PROTOCOLS, ICMP)


class QuestionError(NetagentError):
    """The question cannot be answered as it was put; its text says what is accepted."""


class Question(Struct, frozen=True, gc=False, kw_only=True):
    """May this connection be opened? An end is a pod's Key or an address in canonical text."""

    source: Key | str
    destination: Key | str
    protocol: str
    """TCP, UDP, SCTP or ICMP."""
    port: int | None
    """The destination's, behind any Service; None for ICMP."""


class Party(Struct, frozen=True, gc=False, kw_only=True):
    """One end of a flow: an address and who it belongs to."""

    ip: str
    owner: Pod | None = None
    """The pod that peers of rules match; None: nobody's, a node's, or a pod that the API has not shown."""
    subject: Pod | None = None
    """The pod whose policies judge."""
    local: bool = False
    """Wired on this node, so this node's kernel judges."""
    unknown: bool = False
    """Wired on this node, but the API has not shown its pod: nothing passes."""
    node: str = ""
    """The node whose own address it is."""
    counts_as: str = ""
    """For the overlay address of another node: the node's address, by which ipBlock judges it."""
    words: str = ""
    """Who it is, for people."""

    @property
    def name(self) -> str:
        """Shortest name."""
        pod = self.subject or self.owner
        return str(pod.key) if pod is not None else self.ip

    @property
    def host(self) -> str:
        """Name of the node that the pod runs on or whose address this is; "" where unknown."""
        return self.subject.node if self.subject is not None else self.node


class Wired(Struct, frozen=True, gc=False):
    """A sandbox's pod as the dataplane sees it; None: not shown by the API."""

    key: Key
    pod: Pod | None


class Cluster(Struct, frozen=True, gc=False, kw_only=True):
    """What questions are answered from: the view, the policies as understood, and this node's place in it."""

    pods: Mapping[Key, Pod]
    namespaces: Mapping[str, Namespace]
    owner: Callable[[str], Key | None]
    owned_ips: Callable[[Key], Iterable[str]]
    wired: Mapping[str, Wired]
    """Pods of this node by address."""
    policies: Mapping[str, tuple[Policy, ...]]
    """By namespace, in order of their keys."""
    node_name: str
    node_at: Mapping[str, str]
    """Nodes' own addresses, those in the overlay too -> name of the node."""
    overlay: Mapping[str, str]
    """Overlay address of another node -> the node's address."""


def cluster_of(store: Store, policies: Iterable[Policy], node_name: str, *, overlay: bool) -> Cluster:
    """A Cluster that reads the store as it is at each question. `overlay`: whether nodes use the VXLAN overlay."""
    # Without a watch on nodes (another agent's pod network) host-network pods still tell nodes' addresses.
    node_at = {ip: pod.node for pod in store.pods.values() if pod.host_network and pod.node for ip in pod.ips}
    node_at |= {ip: node.key.name for node in store.nodes.values() for ip in node.addresses}
    counts_as = {}
    for lease in store.leases.values():
        if lease.holder and lease.public_ip:
            node_at.setdefault(lease.public_ip, lease.holder)
            if overlay:
                address = str(ipaddress.ip_network(lease.subnet).network_address)
                node_at[address] = lease.holder
                if lease.holder != node_name:
                    counts_as[address] = lease.public_ip
    return Cluster(
        pods=store.pods,
        namespaces=store.namespaces,
        owner=store.owner,
        owned_ips=store.owned_ips,
        wired={
            ip: Wired(sandbox.endpoint.pod, sandbox.pod)
            for container, sandbox in store.sandboxes.items()
            for ip in sandbox.endpoint.ips
            if store.holder(ip) == container
        },
        policies=by_namespace(policies),
        node_name=node_name,
        node_at=node_at,
        overlay=counts_as,
    )


def frozen(cluster: Cluster) -> Cluster:
    """A copy that later changes of the store do not reach, so that another thread may read it."""
    owned = {key: tuple(cluster.owned_ips(key)) for key in cluster.pods}
    owned.update({wired.key: tuple(cluster.owned_ips(wired.key)) for wired in cluster.wired.values()})
    owners = {ip: key for key, ips in owned.items() for ip in ips}
    return Cluster(
        pods=dict(cluster.pods),
        namespaces=dict(cluster.namespaces),
        owner=owners.get,
        owned_ips=lambda key: owned.get(key, ()),
        wired=cluster.wired,
        policies=cluster.policies,
        node_name=cluster.node_name,
        node_at=cluster.node_at,
        overlay=cluster.overlay,
    )


def by_namespace(policies: Iterable[Policy]) -> dict[str, tuple[Policy, ...]]:
    """Policies by namespace, in order of their keys."""
    found: dict[str, list[Policy]] = {}
    for policy in sorted(policies, key=lambda one: one.key):
        found.setdefault(policy.key.namespace, []).append(policy)
    return {namespace: tuple(several) for namespace, several in found.items()}


def parse_question(source: str, destination: str, port: str, protocol: str) -> Question:
    """A question from its texts. Raises QuestionError that names the part, its value and what is accepted."""
    wanted = protocol.upper() or "TCP"
    if wanted not in ASKABLE:
        raise QuestionError(f"protocol = {protocol!r}. Accepted: {', '.join(ASKABLE)}.")
    if wanted == ICMP and port:
        raise QuestionError(f"port = {port!r} with protocol ICMP. Accepted: no port, ICMP has none.")
    if wanted != ICMP and not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise QuestionError(f"port = {port!r}. Accepted: 1 to 65535, the port of the destination pod.")
    return Question(
        source=_parse_end("from", source),
        destination=_parse_end("to", destination),
        protocol=wanted,
        port=int(port) if port else None,
    )


def _parse_end(part: str, text: str) -> Key | str:
    namespace, slash, name = text.partition("/")
    if slash and namespace and name and "/" not in name:
        return Key(namespace, name)
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise QuestionError(f"{part} = {text!r}. Accepted: namespace/pod or an IP address.") from None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id:
            raise QuestionError(f"{part} = {text!r}. Accepted: an address without a zone.")
        return str(ip.ipv4_mapped or ip)
    return str(ip)


def parties(cluster: Cluster, end: Key | str, *, part: str) -> dict[int, Party]:
    """The end of a question by IP version. Raises QuestionError where it has no address."""
    if isinstance(end, str):
        return {version_of(end): party_at(cluster, end)}
    pod = cluster.pods.get(end)
    ips = tuple(cluster.owned_ips(end)) or (pod.ips if pod is not None else ())
    if not ips:
        what = "is not in this agent's view" if pod is None else f"has no address yet (phase {pod.phase})"
        raise QuestionError(f"{part} = {str(end)!r}: the pod {what}. Ask about an address, or wait for the pod.")
    found: dict[int, Party] = {}
    for ip in ips:
        found.setdefault(version_of(ip), party_at(cluster, ip, asked=pod))
    return found


def party_at(cluster: Cluster, ip: str, *, asked: Pod | None = None) -> Party:
    """Who an address belongs to now; `asked` is the pod that a question named, where it did."""
    wired = cluster.wired.get(ip)
    key = cluster.owner(ip)
    owner = cluster.pods.get(key) if key is not None else None
    node = "" if owner is not None or wired is not None else cluster.node_at.get(ip, "")
    party = Party(
        ip=ip,
        owner=owner,
        subject=wired.pod if wired is not None else owner,
        local=wired is not None,
        unknown=wired is not None and wired.pod is None,
        node=node,
        counts_as=cluster.overlay.get(ip, "") if node else "",
    )
    return structs.replace(party, words=_words(cluster, party, wired, asked))


def _words(cluster: Cluster, party: Party, wired: Wired | None, asked: Pod | None) -> str:
    if asked is not None and asked.host_network:
        what = f"host-network pod {asked.key}, so node {asked.node}'s address; its labels do not count"
    elif asked is not None and asked.phase in FINISHED:
        holder = f"now pod {party.owner.key}'s" if party.owner is not None else "nobody's now"
        what = f"pod {asked.key} has finished ({asked.phase}); the address is {holder}"
    elif wired is not None:
        what = f"pod {wired.key} of this node" + ("" if wired.pod else ", which the API server has not shown yet")
    elif party.owner is not None:
        what = _owner_words(cluster, party.owner)
    elif party.counts_as:
        what = f"node {party.node} in the overlay; counts as the node's address {party.counts_as}"
    elif party.node:
        what = f"node {party.node}" + (" (this node)" if party.node == cluster.node_name else "")
    else:
        what = "no pod of the view owns it"
    return f"{party.ip}: {what}"


def _owner_words(cluster: Cluster, owner: Pod) -> str:
    if owner.node == cluster.node_name:
        return f"pod {owner.key} of this node, but netagent has not wired it: its policies are not enforced yet"
    return f"pod {owner.key} of node {owner.node or 'unknown'}"
