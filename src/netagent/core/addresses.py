"""Addresses and networks from outside, made canonical.

`ipaddress` takes an IPv6 zone (`fe80::1%...`) of any characters and prints it again. Here it is refused, so that what
comes out has nothing but hexadecimal digits, dots, colons and at most one slash: fit for a file name or an nft command.
"""

import ipaddress

MAX_CHARS = 64
"""The longest spelling of an IPv6 network has 43."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_address(text: str) -> Address:
    """Raises ValueError, whose text shows what was given."""
    _check(text)
    return ipaddress.ip_address(text)


def parse_network(text: str, *, strict: bool = True) -> Network:
    """`strict`: host bits are refused, else cut off. Raises ValueError, whose text shows what was given."""
    _check(text)
    return ipaddress.ip_network(text, strict=strict)


def _check(text: str) -> None:
    if "%" in text:
        raise ValueError(f"{text[:MAX_CHARS]!r} has a zone, which is not accepted")
    if len(text) > MAX_CHARS:
        raise ValueError(f"{text[:MAX_CHARS]!r}... has {len(text)} characters")
