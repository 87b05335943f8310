"""One target per decoder of outside bytes: bytes in, nothing out.

A target passes where the decoder gave a result or its own error. It fails by any other exception, which its fuzzer
reports, or by a Broken: what came out is not what its readers may rely on. `FIELD` separates the parts of an input that
has several (environment and body, file name and content).
"""

import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import orjson

from fuzz.mutate import FIELD
from fuzz.scenes import GENERATION, LOGGED, TOUCH, Node, cluster, devices, directory, one_loop
from netagent import config, logs
from netagent.agent.http.proposals import ProposalError, read_proposal
from netagent.config import ConfigError
from netagent.core import cni, droplog
from netagent.core.cni import CniError
from netagent.core.network import migrate
from netagent.core.network.flannel import read_backend_data
from netagent.core.policy.meaning import compile_policy
from netagent.core.questions import explain, simulate
from netagent.core.questions.parties import QuestionError, parse_question
from netagent.disk.allocations import Allocations
from netagent.disk.atomic import DiskError
from netagent.disk.hostlocal import HostLocal
from netagent.disk.state import ModeMemory, SubnetMemory
from netagent.kernel import conntrack, links, nfbatch, rtnetlink
from netagent.kernel.entries import NDMSG
from netagent.kernel.nflog import PacketStream
from netagent.kernel.nfnetlink import MalformedError, attributes, messages
from netagent.kernel.nfwatch import Notifications
from netagent.kernel.rtnetlink import RtnetlinkError
from netagent.kube import decode
from netagent.kube.wire import MALFORMED, DecodeError, Page
from netagent.records import Endpoint, Kind, NetworkPolicy, Pod, SubnetLease
from netagent.records import Node as NodeRecord

ADDRESS = re.compile(r"[0-9a-f.:]+")
NETWORK = re.compile(r"[0-9a-f.:]+/\d{1,3}")

Target = Callable[[bytes], None]


class Broken(AssertionError):
    """A decoder let something through."""


def expect(held: object, what: str) -> None:
    """Raises Broken."""
    if not held:
        raise Broken(what)


# The API server


def _object(kind: Kind) -> Target:
    def target(data: bytes) -> None:
        with contextlib.suppress(DecodeError):
            decode.head(data)
        with contextlib.suppress(DecodeError):
            _check_record(decode.record(kind, data))

    return target


def _check_record(record: object) -> None:
    texts: tuple[str, ...] = ()
    match record:
        case Pod(ips=ips, ports=ports):
            texts = ips
            expect(all(0 < one.number < 65536 for one in ports), f"ports {ports}")
        case NodeRecord(addresses=addresses, pod_cidrs=cidrs):
            texts = addresses
            expect(all(map(NETWORK.fullmatch, cidrs)), f"networks {cidrs}")
        case SubnetLease(subnet=subnet, public_ip=public_ip):
            texts = (public_ip,) if public_ip else ()
            expect(NETWORK.fullmatch(subnet), f"network {subnet}")
        case NetworkPolicy():
            policy = compile_policy(record)
            expect(all(map(str, (policy.selects, *policy.rules))) and policy.problems is not None, "policy")
    expect(all(map(ADDRESS.fullmatch, texts)), f"addresses {texts}")
    msgspec.json.encode(record)


def page(data: bytes) -> None:
    """A list: what is readable in it is read, whatever stands beside it."""
    try:
        found = msgspec.json.decode(data, type=Page)
    except MALFORMED:
        return
    for raw in found.items or ():
        with contextlib.suppress(DecodeError):
            decode.head(raw)
            decode.record(Kind.POD, raw)


def watch(data: bytes) -> None:
    """A watch that sends this: afterwards the reflector lists or resumes, and delivers what comes then."""
    seen = one_loop(Node.watched, data)
    expect("ns/late-7f3a" in seen, f"what came after it was lost: {sorted(seen)[:5]}")


# CNI


