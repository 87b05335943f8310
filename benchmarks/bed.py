"""What benchmarks stand on: private namespaces, pods as network namespaces, the packet prober, an agent process."""

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import orjson
from msgspec import Struct

from benchmarks.stats import P99_SAMPLES
from benchmarks.workload import NODE

ROOT = Path(__file__).resolve().parent.parent
ISOLATED = "BENCH_ISOLATED"
DEADLINE_S = 120.0
"""Nothing that a benchmark waits for takes so long, on any machine it is worth running on."""
SETTLED_S = 0.02
"""A prober that reports no change for so long has nothing more to say about the last one."""
PROBE_US = 200
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def isolate() -> None:
    """Go on in namespaces of our own, which vanish with the process and all that it started."""
    if not os.environ.get(ISOLATED):
        os.environ[ISOLATED] = "1"
        setup = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up"
        again = ["sh", "-c", f'{setup} && exec "$@"', "sh", sys.executable, *sys.orig_argv[1:]]
        # In a PID namespace of our own nothing outlives us, however we end.
        isolated = ("-n", "-m", "-p", "--fork", "--kill-child", "--mount-proc")
        os.execvp("unshare", ["unshare", *isolated, *again])  # noqa: S606 - no shell reads what the user typed
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def run(*command: str, text: str = "") -> str:
    """Standard output of a program. Raises RuntimeError where it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[:2000]}")
    return done.stdout


def progress(text: str) -> None:
    """One line for whoever watches."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


def place(name: str, ip: str) -> None:
    """A network namespace with one address, routed to us over a veth as a pod is."""
    link, gateway = f"veth-{name}", "169.254.1.1"
    run("ip", "netns", "add", name)
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
    Path(f"/proc/sys/net/ipv4/conf/{link}/proxy_arp").write_text("1")
    run("ip", "address", "replace", f"{gateway}/32", "dev", "lo")
    run("ip", "link", "set", link, "up")
    run("ip", "route", "add", f"{ip}/32", "dev", link)
    inside = (
        "link set lo up",
        "link set eth0 up",
        f"address add {ip}/32 dev eth0",
        f"route add {gateway} dev eth0 scope link",
        f"route add default via {gateway}",
    )
    run("ip", "-n", name, "-batch", "-", text="\n".join(inside) + "\n")


def compiled(name: str, directory: Path) -> Path:
    """The program of tools/<name>.c."""
    program = directory / name
    if not program.exists():
        run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(ROOT / f"benchmarks/tools/{name}.c"))
    return program


class Counted(Struct, frozen=True):
    """What a prober counted since it was asked before."""

    sent: int
    arrived: int
    silence_ms: float
    """Longest time without an arrival."""


class Probe:
    """A packet each PROBE_US between two places, and when that began and ended to work."""

    def __init__(self, program: Path, source: tuple[str, str], target: tuple[str, str], port: int = 7000) -> None:
        """`source` and `target`: name of the place and its address."""
        self._argv = [str(program), str(PROBE_US)]
        for name, ip in (source, target):
            self._argv += [f"/run/netns/{name}", ip]
        self._argv.append(str(port))
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._counted: asyncio.Queue[Counted] = asyncio.Queue()
        self.turns: list[tuple[bool, float]] = []
        """Every change: whether packets pass from then on, and when the first of them was sent, monotonic seconds."""

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=pipe)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reader is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word, *numbers = line.split()
            if word == b"count":
                sent, arrived, silence_ns = map(int, numbers)
                self._counted.put_nowait(Counted(sent, arrived, silence_ns / 1e6))
            else:
                self.turns.append((word == b"up", int(numbers[0]) / 1e9))

    async def turned(self, up: bool, since_s: float) -> float:
        """When the first packet was sent from which on all pass (or none); it is not earlier than `since_s`."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                count = len(self.turns)
                if self.turns and self.turns[-1][0] == up and self.turns[-1][1] >= since_s:
                    await asyncio.sleep(SETTLED_S)
                    if len(self.turns) == count:
                        return self.turns[-1][1]
                await asyncio.sleep(0.002)

    async def count(self) -> Counted:
        """Packets since the last count."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"count\n")
        return await asyncio.wait_for(self._counted.get(), DEADLINE_S)


