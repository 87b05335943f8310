"""Networks beside the pools: what is told, and that nothing is told twice."""

from typing import Any

import pytest

from netagent.commands.doctor import examination, node
from netagent.config import Config, NetworkConfig


@pytest.mark.parametrize(("address", "told"), [("10.244.7.9/32", 1), ("10.244.8.9/32", 2)])
async def test_an_address_of_a_node_in_the_network_of_its_link_is_told_once(
    monkeypatch: Any, address: str, told: int
) -> None:
    async def links(_: Config) -> dict[str, str]:
        return {"10.244.7.0/24": "network of eth0", "fd00::/64": "network of eth0"}

    monkeypatch.setattr(node, "others_networks", links)
    config = Config(network=NetworkConfig(pools=("10.244.0.0/16",)))
    found = list(await examination._overlaps(config, {address: "address of a Node"}))
    text = " ".join(f"{one.level} {one.found}" for one in found)
    assert ("10.244.7.0/24" in text, address in text) == (True, told == 2), text
