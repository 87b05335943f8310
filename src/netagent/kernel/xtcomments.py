"""Comments of rules that iptables-nft wrote as an xtables match, which libnftables lists without their text.

A rule of ours turns into such a one when somebody saves and restores the table with iptables' tools.
"""

import errno
import os
import struct
from collections.abc import Iterator

from netagent.core.foreign import ChainName
from netagent.kernel.nfnetlink import (
    ATTRIBUTE,
    DATAGRAM_BYTES,
    NFPROTO_INET,
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    SUBSYSTEM_NFTABLES,
    MalformedError,
    NfnetlinkError,
    attribute,
    attributes,
    message,
    messages,
    number,
    open_socket,
    text,
)
from netagent.ports import NftError

NEWRULE, GETRULE = SUBSYSTEM_NFTABLES << 8 | 6, SUBSYSTEM_NFTABLES << 8 | 7
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS = 1, 2, 3, 4
EXPRESSION_NAME, EXPRESSION_DATA = 1, 2
MATCH_NAME, MATCH_INFO = 1, 3
"""MATCH_INFO of a comment is xt_comment_info: its text in 256 bytes."""
FAMILIES = {"inet": NFPROTO_INET, "ip": 2, "ip6": 10}
RECEIVE_BYTES = 1 << 18
TIMEOUT_S = 5.0


def xt_comments(chain: ChainName) -> dict[int, str]:
    """Handle of a rule -> text of its comment match, in one chain. Blocks. Raises NftError."""
    names = attribute(RULE_TABLE, chain.table.encode() + b"\0") + attribute(RULE_CHAIN, chain.chain.encode() + b"\0")
    found: dict[int, str] = {}
    try:
        with open_socket(RECEIVE_BYTES) as link:
            link.settimeout(TIMEOUT_S)
            link.send(message(GETRULE, NLM_F_DUMP, 1, family=FAMILIES[chain.family], body=names))
            while not _take(link.recv(DATAGRAM_BYTES), found):
                pass
    except (OSError, MalformedError, NfnetlinkError) as error:
        raise NftError(f"reading the rules of chain {chain}: {error}. Nothing was changed.") from None
    return found


def _take(datagram: bytes, found: dict[int, str]) -> bool:
    """Take a part of the dump into `found`; whether it was the last."""
    for one in messages(datagram):
        if one.type in (NLMSG_DONE, NLMSG_ERROR):
            code = -int(struct.unpack_from("=i", one.payload)[0]) if len(one.payload) >= 4 else 0
            if code not in (0, errno.ENOENT):
                raise OSError(code, os.strerror(code))
            return True
        if one.type == NEWRULE:
            rule = attributes(one.body)
            for expression in _list(rule.get(RULE_EXPRESSIONS, b"")):
                data = attributes(expression.get(EXPRESSION_DATA, b""))
                if text(expression, EXPRESSION_NAME) == "match" and text(data, MATCH_NAME) == "comment":
                    found[number(rule, RULE_HANDLE, 8) or 0] = text(data, MATCH_INFO)
    return False


def _list(raw: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of each element of a list, whose elements all have one type. Raises MalformedError."""
    offset = 0
    while offset < len(raw):
        length = ATTRIBUTE.unpack_from(raw, offset)[0] if len(raw) - offset >= ATTRIBUTE.size else 0
        if not ATTRIBUTE.size <= length <= len(raw) - offset:
            raise MalformedError(f"a list of {len(raw)} bytes has an element of {length} at {offset}.")
        yield attributes(raw[offset + ATTRIBUTE.size : offset + length])
        offset += -(-length // 4) * 4