class Agent:
    """An agent for policy only, as a process of its own in our network namespace; its stamps are in `trace`."""

    module = "benchmarks.traced"

    def __init__(self, kubeconfig: Path, sections: dict[str, Any] | None = None, **policy: Any) -> None:
        """`sections` of the configuration stand instead of those here."""
        self._directory = tempfile.TemporaryDirectory(prefix="bench-agent-")
        home = Path(self._directory.name)
        config = {
            "node_name": NODE,
            "state_dir": str(home / "state"),
            "api": {"kubeconfig": str(kubeconfig)},
            "network": {"mode": "off"},
            "cni": {"enabled": False},
            "policy": policy,
            "http": {"address": "127.0.0.1", "port": 0, "debug_port": 0},
            "log": {"level": "warning"},
            **(sections or {}),
        }
        self._config = home / "config.json"
        self._config.write_bytes(orjson.dumps(config))
        self.trace = Trace(home / "trace", self.check)
        self.started_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again)."""
        assert self._process is None
        self.trace.restart()
        environment = {name: text for name, text in os.environ.items() if not name.startswith("NETAGENT_")}
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, str(self.trace.path), "agent", "--config", str(self._config)],
            env=environment,
            cwd=ROOT,
        )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it; the kernel keeps what it has."""
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(DEADLINE_S)
            finally:
                self._process.kill()
                self._process = None

    def close(self) -> None:
        """End it and remove its files."""
        self.stop()
        self._directory.cleanup()

    async def synced(self) -> dict[str, Any]:
        """The stamps of its first commit."""
        return await self.trace.last(lambda commit: bool(commit["whole"]))

    @property
    def rss_mb(self) -> float:
        """Resident memory now."""
        return int(self._proc("statm").split()[1]) * PAGE_BYTES / 1e6

    @property
    def largest_rss_mb(self) -> float:
        """The most resident memory that it ever had."""
        line = next(line for line in self._proc("status").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6

    @property
    def cpu_s(self) -> float:
        """CPU time so far, user and system."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def _proc(self, name: str) -> str:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the agent ended with status {self._process.returncode}")
        return Path(f"/proc/{self._process.pid}/{name}").read_text()

    def check(self) -> None:
        """Raises RuntimeError where it has ended."""
        self._proc("statm")


@contextlib.contextmanager
def agent(kubeconfig: Path, **policy: Any) -> Iterator[Agent]:
    """A running agent."""
    one = Agent(kubeconfig, **policy)
    try:
        one.start()
        yield one
    finally:
        one.close()


class Trace:
    """The commits of a traced agent; see `traced`."""

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        """`check` raises where the agent has ended."""
        self.path = path
        self._check = check
        self._offset = 0
        self._rest = b""
        self._commits: list[dict[str, Any]] = []

    def restart(self) -> None:
        """Forget everything."""
        self.path.write_bytes(b"")
        self._offset, self._rest, self._commits = 0, b"", []

    def forget(self) -> None:
        """Forget the commits so far."""
        self._read()
        self._commits.clear()

    async def last(self, wanted: Callable[[dict[str, Any]], bool], patience_s: float = DEADLINE_S) -> dict[str, Any]:
        """The last commit that is wanted, once there is one. Raises TimeoutError."""
        async with asyncio.timeout(patience_s):
            while True:
                self._read()
                found = [commit for commit in self._commits if wanted(commit)]
                if found:
                    return found[-1]
                self._check()
                await asyncio.sleep(0.005)

    def _read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        self._commits += [orjson.loads(line) for line in lines]


def arguments(about: str | None, quick: str) -> argparse.Namespace:
    """The command line that all benchmarks have: `quick`, `json`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    return parser.parse_args()


def write(figures: dict[str, Any], file: str | None) -> None:
    """As JSON, where a file is named."""
    if file:
        Path(file).write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))


def ruleset(first: dict[str, Any]) -> dict[str, int]:
    """What an agent enforces, from the stamps of its first commit."""
    return {name: first[name] for name in ("active_policies", "chains", "sets", "elements")}


def table(rows: Sequence[tuple[str, dict[str, float]]], unit: str) -> None:
    """Print summaries."""
    width = max((len(name) for name, _ in rows), default=0) + 2
    print(f"{unit:{width}}{'median':>10}{'p95':>10}{'p99':>10}{'max':>10}     n")
    for name, one in rows:
        p99 = f"{one['p99']:10.2f}" if one["samples"] >= P99_SAMPLES else f"{'-':>10}"
        print(
            f"{name:{width}}{one['median']:10.2f}{one['p95']:10.2f}{p99}{one['max']:10.2f}{one['samples']:6.0f}",
            flush=True,
        )
