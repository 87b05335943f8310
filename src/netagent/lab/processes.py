"""The processes of a lab: all of them in one PID namespace, so that none can outlive it.

One thread of the supervisor asks the kernel for a new PID namespace for its children and starts every process of the
lab. The first one is process 1 of the namespace (holder.py); it leaves when the supervisor is gone, however that went,
and the kernel then kills the rest. They stay children of the supervisor, so it waits for them and signals them by the
PIDs that it sees itself.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
from msgspec import Struct

from netagent.lab import holder
from netagent.lab.namespaces import unshare
from netagent.ports import NetagentError

CLONE_NEWPID = 0x20000000
READY_TIMEOUT_S = 60.0
"""A holder needs some 50 ms; this is for a machine in trouble."""


class LabError(NetagentError):
    """The lab cannot do what was asked."""


class Process:
    """One running process of the lab."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.pid = popen.pid
        """As the supervisor sees it."""
        self._popen = popen
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        """Resolves with the exit status (negative: the signal)."""
        self._pidfd = os.pidfd_open(popen.pid)
        loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                stream.close()
        status = self._popen.wait()
        if not self.exited.done():
            self.exited.set_result(status)

    @property
    def running(self) -> bool:
        """It has not exited."""
        return not self.exited.done()

    def read_line(self) -> bytes:
        """One line of its standard output; blocks. Empty where that is no pipe."""
        return self._popen.stdout.readline() if self._popen.stdout is not None else b""

    def close_stdin(self) -> None:
        """Let it read the end of its standard input."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens where it has exited."""
        if self.running:
            self._popen.send_signal(number)

    async def stop(self, grace_s: float = 0.0) -> int:
        """End it: SIGTERM and at most `grace_s` of patience, then SIGKILL. Returns its exit status."""
        if grace_s:
            self.signal(signal.SIGTERM)
            await asyncio.wait([self.exited], timeout=grace_s)
        self.signal(signal.SIGKILL)
        return await self.exited


class HolderSpec(Struct, frozen=True, kw_only=True):
    """What a holder is to make; see holder.py."""

    hostname: str
    init: bool = False
    node: bool = False
    plugins: Mapping[str, str] = {}
    directory: str = ""


class Spawner:
    """Starts processes in the lab's PID namespace."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "spawner", lambda: unshare(CLONE_NEWPID))
        self.processes: list[Process] = []

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        net_of: int = 0,
        mnt_of: int = 0,
        piped: bool = False,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start `argv`. `net_of`, `mnt_of`: PID whose namespaces it starts in. `log` gets stdout and stderr (appended).

        `piped`: standard input and output are pipes to us instead.
        """
        if net_of or mnt_of:
            # nsenter replaces itself by the program, so the PID stays.
            joins = [f"--net=/proc/{net_of}/ns/net"] if net_of else []
            joins += [f"--mount=/proc/{mnt_of}/ns/mnt", f"--uts=/proc/{mnt_of}/ns/uts"] if mnt_of else []
            argv = ["nsenter", *joins, "--", *argv]
        popen = await asyncio.wrap_future(
            self._thread.submit(
                _start, list(argv), log, piped, tuple(pass_fds), dict(environment or clean_environment())
            )
        )
        process = Process(name, popen)
        self.processes.append(process)
        process.exited.add_done_callback(lambda _: self.processes.remove(process))
        return process

    async def hold(self, spec: HolderSpec) -> Process:
        """Start a holder and wait until its namespaces are made. Raises LabError."""
        argv = [sys.executable, "-I", "-S", str(Path(holder.__file__)), orjson.dumps(_plain(spec)).decode()]
        process = await self.spawn(f"holder of {spec.hostname}", argv, piped=True)
        loop = asyncio.get_running_loop()
        line = await asyncio.wait_for(loop.run_in_executor(None, process.read_line), READY_TIMEOUT_S)
        if line != b"ready\n":
            raise LabError(
                f"the namespaces of {spec.hostname} could not be made (its error is above). Nothing of the lab is "
                "left. Labs need root with CAP_SYS_ADMIN and a kernel with network, mount, UTS and PID namespaces."
            )
        return process

    async def close(self) -> None:
        """End every process; process 1 goes last, because the kernel lets it go only after all others were reaped."""
        processes = list(self.processes)
        for process in processes[1:]:
            process.signal(signal.SIGKILL)
        await asyncio.gather(*(process.exited for process in processes[1:]))
        for process in processes[:1]:
            process.close_stdin()
            await process.stop(grace_s=5.0)
        self._thread.shutdown(wait=False)


def clean_environment() -> dict[str, str]:
    """Ours without what would configure an agent or a kubectl."""
    return {
        name: text for name, text in os.environ.items() if not name.startswith("NETAGENT_") and name != "KUBECONFIG"
    }


def _plain(spec: HolderSpec) -> dict[str, object]:
    return {field: getattr(spec, field) for field in spec.__struct_fields__}


def _start(
    argv: list[str], log: Path | None, piped: bool, pass_fds: tuple[int, ...], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    if piped:
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pass_fds=pass_fds)
    output = os.open(log or "/dev/null", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, pass_fds=pass_fds
        )
    finally:
        os.close(output)
