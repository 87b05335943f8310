"""A question put to the ruleset that the kernel really has, as `nft -j list table` prints it.

Walks the rules of the forward hook as the kernel would for the first packet of a flow: conntrack state new, mark 0.
Whatever is not known here for certain ends the walk with the verdict `unknown`: there are no guesses.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from netagent.core.policy.meaning import Direction
from netagent.core.questions.parties import ICMP

Json = Any
"""A value of nft's JSON; see libnftables-json(5)."""
Value = int | str | tuple[Any, ...]
"""A key, comparable: addresses and ports as integers, protocols and words as text, concatenations as tuples."""

MAX_DEPTH = 16
"""Jumps within jumps that the kernel allows."""
PROTOCOL_NUMBERS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
STATE_NEW = 8
"""`new` as a bit of the conntrack state; used where nft prints numbers."""
HARMLESS = ("counter", "log", "comment")
"""Statements that change neither the packet nor the verdict."""
INCONSEQUENTIAL = (*HARMLESS, "match", "limit")
"""A rule of nothing else cannot change the verdict, whether it matches or not."""


class LiveAnswer(Struct, frozen=True, gc=False, kw_only=True):
    """What the kernel's ruleset does with the flow."""

    verdict: str
    """accept, drop or unknown."""
    path: tuple[str, ...] = ()
    """The rules that matched, in order."""
    reason: str = ""
    """Why unknown, or why nothing was asked."""
    dropped_by: str = ""
    """ingress or egress, where the packet was dropped in a class of that direction."""


class Packet(Struct, frozen=True, gc=False, kw_only=True):
    """The first packet of a flow, as the forward hook sees it: behind any DNAT, before any SNAT."""

    source: str
    destination: str
    protocol: str
    port: int | None

    @property
    def version(self) -> int:
        return 6 if ":" in self.source else 4


class _UnknownError(Exception):
    """An expression or statement whose meaning is not known here."""


class _Absent(Exception):
    """The packet has no such field. No error: the kernel, too, goes on with the next rule, whatever the operator."""


class _Table(Struct, gc=False):
    """A listing by name."""

    rules: dict[str, list[list[Json]]] = field(default_factory=dict)
    sets: dict[str, list[Json]] = field(default_factory=dict)
    hooked: list[tuple[int, str, str]] = field(default_factory=list)
    """Priority, name and policy of base chains at the forward hook."""


def livecheck(listing: Sequence[Mapping[str, Json]], packet: Packet) -> LiveAnswer:
    """The verdict of our table; `listing` is the array under `nftables`."""
    table = _index(listing)
    if not table.hooked:
        return LiveAnswer(verdict="accept", reason="the kernel has no chain of ours at the forward hook: all passes")
    walk = _Walk(table, packet)
    try:
        for _, chain, policy in sorted(table.hooked):
            verdict = walk.chain(chain, 0) or policy
            if verdict == "drop":
                return LiveAnswer(verdict="drop", path=tuple(walk.path), dropped_by=walk.direction)
    except _UnknownError as unknown:
        return LiveAnswer(verdict="unknown", path=tuple(walk.path), reason=f"unknown: {unknown}")
    return LiveAnswer(verdict="accept", path=tuple(walk.path))


def _index(listing: Iterable[Mapping[str, Json]]) -> _Table:
    table = _Table()
    for item in listing:
        if "chain" in item:
            chain = item["chain"]
            table.rules.setdefault(chain["name"], [])
            if chain.get("hook") == "forward":
                table.hooked.append((chain.get("prio", 0), chain["name"], chain.get("policy", "accept")))
        elif "rule" in item:
            table.rules.setdefault(item["rule"]["chain"], []).append(item["rule"]["expr"])
        elif "set" in item or "map" in item:
            one = item.get("set") or item["map"]
            table.sets[one["name"]] = one.get("elem", [])
    return table


