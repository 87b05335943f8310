"""Comments of rules that iptables-nft wrote as an xtables match, which libnftables lists without their text.

A rule of ours turns into such a one when somebody saves and restores the table with iptables' tools.
"""

import itertools
from collections.abc import Iterator

from netagent.core.foreign import ChainName
from netagent.kernel.nfdump import dump
from netagent.kernel.nfnetlink import (
    ATTRIBUTE,
    NFPROTO_INET,
    SUBSYSTEM_NFTABLES,
    MalformedError,
    Message,
    attribute,
    attributes,
    number,
    text,
)

NEWRULE, GETRULE = SUBSYSTEM_NFTABLES << 8 | 6, SUBSYSTEM_NFTABLES << 8 | 7
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS = 1, 2, 3, 4
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
MATCH_NAME, MATCH_INFO = 1, 3
"""MATCH_INFO of a comment is xt_comment_info: its text in 256 bytes."""
FAMILIES = {"inet": NFPROTO_INET, "ip": 2, "ip6": 10}


def xt_comments(chain: ChainName) -> dict[int, str]:
    """Handle of a rule -> text of its comment match, in one chain. Blocks. Raises NftError."""
    names = attribute(RULE_TABLE, chain.table.encode() + b"\0") + attribute(RULE_CHAIN, chain.chain.encode() + b"\0")
    family, what = FAMILIES[chain.family], f"the rules of chain {chain}"
    rules = dump(GETRULE, NEWRULE, _comments, family=family, body=names, what=what)
    return dict(itertools.chain.from_iterable(rules))


def _comments(one: Message) -> list[tuple[int, str]]:
    """Of one rule: its handle with the text of each comment match."""
    rule = attributes(one.body)
    found = []
    for expression in _list(rule.get(RULE_EXPRESSIONS, b"")):
        data = attributes(expression.get(EXPRESSION_DATA, b""))
        if text(expression, EXPRESSION_NAME) == "match" and text(data, MATCH_NAME) == "comment":
            found.append((number(rule, RULE_HANDLE, 8) or 0, text(data, MATCH_INFO)))
    return found


def _list(raw: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of each element of a list, whose elements all have one type. Raises MalformedError."""
    offset = 0
    while offset < len(raw):
        length = ATTRIBUTE.unpack_from(raw, offset)[0] if len(raw) - offset >= ATTRIBUTE.size else 0
        if not ATTRIBUTE.size <= length <= len(raw) - offset:
            raise MalformedError(f"a list of {len(raw)} bytes has an element of {length} at {offset}.")
        yield attributes(raw[offset + ATTRIBUTE.size : offset + length])
        offset += -(-length // 4) * 4
