"""Who may reach whom around one node: each of its pods against each other, and against all that is not here.

The verdicts are the judgement's own. Ends that no policy tells apart are judged once (`core.questions.likeness`), and
ends whose verdicts are equal throughout carry the same number, so that they may be shown as one. Ends that are not here
are always put together this way: a cell speaks for every one of them.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping

from msgspec import Struct, field, structs

from netagent.core.policy.meaning import Direction, Peer, Policy, Rule
from netagent.core.policy.peersets import version_of
from netagent.core.questions.judgement import Flow, exempt, isolating, named_target, peer_holds, port_ranges
from netagent.core.questions.likeness import Likeness
from netagent.core.questions.openings import EVERYTHING, NOTHING, Openings, both, either, openings
from netagent.core.questions.parties import Cluster, Party, QuestionError, parties, party_at
from netagent.core.questions.probes import outside
from netagent.records import Key

MAX_PAIRS = 150_000
"""Pairs of likenesses that are judged: two to three seconds of one core."""
MAX_ELSEWHERE = 64
"""Ends that are shown besides this node's pods."""
MAX_NAMESPACES = 8
"""Namespaces named of one end."""
HERE, REMOTE, NODE, OUTSIDE = "here", "remote", "node", "outside"

Steps = Generator[None, None, None]


class End(Struct, frozen=True, gc=False, kw_only=True):
    """A row and a column."""

    name: str
    """How a question names it; of several, the first of them."""
    kind: str
    """here: a pod of this node; remote: pods of other nodes; node: nodes; outside: addresses of nobody."""
    what: str
    """In words."""
    count: int
    """Ends that it stands for; 1 for a pod of this node."""
    namespaces: tuple[str, ...]
    """Of several pods, the first MAX_NAMESPACES."""
    alike: int
    """Equal for two ends that have the same verdicts with everybody, and with each other."""
    asks: tuple[str, int] | None
    """Protocol and port that its pod declares first."""


class Verdict(Struct, frozen=True, gc=False, kw_only=True):
    """What a cell says."""

    kind: str
    """all, some, none, itself, or unasked where the ends have no IP version in common."""
    text: str
    example: tuple[str, int | None] | None
    """A protocol and port that are open; None where all or nothing is."""
    by_version: Mapping[int, Openings]
    """Of the IP versions that both ends have."""


class Reachability(Struct, frozen=True, gc=False, kw_only=True):
    """The matrix."""

    ends: tuple[End, ...]
    """This node's pods first."""
    verdicts: tuple[Verdict, ...]
    cells: tuple[tuple[int | None, ...], ...]
    """cells[source][destination] is an index into verdicts; None where neither is here."""
    notes: tuple[str, ...] = ()
    """Where the matrix stops short."""


ITSELF = Verdict(kind="itself", text="itself", example=None, by_version={})
UNASKED = Verdict(kind="unasked", text="no IP version in common", example=None, by_version={})


def reachability(cluster: Cluster) -> Generator[None, None, Reachability]:
    """Judge everything; the result is what the generator returns."""
    run = _Run(structs.replace(cluster, namespaces=dict(cluster.namespaces)))
    yield from run.collect()
    yield from run.judge()
    return (yield from run.result())


class Side(Struct, gc=False):
    """What one direction is judged by, at all ends that the same policies isolate."""

    direction: Direction
    rules: tuple[Rule, ...] | None
    """None: everything passes; empty: nothing does."""
    server: Party | None
    """For ingress: whose declarations resolve named ports."""
    opened: dict[int, Openings] = field(default_factory=dict)
    """By the likeness of the other end."""


