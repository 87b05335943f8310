"""Network-only mode: nothing is judged, pods wait for nobody, and still nobody sends in another's name."""

import pytest

from netagent.core.policy.frame import FrameSettings
from support.places import new_place
from support.podbed import Bed
from support.words import key, policy, selector

pytestmark = pytest.mark.kernel

WITHOUT = FrameSettings(policy=False)


async def test_policies_have_no_effect() -> None:
    async with Bed(frame=WITHOUT) as bed:
        for name in ("x/a", "x/b"):
            await bed.pod(name, app=name[-1])
        await bed.put(policy("x/deny", selector(app="a"), types=("Ingress", "Egress")))
        await bed.expect(allowed=["x/b -> x/a 80/TCP", "x/a -> x/b 80/UDP v6", "x/a -> x/b ICMP"])
        assert "hook forward" not in await bed.nft.text()


async def test_a_pod_that_the_api_never_shows_is_admitted() -> None:
    async with Bed(frame=WITHOUT) as bed:
        await bed.pod("x/b")
        place = new_place("x/a", ("10.244.0.200", "fd00:10:244::200"), "nap")
        await bed.dataplane.admit(place.endpoint(key("x/a"), "uid"))
        bed._connect(place, ((80, "TCP"),))
        await bed.expect(allowed=["x/a -> x/b 80/TCP", "x/b -> x/a 80/TCP v6"])


async def test_chains_of_an_earlier_run_with_policy_go_and_come_back() -> None:
    async with Bed() as bed:
        for name in ("x/a", "x/b"):
            await bed.pod(name, app=name[-1])
        await bed.put(policy("x/deny", selector(app="a"), types=("Ingress",)))
        await bed.expect(denied=["x/b -> x/a 80/TCP"])
        for frame, allowed in ((WITHOUT, True), (None, False)):
            await bed.stop()
            bed._frame = frame
            await bed.start()
            text = await bed.nft.text()
            assert ("hook forward" in text) is not allowed
            assert ("x_deny" in text) is not allowed
            question = ["x/b -> x/a 80/TCP", "x/b -> x/a 80/TCP v6"]
            await bed.expect(allowed=question if allowed else (), denied=() if allowed else question)
