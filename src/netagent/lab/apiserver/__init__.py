"""The lab's Kubernetes API server: real REST for kubectl and the agent, in memory, in one process.

A request goes http -> registry (what the verb means) -> store (versions, history, watches) and comes back through a
view (plain, Table, metadata alone). Nothing is written to disk.
"""

from netagent.lab.apiserver.server import ApiServer, Settings

__all__ = ["ApiServer", "Settings"]
