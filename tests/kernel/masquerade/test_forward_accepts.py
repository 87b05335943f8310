"""Forward chains of others that drop by default: pods are reached all the same, and nothing else of theirs changes."""

import asyncio
import contextlib
import logging
import re
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netagent.agent.dataplane import forward
from netagent.agent.dataplane.forward import ForwardAccepts, remove_accepts
from netagent.kernel import forward as kernel_forward
from support.podbed import Bed
from support.waiting import until
from support.words import policy, selector

pytestmark = pytest.mark.kernel

POOLS = ("10.244.0.0/16", "fd00:10:244::/48")
OUTSIDE = "192.0.2.10"
BOTH_WAYS = [f"{way}{v6}" for way in (f"x/a -> {OUTSIDE} 80/TCP", f"{OUTSIDE} -> x/a 80/UDP") for v6 in ("", " v6")]
WITHIN = ["x/a -> x/b 80/TCP", "x/a -> x/b 80/TCP v6"]
DEADLINE_S = 20.0


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def iptables(*arguments: str) -> str:
    """For both IP versions."""
    return run("iptables", *arguments) + run("ip6tables", *arguments)


def accepted(arguments: str = "FORWARD") -> list[str]:
    """Our rules as iptables reads them."""
    return [line for line in iptables("-S", arguments).splitlines() if "--comment netagent " in line]


OURS = [
    "-A FORWARD -d 10.244.0.0/16 -m comment --comment netagent -j ACCEPT",
    "-A FORWARD -d fd00:10:244::/48 -m comment --comment netagent -j ACCEPT",
    "-A FORWARD -s 10.244.0.0/16 -m comment --comment netagent -j ACCEPT",
    "-A FORWARD -s fd00:10:244::/48 -m comment --comment netagent -j ACCEPT",
]


class Service:
    """The service as it runs in an agent."""

    def __init__(self) -> None:
        self.accepts: ForwardAccepts
        self._task: asyncio.Task[None] | None = None

    async def start(self, pools: tuple[str, ...] = POOLS, *, first: bool = True) -> None:
        self.accepts = ForwardAccepts(pools, first=first)
        self._task = asyncio.create_task(self.accepts.run())
        await until(lambda: self.accepts.status.looks > 0, "it has looked")
        if pools:
            await until(lambda: self.accepts.status.watching, "it watches")

    async def ended(self) -> None:
        """It ends by itself."""
        assert self._task is not None
        await asyncio.wait_for(self._task, DEADLINE_S)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    yield made
    await made.stop()


async def test_a_drop_policy_of_iptables_does_not_reach_pods(bed: Bed, service: Service) -> None:
    iptables("-P", "FORWARD", "DROP")
    await bed.expect(denied=BOTH_WAYS + WITHIN)
    await service.start()
    await bed.expect(allowed=BOTH_WAYS + WITHIN)
    assert sorted(accepted()) == OURS
    await service.stop()
    await bed.expect(allowed=BOTH_WAYS)
    await service.start()
    assert sorted(accepted()) == OURS


async def test_traffic_of_others_stays_dropped(bed: Bed, service: Service) -> None:
    bed.outside("198.51.100.7", "2001:db8::7")
    iptables("-P", "FORWARD", "DROP")
    await service.start()
    await bed.expect(denied=[f"{OUTSIDE} -> 198.51.100.7 80/TCP", f"198.51.100.7 -> {OUTSIDE} 80/TCP v6"])


async def test_our_own_policy_still_drops(bed: Bed, service: Service) -> None:
    iptables("-P", "FORWARD", "DROP")
    await service.start()
    await bed.put(policy("x/deny", selector(app="a"), types=("Ingress", "Egress")))
    await bed.expect(
        allowed=[f"x/b -> {OUTSIDE} 80/TCP", f"{OUTSIDE} -> x/b 80/TCP v6"],
        denied=BOTH_WAYS + WITHIN + [way.replace("x/a -> x/b", "x/b -> x/a") for way in WITHIN],
    )


