"""Bodies in protobuf: what kubectl's imperative commands send; anything else is refused, never read wrongly."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.lab.apiserver import protobuf
from netagent.lab.apiserver.faults import ApiFault


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes((number << 3 | 2, len(value))) + value


def envelope(kind: str, raw: bytes) -> bytes:
    return protobuf.MAGIC + field(1, field(1, b"v1") + field(2, kind.encode())) + field(2, raw)


def test_a_namespace() -> None:
    raw = field(1, field(1, b"shop") + field(2, b"") + field(11, field(1, b"team") + field(2, b"one")))
    assert protobuf.decode(envelope("Namespace", raw)) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"team": "one"}},
    }


def test_a_secret_has_base64_and_a_port_its_number() -> None:
    secret = field(1, field(1, b"s")) + field(2, field(1, b"a") + field(2, b"\x00\xff"))
    assert protobuf.decode(envelope("Secret", secret))["data"] == {"a": "AP8="}
    port = bytes((3 << 3, 80)) + field(4, bytes((1 << 3, 0, 2 << 3, 81)))
    service = field(1, field(1, b"s")) + field(2, field(1, port))
    assert protobuf.decode(envelope("Service", service))["spec"]["ports"] == [{"port": 80, "targetPort": 81}]


def test_other_kinds_are_an_unsupported_media_type() -> None:
    with pytest.raises(ApiFault) as refused:
        protobuf.decode(envelope("Deployment", b""))
    assert refused.value.code == 415


@given(st.binary(max_size=64))
def test_garbage_is_refused_or_read_but_never_breaks(garbage: bytes) -> None:
    for body in (garbage, protobuf.MAGIC + garbage, envelope("Service", garbage)):
        with contextlib.suppress(ApiFault):
            protobuf.decode(body)
