"""One node of a running lab: its namespaces, its files, its agent."""

import asyncio
from pathlib import Path

from netagent.lab.namespaces import open_netns
from netagent.lab.places import Place
from netagent.lab.plan import NodePlan
from netagent.lab.processes import Process


class LabNode:
    """One node of a running lab."""

    def __init__(self, node: NodePlan, holder: Process, log: Path) -> None:
        self.plan = node
        self.holder = holder
        self.log = log
        self.agent: Process | None = None
        self.wanted = False
        """Its agent is started again when it exits."""
        self.keeper: asyncio.Task[None] | None = None
        self.netns = open_netns(f"/proc/{holder.pid}/ns/net")

    def path(self, inside: str) -> Path:
        """A file of the node, as we reach it."""
        return Path(f"/proc/{self.holder.pid}/root{inside}")

    @property
    def place(self) -> Place:
        """The node as an endpoint."""
        net = f"/proc/{self.holder.pid}/ns/net"
        return Place(name=f"node:{self.plan.index}", net=net, ips=self.plan.ips, node_pid=self.holder.pid, binds=True)
