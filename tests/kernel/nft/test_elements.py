"""Small transactions of elements: the kernel ends up with what was wanted, or with what it had."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.generation import Stamp
from netagent.core.policy.render import SMALL, render, replacement, small
from netagent.core.policy.ruleset import ChainDecl, Ruleset, SetDecl
from netagent.core.policy.store import Store
from netagent.kernel.nfbatch import BatchSocket
from netagent.kernel.nft import TABLE, LibNftables
from netagent.ports import ElementChange, NftError, SmallTransaction, StampChange, TableInventory

pytestmark = pytest.mark.kernel

MASK = 0xFFFF0000
DECLS = {
    "plain4": SetDecl("ipv4_addr"),
    "plain6": SetDecl("ipv6_addr"),
    "self4": SetDecl("ipv4_addr . ipv4_addr"),
    "ports6": SetDecl("ipv6_addr . inet_service"),
    "links4": SetDecl("ifname . ipv4_addr"),
    "map4": SetDecl("ipv4_addr : verdict", narrows=True),
    "map6": SetDecl("ipv6_addr : verdict", narrows=True),
}
VERDICTS = ("goto a_chain", "jump another", "drop", "accept")
NUMBERS = st.integers(0, 5)


def element(name: str, number: int) -> str:
    ip = f"10.0.{number}.255" if name[-1] == "4" else f"fd00::{number + 1:x}"
    match name[:-1]:
        case "self":
            return f"{ip} . {ip}"
        case "ports":
            return f"{ip} . {8000 + number}"
        case "links":
            return f'"nap{number}" . {ip}'
    return ip


@contextlib.contextmanager
def no_table() -> Iterator[None]:
    """Nothing of ours before and after."""
    subprocess.run(["nft", f"add table {TABLE}; delete table {TABLE}"], check=True)
    yield
    subprocess.run(["nft", f"delete table {TABLE}"], check=True)


def listed() -> list[dict[str, Any]]:
    """By a program of others."""
    out = subprocess.run(["nft", "-j", "list", "table", *TABLE.split()], check=True, capture_output=True).stdout
    found: list[dict[str, Any]] = json.loads(out)["nftables"]
    return found


def text() -> str:
    command = ["nft", "-s", "list", "table", *TABLE.split()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def held() -> dict[str, dict[str, str]]:
    """Sets and maps with their elements, as the ruleset writes them."""
    found = {}
    for item in listed():
        one = item.get("set") or item.get("map")
        if one is not None:
            found[one["name"]] = dict(_written(one["name"], part) for part in one.get("elem", ()))
    return found


def _written(name: str, part: Any) -> tuple[str, str]:
    value = ""
    if name.startswith("map"):
        part, words = part
        ((verb, body),) = words.items()
        value = f"{verb} {body['target']}" if body else verb
    if isinstance(part, dict):
        fields = [str(field) for field in part["concat"]]
        part = " . ".join((f'"{fields[0]}"', *fields[1:]) if name.startswith("links") else fields)
    return str(part), value


def new_ruleset() -> Ruleset:
    ruleset = Ruleset()
    for name, decl in DECLS.items():
        ruleset.declare(name, decl)
    ruleset.put_chain("a_chain", ChainDecl(("drop",)))
    ruleset.put_chain("another", ChainDecl(("accept",)))
    rules = ("ip saddr vmap @map4", "ip6 saddr vmap @map6")
    ruleset.put_chain("base", ChainDecl(rules, hook="type filter hook forward priority 0; policy accept;"))
    return ruleset


async def load(nft: LibNftables, ruleset: Ruleset) -> None:
    await nft.run(replacement(ruleset.whole(), "0x10000", TableInventory(exists=False)))


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(list(DECLS)), NUMBERS, st.sampled_from(VERDICTS)),
    st.tuples(st.just("discard"), st.sampled_from(list(DECLS)), NUMBERS, st.just("")),
    st.tuples(st.just("commit"), st.just(""), st.just(0), st.just("")),
    st.tuples(st.just("structure"), st.just(""), NUMBERS, st.just("")),
)


def operate(ruleset: Ruleset, operation: tuple[str, str, int, str]) -> None:
    verb, name, number, value = operation
    match verb:
        case "put":
            ruleset.put(name, element(name, number), value if DECLS[name].is_map else "")
        case "discard":
            ruleset.discard(name, element(name, number))
        case "structure" if f"late{number}" in ruleset.chains:
            ruleset.drop_chain(f"late{number}")
        case "structure":
            ruleset.put_chain(f"late{number}", ChainDecl(("drop",)))


@given(st.lists(OPERATIONS, max_size=40), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_random_changes_in_batches_and_scripts_add_up(
    nft: LibNftables, operations: list[tuple[str, str, int, str]], scripts: bool
) -> None:
    with no_table():
        ruleset = new_ruleset()
        await load(nft, ruleset)
        for operation in (*operations, ("commit", "", 0, "")):
            operate(ruleset, operation)
            if operation[0] != "commit":
                continue
            delta = ruleset.take()
            few = small(delta, None)
            assert few is not None
            if scripts:
                await nft.run(render(delta, ruleset.chains, "0x10000", new_mark=False))
            else:
                await nft.run_small(few)
            assert held() == {name: one.values for name, one in ruleset.sets.items()}
            assert {one["chain"]["name"] for one in listed() if "chain" in one} == ruleset.chains.keys()


async def test_as_many_as_go_without_a_script(nft: LibNftables) -> None:
    with no_table():
        ruleset = new_ruleset()
        await load(nft, ruleset)
        wanted = [f"10.{number >> 8}.{number & 255}.1" for number in range(SMALL)]
        for ip in wanted:
            ruleset.put("map4", ip, "goto a_chain")
        few = small(ruleset.take(), None)
        assert few is not None
        await nft.run_small(few)
        assert held()["map4"] == dict.fromkeys(wanted, "goto a_chain")


@pytest.mark.parametrize("mask", [0xFFFF0000, 0x0000FF00, 0x80000000])
async def test_a_generation_is_what_a_script_makes_of_it(nft: LibNftables, mask: int) -> None:
    with no_table():
        compiler = Compiler(Store(), FrameSettings(mark_mask=mask), "node-0")
        stamps = [Stamp(mask, 1), Stamp(mask, 1).next(), Stamp(mask, 1).next().next()]
        tables = []
        for stamp in stamps:
            whole = replacement(compiler.ruleset.whole(), stamp.mark, await nft.inventory())
            await nft.run(whole)
            tables.append(text())
        assert len(set(tables)) == len(set(stamps))
        for stamp, wanted in zip(stamps, tables, strict=True):
            await nft.run_small(SmallTransaction(changes=(), stamp=StampChange(mask, stamp.bits)))
            assert text() == wanted
            assert (await nft.inventory()).mark == stamp.bits


REFUSED = {
    "missing element": (
        ElementChange(name="plain4", type="ipv4_addr", removed=("9.9.9.9",), added={}),
        "plain4 9.9.9.9",
    ),
    "missing set": (ElementChange(name="none", type="ipv4_addr", added={"9.9.9.9": ""}), "none 9.9.9.9"),
    "missing chain": (
        ElementChange(name="map4", type="ipv4_addr : verdict", added={"9.9.9.9": "goto nowhere"}),
        "map4 9.9.9.9",
    ),
    "other verdict": (
        ElementChange(name="map4", type="ipv4_addr : verdict", added={"10.0.1.255": "accept"}),
        "map4 10.0.1.255",
    ),
    "other type": (ElementChange(name="plain4", type="ipv6_addr", added={"fd00::9": ""}), "plain4 fd00::9"),
    "loop": (ElementChange(name="map4", type="ipv4_addr : verdict", added={"9.9.9.9": "jump looping"}), ""),
    "no address": (ElementChange(name="plain4", type="ipv4_addr", added={"9.9.9": ""}), "element 9.9.9 of plain4"),
}


@pytest.mark.parametrize("cause", REFUSED)
async def test_a_refused_transaction_changes_nothing_and_names_the_element(nft: LibNftables, cause: str) -> None:
    with no_table():
        ruleset = new_ruleset()
        ruleset.put_chain("looping", ChainDecl(("ip saddr vmap @map4",)))
        ruleset.put("plain4", element("plain4", 1))
        ruleset.put("map4", "10.0.1.255", "drop")
        await load(nft, ruleset)
        before = text()
        good = ElementChange(name="plain4", type="ipv4_addr", removed=("10.0.1.255",), added={"8.8.8.8": ""})
        wrong, words = REFUSED[cause]
        for changes in ((good, wrong), (wrong, good)):
            with pytest.raises(NftError) as caught:
                await nft.run_small(SmallTransaction(changes=changes))
            assert words in str(caught.value)
            assert "old rules stay in force" in str(caught.value)
            assert text() == before
        await nft.run_small(SmallTransaction(changes=(good,)))
        assert held()["plain4"] == {"8.8.8.8": ""}


async def test_among_many_the_refused_one_is_named(nft: LibNftables) -> None:
    with no_table():
        ruleset = new_ruleset()
        there = tuple(f"10.1.0.{number}" for number in range(100))
        for ip in there:
            ruleset.put("plain4", ip)
        await load(nft, ruleset)
        removed = (*there[:50], "9.9.9.9", *there[50:])
        with pytest.raises(NftError, match=r"removing from plain4 9\.9\.9\.9: .*ENOENT"):
            await nft.run_small(
                SmallTransaction(changes=(ElementChange(name="plain4", type="ipv4_addr", removed=removed, added={}),))
            )
        assert len(held()["plain4"]) == 100


async def test_without_a_table_it_is_an_error(nft: LibNftables) -> None:
    with pytest.raises(NftError, match="No such file"):
        await nft.run_small(SmallTransaction(changes=(), stamp=StampChange(MASK, 0x10000)))


async def test_refusals_that_do_not_fit_the_socket_leave_it_usable(nft: LibNftables) -> None:
    with no_table():
        await load(nft, new_ruleset())
        small = BatchSocket("netagent", receive_bytes=1)
        missing = [ElementChange(name=f"none{n}", type="ipv4_addr", removed=("9.9.9.9",), added={}) for n in range(60)]
        good = SmallTransaction(changes=(ElementChange(name="plain4", type="ipv4_addr", added={"8.8.8.8": ""}),))
        try:
            with pytest.raises(NftError, match=r"none0.*The old rules stay in force"):
                small.commit(SmallTransaction(changes=tuple(missing)))
            small.commit(good)
        finally:
            small.close()
        assert held()["plain4"] == {"8.8.8.8": ""}
