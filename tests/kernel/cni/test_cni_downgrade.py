"""State that a newer agent wrote: nothing is restored or served while it is there, and the agent says why."""

import asyncio

import pytest

from netagent.agent.pods import cni as module
from support.cnibed import Bed, Netns
from support.waiting import until

pytestmark = pytest.mark.kernel


async def test_an_older_agent_waits_beside_newer_state_and_goes_on_without_it(
    bed: Bed, pod_netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    pod_netns("one")
    await bed.add("one")
    await bed.stop()
    (claim,) = (bed.root / "state" / "endpoints").iterdir()
    ours = claim.read_bytes()
    newer = b'{"version":2,"pods":{}}'
    claim.write_bytes(newer)
    untouched = bed.gate.restored = (*bed.server.endpoints(), *bed.server.endpoints())
    server = bed.new_server()
    bed.task = asyncio.create_task(server.run())
    await until(lambda: server.status.problems, "a word about the file")
    for _ in range(10):
        await asyncio.sleep(0.01)
        assert not bed.task.done(), "a restart would mend nothing"
        assert not server.status.serving
        assert bed.gate.restored is untouched, "a table made now would leave that pod open"
    assert "a newer netagent wrote it" in server.status.problems[0]
    assert "not ready" in server.status.problems[0]
    assert claim.read_bytes() == newer
    (bed.root / "ours").write_bytes(ours)
    (bed.root / "ours").rename(claim)
    await until(lambda: server.status.serving, "a socket that serves")
    assert [one.container_id for one in bed.gate.restored] == ["one"]
    assert server.status.problems == ()
