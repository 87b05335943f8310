"""What would change if policies were applied or deleted: verdicts of pod pairs, and open flows that would be cut.

Two clusters that differ only in their policies are asked the same questions. Only pods that a touched policy selects
can see a change, so only flows with such an end are looked at; peers that no rule in question tells apart are judged
once. Ports are those that destinations declare, the ends of those that the policies name, and one that nobody names.
Everything is bounded; a report says where it stopped.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct, field, structs

from netagent.core.policy.meaning import Direction, Peer, Policy, Rule
from netagent.core.policy.peersets import version_of
from netagent.core.questions.explain import judge
from netagent.core.questions.judgement import Flow, admits, exempt, isolating, peer_missing, permits
from netagent.core.questions.parties import ASKABLE, ICMP, Cluster, Party, by_namespace, parties, party_at
from netagent.core.questions.probes import Asked, other_port, outside, ports_of
from netagent.printable import one_line
from netagent.records import Key, Pod

MAX_JUDGED = 1_000_000
"""Flows judged: some seconds of one core."""
MAX_PAIRS = 100_000
"""Changing pairs that are counted."""
MAX_ROWS = 1000
"""Pairs and cut flows that are listed."""
ENDED = ("TIME_WAIT", "CLOSE")


class OpenFlow(Struct, frozen=True, gc=False, kw_only=True):
    """One entry of conntrack."""

    protocol: str
    """TCP, UDP, SCTP, ICMP, or a number as text."""
    client: str
    client_port: int | None
    service: str
    """Where the client sent to, before any DNAT."""
    service_port: int | None
    server: str
    """Who answers, behind any DNAT."""
    server_port: int | None
    mark: int
    state: str
    """Of TCP, e.g. ESTABLISHED; else "". """


class PolicyChange(Struct, frozen=True, gc=False):
    """What happens to one policy."""

    policy: str
    action: str
    """create, replace, delete or unchanged."""
    selects: int
    """Pods with an address that it selects, before or after."""


class PairChange(Struct, frozen=True, gc=False, kw_only=True):
    """A pair of ends whose verdict changes."""

    source: str
    destination: str
    versions: tuple[int, ...]
    opened: tuple[str, ...]
    """Ports that become allowed."""
    closed: tuple[str, ...]
    """Ports that become denied."""


class CutFlow(Struct, frozen=True, gc=False, kw_only=True):
    """An open flow that would not be allowed any more."""

    protocol: str
    source: str
    source_ip: str
    source_port: int | None
    destination: str
    destination_ip: str
    destination_port: int | None
    state: str
    why: str


class Simulation(Struct, frozen=True, gc=False, kw_only=True):
    """The report. Nothing was applied."""

    policies: tuple[PolicyChange, ...]
    pairs: tuple[PairChange, ...]
    pairs_total: int
    cut: tuple[CutFlow, ...]
    cut_total: int
    flows_open: int
    """Open flows of this node that were looked at."""
    judged: int
    capped: tuple[str, ...] = ()
    """Where the report stopped early."""


class Proposal(Struct, frozen=True, gc=False):
    """Policies to create or replace, and to delete."""

    applied: tuple[Policy, ...] = ()
    deleted: tuple[Key, ...] = ()

    def on(self, policies: Mapping[Key, Policy]) -> dict[Key, Policy]:
        """The policies after it."""
        after = {key: policy for key, policy in policies.items() if key not in self.deleted}
        return after | {policy.key: policy for policy in self.applied}


def simulate(cluster: Cluster, proposal: Proposal, flows: Iterable[OpenFlow]) -> Simulation:
    """Compare the cluster with itself after the proposal. `flows`: open flows of this node."""
    before = {policy.key: policy for several in cluster.policies.values() for policy in several}
    after = proposal.on(before)
    keys = sorted({policy.key for policy in proposal.applied} | set(proposal.deleted))
    touched = [one for key in keys if before.get(key) != after.get(key) for one in (before.get(key), after.get(key))]
    run = _Run(
        before=cluster,
        after=structs.replace(cluster, policies=by_namespace(after.values())),
        touched=[policy for policy in touched if policy is not None],
    )
    run.compare()
    cut, looked_at = run.cut(flows)
    pairs = _rows(run.changes)
    if len(pairs) > MAX_ROWS:
        run.capped["pairs"] = f"{len(pairs)} pairs change, the first {MAX_ROWS} are listed"
    if len(cut) > MAX_ROWS:
        run.capped["cut"] = f"{len(cut)} open flows would be cut, the first {MAX_ROWS} are listed"
    return Simulation(
        policies=tuple(_policy_change(cluster, key, before.get(key), after.get(key)) for key in keys),
        pairs=tuple(pairs[:MAX_ROWS]),
        pairs_total=len(pairs),
        cut=tuple(cut[:MAX_ROWS]),
        cut_total=len(cut),
        flows_open=looked_at,
        judged=run.judged,
        capped=tuple(run.capped.values()),
    )


class _Side(Struct, gc=False):
    """Pods that the same policies isolate in a direction, before and after, and that declare the same ports."""

    rules: tuple[list[Rule] | None, list[Rule] | None]
    """Before and after; None: not isolated; empty: nothing passes."""
    verdicts: dict[tuple[str, str, int | None], tuple[bool, bool]] = field(default_factory=dict)
    """(address of the other end, protocol, port) -> allowed before and after."""


class _Run(Struct):
    """One simulation at work."""

    before: Cluster
    after: Cluster
    touched: list[Policy]
    judged: int = 0
    capped: dict[str, str] = field(default_factory=dict)
    changes: dict[tuple[str, str, int], dict[str, bool]] = field(default_factory=dict)
    """(source, destination, version) -> port -> whether it is allowed afterwards, of those that change."""
    affected: set[Key] = field(default_factory=set)
    _sides: dict[object, _Side] = field(default_factory=dict)
    _side_of: dict[tuple[Direction, str], _Side] = field(default_factory=dict)

    def compare(self) -> None:
        """Judge every flow that can change."""
        everyone = [party for key in self.before.pods for party in _addresses(self.before, key)]
        peers = everyone + outside(self.before, self.touched)
        for direction in Direction:
            for members in self._affected(direction, everyone):
                self._compare(direction, members, peers)

    def cut(self, flows: Iterable[OpenFlow]) -> tuple[list[CutFlow], int]:
        """Open flows that were allowed and would not be, and how many were looked at."""
        cut, looked_at = [], 0
        for open_flow in flows:
            if open_flow.protocol not in ASKABLE or open_flow.state in ENDED:
                continue
            flow = Flow(
                source=party_at(self.before, open_flow.client),
                destination=party_at(self.before, open_flow.server),
                protocol=open_flow.protocol,
                port=open_flow.server_port if open_flow.protocol != ICMP else None,
            )
            looked_at += 1
            if self._is_affected(flow) and allowed(self.before, flow) and not allowed(self.after, flow):
                cut.append(_cut(self.after, open_flow, flow))
        return cut, looked_at

    def _is_affected(self, flow: Flow) -> bool:
        ends = (flow.source.subject, flow.destination.subject)
        return any(pod is not None and pod.key in self.affected for pod in ends)

    def _affected(self, direction: Direction, everyone: list[Party]) -> list[list[Party]]:
        """Ends whose verdict in the direction can change, those of one side and IP version together."""
        together: dict[tuple[int, int], list[Party]] = {}
        for party in everyone:
            pod = party.subject
            if pod is not None and any(_selects(policy, pod, direction) for policy in self.touched):
                self.affected.add(pod.key)
                side = self._side(direction, party)
                together.setdefault((id(side), version_of(party.ip)), []).append(party)
        return list(together.values())

    def _side(self, direction: Direction, party: Party) -> _Side:
        side = self._side_of.get((direction, party.ip))
        if side is None:
            identity, rules = self._side_rules(direction, party)
            side = self._side_of[direction, party.ip] = self._sides.setdefault(identity, _Side(rules))
        return side

    def _side_rules(
        self, direction: Direction, party: Party
    ) -> tuple[object, tuple[list[Rule] | None, list[Rule] | None]]:
        pod = party.subject
        if party.unknown or pod is None:
            return party.unknown, ([], []) if party.unknown else (None, None)
        before, after = (isolating(cluster, pod, direction) for cluster in (self.before, self.after))
        identity = (direction, tuple(one.key for one in before), tuple(one.key for one in after), pod.ports)
        return identity, (_rules(before, direction), _rules(after, direction))

    def _compare(self, direction: Direction, members: list[Party], peers: list[Party]) -> None:
        """Members of one side against everybody."""
        first = members[0]
        side = self._side(direction, first)
        asked = sorted({peer for rules in side.rules for rule in rules or () for peer in rule.peers or ()}, key=str)
        other = other_port(self.touched, [rule for rules in side.rules for rule in rules or ()], first)
        changing: dict[object, list[Asked]] = {}
        for peer in peers:
            if version_of(peer.ip) != version_of(first.ip):
                continue
            kind = self._kind(peer, asked, direction)
            if kind not in changing:
                target = first if direction is Direction.INGRESS else peer
                candidates = ports_of(target, self.touched, other)
                changing[kind] = [one for one in candidates if len(set(self._verdict(direction, first, peer, one))) > 1]
            for one in changing[kind]:
                for member in members:
                    if not self._judge(direction, member, peer, one):
                        return

    def _kind(self, peer: Party, asked: list[Peer], direction: Direction) -> object:
        """Peers of one kind are alike to all rules in question."""
        held = tuple(next(peer_missing(self.before, one, peer), None) is None for one in asked)
        if direction is Direction.INGRESS:
            return held
        owner = peer.owner
        named = owner is not None and owner.key.namespace in self.before.namespaces
        ports = peer.subject.ports if peer.subject is not None else None
        return held, ports, owner.ports if owner is not None else None, named

    def _verdict(self, direction: Direction, member: Party, peer: Party, asked: Asked) -> tuple[bool, bool]:
        """What the direction says before and after, of the member as the one whose policies judge."""
        side, what = self._side(direction, member), (peer.ip, asked.protocol, asked.port)
        verdict = side.verdicts.get(what)
        if verdict is None:
            flow = _flow(direction, member, peer, asked)
            before, after = (
                rules is None or any(admits(cluster, rule, flow, direction) for rule in rules)
                for cluster, rules in zip((self.before, self.after), side.rules, strict=True)
            )
            verdict = side.verdicts[what] = (before, after)
        return verdict

    def _judge(self, direction: Direction, member: Party, peer: Party, asked: Asked) -> bool:
        """Both directions of a flow before and after; False when enough were judged."""
        if self.judged >= MAX_JUDGED or len(self.changes) >= MAX_PAIRS:
            self.capped["judged"] = f"stopped at {self.judged} flows and {len(self.changes)} pairs; more may change"
            return False
        self.judged += 1
        back = Direction.EGRESS if direction is Direction.INGRESS else Direction.INGRESS
        here, there = self._verdict(direction, member, peer, asked), self._verdict(back, peer, member, asked)
        before, after = here[0] and there[0], here[1] and there[1]
        if before != after:
            flow = _flow(direction, member, peer, asked)
            if not exempt(self.before, flow):
                pair = (flow.source.name, flow.destination.name, version_of(flow.source.ip))
                self.changes.setdefault(pair, {})[asked.label] = after
        return True


def allowed(cluster: Cluster, flow: Flow) -> bool:
    """The model's verdict, without reasons."""
    return bool(exempt(cluster, flow)) or all(permits(cluster, flow, direction) for direction in Direction)


