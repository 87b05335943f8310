"""Policies written, rewritten and deleted all the time. None of them changes what the residents' streams may do."""

import asyncio
import random

from chaos.ledger import Ledger
from chaos.town import NAMESPACE, peer, policy
from netagent.lab.client import Object
from netagent.lab.cluster import Lab

SLOTS = 10
PAUSE_S = (0.01, 0.25)
FICKLE = "fickle"
"""The policy that lets pods with role=fickle in at the servers; it comes and goes like the others."""


class Weather:
    """The writer of policies."""

    def __init__(self, lab: Lab, ledger: Ledger, seed: int) -> None:
        self._lab = lab
        self._ledger = ledger
        self._random = random.Random(f"{seed}/policies")  # noqa: S311
        self._there: dict[str, str] = {}
        self.stopping = False

    @property
    def fickle_allowed(self) -> bool:
        """What the policies of this moment say of role=fickle."""
        return FICKLE in self._there

    async def run(self) -> None:
        """Until `stopping`; the policies of that moment stay."""
        while not self.stopping:
            name = self._random.choice([FICKLE, *(f"slot-{number}" for number in range(SLOTS))])
            if name in self._there and self._random.random() < 0.5:
                await self._lab.delete("networking.k8s.io/v1", "NetworkPolicy", name, NAMESPACE)
                del self._there[name]
                self._ledger.counts["policies deleted"] += 1
            else:
                verb = "changed" if name in self._there else "created"
                await self._lab.put(self._fickle() if name == FICKLE else self._some(name))
                self._there[name] = verb
                self._ledger.counts[f"policies {verb}"] += 1
            self._ledger.policy_written_s = asyncio.get_running_loop().time()
            await asyncio.sleep(self._random.uniform(*PAUSE_S))

    def _fickle(self) -> Object:
        return policy(FICKLE, "server", ingress=[{"from": [peer(role="fickle")]}], policyTypes=["Ingress"])

    def _some(self, name: str) -> Object:
        """What it adds, nobody's stream uses; whom it isolates, it allows all that was allowed."""
        noise = peer(role=f"noise-{self._random.randrange(3)}")
        port = {"protocol": self._random.choice(("TCP", "UDP")), "port": self._random.randrange(1, 60000)}
        block = {"ipBlock": {"cidr": f"198.51.100.{self._random.randrange(0, 256, 16)}/28"}}
        return self._random.choice(
            (
                policy(name, "server", ingress=[{"from": [noise]}], policyTypes=["Ingress"]),
                policy(name, "server", ingress=[{"from": [noise, block], "ports": [port]}], policyTypes=["Ingress"]),
                policy(name, "server", egress=[{"to": [block]}], policyTypes=["Egress"]),
                policy(name, "friend", egress=[{"to": [{"podSelector": {}}]}], policyTypes=["Egress"]),
                policy(name, "friend", ingress=[{"from": [{"podSelector": {}}]}], policyTypes=["Ingress"]),
                policy(name, "guest", ingress=[{"from": [noise]}, {"from": [peer(role="friend")]}]),
                policy(name, "stranger", egress=[{}], ingress=[{}], policyTypes=["Ingress", "Egress"]),
                policy(name, "captive", egress=[{"to": [block], "ports": [port]}], policyTypes=["Egress"]),
                policy(name, "well", ingress=[{"from": [noise, block]}], policyTypes=["Ingress"]),
                policy(name, "nobody", ingress=[{"from": [{"namespaceSelector": {}}]}]),
            )
        )