class _Walk:
    """One packet's way through the rules."""

    def __init__(self, table: _Table, packet: Packet) -> None:
        self.path: list[str] = []
        self.direction = ""
        self._table = table
        self._packet = packet
        self._fields = _fields(packet)

    def chain(self, name: str, depth: int) -> str:
        """accept, drop, or "" where the chain ends or returns."""
        if depth > MAX_DEPTH:
            raise _UnknownError(f"jumps deeper than {MAX_DEPTH} at chain {name}")
        if name not in self._table.rules:
            raise _UnknownError(f"no chain {name} in the listing")
        for number, expressions in enumerate(self._table.rules[name], start=1):
            verdict = self._rule(expressions, f"{name} rule {number}", depth)
            if verdict == "return":
                return ""
            if verdict:
                return verdict
        return ""

    def _rule(self, expressions: list[Json], where: str, depth: int) -> str:
        """A verdict, "return", or "" to go on with the next rule. A goto ends the chain with what it comes to."""
        if all(next(iter(expression)) in INCONSEQUENTIAL for expression in expressions):
            return ""
        for expression in expressions:
            ((kind, body),) = expression.items()
            if kind == "match":
                if not self._matches(body):
                    return ""
            elif kind == "vmap":
                return self._vmap(body, where, depth)
            elif kind in ("accept", "drop", "return", "jump", "goto", "continue"):
                return self._verdict(expression, where, depth)
            elif kind == "mangle":
                self._mangle(body)
            elif kind not in HARMLESS:
                raise _UnknownError(f"statement {_brief(expression)} in {where}")
        return ""

    def _verdict(self, verdict: Mapping[str, Json], where: str, depth: int) -> str:
        ((kind, body),) = verdict.items()
        self.path.append(f"{where}: {kind}" + (f" {body['target']}" if isinstance(body, dict) else ""))
        match kind:
            case "accept" | "drop" | "return":
                return str(kind)
            case "jump":
                return self.chain(body["target"], depth + 1)
            case "goto":
                return self.chain(body["target"], depth + 1) or "return"
            case "continue":
                return ""
        raise _UnknownError(f"verdict {_brief(verdict)} in {where}")

    def _vmap(self, body: Mapping[str, Json], where: str, depth: int) -> str:
        data = body["data"]
        try:
            key = self._value(body["key"])
        except _Absent:
            return ""
        for element in self._elements(data):
            if not isinstance(element, list) or len(element) != 2:
                raise _UnknownError(f"map element {_brief(element)} in {where}")
            if _holds(element[0], key):
                name = data[1:] if isinstance(data, str) else ""
                self.direction = next((one for one in Direction if name.startswith(one)), "")
                verdict = self._verdict(element[1], f"{where}, {name} element", depth)
                if verdict != "drop":
                    self.direction = ""
                return verdict
        return ""

    # Matches

    def _matches(self, body: Mapping[str, Json]) -> bool:
        right, op = body["right"], body["op"]
        try:
            left = self._value(body["left"])
        except _Absent:
            return False
        if op not in ("==", "!=", "in"):
            raise _UnknownError(f"operator {op} in {_brief(body)}")
        if body["left"] == {"ct": {"key": "state"}}:
            # Flags: `==` with a list prints as `in`; either way any common flag matches.
            words = right if isinstance(right, list) else [right]
            found = any(word in (left, STATE_NEW) for word in words)
        elif isinstance(right, str) and right.startswith("@"):
            found = any(_holds(element, left) for element in self._elements(right))
        elif isinstance(right, dict) and "set" in right:
            found = any(_holds(element, left) for element in right["set"])
        else:
            found = _holds(right, left)
        return found if op != "!=" else not found

    def _elements(self, data: Json) -> list[Json]:
        if isinstance(data, str) and data.startswith("@"):
            if data[1:] not in self._table.sets:
                raise _UnknownError(f"no set {data[1:]} in the listing")
            return self._table.sets[data[1:]]
        if isinstance(data, dict) and isinstance(data.get("set"), list):
            elements: list[Json] = data["set"]
            return elements
        raise _UnknownError(f"set {_brief(data)}")

    def _value(self, expression: Json) -> Value:
        if isinstance(expression, dict) and len(expression) == 1:
            ((kind, body),) = expression.items()
            if kind == "concat":
                return tuple(self._value(part) for part in body)
            if kind == "&" and len(body) == 2 and isinstance(body[1], int):
                left = self._value(body[0])
                if isinstance(left, int):
                    return left & body[1]
            name = _field_name(kind, body)
            if name in self._fields:
                value = self._fields[name]
                if value is None:
                    raise _Absent
                return value
        raise _UnknownError(f"expression {_brief(expression)}")

    def _mangle(self, body: Mapping[str, Json]) -> None:
        """The conntrack mark may be written; what it holds then is not followed."""
        if body.get("key") != {"ct": {"key": "mark"}}:
            raise _UnknownError(f"statement {_brief({'mangle': body})}")
        self._fields.pop("ct mark", None)