async def test_removed_rules_come_back(bed: Bed, service: Service) -> None:
    iptables("-P", "FORWARD", "DROP")
    iptables("-A", "FORWARD", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
    await service.start()
    assert sorted(accepted()) == OURS
    for command in (["-D", *OURS[0].split()[1:]], ["-D", *OURS[2].split()[1:]], ["-F", "FORWARD"]):
        run("iptables", *command)
        await until(lambda: sorted(accepted()) == OURS, "the rules are back")
    assert run("iptables", "-S", "FORWARD").count("dport 22") == 0
    assert run("ip6tables", "-S", "FORWARD").count("dport 22") == 1
    await bed.expect(allowed=BOTH_WAYS)


async def test_a_chain_that_comes_or_denies_later_is_found(bed: Bed, service: Service) -> None:
    await service.start()
    assert service.accepts.status.chains == ()
    run("iptables", "-A", "FORWARD", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
    run("iptables", "-P", "FORWARD", "DROP")
    await until(lambda: sorted(accepted()) == OURS[::2], "found")
    run(
        "nft",
        "add table inet firewall; add chain inet firewall fw { type filter hook forward priority 5; policy drop; }",
    )
    await until(lambda: run("nft", "list table inet firewall").count('accept comment "netagent"') == 4, "found")
    await bed.expect(allowed=BOTH_WAYS + WITHIN)
    run("nft", "delete table inet firewall")
    run("nft", "delete table ip filter")
    run("iptables", "-P", "FORWARD", "DROP")
    await until(lambda: sorted(accepted()) == OURS[::2], "found again")


async def test_a_chain_whose_last_rule_rejects_all_is_one_of_them(bed: Bed, service: Service) -> None:
    iptables("-A", "FORWARD", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
    iptables("-A", "FORWARD", "-j", "REJECT")
    run(
        "nft",
        "add table inet firewall; add chain inet firewall fw { type filter hook forward priority 5; policy accept; };"
        "add rule inet firewall fw counter reject with icmpx type admin-prohibited",
    )
    await service.start()
    await bed.expect(allowed=BOTH_WAYS + WITHIN)
    assert sorted(accepted()) == OURS


async def test_chains_that_accept_stay_as_they_are(bed: Bed, service: Service) -> None:
    run("iptables", "-A", "FORWARD", "-s", "203.0.113.0/24", "-j", "DROP")
    run(
        "nft", "add table inet firewall; add chain inet firewall in { type filter hook input priority 5; policy drop; }"
    )
    before = run("nft", "list ruleset")
    await service.start()
    await asyncio.sleep(0.3)
    assert run("nft", "list ruleset") == before


async def test_when_the_chain_accepts_again_our_rules_go(bed: Bed, service: Service) -> None:
    iptables("-P", "FORWARD", "DROP")
    await service.start()
    iptables("-P", "FORWARD", "ACCEPT")
    await until(lambda: not accepted(), "they are gone")
    await bed.expect(allowed=BOTH_WAYS)


async def test_the_rules_of_others_keep_the_first_word_where_another_engine_enforces_policy(
    bed: Bed, service: Service
) -> None:
    run("iptables", "-P", "FORWARD", "DROP")
    run("iptables", "-A", "FORWARD", "-d", bed.places["x/b"].ip(), "-j", "DROP")
    run("ip6tables", "-A", "FORWARD", "-d", bed.places["x/b"].ip(6), "-j", "DROP")
    run("ip6tables", "-A", "FORWARD", "-j", "REJECT")
    await service.start(first=False)
    await bed.expect(allowed=BOTH_WAYS, denied=[*WITHIN, f"{OUTSIDE} -> x/b 80/TCP", f"{OUTSIDE} -> x/b 80/TCP v6"])


@pytest.mark.parametrize("how", ["switched off", "cleanup", "other pools"])
async def test_only_ours_are_removed(bed: Bed, service: Service, how: str) -> None:
    iptables("-P", "FORWARD", "DROP")
    lookalikes = (
        ["-s", "10.244.0.0/16", "-j", "ACCEPT"],
        ["-s", "10.244.0.0/16", "-m", "comment", "--comment", "netagent2", "-j", "ACCEPT"],
        ["-s", "10.244.0.0/16", "-p", "tcp", "-m", "comment", "--comment", "netagent", "-j", "ACCEPT"],
        ["-s", "10.244.0.0/16", "-m", "comment", "--comment", "netagent", "-j", "DROP"],
    )
    for rule in lookalikes:
        run("iptables", "-A", "FORWARD", *rule)
    run("nft", "add", "rule", "ip", "filter", "FORWARD", "oifname", "eth9", "accept", "comment", '"netagent"')
    run(
        "nft", "add", "rule", "ip", "filter", "FORWARD", "ip", "saddr", "10.244.0.0/16", "drop", "comment", '"netagent"'
    )
    before = re.sub(r"packets \d+ bytes \d+", "", run("nft", "list ruleset"))
    await service.start()
    assert (
        len(re.findall(r'saddr [0-9a-f:.]+/\d+ counter .* accept comment "netagent"', run("nft", "list ruleset"))) == 2
    )
    await service.stop()
    match how:
        case "switched off":
            await service.start(())
            await service.ended()
        case "cleanup":
            found = {"ip filter FORWARD": "", "ip6 filter FORWARD": ""}
            assert await remove_accepts(dry_run=True) == found
            assert await remove_accepts() == found
            assert await remove_accepts() == {}
        case _:
            await service.start(("100.64.0.0/10",))
            assert [line for line in accepted() if "100.64.0.0/10" in line]
            await service.stop()
            await remove_accepts()
    assert re.sub(r"packets \d+ bytes \d+", "", run("nft", "list ruleset")) == before


async def test_rules_that_iptables_saved_and_restored_are_still_ours(bed: Bed, service: Service) -> None:
    iptables("-P", "FORWARD", "DROP")
    iptables("-A", "FORWARD", "-p", "tcp", "--dport", "22", "-m", "comment", "--comment", "netagent", "-j", "ACCEPT")
    before = iptables("-S")
    await service.start()
    for _ in range(2):
        for tool in ("iptables", "ip6tables"):
            saved = run(f"{tool}-save")
            await asyncio.to_thread(subprocess.run, [f"{tool}-restore"], input=saved, text=True, check=True)
        looks = service.accepts.status.looks
        await until(lambda looks=looks: service.accepts.status.looks > looks, "it has looked again")  # type: ignore[misc]
    assert sorted(rule for rule in accepted() if "dport" not in rule) == OURS
    await service.stop()
    await remove_accepts()
    assert iptables("-S") == before


async def test_after_lost_notifications_the_audit_puts_them_back(
    bed: Bed, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "AUDIT_S", 0.1)
    monkeypatch.setattr(kernel_forward.ForwardNotifications, "_mentions", lambda *_: False)
    iptables("-P", "FORWARD", "DROP")
    await service.start()
    iptables("-F", "FORWARD")
    await until(lambda: sorted(accepted()) == OURS, "the rules are back")


async def test_a_chain_that_nobody_else_may_change_is_said_and_keeps_nobody_from_the_others(
    bed: Bed, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    owner = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, text=True)  # noqa: ASYNC220 - it starts at once
    try:
        assert owner.stdin is not None
        owner.stdin.write("add table inet firewall { flags owner; }\n")
        owner.stdin.write("add chain inet firewall fw { type filter hook forward priority 5; policy drop; }\n")
        owner.stdin.flush()
        await until(lambda: "chain fw" in run("nft", "list ruleset"), "it is there")
        iptables("-P", "FORWARD", "DROP")
        with caplog.at_level(logging.WARNING):
            await service.start()
            await until(lambda: "inet firewall fw" in service.accepts.status.problem, "said")
        assert "by hand" in caplog.text
        assert sorted(accepted()) == OURS
    finally:
        owner.communicate("")
