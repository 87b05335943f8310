"""Combinations of modes that cannot work are refused with what to do."""

from typing import Any

import pytest

from netagent.config import Config, ConfigError, check, decode


def checked(**sections: Any) -> Config:
    config = decode(sections, "test")
    check(config)
    return config


def test_our_plugin_without_our_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cni\.enabled = false"):
        checked(network={"mode": "off"})


@pytest.mark.parametrize(
    "sections",
    [
        {"network": {"mode": "off"}, "cni": {"enabled": False}},
        {"policy": {"enabled": False}},
        {"policy": {"enabled": False}, "cni": {"enabled": False}},
    ],
    ids=["policy only", "network only", "network only, another plugin"],
)
def test_each_half_alone_is_accepted(sections: dict[str, Any]) -> None:
    checked(**sections)
