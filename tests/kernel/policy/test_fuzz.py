"""Random clusters and policies: every verdict of the kernel, asked with packets, is the oracle's.

NETAGENT_FUZZ_VERDICTS sets how many verdicts (2,000 unless told otherwise), NETAGENT_FUZZ_SEED the first seed. Each
seed is one cluster; the seeds and the number of verdicts are printed, and a difference names its seed.
"""

import os
from random import Random

import pytest
from msgspec import structs

from netagent.core.policy.store import FINISHED
from netagent.records import (
    ContainerPort,
    LabelSelector,
    NetworkPolicy,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Record,
    Requirement,
)
from support import words
from support.places import Place
from support.podbed import Bed
from support.words import block, key

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(3600)]

VERDICTS = int(os.environ.get("NETAGENT_FUZZ_VERDICTS", "2000"))
FIRST_SEED = int(os.environ.get("NETAGENT_FUZZ_SEED", "1"))
PROBES_PER_STEP = 120
STEPS_PER_SEED = 4
NAMESPACES = ("x", "y", "z")
LOCAL = ("x/a", "x/b", "y/a", "y/b", "z/a")
REMOTE = ("x/r", "y/r")
OUTSIDE = (("192.0.2.10", "2001:db8::10"), ("192.0.2.77", "2001:db8::77"))
OTHER_NODE = ("172.30.0.12", "fd00:30::c")
SERVED = ((80, "TCP"), (81, "TCP"), (5000, "TCP"), (80, "UDP"), (81, "UDP"), (0, "SCTP"))
ASKED = ((80, "TCP"), (81, "TCP"), (5000, "TCP"), (80, "UDP"), (81, "UDP"), (80, "SCTP"), (81, "SCTP"), (0, "ICMP"))
NAMED = (
    ContainerPort("web", 80, "TCP"),
    ContainerPort("web", 81, "TCP"),
    ContainerPort("web", 80, "UDP"),
    ContainerPort("alt", 81, "UDP"),
    ContainerPort("alt", 81, "SCTP"),
    ContainerPort("alt", 5000, "TCP"),
)


