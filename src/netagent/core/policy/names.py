"""Names of nftables objects: kind, short content hash, readable tail. Nothing from outside reaches them unfiltered."""

import re
from collections.abc import Iterable
from hashlib import blake2b

HASH_BYTES = 10
"""80 bits: nobody who can write policies can aim at the name of somebody else's set."""
TAIL_CHARS = 40

_UNSAFE = re.compile(r"[^a-z0-9]+")


def content_name(kind: str, content: Iterable[str], tail: str = "") -> str:
    """`<kind>_<20 hex digits>[_<tail>]`; equal content gives equal names."""
    digest = blake2b(digest_size=HASH_BYTES)
    for part in content:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part.encode())
    readable = _UNSAFE.sub("_", tail.lower()).strip("_")[:TAIL_CHARS]
    return f"{kind}_{digest.hexdigest()}" + (f"_{readable}" if readable else "")
