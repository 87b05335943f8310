"""Foreign forward chains in the kernel: read, changed rule by rule, and watched."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from netagent.core.foreign import (
    ChainName,
    ForwardChain,
    Item,
    forward_chains,
    has_xt_comment,
    read_chain,
    with_comments,
)
from netagent.kernel.nfnetlink import NFPROTO_INET, SUBSYSTEM_NFTABLES, Message, attributes, number, text
from netagent.kernel.nft import LibNftables, brief
from netagent.kernel.nfwatch import NFTA_TABLE, NftWatch, Notifications
from netagent.kernel.xtcomments import xt_comments
from netagent.ports import NftError

NEWCHAIN, DELCHAIN = SUBSYSTEM_NFTABLES << 8 | 3, SUBSYSTEM_NFTABLES << 8 | 5
NEWRULE, DELRULE = SUBSYSTEM_NFTABLES << 8 | 6, SUBSYSTEM_NFTABLES << 8 | 8
NFTA_RULE_CHAIN = 2
NFTA_CHAIN_HOOK = 4
NFTA_HOOK_HOOKNUM = 1
NF_INET_FORWARD = 2
FAMILIES = {NFPROTO_INET: "inet", 2: "ip", 10: "ip6"}
HOOKED = struct.pack("=HH", 8, NFTA_HOOK_HOOKNUM) + struct.pack("!I", NF_INET_FORWARD)
"""In the bytes of every message about a base chain of the forward hook."""
LEGACY_TABLES = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}
"""Tables of the old iptables that exist in this namespace, one a line; absent where the kernel has none of it."""


class ForeignNft(LibNftables):
    """Chains of others, with a worker thread of its own: a large foreign table delays no commit of ours."""

    async def forward_chains(self) -> tuple[ForwardChain, ...]:
        """All foreign base chains of the forward hook. Raises NftError."""
        found = []
        for name in forward_chains(await self.query("list chains")):
            listing: Sequence[Item] = await self.query(f"list chain {name}")
            if any(has_xt_comment(item.get("rule") or {}) for item in listing):
                listing = with_comments(listing, await self._call(xt_comments, name))
            chain = read_chain(name, listing)
            if chain is not None:
                found.append(chain)
        return tuple(found)

    async def change(self, chain: ChainName, commands: Sequence[str]) -> None:
        """Apply all of the commands to one chain, or none of them. Raises NftError."""
        await self._call(self._change, chain, "\n".join(commands) + "\n")

    def _change(self, chain: ChainName, commands: str) -> None:
        library = self._library()
        library.set_json_output(False)
        code, _, error = library.cmd(commands)
        if code != 0:
            raise NftError(
                f"the kernel refused our accept rules in chain {chain}: {brief(error)}. The chain is as it was; "
                f"netagent tries again. If it repeats: accept the pod network in that chain by hand."
            )


class ForwardNotifications(Notifications):
    """Reads which commits touch a base chain of the forward hook."""

    def __init__(self, table: str, is_own: Callable[[int], bool]) -> None:
        """`table` has no meaning here."""
        super().__init__(table, is_own)
        self._chains: frozenset[ChainName] = frozenset()
        self._marks: tuple[bytes, ...] = (HOOKED,)

    def know(self, chains: frozenset[ChainName]) -> bool:
        """These chains exist: changes of their rules count. Whether that is news."""
        news = chains != self._chains
        self._chains = chains
        self._marks = (HOOKED, *{name.chain.encode() + b"\0" for name in chains})
        return news

    def _mentions(self, datagram: bytes) -> bool:
        return any(mark in datagram for mark in self._marks)

    def _concerns(self, message: Message) -> bool:
        family = FAMILIES.get(message.family)
        if family is None:
            return False
        if message.type in (NEWCHAIN, DELCHAIN):
            hook = attributes(message.body).get(NFTA_CHAIN_HOOK)
            return hook is not None and number(attributes(hook), NFTA_HOOK_HOOKNUM) == NF_INET_FORWARD
        if message.type in (NEWRULE, DELRULE):
            found = attributes(message.body)
            return ChainName(family, text(found, NFTA_TABLE), text(found, NFTA_RULE_CHAIN)) in self._chains
        return False


class ForwardWatch(NftWatch):
    """Tells of foreign commits that touch a base chain of the forward hook."""

    def __init__(self) -> None:
        """Raises NfnetlinkError."""
        super().__init__("", reader=self._reader)

    def know(self, chains: frozenset[ChainName]) -> bool:
        """These chains exist: changes of their rules count. Whether that is news."""
        return self._forward.know(chains)

    def _reader(self, table: str, is_own: Callable[[int], bool]) -> Notifications:
        self._forward = ForwardNotifications(table, is_own)
        return self._forward


def legacy_filter(version: int) -> bool:
    """Whether the old iptables (not nftables) filters packets of an IP version here: of that we see nothing."""
    try:
        return "filter" in Path(LEGACY_TABLES[version]).read_text(encoding="ascii").split()
    except OSError:
        return False
