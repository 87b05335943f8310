"""`/debug/dump` and its replay: the ruleset of the view, the kernel's, and the answers, all without the agent."""

import asyncio
import io
import json
import os
import re
import socket
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from netagent import cli
from netagent.agent.http import dump as module
from netagent.records import Kind, Undecodable
from support.debugbed import DebugBed
from support.waiting import until
from support.words import key, namespace, pod, put

pytestmark = pytest.mark.kernel


@pytest.fixture
async def dump(bed: DebugBed, tmp_path: Path) -> Path:
    await bed.put(namespace("y"))
    bed.dataplane.apply(put(pod("y/lost", "10.244.1.99", node="node-1")))
    bed.dataplane.apply(Undecodable(Kind.NETWORK_POLICY, key("y/garbled"), "spec: not an object"))
    await bed.settled()
    return await bed.dump(tmp_path / "dump.tar.gz")


def run(*words: str) -> int:
    return cli.main(["replay", "dump", *words])


async def test_replay_prints_the_ruleset_and_finds_the_kernel_equal(
    dump: Path, bed: DebugBed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(run, str(dump)) == 0
    printed = capsys.readouterr().out
    assert re.match(r"node node-0 at 20\d\d-\d\d-\d\dT\S+Z, netagent .*: \d+ sets, ", printed)
    assert printed.endswith("the kernel had what this view compiles to\n")
    assert (await bed.get("/debug/ruleset?show=kernel"))[1] in printed


async def test_replay_of_a_kernel_that_was_tampered_with(
    bed: DebugBed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(subprocess.run, ["nft", "add rule inet netagent judge accept"], check=True)
    file = await bed.dump(tmp_path / "dump.tar.gz")
    assert await asyncio.to_thread(run, str(file), "--quiet") == 1
    _, *rest = capsys.readouterr().out.splitlines()
    assert rest == ["the kernel lacked 0 and had 1 too much", "extra  rule judge: accept"]
    assert await asyncio.to_thread(run, str(file), "-o", "json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["equal"], answer["extra"], answer["about"]["node"]) == (False, 1, "node-0")


async def test_replay_answers_as_the_agent_does(dump: Path, bed: DebugBed, capsys: pytest.CaptureFixture[str]) -> None:
    for source, destination, port in (("x/b", "x/a", "80"), ("x/c", "x/a", "80"), ("192.0.2.9", "x/a", "81")):
        assert await asyncio.to_thread(run, str(dump), "-o", "json", "--explain", source, destination, port) == 0
        (replayed,) = json.loads(capsys.readouterr().out)
        live = await bed.json(f"/debug/explain?from={source}&to={destination}&port={port}")
        assert (replayed["verdict"], replayed["agree"], replayed["answers"]) == (
            live["verdict"],
            live["agree"],
            live["answers"],
        )
        assert live["agree"] is True
    assert await asyncio.to_thread(run, str(dump), "--explain", "x/c", "x/a", "ICMP") == 0
    assert capsys.readouterr().out.startswith("DENY  x/c -> x/a  ICMP\nnote: as of the dump of node node-0 at 20")


async def test_what_is_in_the_archive(dump: Path) -> None:
    with tarfile.open(dump) as archive:
        members = {one.name.removeprefix("netagent-dump/"): archive.extractfile(one) for one in archive}
        content = {name: file.read() for name, file in members.items() if file is not None}
    assert {
        "about.json",
        "situation.json",
        "view/pods-00000.jsonl",
        "view/policies-00000.jsonl",
        "view/unreadable-00000.jsonl",
        "view/wired-00000.jsonl",
        "ruleset/kernel.nft",
        "ruleset/kernel.json",
        "ruleset/difference.txt",
        "state.json",
        "tasks.json",
        "memory.json",
        "config.json",
        "metrics.txt",
        "log.jsonl",
    } <= content.keys()
    assert content["ruleset/difference.txt"] == b"the kernel has what is desired\n"
    assert len(content["view/wired-00000.jsonl"].splitlines()) == 3
    assert json.loads(content["memory.json"])["process"]["rss_bytes"] > 1 << 20
    assert json.loads(content["config.json"])["network.vni"]["value"] == 1


async def test_the_command_writes_for_its_owner_only(
    bed: DebugBed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.tar.gz"
    file.write_text("of somebody")
    file.chmod(0o666)
    words = ["dump", "-o", str(file), "--address", bed.url]
    assert await asyncio.to_thread(cli.main, words) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert await asyncio.to_thread(run, str(file), "--quiet") == 0
    assert await asyncio.to_thread(cli.main, ["dump", "-o", "/nonexistent/x", "--address", bed.url]) == 1
    assert "Nothing was written" in capsys.readouterr().err


async def test_files_that_are_no_dump_are_refused(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = await asyncio.to_thread(dump.read_bytes)
    for name, content in (("empty", b""), ("text", b"hello"), ("cut", whole[: len(whole) // 2]), ("away", None)):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        assert await asyncio.to_thread(run, str(file)) == 1
        assert "Nothing was replayed" in capsys.readouterr().err
    assert await asyncio.to_thread(run, str(dump), "--explain", "nonsense", "x/a", "80") == 1
    assert "Accepted: namespace/pod or an IP address." in capsys.readouterr().err


async def test_a_dump_of_another_format_says_which_version_reads_it(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.tar.gz"
    with tarfile.open(dump) as archive, tarfile.open(other, "w:gz") as changed:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            content = file.read().replace(b'"format":1', b'"format":9')
            changed.addfile(member, io.BytesIO(content))
    assert await asyncio.to_thread(run, str(other)) == 1
    assert "Use the version that made it." in capsys.readouterr().err


async def test_a_client_that_reads_nothing_is_left_and_the_next_one_served(
    bed: DebugBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as large:
        large.setattr(module, "UNREAD_S", 0.5)
        large.setattr(module, "_difference", lambda _: os.urandom(24 << 20))
        host, _, port = bed.url.removeprefix("http://").partition(":")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        with deaf:
            await asyncio.get_running_loop().sock_connect(deaf, (host, int(port)))
            deaf.send(f"GET /debug/dump HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            await until(lambda: "the client reads nothing" in caplog.text, "the end of patience")
    assert await asyncio.to_thread(run, str(await bed.dump(tmp_path / "next.tar.gz")), "--quiet") == 0