class Dice:
    """Objects by chance."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - repeatable on purpose

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def labels(self) -> dict[str, str]:
        return {name: self.random.choice("12") for name in ("app", "tier") if self.chance(0.6)}

    def selector(self) -> LabelSelector:
        labels = {name: self.random.choice("12") for name in ("app", "tier") if self.chance(0.25)}
        expressions = [self.requirement() for _ in range(self.random.choice((0, 0, 1, 1, 2)))]
        return LabelSelector(match_labels=labels, match_expressions=tuple(expressions))

    def requirement(self) -> Requirement:
        operator = self.random.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        wants_values = operator in ("In", "NotIn")
        if self.chance(0.03):  # what the API would refuse
            wants_values = not wants_values
        values = tuple(self.random.sample(("1", "2", "3"), self.random.choice((1, 2)))) if wants_values else ()
        return Requirement(self.random.choice(("app", "tier", "team")), operator, values)

    def peer(self, ips: list[str]) -> PolicyPeer:
        if self.chance(0.35):
            return self.block(ips)
        pods = self.selector() if self.chance(0.7) else None
        spaces = self.selector() if self.chance(0.5) else None
        return PolicyPeer(pod_selector=pods, namespace_selector=spaces)

    def block(self, ips: list[str]) -> PolicyPeer:
        def cidr() -> str:
            ip = self.random.choice(ips)
            lengths = (0, 16, 48, 64, 112, 120, 126, 128) if ":" in ip else (0, 8, 16, 24, 28, 30, 31, 32)
            return f"{ip}/{self.random.choice(lengths)}"

        return block(cidr(), *(cidr() for _ in range(self.random.choice((0, 0, 1, 2, 3)))))

    def port(self) -> PolicyPort:
        protocol = self.random.choice(("TCP", "TCP", "UDP", "SCTP"))
        match self.random.randrange(5):
            case 0:
                return PolicyPort(protocol=protocol)
            case 1:
                return PolicyPort(protocol=protocol, port=self.random.choice(("web", "alt", "none")))
            case 2:
                first, last = self.random.choice(((80, 81), (1, 80), (81, 6000), (81, 80), (80, 80)))
                return PolicyPort(protocol=protocol, port=first, end_port=last)
        return PolicyPort(protocol=protocol, port=self.random.choice((80, 81, 5000)))

    def rule(self, ips: list[str]) -> PolicyRule:
        peers = None if self.chance(0.2) else tuple(self.peer(ips) for _ in range(self.random.choice((0, 1, 1, 2, 3))))
        ports = None if self.chance(0.4) else tuple(self.port() for _ in range(self.random.choice((0, 1, 1, 2, 3))))
        return PolicyRule(peers=peers, ports=ports)

    def policy(self, name: str, ips: list[str]) -> NetworkPolicy:
        return NetworkPolicy(
            key=key(name),
            uid=name,
            pod_selector=LabelSelector() if self.chance(0.4) else self.selector(),
            policy_types=self.random.choice(((), ("Ingress",), ("Egress",), ("Ingress", "Egress"))),
            ingress=tuple(self.rule(ips) for _ in range(self.random.choice((0, 1, 1, 2)))),
            egress=tuple(self.rule(ips) for _ in range(self.random.choice((0, 1, 1, 2)))),
        )

    def changed(self, pod: Pod) -> Pod:
        """Other labels, ports, phase."""
        phase = self.random.choice(("Running", "Running", "Running", "Running", "Pending", "Succeeded"))
        ports = tuple(self.random.sample(NAMED, self.random.randrange(5)))
        return structs.replace(pod, labels=self.labels(), ports=ports, phase=phase)


async def populate(bed: Bed) -> None:
    for name in (*LOCAL, *REMOTE):
        await bed.pod(name, remote=name in REMOTE, serves=SERVED)
    for ips in (*OUTSIDE, OTHER_NODE):
        bed.outside(*ips, serves=SERVED)
    bed.servers.open(bed.places["node"], [(5000, "TCP")])


async def turn(bed: Bed, dice: Dice, *, fresh: bool) -> None:
    """A new cluster, or some changes to it, all at once."""
    ips = [ip for place in bed.places.values() for ip in place.ips]
    if fresh:
        await bed.remove(*bed.cluster.policies.values())
    spaces = [words.namespace(name, **dice.labels(), team=name) for name in NAMESPACES if fresh or dice.chance(0.2)]
    pods = [dice.changed(pod) for pod in bed.cluster.pods.values() if fresh or dice.chance(0.25)]
    names = [f"{space}/p{number}" for space in NAMESPACES for number in range(2)]
    policies = [dice.policy(name, ips) for name in names if dice.chance(0.9 if fresh else 0.3)]
    leaving = [one for one in bed.cluster.policies.values() if not fresh and dice.chance(0.15)]
    records: list[Record] = [*spaces, *pods, *policies]
    dice.random.shuffle(records)
    await bed.remove(*leaving)
    await bed.put(*records)


def question(bed: Bed, dice: Dice) -> tuple[Place, Place, int, str, int]:
    finished = {str(pod.key) for pod in bed.cluster.pods.values() if pod.phase in FINISHED}  # they have no network
    src, dst = dice.random.sample([place for place in bed.places.values() if place.name not in finished], 2)
    port, protocol = dice.random.choice(ASKED)
    version = 4 if protocol == "SCTP" else dice.random.choice((4, 4, 6))
    return src, dst, port, protocol, version


async def test_every_verdict_is_the_oracles(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    await populate(bed)
    seed, verdicts, allowed = FIRST_SEED - 1, 0, 0
    while verdicts < VERDICTS:
        seed += 1
        dice = Dice(seed)
        for step in range(STEPS_PER_SEED):
            await turn(bed, dice, fresh=step == 0)
            wanted = [bed.judged(*question(bed, dice)) for _ in range(PROBES_PER_STEP)]
            wrong = await bed.ask(wanted)
            assert not wrong, f"seed {seed}, step {step}:\n" + "\n".join(wrong)
            verdicts += len(wanted)
            allowed += sum(want for _, want in wanted)
    with capsys.disabled():
        print(f"\nfuzz: {verdicts} verdicts ({allowed} allowed), seeds {FIRST_SEED} to {seed}, no difference")
    assert 0.1 < allowed / verdicts < 0.9
