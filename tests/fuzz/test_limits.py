"""Documents that are small or large and cost too much: refused or read, within a bounded amount of memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.targets import TARGETS
from netagent import config
from netagent.agent.pods.cni import MAX_BODY_BYTES
from netagent.config import ConfigError
from netagent.core import cni
from netagent.core.cni import CniError
from netagent.disk.allocations import MAX_FILE_BYTES, Allocations
from netagent.records import Kind

DEEP = 200_000
MEGABYTE = 1 << 20
JSON_TARGETS = ("namespace", "pod", "node", "policy", "lease", "page", "watch", "conflist")
PEAK_BYTES = 96 * MEGABYTE
"""Of a document of up to a megabyte, in whatever form it is kept."""

DOCUMENTS = {
    "deep arrays": b'{"metadata":{"name":"a"},"spec":' + b"[" * DEEP,
    "deep objects": b'{"metadata":{"name":"a"},"spec":' + b'{"a":' * DEEP,
    "deep and closed": b'{"metadata":{"name":"a","x":' + b"[" * DEEP + b"]" * DEEP + b"}}",
    "wide": b'{"metadata":{"name":"a"},"items":[' + b"[]," * (MEGABYTE // 12) + b"0]}",
    "huge number": b'{"metadata":{"name":"a"},"spec":{"leaseDurationSeconds":' + b"9" * MEGABYTE + b"}}",
    "huge exponent": b'{"metadata":{"name":"a"},"spec":{"leaseDurationSeconds":1e999999999}}',
    "long name": b'{"metadata":{"name":"' + b"a" * MEGABYTE + b'"}}',
    "one key often": b'{"metadata":{' + b'"name":"a",' * (MEGABYTE // 11) + b'"name":"b"}}',
    "zeros": bytes(MEGABYTE),
    "not UTF-8": b'{"metadata":{"name":"\xff\xfe"}}',
    "half a surrogate pair": b'{"metadata":{"name":"\\ud800"}}',
    "a surrogate in UTF-8": b'{"metadata":{"name":"\xed\xa0\x80"}}',
}


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_json_of_the_api_server_and_of_others(document: str) -> None:
    for name in JSON_TARGETS:
        TARGETS[name](DOCUMENTS[document])
    TARGETS["watch"](b'{"type":"ADDED","object":' + DOCUMENTS[document] + b"}\n")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_json_of_the_runtime_and_of_the_disk(document: str) -> None:
    body = DOCUMENTS[document][:MAX_BODY_BYTES]
    with pytest.raises(CniError):
        cni.parse_call({"CNI_COMMAND": "ADD"}, body)
    TARGETS["cni_call"](b"CNI_COMMAND=VERSION\x1e" + body)
    TARGETS["state_files"](b"\x1e".join([body, body, body, body]))


def test_the_last_of_repeated_keys_counts() -> None:
    """As for the API server's own decoder, so that we and it read the same."""
    from netagent.kube import decode

    pod = decode.record(Kind.POD, b'{"metadata":{"name":"a","name":"b"},"metadata":{"name":"c"}}')
    assert pod.key.name == "c"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "network: *j\n",
        "network: &n {vni: 1}\npolicy: {<<: *n}\n",
        "network: {vni: 1}\nnetwork: {vni: 2}\n",
        "network: " + "[" * 5000,
        "node_name: " + "9" * 6000,
        "node_name: 2001-99-99\n",
        "node_name: !!python/object/apply:os.system ['true']\n",
        "network: {takeover_grace_s: .nan}\n",
        "api: {backoff_cap_s: .inf}\n",
        "network: {pools: ['fe80::%x }; delete table inet netagent; #/64']}\n",
        "network: {can_reach: 'fe80::1%eth0'}\n",
        "network: {lease_namespace: ../../x}\n",
        "node_name: a/../b\n",
        'state_dir: "/a\\0b"\n',
        "cni: {conf_name: ../x}\n",
        "cni: {chained: [../../bin/sh]}\n",
        "? [a, b]\n: c\n",
    ],
    ids=lambda text: text[-40:],
)
def test_configuration_that_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(str(path), {}, {})
    assert len(str(caught.value)) < 2000


def test_files_beyond_their_size_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"#" * (config.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        config.load(str(path), {}, {})
    store = Allocations(tmp_path, "b")
    store.load()
    claim = tmp_path / "endpoints" / "nap0123456789ab+10.0.0.7.json"
    with claim.open("wb") as file:
        file.truncate(100 * MEGABYTE)
    loaded = store.load()
    assert [one.ips for one in loaded.damaged] == [("10.0.0.7",)]
    assert str(MAX_FILE_BYTES) in loaded.problems[0]
