"""SCTP associations without SCTP sockets."""

import os
import struct
from collections.abc import Iterator

import pytest

from netagent.lab import sctp
from netagent.lab.holder import loopback_up
from netagent.lab.namespaces import Sockets, open_netns
from netagent.lab.plan import Serving
from netagent.lab.probe import Target, probe
from netagent.lab.serve import Servers

pytestmark = pytest.mark.lab


@pytest.fixture
def here() -> Iterator[int]:
    loopback_up()
    netns = open_netns("/proc/self/ns/net")
    yield netns
    os.close(netns)


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_an_association_is_established_and_says_who_answers(here: int, ip: str) -> None:
    sockets, servers = Sockets(), Servers()
    try:
        await servers.open(sockets, here, "x/a", [Serving(80, "SCTP"), Serving(81, "SCTP")])
        served = await probe(sockets, here, Target(ip, 81, "SCTP"), timeout_s=20)
        other = await probe(sockets, here, Target(ip, 82, "SCTP"), timeout_s=20)
        servers.close()
        nobody = await probe(sockets, here, Target(ip, 81, "SCTP"), timeout_s=0.3)
    finally:
        servers.close()
        sockets.close()
    assert (served.allowed, served.answer) == (True, "x/a")
    assert (other.allowed, other.detail) == (False, "refused")
    assert not nobody.allowed


def test_the_checksum_is_that_of_the_standard() -> None:
    assert sctp.crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4 and the CRC catalogues


@pytest.mark.parametrize(
    "content",
    [b"", bytes(11), bytes(13), bytes(12) + b"\x01\x00\x00\x03", bytes(12) + struct.pack("!BBH", 1, 0, 99)],
)
def test_what_is_no_packet_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"SCTP|cut off|longer"):
        sctp.decode(content)
