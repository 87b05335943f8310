"""The chain that masquerades, as a function of what the node knows; who sees what is in tests/kernel/masquerade."""

from netagent.core.policy.frame import FrameSettings, frame

POOLS = ("10.244.0.0/16", "100.64.0.0/16", "fd44::/48")


def rules(**settings: object) -> list[str]:
    made = frame(FrameSettings(masquerade=True, pools=POOLS, **settings))  # type: ignore[arg-type]
    return list(made["postrouting"].rules)


def test_off_means_no_chain() -> None:
    assert "postrouting" not in frame(FrameSettings(masquerade=False, pools=POOLS))


def test_what_keeps_its_source_comes_before_what_does_not() -> None:
    for word in ("ip ", "ip6 "):
        mine = [rule for rule in rules(own_subnets=("10.244.1.0/24", "fd44:0:0:1::/64")) if rule.startswith(word)]
        verdicts = ["return" if rule.endswith(" return") else "masquerade" for rule in mine]
        assert verdicts == sorted(verdicts, reverse=True)
        assert verdicts.count("masquerade") == 2


def test_the_mark_of_kube_proxy_comes_before_everything() -> None:
    assert rules()[0] == "meta mark and 0x4000 == 0x4000 return"


def test_a_family_without_a_pool_has_no_rules() -> None:
    made = frame(FrameSettings(masquerade=True, pools=("fd44::/48",), non_masquerade_cidrs=("192.0.2.0/24",)))
    assert not [rule for rule in made["postrouting"].rules if rule.startswith("ip ")]


def test_several_own_subnets_are_one_rule() -> None:
    assert "ip daddr { 10.244.1.0/24, 100.64.3.0/24 } return" in rules(own_subnets=("10.244.1.0/24", "100.64.3.0/24"))