class Judge:
    """What is open between two likenesses, each question answered once."""

    def __init__(self, cluster: Cluster, likeness: Likeness) -> None:
        self._cluster = cluster
        self._likeness = likeness
        self._alike = likeness.parties
        self._sides: dict[Hashable, Side] = {}
        self._side_of: dict[Direction, dict[int, Side]] = {direction: {} for direction in Direction}
        self._rules: dict[int, dict[int, bool]] = {}
        """Identity of a rule -> likeness -> whether it is for that end. Rules live as long as the cluster does."""
        self._peers: dict[Peer, dict[int, bool]] = {}
        """Peer -> aspect -> whether it holds who has it."""
        self._peers_of: dict[int, list[tuple[Peer, dict[int, bool]]]] = {}
        """The same by identity of a rule."""
        self._ports: dict[Hashable, Openings] = {}

    def between(self, source: int, destination: int) -> tuple[Openings, str]:
        """What both directions let through, and why no policy judges it ("" where one may)."""
        one, other = self._alike[source], self._alike[destination]
        if one.node or other.node:
            free = exempt(self._cluster, Flow(source=one, destination=other, protocol="TCP", port=1))
            if free:
                return EVERYTHING, free
        egress = self._one_way(Direction.EGRESS, source, destination)
        ingress = self._one_way(Direction.INGRESS, destination, source)
        return both(egress, ingress), ""

    def _one_way(self, direction: Direction, subject: int, peer: int) -> Openings:
        """What the policies of one end let through; as `judgement.permits`, for all ports at once."""
        side = self._side(direction, subject)
        if side.rules is None:
            return EVERYTHING
        found = side.opened.get(peer)
        if found is None:
            server = side.server or self._alike[peer]
            found = either(self._open(side, rule, server) for rule in side.rules if self._is_for(rule, peer))
            side.opened[peer] = found
        return found

    def _side(self, direction: Direction, subject: int) -> Side:
        side = self._side_of[direction].get(subject)
        if side is None:
            party = self._alike[subject]
            policies = isolating(self._cluster, party.subject, direction) if party.subject is not None else []
            rules = tuple(rule for policy in policies for rule in policy.rules[direction])
            judged = () if party.unknown else rules if policies else None
            server = party if direction is Direction.INGRESS else None
            declared = party.subject.ports if server is not None and party.subject is not None else ()
            identity = (direction, judged is None, tuple(map(id, rules)), declared)
            side = self._sides.setdefault(identity, Side(direction, judged, server))
            self._side_of[direction][subject] = side
        return side

    def _is_for(self, rule: Rule, end: int) -> bool:
        known = self._rules.setdefault(id(rule), {})
        if end not in known:
            known[end] = rule.peers is None or any(self._holds(*peer, end) for peer in self._known_peers(rule))
        return known[end]

    def _known_peers(self, rule: Rule) -> list[tuple[Peer, dict[int, bool]]]:
        found = self._peers_of.get(id(rule))
        if found is None:
            found = [(peer, self._peers.setdefault(peer, {})) for peer in rule.peers or ()]
            self._peers_of[id(rule)] = found
        return found

    def _holds(self, peer: Peer, known: dict[int, bool], end: int) -> bool:
        aspect = self._likeness.aspect(peer, end)
        if aspect not in known:
            known[aspect] = peer_holds(self._cluster, peer, self._alike[end])
        return known[aspect]

    def _open(self, side: Side, rule: Rule, server: Party) -> Openings:
        if rule.ports is None:
            return EVERYTHING
        target = named_target(self._cluster, server, side.direction)
        what = (id(rule), target.ports if target is not None else None)
        known = self._ports.get(what)
        if known is None:
            ranges = [(port.protocol, part) for port in rule.ports for part in port_ranges(port, target)]
            known = self._ports[what] = openings(ranges)
        return known


class _Class(Struct, gc=False):
    """Ends of one likeness."""

    kind: str
    likeness: Mapping[int, int]
    """IP version -> number of the likeness."""
    name: str
    what: str
    asks: tuple[str, int] | None
    count: int = 0
    namespaces: dict[str, None] = field(default_factory=dict)

    def end(self, alike: int, name: str = "", what: str = "") -> End:
        """As a row and column; `name` and `what` where it stands for one pod alone."""
        return End(
            name=name or self.name,
            kind=self.kind,
            what=what or self.what,
            count=1 if name else self.count,
            namespaces=() if name else tuple(self.namespaces)[:MAX_NAMESPACES],
            alike=alike,
            asks=self.asks,
        )


