"""The CNI plugin as a runtime meets it: the compiled executable, a real agent socket, real namespaces, real packets."""

import asyncio
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from netagent.agent.pods.cnisocket import SocketError, exclusive_socket
from netagent.cni import install
from netagent.config import CniConfig
from netagent.core.cni import VERSIONS, host_ifname, pod_mac
from netagent.kernel import wiring
from netagent.kernel.netns import open_netns, run_in_netns
from netagent.ports import NetagentError, PodNetState
from netagent.records import Endpoint, Key
from support.cnibed import (
    DEADLINE_S,
    Bed,
    Netns,
    addresses,
    exchange,
    execute,
    has_link,
    mode,
    sh,
    udp_socket,
    until,
)

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("version", VERSIONS)
async def test_add_check_and_delete_in_every_version(bed: Bed, pod_netns: Netns, version: str) -> None:
    pod_netns("web")
    result = await bed.add("web", version=version)
    assert result["cniVersion"] == version
    host, inside = result["interfaces"]
    assert has_link(host["name"])
    assert "sandbox" not in host
    assert inside["sandbox"] == "/run/netns/web"
    assert [ip["address"] for ip in result["ips"]] == ["10.77.0.1/32", "fd77::1/128"]
    assert [ip.get("version") for ip in result["ips"]] == (["4", "6"] if version < "1" else [None, None])
    if version != "0.3.1":
        assert await bed.call("CHECK", "web", version=version, conf={"prevResult": result}) == (0, None)
    await bed.delete("web", version=version, conf={"prevResult": result})
    assert not has_link(host["name"])
    assert bed.server.endpoints() == ()


async def test_packets_between_pods_and_node_in_both_families(bed: Bed, pod_netns: Netns) -> None:
    sh("ip", "address", "replace", "192.0.2.7/32", "dev", "lo")
    sh("ip", "address", "replace", "fd99::7/128", "dev", "lo")
    one, two = pod_netns("one"), pod_netns("two")
    ips_one, ips_two = addresses(await bed.add("one")), addresses(await bed.add("two"))
    for here, there in zip(ips_one, ips_two, strict=True):
        with udp_socket(one, here) as client, udp_socket(two, there) as server:
            assert exchange(client, server, there) == (here, there)
    for node, pod in zip(("192.0.2.7", "fd99::7"), ips_one, strict=True):
        with udp_socket(None, node) as client, udp_socket(one, pod) as server:
            assert exchange(client, server, pod) == (node, pod)
        with udp_socket(one, pod) as client, udp_socket(None, node) as server:
            assert exchange(client, server, node) == (pod, node)


def test_the_first_packet_after_wiring_arrives(pod_netns: Netns) -> None:
    """Each round sends one datagram the moment wiring is done; none may be lost."""
    sh("ip", "address", "replace", "192.0.2.7/32", "dev", "lo")
    sh("ip", "address", "replace", "fd99::7/128", "dev", "lo")
    endpoint = Endpoint(
        pod=Key("default", "web"),
        pod_uid="",
        container_id="web",
        ifname="eth0",
        host_ifname=host_ifname("web", "eth0"),
        ips=("10.77.0.9", "fd77::9"),
        netns=pod_netns("web"),
        mac=pod_mac("web", "eth0"),
    )
    with udp_socket(endpoint.netns, "::") as server, udp_socket(None, "::") as client:
        for number in range(40):
            wiring.wire(endpoint, 1450)
            for ip in ("fd77::9", "::ffff:10.77.0.9"):
                client.sendto(b"%d" % number, (ip, server.getsockname()[1]))
                assert server.recvfrom(16)[0] == b"%d" % number
    wiring.unwire(endpoint.host_ifname)


async def test_policy_is_admitted_before_any_link_exists(bed: Bed, pod_netns: Netns) -> None:
    netns = pod_netns("web")
    bed.gate.open.clear()
    adding = asyncio.create_task(bed.add("web"))
    await until(lambda: "web" in bed.gate.link_at_admission)
    with open_netns(netns) as descriptor:
        assert run_in_netns(descriptor, lambda: [name for _, name in socket.if_nameindex()]) == ["lo"]
    bed.gate.open.set()
    result = await adding
    assert bed.gate.link_at_admission == {"web": False}
    assert has_link(result["interfaces"][0]["name"])


