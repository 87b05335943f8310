"""Configuration: what is accepted, what overrides what, and messages that name key, value and what is accepted."""

from pathlib import Path

import pytest

from netagent import config
from netagent.config import Config, ConfigError


def loaded(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **flags: str) -> Config:
    """`flags` are named section__field."""
    path = tmp_path / "netagent.yaml"
    path.write_text(text)
    split = {tuple(name.split("__")) if "__" in name else ("", name): value for name, value in flags.items()}
    return config.load(str(path), environ or {}, split)  # type: ignore[arg-type]


def refused(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, environ, **flags)
    return str(caught.value)


def test_nothing_given_is_the_defaults(tmp_path: Path) -> None:
    assert config.load("", {}, {}) == Config()
    assert loaded(tmp_path, "") == Config()
    assert loaded(tmp_path, "# only a comment\n") == Config()


def test_yaml_and_json_are_read(tmp_path: Path) -> None:
    for text in ("network:\n  vni: 7\n  pools: [10.0.0.0/16]\n", '{"network": {"vni": 7, "pools": ["10.0.0.0/16"]}}'):
        found = loaded(tmp_path, text)
        assert found.network.vni == 7
        assert found.network.pools == ("10.0.0.0/16",)


def test_environment_overrides_file_and_flags_override_both(tmp_path: Path) -> None:
    text = "network: {vni: 1, mtu: 1400, masquerade: false}\nnode_name: file\n"
    environ = {
        "NETAGENT_NETWORK_VNI": "2",
        "NETAGENT_NETWORK_MTU": "1300",
        "NETAGENT_NODE_NAME": "environment",
        "HOME": "/",
    }
    found = loaded(tmp_path, text, environ, network__vni="3")
    assert (found.network.vni, found.network.mtu, found.node_name) == (3, 1300, "environment")
    assert found.network.masquerade is False


def test_text_becomes_the_options_type(tmp_path: Path) -> None:
    environ = {
        "NETAGENT_NETWORK_POOLS": "10.0.0.0/16, fd00::/48",
        "NETAGENT_POLICY_MARK_MASK": "0xff0000",
        "NETAGENT_POLICY_DEBOUNCE_CAP_MS": "2.5",
        "NETAGENT_CNI_ENABLED": "false",
        "NETAGENT_LOG_LEVEL": "debug",
    }
    found = loaded(tmp_path, "", environ)
    assert found.network.pools == ("10.0.0.0/16", "fd00::/48")
    assert found.policy.mark_mask == 0xFF0000
    assert found.policy.debounce_cap_ms == 2.5
    assert found.cni.enabled is False
    assert found.log.level == "debug"


def test_every_option_has_a_variable_of_its_own() -> None:
    names = [config.option_name(section, field) for section, field, _ in config.options()]
    assert len(names) == len(set(names)) > 30
    assert "network.vni" in names
    assert "node_name" in names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense: 1", ["nonsense: no such option", "node_name", "network"]),
        ("network: {vmi: 1}", ["network.vmi: no such option", "vni"]),
        ("network: {vni: one}", ["network.vni", "'one'", "int"]),
        ("network: {vni: 0}", ["network.vni", "0", ">= 1"]),
        ("network: {vni: 16777216}", ["network.vni", "16777216", "<= 16777215"]),
        ("network: {backend: ipip}", ["network.backend", "'ipip'"]),
        ("network: {pools: 10.0.0.0/16}", ["network.pools", "10.0.0.0/16", "array"]),
        ("network: {pools: [7]}", ["network.pools[0]", "7", "str"]),
        ("network: {pools: [10.0.0.1/16]}", ["network.pools[0]", "10.0.0.1/16", "host bits"]),
        ("network: {pools: [ten]}", ["network.pools[0]", "'ten'", "Accepted: a CIDR"]),
        ("network: {pools: []}", ["network.pools", "at least one"]),
        (
            "network: {pools: [10.0.0.0/8, 10.1.0.0/16]}",
            ["network.pools[1]", "10.1.0.0/16", "network.pools[0]", "10.0.0.0/8"],
        ),
        ("network: {pools: [10.0.0.0/26]}", ["network.subnet_len", "24", "26 to 30"]),
        ("network: {reserved: [10.244.0.0/33]}", ["network.reserved[0]", "10.244.0.0/33"]),
        ("network: {non_masquerade_cidrs: [x]}", ["network.non_masquerade_cidrs[0]", "'x'"]),
        ("policy: {mark_mask: 5}", ["policy.mark_mask", "0x00000005", "contiguous"]),
        ("policy: {mark_mask: 7}", ["policy.mark_mask", "at least 4 bits"]),
        ("policy: true", ["policy", "True"]),
        ("state_dir: relative", ["state_dir", "'relative'", "absolute"]),
        ("[1, 2]", ["list", "mapping"]),
        ("a: [", ["not YAML or JSON"]),
    ],
)
def test_what_is_refused_is_named_with_its_value_and_what_is_accepted(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    message = refused(tmp_path, text)
    for words in said:
        assert words in message


def test_unknown_variables_and_unfit_text_are_refused(tmp_path: Path) -> None:
    assert "NETAGENT_NETWORK_VMI: no such option" in refused(tmp_path, "", {"NETAGENT_NETWORK_VMI": "1"})
    assert "NETAGENT_CNI_ENABLED = 'perhaps'" in refused(tmp_path, "", {"NETAGENT_CNI_ENABLED": "perhaps"})
    message = refused(tmp_path, "", network__subnet_len="wide")
    assert "--network-subnet-len = 'wide'" in message
    assert "whole number" in message
    assert "network.vni = 0" in refused(tmp_path, "", network__vni="0")
    assert "network = 3" in refused(tmp_path, "network: 3", network__vni="1")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            config.load(str(path), {}, {})
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (config.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        config.load(str(large), {}, {})


def test_variables_of_the_lab_are_no_options() -> None:
    assert config.load("", {"NETAGENT_LAB_DIR": "/somewhere"}, {}) == config.Config()
