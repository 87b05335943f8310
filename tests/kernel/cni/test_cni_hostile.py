"""Calls that should never come, through the executable and past it: refused by name, and nothing is left of them."""

import json
from pathlib import Path

import pytest

from netagent.kernel import wiring
from support.cnibed import Bed, Netns, execute, sh

pytestmark = pytest.mark.kernel

HOSTILE = {
    "CNI_CONTAINERID": ("../../x", "..", ".", "", "a/b", "a b", "a;b", "a+b", "-a", "é", "a" * 256, "$(id)"),
    "CNI_IFNAME": ("a/b", "..", ".", "lo", "all", "default", "", "a b", "a:b", "a" * 16, "é", "\u2028"),
    "CNI_NETNS": ("", "relative", "/" + "a" * 5000, "/proc/1/\u202e", "/nowhere", "/etc/passwd", "/proc/self/ns/mnt"),
    "CNI_ARGS": (
        "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=p",
        "K8S_POD_NAMESPACE=d;K8S_POD_NAME=a/../b",
        "K8S_POD_NAMESPACE=d;K8S_POD_NAME=p;K8S_POD_UID=\u202eu",
        "K8S_POD_NAMESPACE=d;K8S_POD_NAME=p;IP=fe80::1%x+../../y",
        "K8S_POD_NAMESPACE=d;K8S_POD_NAME=p;IP=10.77.0.9;junk",
        "K8S_POD_NAMESPACE=d;K8S_POD_NAME=p\u0085",
    ),
}
CASES = [(name, value) for name, values in HOSTILE.items() for value in values]


def written(root: Path) -> set[str]:
    """What is there but the installed files and the socket."""
    found = (str(path.relative_to(root)) for path in root.rglob("*"))
    return {name for name in found if not name.startswith(("bin/", "net.d/", "run/"))}


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda text: ascii(text)[:40])
async def test_a_hostile_call_is_refused_and_leaves_nothing(bed: Bed, pod_netns: Netns, name: str, value: str) -> None:
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "web",
        "CNI_NETNS": pod_netns("web"),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
        name: value,
    }
    conf = {"cniVersion": "1.0.0", "name": "t", "type": "netagent", "socket": bed.config.socket, "waitSeconds": 20}
    status, answer = await execute(environ, json.dumps(conf).encode())
    assert status == 1
    assert answer["code"] in (4, 7, 102)
    assert written(bed.root) <= {"bin", "net.d", "run", "state", "state/endpoints", "state/freed.log"}
    assert wiring.links() == frozenset()
    assert bed.server.endpoints() == ()
    assert b"eth0" not in sh("ip", "-n", "web", "link")
    await bed.add("web")


@pytest.mark.parametrize("value", [b"a\xff\xfe", b"a\nCNI-Command: DEL", b"a\rb", b"a\x1b[2J"], ids=ascii)
async def test_bytes_that_are_no_text_are_refused(bed: Bed, value: bytes) -> None:
    """Control characters by the executable, what is no UTF-8 by the agent."""
    environ = {b"CNI_COMMAND": b"ADD", b"CNI_CONTAINERID": b"web", b"CNI_NETNS": b"/run/" + value}
    environ |= {b"CNI_IFNAME": b"eth0", b"CNI_ARGS": b"K8S_POD_NAMESPACE=d;K8S_POD_NAME=p"}
    conf = {"cniVersion": "1.0.0", "name": "t", "type": "netagent", "socket": bed.config.socket, "waitSeconds": 20}
    status, answer = await execute(environ, json.dumps(conf).encode())  # type: ignore[arg-type]
    assert (status, answer["code"]) == (1, 4)
    assert bed.server.endpoints() == ()
