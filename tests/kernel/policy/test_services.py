"""Services: judged by the pod behind them, whoever rewrote the destination."""

import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support.podbed import Bed
from support.words import block, pods, policy, port, rule, selector

pytestmark = pytest.mark.kernel

VIP, VIP6 = "10.96.0.1", "fd00:96::1"


@pytest_asyncio.fixture
async def town(bed: Bed) -> AsyncIterator[Bed]:
    """A service of our own making: VIP:443 is x/web:80; what a pod sends to itself through it is masqueraded."""
    web = await bed.pod("x/web", app="web")
    await bed.pod("x/client", app="client")
    await bed.pod("x/other", app="other")
    bed.outside("192.0.2.10", "2001:db8::10")
    subprocess.run(["ip", "route", "replace", f"{VIP}/32", "dev", "lo"], check=True)  # noqa: ASYNC221 - a moment
    await bed.nft.run(f"""
        table inet service {{
          chain prerouting {{
            type nat hook prerouting priority dstnat;
            ip daddr {VIP} tcp dport 443 dnat ip to {web.ip()}:80;
            ip6 daddr {VIP6} tcp dport 443 dnat ip6 to [{web.ip(6)}]:80;
          }}
          chain output {{
            type nat hook output priority -100;
            ip daddr {VIP} tcp dport 443 dnat ip to {web.ip()}:80;
          }}
          chain postrouting {{
            type nat hook postrouting priority srcnat;
            ip saddr {web.ip()} ip daddr {web.ip()} masquerade;
            ip6 saddr {web.ip(6)} ip6 daddr {web.ip(6)} masquerade;
          }}
        }}\n""")
    yield bed
    await bed.nft.run("delete table inet service\n")


async def test_the_pods_port_counts_not_the_services(town: Bed) -> None:
    await town.put(policy("x/p", selector(app="web"), ingress=[rule([pods(app="client")], [port(80)])]))
    await town.expect(
        allowed=[f"x/client -> {VIP} 443/TCP", f"x/client -> {VIP6} 443/TCP v6", f"node -> {VIP} 443/TCP"],
        denied=[f"x/other -> {VIP} 443/TCP", f"192.0.2.10 -> {VIP} 443/TCP", f"x/other -> {VIP6} 443/TCP v6"],
    )
    await town.put(policy("x/p", selector(app="web"), ingress=[rule([pods(app="client")], [port(443)])]))
    await town.expect(denied=[f"x/client -> {VIP} 443/TCP"])


async def test_egress_is_judged_by_the_pod_behind(town: Bed) -> None:
    await town.put(policy("x/p", selector(app="client"), egress=[rule([block(f"{VIP}/32")])], types=["Egress"]))
    await town.expect(denied=[f"x/client -> {VIP} 443/TCP"], allowed=[f"x/other -> {VIP} 443/TCP"])
    await town.put(
        policy("x/p", selector(app="client"), egress=[rule([pods(app="web")], [port(80)])], types=["Egress"])
    )
    await town.expect(allowed=[f"x/client -> {VIP} 443/TCP", f"x/client -> {VIP6} 443/TCP v6"])


async def test_a_pod_reaches_itself_through_its_service(town: Bed) -> None:
    await town.put(policy("x/deny", types=["Ingress", "Egress"]))
    await town.expect(
        allowed=[f"x/web -> {VIP} 443/TCP", f"x/web -> {VIP6} 443/TCP v6"], denied=[f"x/client -> {VIP} 443/TCP"]
    )