class _Run:
    """One matrix at work."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._like = Likeness()
        self._judge = Judge(cluster, self._like)
        self._here: list[tuple[str, str, int]] = []
        """This node's pods: name, words, number of the class."""
        self._named: set[Key] = set()
        """Pods that a question by name finds here."""
        self._classes: list[_Class] = []
        self._class_of: dict[Hashable, int] = {}
        self._verdicts: list[Verdict] = [ITSELF, UNASKED]
        self._numbers: dict[Hashable, int] = {}
        self._rows: list[list[int | None]] = []
        self._notes: list[str] = []

    # Who is there

    def collect(self) -> Steps:
        """Find everybody, and who is like whom."""
        for policy in (policy for several in self._cluster.policies.values() for policy in several):
            self._like.learn(policy)
            yield
        yield from self._like.settle()
        here = sorted({wired.key for wired in self._cluster.wired.values()})
        for key in here:
            self._enter_here(key)
            yield
        self._local = len(self._classes)
        yield from self._elsewhere(here)

    def _enter_here(self, key: Key) -> None:
        found = self._parties(key)
        own = {ip for ip, wired in self._cluster.wired.items() if wired.key == key}
        if found and own >= {party.ip for party in found.values()}:
            self._named.add(key)
            self._put_here(str(key), found)
            return
        # Another pod has its name, or one of its addresses, by now: whoever asks must name the address.
        for ip in sorted(own):
            self._put_here(ip, {version_of(ip): party_at(self._cluster, ip)})

    def _put_here(self, name: str, found: Mapping[int, Party]) -> None:
        words = "; ".join(party.words for party in found.values())
        self._here.append((name, words, self._enter(HERE, name, found)))

    def _elsewhere(self, here: Iterable[Key]) -> Steps:
        for number, key in enumerate(list(self._cluster.pods)):
            if key not in self._named and tuple(self._cluster.owned_ips(key)):
                found = self._parties(key)
                if found and not any(party.local for party in found.values()):  # else a sandbox here has its address
                    self._enter(REMOTE, str(key), found)
            if number % 8 == 0:
                yield
        for ip in sorted(self._cluster.node_at):
            party = party_at(self._cluster, ip)
            if party.node:
                self._enter(NODE, ip, {version_of(ip): party})
            yield
        for party in outside(self._cluster, self._policies_of(here)):
            self._enter(OUTSIDE, party.ip, {version_of(party.ip): party})
            yield
        self._bound()

    def _parties(self, key: Key) -> dict[int, Party]:
        try:
            return parties(self._cluster, key, part="")
        except QuestionError:  # gone, or without an address
            return {}

    def _policies_of(self, pods: Iterable[Key]) -> Iterator[Policy]:
        for namespace in sorted({key.namespace for key in pods}):
            yield from self._cluster.policies.get(namespace, ())

    def _enter(self, kind: str, name: str, found: Mapping[int, Party]) -> int:
        """The class of an end."""
        likeness = {version: self._like.number(party) for version, party in sorted(found.items())}
        number = self._class_of.setdefault((kind, tuple(likeness.items())), len(self._classes))
        pods = [pod for party in found.values() if (pod := party.subject or party.owner) is not None]
        if number == len(self._classes):
            declared = next(((port.protocol, port.number) for pod in pods for port in pod.ports), None)
            words = "; ".join(party.words for party in found.values())
            self._classes.append(_Class(kind, likeness, name, words, declared))
        one = self._classes[number]
        one.count += 1
        one.namespaces.update(dict.fromkeys(pod.key.namespace for pod in pods))
        return number

    def _bound(self) -> None:
        """Leave out the smallest kinds where there are too many pairs."""
        room = max(0, MAX_PAIRS - self._local**2) // (2 * self._local or 1)
        elsewhere = self._classes[self._local :]
        if len(elsewhere) > room:
            elsewhere.sort(key=lambda one: (one.kind == REMOTE, -one.count))
            left_out = sum(one.count for one in elsewhere[room:])
            self._notes.append(f"{left_out} of those who are not here are left out: policies tell too many apart")
            self._classes[self._local :] = elsewhere[:room]

    # What they may

    def judge(self) -> Steps:
        """Every class against every other, where one of the two is here."""
        for at, source in enumerate(self._classes):
            row: list[int | None] = []
            for beside, destination in enumerate(self._classes):
                judged = at < self._local or beside < self._local
                row.append(self._number(source, destination) if judged else None)
                if judged:
                    yield
            self._rows.append(row)

    def _number(self, source: _Class, destination: _Class) -> int:
        """The verdict on a flow from a member of one to a member of the other, and not the same."""
        found = {
            version: self._judge.between(like, destination.likeness[version])
            for version, like in source.likeness.items()
            if version in destination.likeness
        }
        what = tuple(found.items())
        number = self._numbers.get(what)
        if number is None:
            number = self._numbers[what] = len(self._verdicts) if found else self._verdicts.index(UNASKED)
            if found:
                self._verdicts.append(_verdict(found))
        return number

    # The matrix

    def result(self) -> Generator[None, None, Reachability]:
        """Put together what is equal throughout."""
        alike = yield from self._alike()
        shown = [number for number, first in enumerate(alike) if number == first and number >= self._local]
        shown.sort(key=lambda number: (_ORDER.index(self._classes[number].kind), -self._classes[number].count))
        if len(shown) > MAX_ELSEWHERE:
            self._notes.append(f"{len(shown) - MAX_ELSEWHERE} kinds of those who are not here have no row")
        columns = [number for _, _, number in self._here] + shown[:MAX_ELSEWHERE]
        ends = [self._classes[number].end(alike[number], name, what) for name, what, number in self._here]
        ends += (self._classes[number].end(alike[number]) for number in shown[:MAX_ELSEWHERE])
        cells = []
        for at, source in enumerate(columns):
            row = [self._rows[source][destination] for destination in columns]
            if at < len(self._here):
                row[at] = self._verdicts.index(ITSELF)
            cells.append(tuple(row))
            yield
        return Reachability(
            ends=tuple(ends), verdicts=tuple(self._verdicts), cells=tuple(cells), notes=tuple(self._notes)
        )

    def _alike(self) -> Generator[None, None, list[int]]:
        """For each class the first one with equal verdicts, which takes it in."""
        first: dict[Hashable, int] = {}
        alike = []
        for number, one in enumerate(self._classes):
            others = self._local if number >= self._local else len(self._classes)
            row, column = self._rows[number][:others], [row[number] for row in self._rows[:others]]
            found = first.setdefault((one.kind, *row, *column), number)
            if found != number:
                self._classes[found].count += one.count
                self._classes[found].namespaces.update(one.namespaces)
            alike.append(found)
            yield
        return alike


_ORDER = (REMOTE, OUTSIDE, NODE)


def _verdict(found: Mapping[int, tuple[Openings, str]]) -> Verdict:
    different = set(found.values())
    opened, free = next(iter(found.values()))
    text = free or str(opened)
    if len(different) > 1:
        text = "; ".join(f"IPv{version}: {free or opened}" for version, (opened, free) in found.items())
    kinds = {opened for opened, _ in different}
    kind = "all" if kinds == {EVERYTHING} else "none" if kinds == {NOTHING} else "some"
    example = next((one for opened in kinds if (one := opened.example()) is not None), None)
    return Verdict(
        kind=kind,
        text=text,
        example=example if kind == "some" else None,
        by_version={version: opened for version, (opened, _) in found.items()},
    )