def _flow(direction: Direction, member: Party, peer: Party, asked: Asked) -> Flow:
    source, destination = (peer, member) if direction is Direction.INGRESS else (member, peer)
    return Flow(source=source, destination=destination, protocol=asked.protocol, port=asked.port)


def _addresses(cluster: Cluster, key: Key) -> list[Party]:
    """Where the pod has addresses of its own, one per IP version."""
    return list(parties(cluster, key, part="").values()) if tuple(cluster.owned_ips(key)) else []


def _selects(policy: Policy, pod: Pod, direction: Direction | None = None) -> bool:
    return (
        policy.key.namespace == pod.key.namespace
        and (direction is None or direction in policy.rules)
        and policy.selects.matches(pod.labels)
    )


def _rules(policies: list[Policy], direction: Direction) -> list[Rule] | None:
    return [rule for policy in policies for rule in policy.rules[direction]] if policies else None


def _policy_change(cluster: Cluster, key: Key, before: Policy | None, after: Policy | None) -> PolicyChange:
    if before == after:
        action = "unchanged" if before is not None else "delete, but there is none"
    else:
        action = "create" if before is None else "delete" if after is None else "replace"
    versions = [policy for policy in (before, after) if policy is not None]
    selected = [
        pod
        for pod in cluster.pods.values()
        if any(_selects(policy, pod) for policy in versions) and tuple(cluster.owned_ips(pod.key))
    ]
    return PolicyChange(str(key), action, len(selected))


