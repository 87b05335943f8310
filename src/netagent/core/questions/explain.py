"""The answer to "why can this pod (not) reach that one?": verdict, policies, rules, and what nearly matched.

One answer per IP version that both ends have. Each direction is judged where its pod runs: egress at the source,
ingress at the destination. What this node's kernel says is compared elsewhere; here only the model speaks.
"""

from collections.abc import Iterator

from msgspec import Struct

from netagent.core.policy.meaning import Direction, Policy
from netagent.core.questions.judgement import Flow, exempt, isolating, missing
from netagent.core.questions.livecheck import LiveAnswer
from netagent.core.questions.parties import Cluster, Party, Question, QuestionError, parties
from netagent.printable import one_line
from netagent.records import Pod

NEAR_MISSES_SHOWN = 10
"""The closest per direction; a pod that many policies isolate has many more, and they say little."""
JUDGED_IN_ORDER = (Direction.EGRESS, Direction.INGRESS)


class RuleRef(Struct, frozen=True, gc=False):
    """One rule of a policy, as in `spec.ingress[2]`."""

    policy: str
    direction: Direction
    index: int

    def __str__(self) -> str:
        return f"{self.policy} {self.direction}[{self.index}]"


class NearMiss(Struct, frozen=True, gc=False):
    """A rule that did not match, and what was missing."""

    rule: RuleRef
    missing: tuple[str, ...]


