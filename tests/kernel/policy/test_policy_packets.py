"""What policies let through, asked with packets on this kernel."""

import pytest

from support.podbed import Bed
from support.words import pods, policy, rule

pytestmark = pytest.mark.kernel


async def test_ingress(bed: Bed) -> None:
    for name in ("x/a", "x/b", "y/a"):
        await bed.pod(name, app=name[-1])
    bed.outside("192.0.2.10", "2001:db8::10")
    await bed.expect_oracle(versions=(4, 6))
    await bed.put(policy("x/p", ingress=[rule([pods(app="b")])]))
    await bed.expect(
        allowed=["x/b -> x/a 80/TCP"], denied=["y/a -> x/a 80/TCP", "y/a -> x/a ICMP", "y/a -> x/a 80/SCTP"]
    )
    assert await bed.expect_oracle(versions=(4, 6)) > 100