# The report


def _rows(changes: Mapping[tuple[str, str, int], Mapping[str, bool]]) -> list[PairChange]:
    """Per pair; IP versions that change alike are one row."""
    merged: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for (source, destination, version), ports in changes.items():
        opened = tuple(label for label, after in ports.items() if after)
        closed = tuple(label for label, after in ports.items() if not after)
        merged.setdefault((source, destination, opened, closed), []).append(version)
    return [
        PairChange(
            source=source, destination=destination, versions=tuple(sorted(versions)), opened=opened, closed=closed
        )
        for (source, destination, opened, closed), versions in sorted(merged.items())
    ]


def _cut(after: Cluster, open_flow: OpenFlow, flow: Flow) -> CutFlow:
    denied = next(one for one in judge(after, flow).directions if not one.allowed)
    closest = f"; closest: {denied.near_misses[0].rule}: {'; '.join(denied.near_misses[0].missing)}"
    return CutFlow(
        protocol=open_flow.protocol,
        source=flow.source.name,
        source_ip=open_flow.client,
        source_port=open_flow.client_port,
        destination=flow.destination.name,
        destination_ip=open_flow.server,
        destination_port=flow.port,
        state=open_flow.state,
        why=f"{denied.direction} at {denied.pod}: {denied.reason}" + (closest if denied.near_misses else ""),
    )


