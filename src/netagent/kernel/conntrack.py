"""The kernel's open flows, read over ctnetlink.

Reads the dump's bytes itself: a busy node has 100 000 entries, of which a few attributes are wanted, and pyroute2's
general decoder takes five times as long (measured with 20 000 entries: 2.7 s and 0.56 s).
"""

import asyncio
import socket
import sys

from netagent.core.questions.simulate import OpenFlow
from netagent.kernel.nfnetlink import MalformedError, attributes, message, messages
from netagent.ports import NetagentError

NETLINK_NETFILTER = 12
CT_GET = 1 << 8 | 1
"""NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET."""
REQUEST_DUMP = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP."""
NLMSG_ERROR, NLMSG_DONE = 2, 3
RECEIVE_BYTES = 1 << 18
RECEIVE_TIMEOUT_S = 5.0
MAX_FLOWS = 200_000
"""The dump stops here: memory is bounded on a node with a larger table."""

# include/uapi/linux/netfilter/nfnetlink_conntrack.h
TUPLE_ORIG, TUPLE_REPLY, PROTOINFO, MARK = 1, 2, 4, 8
TUPLE_IP, TUPLE_PROTO = 1, 2
PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 3
PROTOINFO_TCP, PROTOINFO_TCP_STATE = 1, 1

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMP", 132: "SCTP"}
TCP_STATES = {
    1: "SYN_SENT",
    2: "SYN_RECV",
    3: "ESTABLISHED",
    4: "FIN_WAIT",
    5: "CLOSE_WAIT",
    6: "LAST_ACK",
    7: "TIME_WAIT",
    8: "CLOSE",
}


class ConntrackError(NetagentError):
    """The open flows could not be read."""


async def flows() -> list[OpenFlow]:
    """Every tracked flow of the process's network namespace, at most MAX_FLOWS. Raises ConntrackError."""
    # Opened here, in the namespace of the event loop's thread; read elsewhere, because a large dump takes a while.
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as link:
            link.settimeout(RECEIVE_TIMEOUT_S)
            return await asyncio.to_thread(_dump, link)
    except (OSError, MalformedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConntrackError(
            f"the kernel's open flows could not be read: {reason}. Nothing was changed; "
            "is nf_conntrack_netlink available, and has the agent CAP_NET_ADMIN?"
        ) from None


def _dump(link: socket.socket) -> list[OpenFlow]:
    link.send(message(CT_GET, REQUEST_DUMP, 1, family=socket.AF_UNSPEC))
    found: list[OpenFlow] = []
    while len(found) < MAX_FLOWS and not take(link.recv(RECEIVE_BYTES), found):
        pass
    return found[:MAX_FLOWS]


def take(datagram: bytes, found: list[OpenFlow]) -> bool:
    """Add the flows in a part of the dump; whether it was the last. Raises MalformedError, OSError."""
    for one in messages(datagram):
        if one.type == NLMSG_DONE:
            return True
        if one.type == NLMSG_ERROR:
            number = -int.from_bytes(one.payload[:4], sys.byteorder, signed=True)
            raise OSError(number, f"ctnetlink answered error {number}")
        flow = _flow(one.body)
        if flow is not None:
            found.append(flow)
    return False


def _flow(data: bytes) -> OpenFlow | None:
    """One entry; None where it has no addresses of a family that we know. Raises MalformedError."""
    parts = attributes(data)
    original, reply = _tuple(parts.get(TUPLE_ORIG, b"")), _tuple(parts.get(TUPLE_REPLY, b""))
    if original is None or reply is None:
        return None
    number, client, client_port, service, service_port = original
    return OpenFlow(
        protocol=PROTOCOLS.get(number, str(number)),
        client=client,
        client_port=client_port,
        service=service,
        service_port=service_port,
        server=reply[1],
        server_port=reply[2],
        mark=int.from_bytes(parts.get(MARK, b""), "big"),
        state=_tcp_state(parts.get(PROTOINFO, b"")),
    )


def _tuple(data: bytes) -> tuple[int, str, int | None, str, int | None] | None:
    """Protocol, source, its port, destination, its port."""
    parts = attributes(data)
    addresses, proto = attributes(parts.get(TUPLE_IP, b"")), attributes(parts.get(TUPLE_PROTO, b""))
    for family, source, destination in ((socket.AF_INET, 1, 2), (socket.AF_INET6, 3, 4)):
        if source in addresses and destination in addresses:
            return (
                int.from_bytes(proto.get(PROTO_NUM, b""), "big"),
                _address(family, addresses[source]),
                _port(proto.get(PROTO_SRC_PORT)),
                _address(family, addresses[destination]),
                _port(proto.get(PROTO_DST_PORT)),
            )
    return None


def _address(family: socket.AddressFamily, data: bytes) -> str:
    try:
        return socket.inet_ntop(family, data)
    except ValueError:
        raise MalformedError(f"an address of {len(data)} bytes in a flow.") from None


def _port(data: bytes | None) -> int | None:
    return None if data is None else int.from_bytes(data, "big")


def _tcp_state(data: bytes) -> str:
    tcp = attributes(attributes(data).get(PROTOINFO_TCP, b""))
    return TCP_STATES.get(int.from_bytes(tcp.get(PROTOINFO_TCP_STATE, b""), "big"), "")
