"""Whole replacements, refused transactions and restarts: nothing opens, nothing that is allowed breaks."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netagent.ports import ElementChange, NftError, SmallTransaction
from netagent.records import Upserted
from support.flows import Flow, flood, tcp_forth, udp_back, udp_forth
from support.podbed import Bed
from support.words import block, key, pods, policy, put, rule, selector

pytestmark = pytest.mark.kernel

REPLACEMENTS = 50


class Refusing:
    """The kernel refuses every transaction while `refuse` is set: it ends in an impossible command.

    With `lie` it takes them and we say that it did not, as when its answer is lost.
    """

    def __init__(self, bed: Bed) -> None:
        self.inventory, self.counters, self.text = bed.nft.inventory, bed.nft.counters, bed.nft.text
        self.refuse = self.lie = False
        self.refused = 0
        self._run, self._run_small = bed.nft.run, bed.nft.run_small

    async def run(self, commands: str) -> None:
        try:
            await self._run(commands + ("add rule inet netagent nowhere accept\n" if self.refuse else ""))
        except NftError:
            self.refused += 1
            raise
        if self.lie:
            self.refused += 1
            raise NftError("the answer was lost")

    async def run_small(self, transaction: SmallTransaction) -> None:
        impossible = ElementChange(name="local4", type="ipv4_addr", removed=("192.0.2.254",), added={})
        changes = (*transaction.changes, impossible) if self.refuse else transaction.changes
        try:
            await self._run_small(SmallTransaction(changes=changes, stamp=transaction.stamp))
        except NftError:
            self.refused += 1
            raise
        if self.lie:
            self.refused += 1
            raise NftError("the answer was lost")


@pytest_asyncio.fixture
async def town(bed: Bed) -> AsyncIterator[Bed]:
    """x/server takes x/near only; flows of both run already."""
    for name in ("x/server", "x/near", "x/denied"):
        await bed.pod(name, app=name[2:])
    bed.outside("192.0.2.10")
    await bed.put(policy("x/p", selector(app="server"), ingress=[rule([pods(app="near")])]))
    yield bed


async def traffic(bed: Bed) -> tuple[list[Flow], list[Flow]]:
    """Allowed and denied flows, under way."""
    server, near = bed.places["x/server"], bed.places["x/near"]
    kept = [bed.flow(udp_forth(near, server, 9001)), bed.flow(udp_back(near, server, 9002))]
    denied = [
        bed.flow(flood(bed.places[name], server.ip(), server, port))
        for port, name in ((9003, "x/denied"), (9004, "192.0.2.10"))
    ]
    await bed.flowing(*kept)
    await bed.until("floods run", lambda: all(flow.sent > 5 for flow in denied))
    return kept, denied


async def test_replacing_the_table_opens_nothing_and_loses_nothing(town: Bed) -> None:
    kept, denied = await traffic(town)
    for _ in range(REPLACEMENTS):
        town.dataplane.distrust("the test says so")
        await town.settled()
    whole = [one for one in town.dataplane.transactions if one.whole]
    assert len(whole) > REPLACEMENTS
    assert [flow.received for flow in denied] == [0, 0]
    await town.flowing(*kept)
    assert [flow.finish() for flow in kept] == [0, 0]


FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("started", flush=True)
while True:
    sock.sendto(b"x", (sys.argv[1], 9001))
"""
RACE_S = 5.0


