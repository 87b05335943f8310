"""Transactions with rules, sets, chains and counters: byte by byte what libnftables makes of the script."""

import asyncio
import ipaddress
import itertools
import struct
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import DENIED, ITSELF, FrameSettings, told
from netagent.core.policy.generation import Stamp
from netagent.core.policy.meaning import Direction
from netagent.core.policy.render import SMALL, render, replacement, small
from netagent.core.policy.ruleset import ChainDecl, Ruleset, SetDecl
from netagent.core.policy.store import Store
from netagent.kernel.nfdump import dump
from netagent.kernel.nfnetlink import NFPROTO_INET, Message, attributes
from netagent.kernel.nfparts import string
from netagent.kernel.nft import TABLE, LibNftables
from netagent.ports import ElementChange, NewSet, NftError, SmallTransaction, StampChange, TableInventory
from support.histories import State, decided, new_compiler, replay, states, steps

pytestmark = pytest.mark.kernel

NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, NEWOBJ = ((10 << 8) + kind for kind in (3, 6, 9, 12, 18))
HANDLES = {NEWCHAIN: 2, NEWRULE: 3, NEWSET: 16, NEWOBJ: 6}
"""The attribute that tells one incarnation from another, by kind."""
RULE_POSITION = 6
SET_ID = 10


@pytest.fixture(autouse=True)
def no_table() -> Iterator[None]:
    """Nothing of ours before and after."""
    subprocess.run(["nft", f"add table {TABLE}; delete table {TABLE}"], check=True)
    yield
    subprocess.run(["nft", f"add table {TABLE}; delete table {TABLE}"], check=True)


