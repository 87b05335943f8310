"""Structured mutation: valid inputs in which one thing is wrong, which random bytes hardly ever are."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

FIELD = b"\x1e"
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    65536,
    2**31,
    2**63,
    10**30,
    1e308,
    "",
    "\0",
    "a\nb",
    "x }; delete table inet netagent; #",
    '"; drop',
    "../../x",
    "fe80::1%x }",
    "fe80::%x/64",
    "::ffff:10.0.0.1",
    "0.0.0.0/0",
    "10.0.0.0/99",
    "\u202e\u2028é",
    "A" * 300,
    [],
    {},
    [[]],
    [None],
    {"": ""},
)
GROWS_BYTES = 2048
"""Longer inputs get no longer lists: three times fifty times as long they would take the memory themselves."""
SPLICES = (
    b"\0", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b"\r\n", FIELD, b'"', b"}",
)  # fmt: skip


def mutated(data: bytes, random: Random) -> bytes:
    """Another input; where a part of it is JSON, usually still JSON."""
    for _ in range(random.randint(1, 3)):
        data = _value_changed(data, random) if random.random() < 0.7 else _bytes_changed(data, random)
    return data


def _value_changed(data: bytes, random: Random) -> bytes:
    """One value of one JSON document in it is another; bytes elsewhere where there is none."""
    separator = FIELD if FIELD in data else b"\n"
    parts = data.split(separator)
    at = random.randrange(len(parts))
    try:
        tree = json.loads(parts[at])
    except (ValueError, RecursionError):
        return _bytes_changed(data, random)
    places = list(_places(tree))
    if not places:
        return _bytes_changed(data, random)
    holder, key = random.choice(places)
    match random.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("x", "", "\0", "__class__", str(key) + "s"))] = holder.pop(key)
        case 2 if isinstance(holder, list) and len(data) < GROWS_BYTES:
            holder *= random.randint(2, 50)
        case _:
            holder[key] = random.choice(HOSTILE)
    parts[at] = json.dumps(tree, separators=(",", ":"), ensure_ascii=random.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )
    return separator.join(parts)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value, as its holder and its key there."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, value in items:
            yield holder, key
            waiting.append(value)


def _bytes_changed(data: bytes, random: Random) -> bytes:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.choice((0, 1, 2, 4, 30)))
    match random.randrange(5):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:start] + random.choice(SPLICES) + data[end:]
        case 3:
            return data[:end] + data[start:]
        case _:
            return data[:start] + random.randbytes(end - start) + data[end:]