def text(simulation: Simulation) -> str:
    """The report for people."""
    return "\n".join(map(one_line, _lines(simulation))) + "\n"


def _lines(simulation: Simulation) -> Iterator[str]:
    yield "Nothing was applied."
    for policy in simulation.policies:
        yield f"{policy.action} {policy.policy} (selects {policy.selects} {'pod' if policy.selects == 1 else 'pods'})"
    yield ""
    yield f"{simulation.pairs_total} pairs change verdict:" if simulation.pairs_total else "No verdict changes."
    for pair in simulation.pairs:
        families = "" if pair.versions == (4,) else f"  (IPv{', IPv'.join(map(str, pair.versions))})"
        for label, ports in (("opens", pair.opened), ("CLOSES", pair.closed)):
            if ports:
                yield f"  {label:6}  {pair.source} -> {pair.destination}  {', '.join(ports)}{families}"
    yield ""
    yield f"{simulation.cut_total} of {simulation.flows_open} open flows of this node would be cut."
    for flow in simulation.cut:
        ends = f"{_end(flow.source, flow.source_ip, flow.source_port)} -> "
        ends += _end(flow.destination, flow.destination_ip, flow.destination_port)
        yield f"  CUT  {flow.protocol} {ends}  {flow.state}".rstrip()
        yield f"       {flow.why}"
    for note in simulation.capped:
        yield f"note: {note}"


def _end(name: str, ip: str, port: int | None) -> str:
    place = f"[{ip}]" if ":" in ip else ip
    address = place if port is None else f"{place}:{port}"
    return address if name == ip else f"{name} ({address})"