@pytest.mark.parametrize("kind", ["change", "whole"])
async def test_no_packet_slips_through_while_a_commit_takes_effect(bed: Bed, kind: str) -> None:
    """A packet reads rules and elements one after the other; the kernel may turn to the new generation in between."""
    server, client = await bed.pod("x/server", app="server"), await bed.pod("x/client")
    receiver = server.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.bind((server.ip(), 9001))
    receiver.setblocking(False)
    await bed.put(policy("x/deny", selector(app="server"), ingress=[]))
    command = [sys.executable, "-c", FLOOD, server.ip()]
    flooders = [client.inside(lambda: subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(2)]
    try:
        for flooder in flooders:
            assert flooder.stdout is not None
            assert await asyncio.to_thread(flooder.stdout.readline) == b"started\n"
        end_s = asyncio.get_running_loop().time() + RACE_S
        number = 0
        while asyncio.get_running_loop().time() < end_s:
            number += 1
            if kind == "whole":
                bed.dataplane.distrust("the test says so")
            await bed.put(policy("x/deny", selector(app="server"), ingress=[rule([pods(app=f"r{number}")])]))
        assert number > 10
    finally:
        for flooder in flooders:
            flooder.kill()
            flooder.communicate()
    with receiver, pytest.raises(BlockingIOError):
        receiver.recv(16)


async def test_a_refused_transaction_leaves_the_old_rules_until_the_next_one(town: Bed) -> None:
    await town.stop()
    nft = Refusing(town)
    await town.start(nft)
    kept, denied = await traffic(town)
    before = await town.nft.text()
    nft.refuse = True
    for number in range(3):
        town.dataplane.apply(added := _open(number))
        town.cluster.policies[key("x/q")] = added.record  # type: ignore[assignment]
        refused = nft.refused
        await town.until("refused", lambda refused=refused: nft.refused > refused)
        assert _rules(await town.nft.text()) == _rules(before)
    assert [flow.received for flow in denied] == [0, 0]
    assert "refused" in town.dataplane.problem
    nft.refuse = False
    await town.settled()
    assert town.dataplane.problem == ""
    assert town.dataplane.transactions[-1].whole
    await town.flowing(*kept, denied[0])
    assert denied[1].received == 0
    assert [flow.finish() for flow in kept] == [0, 0]
    await town.expect_oracle()


def _open(number: int) -> Upserted:
    return put(
        policy("x/q", selector(app="server"), ingress=[rule([pods(app="denied"), block(f"10.9.{number}.0/24")])])
    )


def _rules(text: str) -> list[str]:
    """Without counters' values."""
    return [line for line in text.splitlines() if "packets" not in line]


async def test_recovery_by_replacement_opens_nothing(town: Bed) -> None:
    await town.stop()
    nft = Refusing(town)
    await town.start(nft)
    kept, denied = await traffic(town)
    for number in range(6):
        nft.refuse, refused = True, nft.refused
        town.dataplane.apply(put(policy("x/q", selector(app="near"), ingress=[rule([block(f"10.9.{number}.0/24")])])))
        failures = 1 + number % 2  # after a second one the table is made anew
        await town.until("refused", lambda enough=refused + failures: nft.refused >= enough)
        nft.refuse = False
        await town.settled()
    assert [flow.received for flow in denied] == [0, 0]
    await town.flowing(*kept)
    assert [flow.finish() for flow in kept] == [0, 0]


async def test_a_transaction_whose_answer_was_lost_gives_no_flow_a_stamp_for_later(town: Bed) -> None:
    await town.stop()
    nft = Refusing(town)
    await town.start(nft)
    flow = town.flow(udp_forth(town.places["x/near"], town.places["x/server"], 9001))
    await town.flowing(flow)
    nft.lie = True
    town.dataplane.apply(put(policy("x/q", selector(app="denied"), ingress=[])))
    await town.until("the answer is lost", lambda: nft.refused > 0)
    await town.flowing(flow)
    town.dataplane.apply(put(policy("x/p", selector(app="server"), ingress=[])))
    nft.lie = False
    moment_ns = await town.put()
    await asyncio.sleep(0.3)
    assert flow.sent_after_and_received(moment_ns) == 0


async def test_without_an_agent_the_kernel_keeps_the_last_state(town: Bed) -> None:
    kept, denied = await traffic(town)
    await town.stop()
    await asyncio.sleep(0.3)
    await town.start()
    assert [flow.received for flow in denied] == [0, 0]
    await town.flowing(*kept)
    assert [flow.finish() for flow in kept] == [0, 0]


@pytest.mark.parametrize("table", ["kept", "deleted"])
async def test_marks_of_an_earlier_run_are_not_accepted(town: Bed, table: str) -> None:
    server, near = town.places["x/server"], town.places["x/near"]
    flows = [town.flow(make(near, server, port)) for port, make in enumerate((udp_forth, udp_back, tcp_forth), 9001)]
    await town.flowing(*flows)
    generation = town.dataplane.generation
    await town.stop()
    if table == "deleted":
        await town.nft.run("delete table inet netagent\n")
    town.cluster.policies[key("x/p")] = policy("x/p", selector(app="server"), ingress=[])
    await town.start()
    moment_ns = await town.put()
    assert town.dataplane.generation != generation
    await asyncio.sleep(0.3)
    assert [flow.sent_after_and_received(moment_ns) for flow in flows] == [0, 0, 0]


async def test_tables_of_others_are_left_alone(town: Bed) -> None:
    await town.nft.run(
        "add table ip foreign\nadd chain ip foreign forward { type filter hook forward priority 10; policy accept; }\n"
        "add set ip foreign some { type ipv4_addr; elements = { 192.0.2.1 } }\n"
        "add rule ip foreign forward ip saddr @some drop\nadd table inet netagent2\n"
    )
    before = others()
    assert "ip foreign" in before
    town.dataplane.distrust("the test says so")
    await town.put(policy("x/q", ingress=[rule()]))
    await town.stop()
    await town.start()
    await town.remove(*town.cluster.policies.values())
    assert others() == before


def others() -> str:
    """Everything of nftables that is not ours."""
    listed = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    tables = listed.split("\ntable ")
    return "\n".join(text for text in tables if not text.removeprefix("table ").startswith("inet netagent {"))


async def test_leftovers_of_another_version_go_with_the_first_commit(town: Bed) -> None:
    await town.stop()
    await town.nft.run(
        "add set inet netagent p4_old { type ipv4_addr; }\nadd chain inet netagent in_old\n"
        "add rule inet netagent in_old ip saddr @p4_old drop\n"
        "add map inet netagent old { type ipv4_addr : verdict; elements = { 10.244.0.10 : jump in_old } }\n"
        "insert rule inet netagent forward ip saddr vmap @old\nadd counter inet netagent k_old\n"
    )
    await town.start()
    text = await town.nft.text()
    assert "old" not in text
    await town.expect_oracle()