def text() -> str:
    command = ["nft", "-s", "list", "table", *TABLE.split()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels() -> dict[str, list[Any]]:
    """Everything in the table as bytes, without what differs from one time to the next."""
    table = string(1, "netagent")
    found: dict[str, list[Any]] = {}
    for name, kind in (("chains", NEWCHAIN), ("rules", NEWRULE), ("sets", NEWSET), ("counters", NEWOBJ)):
        listed = _listed(kind, table)
        found[name] = listed if kind == NEWRULE else sorted(listed, key=str)
    for one in found["sets"]:
        name = one[2].rstrip(b"\0").decode()
        lists = _listed(NEWSETELEM, table + string(2, name))
        found[f"elements of {name}"] = sorted(element for part in lists for element in _elements(part.get(3, b"")))
    return found


def _elements(listed: bytes) -> Iterator[bytes]:
    while listed:
        (length,) = struct.unpack_from("=H", listed)
        yield listed[4:length]
        listed = listed[length:]


def _listed(kind: int, body: bytes) -> list[dict[int, bytes]]:
    def parse(one: Message) -> dict[int, bytes]:
        ignored = {HANDLES.get(kind), SET_ID if kind == NEWSET else None, RULE_POSITION if kind == NEWRULE else None}
        return {number: value for number, value in attributes(one.body).items() if number not in ignored}

    return dump(kind + 1, kind, parse, family=NFPROTO_INET, body=body, what="a table")


BEFORE = Stamp(0xFFFF0000, 1)


class TwoWays:
    """A ruleset whose next change is brought to the kernel as a script and without, from the same beginning."""

    def __init__(self, nft: LibNftables, ruleset: Ruleset) -> None:
        self._nft = nft
        self._ruleset = ruleset
        self._before = replacement(ruleset.whole(), BEFORE.mark, TableInventory(exists=True), anew=True)

    async def agree(self) -> SmallTransaction | None:
        """The kernel ends up with the same; the transaction, None where nothing changed."""
        delta = self._ruleset.take()
        stamp = BEFORE.next() if delta.revokes else BEFORE
        quick = small(delta, StampChange(stamp.mask, stamp.bits) if delta.revokes else None)
        assert quick is not None
        if not delta:
            return None
        await self._nft.run(self._before)
        await self._nft.run(render(delta, self._ruleset.chains, stamp.mark, new_mark=delta.revokes))
        by_script = text(), kernels()
        await self._nft.run(self._before)
        await self._nft.run_small(quick)
        assert text() == by_script[0]
        assert kernels() == by_script[1]
        assert set(by_script[1]) >= {f"elements of {name}" for name in self._ruleset.sets}
        return quick


def frame_alone() -> Ruleset:
    """The fixed chains, and what they name."""
    return Compiler(Store(), FrameSettings(), "node-0").ruleset


# Rules

ADDRESSES = [f"ct {way} {word} saddr" for way in ("original", "reply") for word in ("ip", "ip6")]
PROTOCOLS = ["", "meta l4proto tcp", "meta l4proto udp", "meta l4proto sctp"]
PORTS = ["", "ct reply proto-src 0", "ct reply proto-src 65535", "ct reply proto-src 80-443", "ct reply proto-src @t"]
SETS = {
    "p4": SetDecl("ipv4_addr"),
    "p6": SetDecl("ipv6_addr"),
    "n4": SetDecl("ipv4_addr . inet_service"),
    "n6": SetDecl("ipv6_addr . inet_service"),
    "b4": SetDecl("ipv4_addr", "interval"),
    "b6": SetDecl("ipv6_addr", "interval"),
    "t": SetDecl("inet_service", "interval"),
    "links": SetDecl("ifname"),
    "sources": SetDecl("ifname . ipv6_addr"),
}


def possible_rules() -> Iterator[str]:
    """Every kind of rule that a class may have."""
    peers = ["", "meta nfproto ipv4", "meta nfproto ipv6"]
    for address in ADDRESSES:
        version = 6 if "ip6" in address else 4
        peers += [f"{address} @p{version}", f"{address} @b{version} {address} != @p{version}"]
        yield f"meta l4proto udp {address} . ct reply proto-src @n{version} goto admitted"
    verdicts = ("goto admitted", "goto judge_ingress")
    for protocol, peer, port, verdict in itertools.product(PROTOCOLS, peers, PORTS, verdicts):
        if port and not protocol:
            continue
        match = (protocol, peer, port) if "@" in port else (protocol, port, peer)
        yield " ".join(part for part in (*match, verdict) if part)
    for direction, group in itertools.product(Direction, (None, 0, 7, 65535)):
        yield f"jump {ITSELF}"
        yield from told("c_0123456789_x", group)
        yield f"counter name a_counter goto {DENIED[direction]}"
    yield "counter name a_counter drop"


async def test_every_rule_of_a_class_is_what_a_script_makes_of_it(nft: LibNftables) -> None:
    ruleset = frame_alone()
    for name, decl in SETS.items():
        ruleset.declare(name, decl)
    ways = TwoWays(nft, ruleset)
    ruleset.use_counter("a_counter")
    rules = list(dict.fromkeys(possible_rules()))
    for number, start in enumerate(range(0, len(rules), 100)):
        ruleset.put_chain(f"c_{number}", ChainDecl(tuple(rules[start : start + 100])))
    quick = await ways.agree()
    assert quick is not None
    assert sum(map(len, quick.new_chains.values())) == len(rules) > 300


# Sets

WIDTHS = {"ipv4_addr": 32, "ipv6_addr": 128, "inet_service": 16}


@st.composite
def constants(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    """A type and disjoint, ascending ranges of its keys that do not touch each other; often the first and last key."""
    type_ = draw(st.sampled_from(sorted(WIDTHS)))
    top = 2 ** WIDTHS[type_] - 1
    edges = st.sampled_from([0, 1, 2, 3, top - 2, top - 1, top])
    pairs: st.SearchStrategy[Any] = st.booleans()
    bounds: list[int] = sorted(draw(st.sets(st.integers(0, top) | edges, min_size=1, max_size=9)))
    ranges: list[tuple[int, int]] = []
    while bounds:
        first = bounds.pop(0)
        last: int = bounds.pop(0) if bounds and draw(pairs) else first
        if not ranges or first > ranges[-1][1] + 1:
            ranges.append((first, last))
    return type_, ranges


def written(type_: str, key: int) -> str:
    if type_ == "inet_service":
        return str(key)
    return str(ipaddress.IPv4Address(key) if type_ == "ipv4_addr" else ipaddress.IPv6Address(key))


@given(st.lists(constants(), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_ranges_are_what_a_script_makes_of_them(
    nft: LibNftables, some: list[tuple[str, list[tuple[int, int]]]]
) -> None:
    ruleset = frame_alone()
    ways = TwoWays(nft, ruleset)
    for number, (type_, ranges) in enumerate(some):
        texts = ["-".join(dict.fromkeys(written(type_, key) for key in part)) for part in ranges]
        ruleset.declare(f"constant_{number}", SetDecl(type_, "interval"), texts)
    await ways.agree()


async def test_new_sets_with_elements_are_what_a_script_makes_of_them(nft: LibNftables) -> None:
    ruleset = frame_alone()
    ways = TwoWays(nft, ruleset)
    for name, decl in SETS.items():
        ruleset.declare(name, decl)
    for number in range(450):
        ruleset.put("p4", f"10.0.{number >> 8}.{number & 255}")
        ruleset.put("n6", f"fd00::{number:x} . {number}")
        ruleset.put("sources", f'"nap{number}" . fd00::{number:x}')
        ruleset.put("links", f'"nap{number}"')
    await ways.agree()


# Policies


@given(st.tuples(states().map(decided), states().map(decided)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_happens_to_a_cluster_needs_no_script(nft: LibNftables, moments: tuple[State, State]) -> None:
    compiler = new_compiler()
    before, after = moments
    replay(compiler, steps(State(), before))
    ways = TwoWays(nft, compiler.ruleset)
    replay(compiler, steps(before, after))
    await ways.agree()


# What goes wrong


def chain(*rules: str) -> SmallTransaction:
    return SmallTransaction(new_chains={"c_new": rules})


REFUSED = {
    "a rule of another language": (chain("goto admitted", "ip saddr 10.0.0.1 drop"), "ip saddr 10.0.0.1 drop"),
    "words after a rule": (chain("goto admitted, drop"), "goto admitted, drop"),
    "a set that is not there": (chain("ct original ip saddr @nowhere drop"), "@nowhere drop"),
    "a chain that is not there": (chain("goto nowhere"), "rule of chain c_new goto nowhere"),
    "a counter that is not there": (chain("counter name nowhere drop"), "counter name nowhere drop"),
    "a set of another type": (chain("ct original ip saddr @local6 drop"), "@local6 drop"),
    "a loop": (
        SmallTransaction(
            new_chains={"c_new": ("goto judge",)},
            changes=(ElementChange(name="ingress4", type="ipv4_addr : verdict", added={"9.9.9.9": "goto c_new"}),),
        ),
        "",
    ),
    "a type of no address": (SmallTransaction(new_sets=(NewSet(name="s", type="ether_addr"),)), "type ether_addr"),
    "ranges of two fields": (
        SmallTransaction(new_sets=(NewSet(name="s", type="ipv4_addr . inet_service", interval=True),)),
        "with intervals",
    ),
    "a range backwards": (
        SmallTransaction(new_sets=(NewSet(name="s", type="inet_service", interval=True, elements=("9-8",)),)),
        "element 9-8 of s",
    ),
    "ranges that overlap": (
        SmallTransaction(new_sets=(NewSet(name="s", type="inet_service", interval=True, elements=("1-8", "5-9")),)),
        "adding to s",
    ),
    "a chain in use": (SmallTransaction(old_chains=("admitted",)), "deleting chain admitted"),
    "a set in use": (SmallTransaction(old_sets=("local4",)), "deleting set local4"),
    "a counter in use": (SmallTransaction(old_counters=("spoofed",)), "deleting counter spoofed"),
    "a chain that is gone": (SmallTransaction(old_chains=("c_old",)), "deleting chain c_old"),
}


@pytest.mark.parametrize("cause", REFUSED)
async def test_a_refused_transaction_changes_nothing_and_names_what_was_refused(nft: LibNftables, cause: str) -> None:
    await nft.run(replacement(frame_alone().whole(), BEFORE.mark, TableInventory(exists=False)))
    before = text(), kernels()
    wrong, words = REFUSED[cause]
    good = (ElementChange(name="local4", type="ipv4_addr", added={"9.9.9.9": ""}),)
    with pytest.raises(NftError) as caught:
        await nft.run_small(structs.replace(wrong, changes=(*wrong.changes, *good)))
    assert words in str(caught.value)
    assert "old rules stay in force" in str(caught.value)
    assert (text(), kernels()) == before
    await nft.run_small(SmallTransaction(new_chains={"c_new": ("goto admitted",)}, changes=good))
    assert "9.9.9.9" in text()


# How much


async def test_as_much_as_goes_without_a_script(nft: LibNftables) -> None:
    """In its longest form: rules."""
    await nft.run(replacement(frame_alone().whole(), BEFORE.mark, TableInventory(exists=False)))
    longest = "meta l4proto sctp ct reply proto-src 80-443 ct original ip6 saddr @local6 goto judge_ingress"
    made = SmallTransaction(new_chains={"c_large": (longest,) * (SMALL - 1)})
    assert made.objects == SMALL
    await nft.run_small(made)
    assert len([one for one in kernels()["rules"] if one[2] == b"c_large\0"]) == SMALL - 1


# What goes as a script


def test_hooks_fixed_chains_and_much_at_once_go_as_a_script() -> None:
    ruleset = frame_alone()
    ruleset.take()
    ruleset.put_chain("stray", ChainDecl(("drop",)))
    assert small(ruleset.take(), None) is None
    ruleset.put_chain("postrouting", ChainDecl((), hook="type nat hook postrouting priority srcnat; policy accept;"))
    assert small(ruleset.take(), None) is None
    ruleset.declare("bounded", SetDecl("ipv4_addr", size=16))
    assert small(ruleset.take(), None) is None
    ruleset.declare("map", SetDecl("ipv4_addr : verdict"))
    assert small(ruleset.take(), None) is None
    ruleset.put_chain("c_large", ChainDecl(("drop",) * (SMALL - 1)))
    assert small(ruleset.take(), None) is not None
    ruleset.put_chain("c_larger", ChainDecl(("drop",) * SMALL))
    assert small(ruleset.take(), None) is None


async def test_a_list_under_way_holds_no_transaction_up(nft: LibNftables) -> None:
    """On a large node libnftables takes the better part of a second for one."""
    await nft.run(replacement(frame_alone().whole(), BEFORE.mark, TableInventory(exists=False)))
    ended = threading.Event()
    listing = nft._thread.submit(ended.wait)
    try:
        for made in (chain("goto admitted"), SmallTransaction(old_chains=("c_new",))):
            await asyncio.wait_for(nft.run_small(made), 20)
        assert not listing.done()
    finally:
        ended.set()