def cni_call(data: bytes) -> None:
    """Environment, one NAME=VALUE a line, as the HTTP server hands it on; then the network configuration."""
    head, _, body = data.partition(FIELD)
    lines = head.decode("utf-8", "surrogateescape").split("\n")
    environ = {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
    try:
        call = cni.parse_call(environ, body)
        pod, uid = cni.pod_of(call)
        ips = cni.requested_ips(call)
        if call.conf.has_prev_result:
            cni.result_addresses(call.conf.prev_result)
    except CniError as error:
        orjson.dumps(cni.render_error("1.0.0", error))
        return
    expect(all(map(ADDRESS.fullmatch, ips)), f"addresses {ips}")
    if call.container_id:
        expect("/" not in call.container_id + call.ifname and call.container_id != "..", "a path")
    endpoint = Endpoint(
        pod=pod,
        pod_uid=uid,
        container_id=call.container_id,
        ifname=call.ifname,
        host_ifname=call.host_ifname,
        ips=ips,
        netns=call.netns,
    )
    orjson.dumps(cni.render_result(call.conf.cni_version, endpoint, 1450))
    expect(msgspec.json.decode(msgspec.json.encode(endpoint), type=Endpoint) == endpoint, "does not survive the disk")


def cni_http(data: bytes) -> None:
    """Raw bytes on the unix socket: answered or cut off, and the next caller is served."""
    answer, after = one_loop(Node.called, data)
    expect(b"unexpected" not in answer, f"unexpected failure: {answer[:300]!r}")
    expect(b"Traceback" not in answer, f"a traceback: {answer[:300]!r}")
    expect(b"supportedVersions" in after, f"the next call is not served: {after[:100]!r}")


# Questions


def question(data: bytes) -> None:
    """from, to, port, protocol."""
    parts = [part.decode("utf-8", "replace") for part in data.split(FIELD)] + [""] * 4
    with contextlib.suppress(QuestionError):
        answer = explain.explain(cluster(), parse_question(*parts[:4]))
        explain.text(answer)
        msgspec.json.encode(answer)


def proposal(data: bytes) -> None:
    """NetworkPolicy documents, YAML or JSON."""
    with contextlib.suppress(ProposalError):
        found = read_proposal(data, deletes=data[:1] == b"#")
        answer = simulate.simulate(cluster(), found, [])
        simulate.text(answer)
        msgspec.json.encode(answer)


# Files


def config_file(data: bytes) -> None:
    """The configuration file."""
    with directory() as root:
        path = root / "netagent.yaml"
        path.write_bytes(data)
        try:
            found = config.load(str(path), {}, {})
        except ConfigError as error:
            expect(len(str(error)) < 6000, f"an error of {len(str(error))} characters")
            return
    expect(all("%" not in text for text in found.network.pools), "a zone in a pool")


def environment(data: bytes) -> None:
    """NETAGENT_* variables, one NAME=VALUE a line; only what they say is asked for, not whether it fits."""
    lines = data.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
    pairs = {f"NETAGENT_{name}": value for name, equals, value in (line.partition("=") for line in lines) if equals}
    with contextlib.suppress(ConfigError):
        config.load("", pairs, {})


def state_files(data: bytes) -> None:
    """An endpoint's file, the log of freed addresses, the subnets, the mode: its address is never forgotten."""
    parts = [*data.split(FIELD), b"", b"", b""]
    with directory() as root:
        (root / "endpoints").mkdir()
        (root / "endpoints" / "nap0123456789ab+10.0.0.7.json").write_bytes(parts[0])
        for name, content in zip(("freed.log", "subnets.json", "network-mode"), parts[1:4], strict=True):
            (root / name).write_bytes(content)
        try:
            found = Allocations(root, "boot").load()
        except DiskError:  # of a newer program: nothing may be changed
            expect((root / "endpoints" / "nap0123456789ab+10.0.0.7.json").read_bytes() == parts[0], "changed")
            return
        claimed = {ip for one in found.endpoints for ip in one.ips} | {ip for one in found.damaged for ip in one.ips}
        expect(claimed == {"10.0.0.7"}, f"claims {claimed}")
        expect(all(map(ADDRESS.fullmatch, found.freed)), f"freed {found.freed}")
        subnets, _ = SubnetMemory(root).load()
        expect(all(map(NETWORK.fullmatch, subnets)), f"subnets {subnets}")
        expect(ModeMemory(root).load() in (None, "lease", "node"), "mode")


def host_local(data: bytes) -> None:
    """A reservation of host-local: name of the file, content, container whose DEL comes."""
    name, content, container = [*data.split(FIELD), b"", b"", b""][:3]
    with directory() as root:
        network = root / "cbr0"
        network.mkdir()
        plain = name.replace(b"/", b"").replace(b"\0", b"")[:200]
        (network / "10.0.0.9").write_bytes(b"other\r\neth0")
        if plain not in (b"", b".", b"..", b"lock"):
            Path(str(network).encode().decode() + "/" + plain.decode("utf-8", "surrogateescape")).write_bytes(content)
        store = HostLocal(root)
        expect(all(map(ADDRESS.fullmatch, store.addresses())), f"addresses {store.addresses()}")
        store.reservations()
        freed: tuple[str, ...] = ()
        with contextlib.suppress(DiskError):
            freed = store.release(container.decode("utf-8", "replace"))
        expect("10.0.0.9" not in freed or plain == b"10.0.0.9" or container == b"other", f"freed {freed}")


def conflist(data: bytes) -> None:
    """Somebody's CNI configuration list, and somebody's annotation."""
    migrate.flannel_network(data)
    read_backend_data(data.decode("utf-8", "replace"))


# The kernel


def nft_notifications(data: bytes) -> None:
    """Datagrams of the nftables group; after a bad one a foreign change is still seen."""
    reader = Notifications("netagent", lambda portid: portid == 5)
    for datagram in data.split(FIELD):
        try:
            reader.read(datagram)
        except MalformedError:
            reader.forget()
    reader.forget()
    reader.read(TOUCH)
    expect(reader.read(GENERATION), "a change after it was not seen")


def nflog(data: bytes) -> None:
    """Datagrams of logged packets; after a bad one the next packet is still read."""
    reader = PacketStream()
    for datagram in data.split(FIELD):
        for packet in reader.read(datagram).packets:
            expect(packet.prefix.isprintable(), f"prefix {packet.prefix!r}")
            with contextlib.suppress(droplog.NotAPacketError):
                droplog.parse(packet.payload)
    expect(len(reader.read(LOGGED).packets) == 1, "a packet after it was not read")


def packet(data: bytes) -> None:
    """The bytes of a denied packet."""
    with contextlib.suppress(droplog.NotAPacketError):
        found = droplog.parse(data)
        expect(ADDRESS.fullmatch(found.source) and ADDRESS.fullmatch(found.destination), f"{found}")


def nft_answers(data: bytes) -> None:
    """What the kernel answers to a batch."""
    with contextlib.suppress(MalformedError):
        for one in nfbatch.answers([data]):
            expect(one.reason.isprintable(), f"reason {one.reason!r}")


def flows(data: bytes) -> None:
    """A part of the dump of open flows."""
    with contextlib.suppress(MalformedError, OSError):
        conntrack.take(data, [])
    with contextlib.suppress(MalformedError):
        for one in messages(data):
            attributes(one.body)


def route_messages(data: bytes) -> None:
    """Notifications of rtnetlink, as the pod network and the pods' links read them."""
    with contextlib.suppress(RtnetlinkError):
        for one in rtnetlink.messages(data):
            for reader in (devices().notice, _link, links.read_address, rtnetlink._refusal):
                with contextlib.suppress(RtnetlinkError):
                    reader(one)
    with contextlib.suppress(RtnetlinkError):
        rtnetlink.attributes(data, NDMSG.size)


def _link(one: rtnetlink.Message) -> None:
    links.read_vxlan(links.read_link(one))


# Logs


def log_line(data: bytes) -> None:
    """Any text as a record: one line, in both formats."""
    text = data.decode("utf-8", "surrogateescape")
    record = logging.LogRecord("netagent.x", 30, "", 0, "%s", (text,), None)
    record.fields = {"name": text}
    line = logs.TextLines().format(record)
    expect(line.isprintable() and len(line.splitlines()) == 1, f"more than one line: {line!r}")
    json_line = logs.JsonLines().format(record)
    expect(len(json_line.split("\n")) == 1 and isinstance(json.loads(json_line), dict), "JSON")


TARGETS: Mapping[str, Target] = {
    "namespace": _object(Kind.NAMESPACE),
    "pod": _object(Kind.POD),
    "node": _object(Kind.NODE),
    "policy": _object(Kind.NETWORK_POLICY),
    "lease": _object(Kind.LEASE),
    "page": page,
    "watch": watch,
    "cni_call": cni_call,
    "cni_http": cni_http,
    "question": question,
    "proposal": proposal,
    "config_file": config_file,
    "environment": environment,
    "state_files": state_files,
    "host_local": host_local,
    "conflist": conflist,
    "nft_notifications": nft_notifications,
    "nflog": nflog,
    "packet": packet,
    "nft_answers": nft_answers,
    "flows": flows,
    "route_messages": route_messages,
    "log_line": log_line,
}