async def test_refused_policy_leaves_nothing(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    bed.gate.refusal = NetagentError("kernel refused 3 operations")
    status, answer = await bed.call("ADD", "web")
    assert (status, answer["code"]) == (1, 11)
    assert "kernel refused 3 operations" in answer["msg"]
    assert not has_link(host_ifname("web", "eth0"))
    assert list((bed.root / "state" / "endpoints").iterdir()) == []
    assert bed.gate.withdrawn


async def test_policy_that_never_comes_fails_the_add(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    bed.gate.open.clear()
    status, answer = await bed.call("ADD", "web")
    assert (status, answer["code"]) == (1, 11)
    assert bed.server.endpoints() == ()


async def test_repeated_calls_have_the_same_effect(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    first = await bed.add("web")
    assert await bed.add("web") == first
    sh("ip", "link", "del", first["interfaces"][0]["name"])
    assert await bed.add("web") == first
    assert has_link(first["interfaces"][0]["name"])
    await bed.delete("web")
    await bed.delete("web")
    await bed.delete("never-seen", netns="")


async def test_pod_mac_is_stable_and_links_carry_the_mtu(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    first = await bed.add("web", version="1.1.0")
    await bed.delete("web")
    second = await bed.add("web", version="1.1.0")
    assert first["interfaces"][1]["mac"] == second["interfaces"][1]["mac"]
    listing = sh("ip", "-j", "-n", "web", "link", "show", "eth0")
    assert json.loads(listing)[0]["mtu"] == 1450
    assert json.loads(listing)[0]["address"] == second["interfaces"][1]["mac"]
    assert second["interfaces"][1]["mtu"] == 1450


async def test_delete_works_when_the_namespace_is_gone(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    await bed.add("web")
    sh("ip", "netns", "del", "web")
    await bed.delete("web")
    assert list((bed.root / "state" / "endpoints").iterdir()) == []


async def test_full_subnet_is_said_and_passes(bed: Bed, pod_netns: Netns) -> None:
    bed.net.now = PodNetState(subnets=("10.78.0.0/30",), mtu=1400)
    for name in ("one", "two", "three"):
        pod_netns(name)
    assert addresses(await bed.add("one")) == ["10.78.0.1"]
    assert addresses(await bed.add("two")) == ["10.78.0.2"]
    status, answer = await bed.call("ADD", "three")
    assert (status, answer["code"]) == (1, 101)
    assert "10.78.0.0/30 is full" in answer["msg"]
    await bed.delete("one")
    assert addresses(await bed.add("three")) == ["10.78.0.1"]


async def test_an_address_that_a_pod_elsewhere_has_is_not_given_again(bed: Bed, pod_netns: Netns) -> None:
    """The subnet was another node's before; its pods may live on."""
    bed.elsewhere |= {"10.77.0.1", "10.77.0.2", "fd77::2"}
    pod_netns("web")
    assert addresses(await bed.add("web")) == ["10.77.0.3", "fd77::1"]
    pod_netns("next")
    status, answer = await bed.call("ADD", "next", args="IP=10.77.0.2")
    assert (status, answer["code"]) == (1, 102)
    bed.elsewhere.clear()
    assert addresses(await bed.add("next", args="IP=10.77.0.2")) == ["10.77.0.2", "fd77::2"]


@pytest.mark.parametrize(
    "asking",
    [
        {"args": "IP=10.77.0.50"},
        {"conf": {"runtimeConfig": {"ips": ["10.77.0.50/24"]}}},
        {"conf": {"args": {"cni": {"ips": ["10.77.0.50"]}}}},
    ],
)
async def test_requested_address(bed: Bed, pod_netns: Netns, asking: dict[str, Any]) -> None:
    pod_netns("web")
    pod_netns("other")
    assert addresses(await bed.add("web", **asking)) == ["10.77.0.50", "fd77::1"]
    status, answer = await bed.call("ADD", "other", **asking)
    assert (status, answer["code"]) == (1, 102)
    assert "is taken" in answer["msg"]


async def test_add_waits_for_the_subnet(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    later, bed.net.now = bed.net.now, None
    assert (await bed.call("STATUS", "", version="1.1.0"))[1]["code"] == 50
    adding = asyncio.create_task(bed.add("web"))
    await asyncio.sleep(0.2)
    assert not adding.done()
    bed.net.now = later
    await adding
    assert await bed.call("STATUS", "", version="1.1.0") == (0, None)


async def test_executable_waits_for_an_agent_that_is_away(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    await bed.stop()
    adding = asyncio.create_task(bed.add("web"))
    await asyncio.sleep(0.3)
    assert not adding.done()
    await bed.start()
    assert addresses(await adding) == ["10.77.0.1", "fd77::1"]


async def test_executable_gives_up_after_its_bound(bed: Bed) -> None:
    await bed.stop()
    bed.wait_s = 1
    started_s = time.monotonic()
    status, answer = await bed.call("ADD", "web")
    assert time.monotonic() - started_s >= 0.9
    assert (status, answer["code"]) == (1, 11)
    assert answer["cniVersion"] == "1.0.0"


async def test_executable_sends_again_when_the_answer_breaks_off(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    await bed.stop()
    broken = asyncio.Event()

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"cniVersion"')
        await writer.drain()
        writer.close()
        broken.set()

    with exclusive_socket(bed.config.socket) as listener:
        server = await asyncio.start_unix_server(break_off, sock=listener)
        adding = asyncio.create_task(bed.add("web"))
        await asyncio.wait_for(broken.wait(), DEADLINE_S)
        server.close()
        await server.wait_closed()
    await bed.start()
    assert addresses(await adding) == ["10.77.0.1", "fd77::1"]


async def test_version_needs_no_agent(bed: Bed) -> None:
    await bed.stop()
    status, answer = await bed.call("VERSION", "", version="0.4.0")
    assert status == 0
    assert answer == {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)}


async def test_restarted_agent_takes_over_and_frees_what_is_gone(bed: Bed, pod_netns: Netns) -> None:
    for name in ("stays", "goes"):
        pod_netns(name)
        await bed.add(name)
    await bed.stop()
    sh("ip", "netns", "del", "goes")
    await until(lambda: not has_link(host_ifname("goes", "eth0")))
    await bed.start()
    assert [endpoint.container_id for endpoint in bed.gate.restored] == ["stays"]
    assert bed.gate.restored == bed.server.endpoints()
    status, _ = await bed.call("CHECK", "stays", conf={"prevResult": await bed.add("stays")})
    assert status == 0


async def test_link_without_a_record_keeps_its_address(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    await bed.add("web")
    await bed.stop()
    for path in (bed.root / "state" / "endpoints").iterdir():
        path.unlink()
    await bed.start()
    assert any("10.77.0.1 stays taken" in problem for problem in bed.server.status.problems)
    pod_netns("next")
    assert addresses(await bed.add("next")) == ["10.77.0.2", "fd77::2"]
    await bed.delete("web")
    assert not has_link(host_ifname("web", "eth0"))


async def test_damaged_record_keeps_its_address_while_the_pod_lives(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    await bed.add("web")
    await bed.stop()
    (record,) = (bed.root / "state" / "endpoints").iterdir()
    record.write_bytes(b'{"version":1,"endpo')
    (bed.root / "state" / "endpoints" / "rubbish").write_bytes(b"\0" * 10)
    await bed.start()
    assert len(bed.server.status.problems) == 2
    pod_netns("next")
    assert addresses(await bed.add("next")) == ["10.77.0.2", "fd77::2"]
    await bed.stop()
    sh("ip", "link", "del", host_ifname("web", "eth0"))
    await bed.start()
    await bed.stop()
    assert not list((bed.root / "state" / "endpoints").glob("*.damaged"))


async def test_parallel_adds_get_different_addresses(bed: Bed, pod_netns: Netns) -> None:
    names = [f"pod{number}" for number in range(12)]
    for name in names:
        pod_netns(name)
    results = await asyncio.gather(*(bed.add(name) for name in names))
    assert len({ip for result in results for ip in addresses(result)}) == 24
    await asyncio.gather(*(bed.delete(name) for name in names))
    assert bed.server.endpoints() == ()


async def test_same_container_many_times_at_once(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    results = await asyncio.gather(*(bed.add("web") for _ in range(5)))
    assert all(result == results[0] for result in results)
    assert len(bed.server.endpoints()) == 1


async def test_runtime_that_gives_up_leaves_no_half_state(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    bed.gate.open.clear()
    adding = asyncio.create_task(bed.call("ADD", "web"))
    await until(lambda: "web" in bed.gate.link_at_admission)
    adding.cancel()
    deleting = asyncio.create_task(bed.call("DEL", "web"))
    bed.gate.open.set()
    assert await deleting == (0, None)
    assert bed.server.endpoints() == ()
    assert not has_link(host_ifname("web", "eth0"))


async def test_garbage_collection(bed: Bed, pod_netns: Netns) -> None:
    for name in ("keep", "drop"):
        pod_netns(name)
        await bed.add(name)
    valid = {"cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]}
    assert await bed.call("GC", "", version="1.1.0", conf=valid) == (0, None)
    assert [endpoint.container_id for endpoint in bed.server.endpoints()] == ["keep"]
    status, answer = await bed.call("GC", "", version="1.1.0")
    assert (status, answer["code"]) == (1, 7)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["ip", "route", "del", "10.77.0.1"], "route 10.77.0.1"),
        (["ip", "-6", "route", "del", "fd77::1"], "route fd77::1"),
        (["ip", "-n", "web", "address", "del", "10.77.0.1/32", "dev", "eth0"], "address 10.77.0.1"),
        (["ip", "-n", "web", "route", "del", "default"], "default route via 169.254.1.1"),
        (["ip", "-n", "web", "link", "set", "eth0", "down"], "eth0 in the pod is missing or down"),
        (["ip", "-n", "web", "neigh", "flush", "nud", "permanent"], "neighbour 169.254.1.1"),
    ],
)
async def test_check_sees_damage(bed: Bed, pod_netns: Netns, damage: list[str], words: str) -> None:
    pod_netns("web")
    result = await bed.add("web")
    sh(*damage)
    status, answer = await bed.call("CHECK", "web", conf={"prevResult": result})
    assert (status, answer["code"]) == (1, 104)
    assert words in answer["details"]
    assert await bed.add("web") == result
    assert (await bed.call("CHECK", "web", conf={"prevResult": result}))[0] == 0


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"CNI_CONTAINERID": "../x"}, 4),
        ({"CNI_CONTAINERID": ""}, 4),
        ({"CNI_CONTAINERID": "a\nCNI-Command: DEL"}, 4),
        ({"CNI_CONTAINERID": "a" * 9000}, 4),
        ({"CNI_CONTAINERID": "ä"}, 4),
        ({"CNI_IFNAME": "a/b"}, 4),
        ({"CNI_IFNAME": "sixteen-letters-"}, 4),
        ({"CNI_IFNAME": "lo"}, 4),
        ({"CNI_IFNAME": ".."}, 4),
        ({"CNI_NETNS": ""}, 4),
        ({"CNI_NETNS": "run/netns/web"}, 4),
        ({"CNI_NETNS": "/run/netns/none"}, 4),
        ({"CNI_NETNS": "/etc/passwd"}, 4),
        ({"CNI_NETNS": "/dev/null"}, 4),
        ({"CNI_NETNS": "/proc/self/ns/mnt"}, 4),
        ({"CNI_NETNS": "/proc/self/ns/net"}, 4),
        ({"CNI_COMMAND": "EAT"}, 4),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=default"}, 4),
        ({"CNI_ARGS": "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=web"}, 4),
        ({"CNI_ARGS": "nonsense"}, 4),
    ],
)
async def test_hostile_environment(bed: Bed, pod_netns: Netns, changed: dict[str, str], code: int) -> None:
    pod_netns("web")
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "web",
        "CNI_NETNS": "/run/netns/web",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
    }
    conf = {"cniVersion": "1.0.0", "name": "t", "type": "netagent", "socket": bed.config.socket}
    status, answer = await execute(environ | changed, json.dumps(conf).encode())
    assert (status, answer["code"]) == (1, code)
    assert bed.server.endpoints() == ()
    assert list((bed.root / "state" / "endpoints").iterdir()) == []
    await bed.add("web")


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", 6),
        (b"[]", 6),
        (b'{"cniVersion":"1.0.0"', 6),
        (b"x" * ((1 << 20) + 10), 5),
        (b'{"socket":"/no\\u0000","cniVersion":"1.0.0"}', 7),
        (b'{"socket":"' + b"/x" * 100 + b'"}', 7),
        (b'{"waitSeconds":100000}', 7),
        (b'{"cniVersion":"9.9.9","socket":"SOCKET"}', 1),
        (b'{"socket":"SOCKET"}', 1),
        (b'{"cniVersion":7,"socket":"SOCKET"}', 6),
        (b'{"cniVersion":"1.0.0","socket":"SOCKET","runtimeConfig":{"ips":["x"]}}', 7),
        (b'{"cniVersion":"1.0.0","socket":"SOCKET","prevResult":{}}', 7),
        (b'{"cniVersion":"1.0.0","socket":"SOCKET","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 6),
    ],
)
async def test_hostile_configuration(bed: Bed, pod_netns: Netns, stdin: bytes, code: int) -> None:
    pod_netns("web")
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "web",
        "CNI_NETNS": "/run/netns/web",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
    }
    status, answer = await execute(environ, stdin.replace(b"SOCKET", bed.config.socket.encode()))
    assert (status, answer["code"]) == (1, code)
    await bed.add("web")


async def test_an_interface_that_is_in_the_way(bed: Bed, pod_netns: Netns) -> None:
    pod_netns("web")
    sh("ip", "-n", "web", "link", "add", "eth0", "type", "bridge")
    status, answer = await bed.call("ADD", "web")
    assert (status, answer["code"]) == (1, 103)
    assert "File exists" in answer["msg"]
    assert not has_link(host_ifname("web", "eth0"))
    assert bed.server.endpoints() == ()


async def test_configuration_list_comes_when_the_node_can_serve(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.config = CniConfig(
        socket=bed.config.socket, bin_dir=bed.config.bin_dir, conf_dir=bed.config.conf_dir, chained=("portmap", "none")
    )
    later, bed.net.now = bed.net.now, None
    (tmp_path / "bin").mkdir()
    portmap = tmp_path / "bin" / "portmap"
    portmap.write_bytes(b"#!/bin/true\n")
    portmap.chmod(0o755)
    await bed.start()
    conflist = tmp_path / "net.d" / "10-netagent.conflist"
    await asyncio.sleep(0.2)
    assert not conflist.exists()
    bed.net.now = later
    await until(lambda: bed.server.status.published)
    content = json.loads(conflist.read_text())
    assert [plugin["type"] for plugin in content["plugins"]] == ["netagent", "portmap"]
    assert content["plugins"][0]["socket"] == bed.config.socket
    assert content["plugins"][1]["capabilities"] == {"portMappings": True}
    assert [path.name for path in (tmp_path / "net.d").iterdir()] == ["10-netagent.conflist"]
    executable = tmp_path / "bin" / "netagent"
    assert executable.read_bytes() == install.SHIM.read_bytes()
    assert mode(executable) == 0o755
    before = executable.stat().st_ino
    assert install.install(bed.config.bin_dir) is False
    assert executable.stat().st_ino == before
    await bed.stop()
    assert conflist.exists()


async def test_socket_permissions_and_second_agent(bed: Bed) -> None:
    path = bed.root / "run" / "cni.sock"
    assert [mode(one) for one in (path, path.parent, bed.root / "state")] == [0o600, 0o700, 0o700]
    with pytest.raises(SocketError, match=f"another agent \\(process {os.getpid()}\\)"):
        await bed.new_server().run()
    assert mode(path) == 0o600
    await bed.stop()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    await bed.start()
    assert await bed.call("STATUS", "", version="1.1.0") == (0, None)


async def test_missed_deletes_and_a_removed_list_are_noticed(
    bed: Bed, pod_netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bed.stop()
    monkeypatch.setattr("netagent.agent.pods.cni.AUDIT_S", 0.05)
    await bed.start()
    for name in ("stays", "goes"):
        pod_netns(name)
        await bed.add(name)
    sh("ip", "netns", "del", "goes")
    await until(lambda: [endpoint.container_id for endpoint in bed.server.endpoints()] == ["stays"])
    assert [endpoint.container_id for endpoint in bed.gate.withdrawn] == ["goes"]
    await until(lambda: len(list((bed.root / "state" / "endpoints").iterdir())) == 1)
    conflist = bed.root / "net.d" / "10-netagent.conflist"
    await until(conflist.exists)
    conflist.unlink()
    await until(conflist.exists)


async def test_a_caller_that_dies_while_it_asks(bed: Bed, pod_netns: Netns, caplog: pytest.LogCaptureFixture) -> None:
    pod_netns("web")
    _, writer = await asyncio.open_unix_connection(bed.config.socket)
    writer.write(b"POST /cni HTTP/1.1\r\nHost: x\r\nCNI-Command: ADD\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()
    await bed.add("web")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.skipif(not Path("/usr/lib/cni/portmap").exists(), reason="needs containernetworking-plugins")
async def test_chained_portmap_maps_a_port_to_our_pod(bed: Bed, pod_netns: Netns) -> None:
    netns = pod_netns("web")
    result = await bed.add("web", version="1.0.0")
    sh("ip", "address", "replace", "192.0.2.7/32", "dev", "lo")
    conf = {
        "cniVersion": "1.0.0",
        "name": "t",
        "type": "portmap",
        "snat": True,
        "prevResult": result,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    }
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "web",
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
        "PATH": os.environ["PATH"],
    }
    status, chained = await execute(environ, json.dumps(conf).encode(), "/usr/lib/cni/portmap")
    assert status == 0, chained
    assert chained["ips"] == result["ips"]
    with open_netns(netns) as descriptor:
        server = run_in_netns(descriptor, lambda: socket.create_server(("", 80)))
    with server:
        _, writer = await asyncio.wait_for(asyncio.open_connection("192.0.2.7", 8080), DEADLINE_S)
        writer.close()
        await writer.wait_closed()
    await execute(environ | {"CNI_COMMAND": "DEL"}, json.dumps(conf).encode(), "/usr/lib/cni/portmap")
