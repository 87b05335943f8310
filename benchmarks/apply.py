"""From `kubectl apply` to the first packet that obeys, and the agents' memory, in a lab of three nodes.

A UDP flow sends one packet a millisecond between pods of two nodes while a policy closes and opens it by turns. Two
clocks are read: from kubectl's return, as a user feels it (0 where the packet obeyed before kubectl was back), and from
the API server's answer to a plain PUT, which leaves kubectl's own time out.

    python -m benchmarks.apply [--quick] [--json FILE]
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks import bed
from benchmarks.stats import summarise
from netagent.lab import demo
from netagent.lab.cluster import Lab
from netagent.lab.flow import Flow
from netagent.lab.plan import Settings

CHANGES = 50
WARM_UP = 4
IDLE_S = 0.3
"""Between changes, so that each finds an idle agent."""


async def measure(changes: int) -> dict[str, Any]:
    """All series of one run, milliseconds; memory in MB."""
    async with Lab(Settings(nodes=3)) as lab:
        await _pods(lab)
        source, target = f"{demo.NAMESPACE}/web-0", f"{demo.NAMESPACE}/db-0"
        await demo.apply(lab, ["shop", "web"])
        flow = await lab.flow(source, target, 80, "UDP")
        try:
            series = {
                "kubectl apply returned -> first packet obeys": await _series(lab, flow, changes, kubectl=True),
                "API server answered -> first packet obeys": await _series(lab, flow, changes, kubectl=False),
            }
        finally:
            await flow.stop()
        memory = [_agent_rss_mb(node.holder.pid) for node in lab.nodes]
    return {
        "unit": "ms",
        "series": {name: _summary(values) for name, values in series.items()},
        "agent_rss_mb": max(memory),
    }


async def _pods(lab: Lab) -> None:
    await lab.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": demo.NAMESPACE}})
    await lab.create(*(demo.pod(name, app, node) for name, (app, node) in demo.PODS.items()))
    await lab.pods_ready()


async def _series(lab: Lab, flow: Flow, changes: int, *, kubectl: bool) -> list[float]:
    delays_ms = []
    for number in range(WARM_UP + changes):
        opens = number % 2 == 1
        apps = ["shop", "web"] if opens else ["shop"]
        await asyncio.sleep(IDLE_S)
        began_s = time.monotonic()
        returned_s = await (demo.apply(lab, apps) if kubectl else _put(lab, apps))
        obeyed_s = await demo.first_obeying(flow, opens, began_s)
        if number >= WARM_UP:
            delays_ms.append(max(0.0, (obeyed_s - returned_s) * 1e3))
    return delays_ms


async def _put(lab: Lab, apps: list[str]) -> float:
    await lab.put(orjson.loads(demo.policy(apps)))
    return time.monotonic()


def _agent_rss_mb(holder: int) -> float:
    """Of the agent that runs in the holder's network namespace."""
    net = Path(f"/proc/{holder}/ns/net").readlink()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if b"agent" in arguments and (process / "ns/net").readlink() == net:
                pages = int((process / "statm").read_text().split()[1])
                return pages * 4096 / 1e6
        except OSError:
            continue
    raise RuntimeError(f"no agent in the namespace of process {holder}")


def _summary(values: list[float]) -> dict[str, float]:
    one = summarise(values)
    return {name: round(getattr(one, name), 3) for name in one.__struct_fields__}


def main() -> None:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "fewer changes")
    result = asyncio.run(measure(6 if options.quick else CHANGES))
    bed.table(list(result["series"].items()), result["unit"])
    print(f"largest agent: {result['agent_rss_mb']:.1f} MB")
    bed.write(result, options.json)


if __name__ == "__main__":
    main()