class DirectionAnswer(Struct, frozen=True, gc=False, kw_only=True):
    """One direction."""

    direction: Direction
    allowed: bool
    reason: str
    """One sentence."""
    pod: str
    """The pod whose policies judge; or the address, where no pod is behind it."""
    node: str
    """Where it is enforced; "" where unknown or nowhere."""
    enforced_here: bool
    isolated_by: tuple[str, ...] = ()
    admitted_by: tuple[RuleRef, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    """Closest first; only where the direction denies."""
    near_misses_left_out: int = 0
    problems: tuple[str, ...] = ()
    """What could not be honoured in the policies that isolate."""


class Answer(Struct, frozen=True, gc=False, kw_only=True):
    """The verdict of one IP version."""

    version: int
    allowed: bool
    source: str
    destination: str
    source_ip: str
    destination_ip: str
    exempt: str
    """Why no policy judges it; then `directions` is empty."""
    directions: tuple[DirectionAnswer, ...]
    kernel: LiveAnswer | None = None
    """What this node's ruleset does with it; None: not asked."""
    agree: bool | None = None
    """Whether the kernel does what the model says, for the directions enforced here; None: not asked or not known."""


class Explanation(Struct, frozen=True, gc=False, kw_only=True):
    """The whole answer."""

    source: str
    destination: str
    protocol: str
    port: int | None
    verdict: str
    """allow, deny, or mixed where the IP versions differ."""
    agree: bool | None
    answers: tuple[Answer, ...]
    notes: tuple[str, ...] = ()


def explain(cluster: Cluster, question: Question) -> Explanation:
    """The model's answer. Raises QuestionError where there is nothing to judge."""
    answers = tuple(judge(cluster, flow) for flow in flows_of(cluster, question))
    verdicts = {answer.allowed for answer in answers}
    return Explanation(
        source=str(question.source),
        destination=str(question.destination),
        protocol=question.protocol,
        port=question.port,
        verdict="mixed" if len(verdicts) > 1 else "allow" if True in verdicts else "deny",
        agree=None,
        answers=answers,
    )


def flows_of(cluster: Cluster, question: Question) -> list[Flow]:
    """The question as one flow per IP version that both ends have. Raises QuestionError where there is none."""
    sources = parties(cluster, question.source, part="from")
    destinations = parties(cluster, question.destination, part="to")
    common = sorted(sources.keys() & destinations.keys())
    if not common:
        raise QuestionError(
            f"from = {str(question.source)!r} has IPv{_versions(sources)}, to = {str(question.destination)!r} has "
            f"IPv{_versions(destinations)}: no flow can be between them. Accepted: two ends with a common IP version."
        )
    return [
        Flow(
            source=sources[version],
            destination=destinations[version],
            protocol=question.protocol,
            port=question.port,
        )
        for version in common
    ]


def judge(cluster: Cluster, flow: Flow) -> Answer:
    """The model's verdict on one flow, with its reasons."""
    free = exempt(cluster, flow)
    directions = () if free else tuple(_direction(cluster, flow, direction) for direction in JUDGED_IN_ORDER)
    return Answer(
        version=6 if ":" in flow.source.ip else 4,
        allowed=all(one.allowed for one in directions),
        source=flow.source.words,
        destination=flow.destination.words,
        source_ip=flow.source.ip,
        destination_ip=flow.destination.ip,
        exempt=free,
        directions=directions,
    )


def _direction(cluster: Cluster, flow: Flow, direction: Direction) -> DirectionAnswer:
    subject = flow.subject(direction)
    if subject.unknown:
        return _plain(cluster, subject, direction, False, "the API server has not shown the pod: nothing passes yet")
    pod = subject.subject
    if pod is None:
        return _plain(cluster, subject, direction, True, "no pod is behind this address, so no policy selects it")
    policies = isolating(cluster, pod, direction)
    if not policies:
        return _plain(cluster, subject, direction, True, f"no policy isolates the pod for {direction}")
    return _isolated(cluster, flow, direction, pod, policies)


def _plain(cluster: Cluster, subject: Party, direction: Direction, allowed: bool, reason: str) -> DirectionAnswer:
    return DirectionAnswer(
        direction=direction,
        allowed=allowed,
        reason=reason,
        pod=subject.name,
        node=_enforcer(cluster, subject),
        enforced_here=subject.local,
    )


def _isolated(cluster: Cluster, flow: Flow, direction: Direction, pod: Pod, policies: list[Policy]) -> DirectionAnswer:
    admitted, misses = [], []
    for policy in policies:
        for index, rule in enumerate(policy.rules[direction]):
            ref, lacks = RuleRef(str(policy.key), direction, index), missing(cluster, rule, flow, direction)
            if lacks:
                misses.append(NearMiss(ref, lacks))
            else:
                admitted.append(ref)
    near = [] if admitted else sorted(misses, key=lambda miss: len(miss.missing))
    subject = flow.subject(direction)
    return DirectionAnswer(
        direction=direction,
        allowed=bool(admitted),
        reason=_reason(admitted, misses, len(policies)),
        pod=str(pod.key),
        node=_enforcer(cluster, subject),
        enforced_here=subject.local,
        isolated_by=tuple(str(policy.key) for policy in policies),
        admitted_by=tuple(admitted),
        near_misses=tuple(near[:NEAR_MISSES_SHOWN]),
        near_misses_left_out=max(0, len(near) - NEAR_MISSES_SHOWN),
        problems=tuple(f"{policy.key}: {problem}" for policy in policies for problem in policy.problems),
    )


def _reason(admitted: list[RuleRef], misses: list[NearMiss], policies: int) -> str:
    isolated = f"isolated by {policies} {'policy' if policies == 1 else 'policies'}"
    if admitted:
        return f"{isolated}, admitted by {admitted[0]}"
    rules = f"none of {len(misses)} rules" if len(misses) > 1 else "its only rule does not" if misses else "no rule"
    return f"{isolated}, and {rules} {'admits' if len(misses) != 1 else 'admit'} the flow"


def _enforcer(cluster: Cluster, subject: Party) -> str:
    return cluster.node_name if subject.local else subject.host if subject.subject is not None else ""


def _versions(found: dict[int, Party]) -> str:
    return " and IPv".join(str(version) for version in sorted(found))


# The kernel's word beside the model's


def not_forwarded(cluster: Cluster, answer: Answer) -> str:
    """Why the packets of this flow never meet this node's forward hook; "" where they do, or may."""
    for ip in (answer.source_ip, answer.destination_ip):
        if cluster.node_at.get(ip) == cluster.node_name and ip not in cluster.wired:
            return f"{ip} is this node's own: its packets are not forwarded, no rule of netagent sees them here"
    return ""


def agrees(answer: Answer, live: LiveAnswer) -> bool | None:
    """Whether the kernel does what the model says for the directions that this node enforces; None: not known."""
    if live.verdict == "unknown":
        return None
    denied = next((one.direction for one in answer.directions if one.enforced_here and not one.allowed), None)
    if denied is None:
        return live.verdict == "accept"
    return live.verdict == "drop" and live.dropped_by in (denied, "")


# For people


def text(explanation: Explanation) -> str:
    """What an on-call person reads: verdict first, then why, then what would have helped."""
    return "\n".join(map(one_line, _lines(explanation))) + "\n"


def _lines(explanation: Explanation) -> Iterator[str]:
    what = explanation.protocol if explanation.port is None else f"{explanation.port}/{explanation.protocol}"
    yield f"{explanation.verdict.upper()}  {explanation.source} -> {explanation.destination}  {what}"
    for note in explanation.notes:
        yield f"note: {note}"
    for answer in explanation.answers:
        yield ""
        yield f"IPv{answer.version}: {'allowed' if answer.allowed else 'denied'}"
        yield f"  from {answer.source}"
        yield f"  to   {answer.destination}"
        if answer.exempt:
            yield f"  {answer.exempt}"
        for one in answer.directions:
            yield from _direction_lines(one)
        if answer.kernel is not None:
            yield from _kernel_lines(answer, answer.kernel)


def _direction_lines(one: DirectionAnswer) -> Iterator[str]:
    place = "this node" if one.enforced_here else f"node {one.node}" if one.node else "nowhere"
    verdict = "allowed" if one.allowed else "DENIED"
    yield f"  {one.direction} at {one.pod}: {verdict}, {one.reason} (enforced by {place})"
    if one.isolated_by:
        yield f"    isolated by: {', '.join(one.isolated_by)}"
    if one.admitted_by:
        yield f"    admitted by: {', '.join(map(str, one.admitted_by))}"
    for miss in one.near_misses:
        yield f"    not {miss.rule}: {'; '.join(miss.missing)}"
    if one.near_misses_left_out:
        yield f"    and {one.near_misses_left_out} rules further off"
    for problem in one.problems:
        yield f"    problem: {problem}"


def _kernel_lines(answer: Answer, live: LiveAnswer) -> Iterator[str]:
    judged = {True: "agrees", False: "DISAGREES with the policies", None: "could not be compared"}[answer.agree]
    yield f"  kernel of this node: {live.verdict}, {judged}"
    if live.reason:
        yield f"    {live.reason}"
    if answer.agree is not True:
        yield from (f"    {step}" for step in live.path)