def _fields(packet: Packet) -> dict[str, Value | None]:
    """Every field that is known of the packet, by name; None: the packet has no such field."""
    four = packet.version == 4
    source, destination = _address(packet.source), _address(packet.destination)
    ends = {  # `ct original daddr` is not among them: it is the address before any DNAT
        "ct original {} saddr": source,
        "ct reply {} saddr": destination,
        "payload {} saddr": source,
        "payload {} daddr": destination,
    }
    fields: dict[str, Value | None] = {"ct mark": 0, "ct state": "new"}
    for name, value in ends.items():
        fields[name.format("ip")] = value if four else None
        fields[name.format("ip6")] = None if four else value
    protocol = packet.protocol.lower()
    if packet.protocol == ICMP:
        protocol = "icmp" if four else "ipv6-icmp"
    fields["meta l4proto"] = protocol
    fields["meta nfproto"] = "ipv4" if four else "ipv6"
    if packet.port is not None:
        fields["ct reply proto-src"] = packet.port
        fields["payload th dport"] = packet.port
        for one in ("tcp", "udp", "sctp"):
            fields[f"payload {one} dport"] = packet.port if one == protocol else None
    return fields


def _field_name(kind: str, body: Json) -> str:
    if not isinstance(body, dict):
        return ""
    if kind == "ct":
        return " ".join(part for part in ("ct", body.get("dir", ""), body.get("key", "")) if part)
    if kind == "meta":
        return f"meta {body.get('key')}"
    if kind == "payload":
        return f"payload {body.get('protocol')} {body.get('field')}"
    return ""


def _holds(element: Json, value: Value) -> bool:
    """Whether a set element, or the right side of a match, holds the value."""
    if isinstance(element, dict) and len(element) == 1:
        ((kind, body),) = element.items()
        if kind == "elem":
            return _holds(body["val"], value)
        if kind == "concat":
            parts = value if isinstance(value, tuple) else (value,)
            return len(parts) == len(body) and all(map(_holds, body, parts))
        if kind == "range" and isinstance(value, int):
            return _number(body[0]) <= value <= _number(body[1])
        if kind == "prefix" and isinstance(value, int):
            return _in_prefix(body, value)
    if isinstance(element, str | int):
        return _same(element, value)
    raise _UnknownError(f"element {_brief(element)}")


def _same(element: str | int, value: Value) -> bool:
    if isinstance(value, int):
        return _number(element) == value
    if isinstance(element, int):
        element = PROTOCOL_NUMBERS.get(element, str(element))
    return {"icmpv6": "ipv6-icmp"}.get(element, element) == value


def _in_prefix(body: Mapping[str, Json], value: int) -> bool:
    address, length = body["addr"], body["len"]
    bits = 128 if isinstance(address, str) and ":" in address else 32
    shift = bits - int(length)
    return value >> shift == _number(address) >> shift


def _number(element: Json) -> int:
    if isinstance(element, int):
        return element
    if isinstance(element, str):
        try:
            return _address(element)
        except ValueError:
            pass
    raise _UnknownError(f"value {_brief(element)}")


def _address(text: str) -> int:
    return int(ipaddress.ip_address(text))


def _brief(expression: Json) -> str:
    text = str(expression)
    return text if len(text) <= 120 else text[:117] + "..."
