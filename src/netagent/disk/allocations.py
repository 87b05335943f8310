"""Which pod has which address, on disk: one small file per pod interface, and the order in which addresses were freed.

    <state_dir>/endpoints/<host ifname>+<ip>[+<ip>].json     an endpoint and its addresses
    <state_dir>/endpoints/<...>.damaged                      the same, unreadable; its name still claims the addresses
    <state_dir>/freed.log                                    one address a line, the one freed last at the end
    <state_dir>/quarantine/                                  what says nothing at all

A claim exists from the rename of its file to its unlink, and an address enters the log before its claim ends. So a
process killed at any point leaves each address claimed by one endpoint, or in the log, or never used. A crash of the
machine ends every pod, so nothing here waits for the disk; what that crash leaves empty or torn claims by its name
until its link is seen to be gone.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from netagent.core.network.ipam import valid_addresses
from netagent.disk.atomic import MALFORMED, DiskError, ensure_dir, read_bounded, set_aside, write_atomic
from netagent.disk.format import require_known_format
from netagent.records import Endpoint

VERSION = 1
"""Of an endpoint's file. A field that older programs may ignore needs no new version: they skip what they do not know.
A newer version is refused as a whole, so a release that writes one comes after a release that reads it."""
MAX_FILE_BYTES = 64 * 1024
MAX_LOG_BYTES = 16 << 20
COMPACT_LINES = 4096
"""The log is rewritten without repetitions once it has grown by as many lines."""
NAME = re.compile(r"(nap[0-9a-f]{12})((?:\+[0-9a-f.:]+){1,2})\.(json|damaged)")


class EndpointFile(Struct, frozen=True, kw_only=True):
    """Content of one endpoint's file."""

    version: int
    boot_id: str
    """Of the kernel that ran when it was written."""
    endpoint: Endpoint


class _Version(Struct):
    """What every version of an endpoint's file has, whatever else is in it."""

    version: int


class Claim(Struct, frozen=True, gc=False):
    """All that a damaged file's name tells."""

    host_ifname: str
    ips: tuple[str, ...]


class Loaded(Struct, frozen=True, kw_only=True):
    """What the disk holds."""

    endpoints: tuple[Endpoint, ...] = ()
    earlier_boot: frozenset[str] = frozenset()
    """host_ifname of the endpoints that were written before this boot: their pods cannot live any more."""
    damaged: tuple[Claim, ...] = ()
    freed: tuple[str, ...] = ()
    """Oldest first, each address once."""
    problems: tuple[str, ...] = ()


class Allocations:
    """The files. Methods block; they may be called from several threads, but for one endpoint from one at a time."""

    def __init__(self, state_dir: str | Path, boot_id: str | None = None) -> None:
        root = Path(state_dir)
        self._endpoints = root / "endpoints"
        self._log = root / "freed.log"
        self._quarantine = root / "quarantine"
        self._boot_id = current_boot_id() if boot_id is None else boot_id
        self._log_lock = threading.Lock()
        self._lines_since_compaction = 0

    def load(self) -> Loaded:
        """Read everything; put in order what a crash has left. Raises DiskError where that is not possible.

        A directory that can be neither found nor made holds nothing: that is a problem, but not of the pods there are.
        """
        require_known_format(self._endpoints.parent)
        try:
            self._make_directories()
        except DiskError as error:
            if os.path.lexists(self._endpoints):
                raise
            return Loaded(problems=(str(error),))
        files = self._files()
        for path in files:
            _refuse_newer(path)
        endpoints: dict[str, EndpointFile] = {}
        damaged: dict[str, Claim] = {}
        problems: list[str] = []
        for path in files:
            if path.name.startswith("."):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                continue
            found = self._load_one(path, problems)
            if isinstance(found, Claim):
                damaged[path.name] = found
            elif found is not None:
                endpoints[path.name] = found
        return Loaded(
            endpoints=tuple(file.endpoint for file in endpoints.values()),
            earlier_boot=frozenset(f.endpoint.host_ifname for f in endpoints.values() if f.boot_id != self._boot_id),
            damaged=tuple(damaged.values()),
            freed=self._load_log(problems),
            problems=tuple(problems),
        )

    def save(self, endpoint: Endpoint) -> None:
        """Claim the endpoint's addresses. Raises DiskError; then nothing is claimed."""
        self._make_directories()
        file = EndpointFile(version=VERSION, boot_id=self._boot_id, endpoint=endpoint)
        write_atomic(self._path(endpoint.host_ifname, endpoint.ips), msgspec.json.encode(file), durable=False)

    def free(self, host_ifname: str, ips: tuple[str, ...]) -> None:
        """End a claim, readable or damaged. Raises DiskError; then it still stands."""
        path = self._path(host_ifname, ips)
        # Without room for the log the claim ends all the same: pods must go, and their files make room. After a
        # restart these addresses are then fresh ones.
        with self._log_lock, contextlib.suppress(OSError):
            self._append(ips)
        try:
            for claim in (path, path.with_suffix(".damaged")):
                if claim.exists():  # where nothing is to do, a read-only disk is no hindrance
                    claim.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"cannot free {', '.join(ips)} in {self._log.parent}: {error.strerror}.") from error

    def _make_directories(self) -> None:
        ensure_dir(self._endpoints.parent)
        ensure_dir(self._endpoints)

    def _files(self) -> list[Path]:
        try:
            return sorted(self._endpoints.iterdir())
        except OSError as error:
            raise DiskError(f"cannot list {self._endpoints}: {error.strerror}.") from error

    def _path(self, host_ifname: str, ips: tuple[str, ...]) -> Path:
        name = "+".join((host_ifname, *ips)) + ".json"
        if not NAME.fullmatch(name):
            raise DiskError(f"{name[:128]!r} does not name an endpoint. Nothing is written.")
        return self._endpoints / name

    def _load_one(self, path: Path, problems: list[str]) -> EndpointFile | Claim | None:
        match = NAME.fullmatch(path.name)
        ips, bad = valid_addresses(match[2].split("+")[1:]) if match else ((), (path.name,))
        if match is None or bad:
            self._set_aside(path, "its name is not one of ours", problems)
            return None
        claim = Claim(match[1], ips)
        if match[3] == "damaged":
            problems.append(f"{path}: damaged; {', '.join(ips)} stays taken until that pod is gone.")
            return claim
        try:
            file = msgspec.json.decode(read_bounded(path, MAX_FILE_BYTES) or b"", type=EndpointFile)
        except (DiskError, *MALFORMED) as error:
            return self._mark_damaged(path, claim, str(error), problems)
        if file.version < VERSION:
            return self._mark_damaged(path, claim, f"format {file.version} was never in use", problems)
        if (file.endpoint.host_ifname, file.endpoint.ips) != (claim.host_ifname, claim.ips):
            return self._mark_damaged(path, claim, "its content belongs under another name", problems)
        return file

    def _mark_damaged(self, path: Path, claim: Claim, reason: str, problems: list[str]) -> Claim:
        problems.append(f"{path}: {reason}; {', '.join(claim.ips)} stays taken until that pod is gone.")
        try:
            path.rename(path.with_suffix(".damaged"))
        except OSError as error:
            problems.append(f"{path}: cannot be renamed: {error.strerror}.")
        return claim

    def _set_aside(self, path: Path, reason: str, problems: list[str]) -> None:
        try:
            problems.append(f"{path}: {reason}; it is now {set_aside(path, self._quarantine)}.")
        except DiskError as error:
            problems.append(f"{path}: {reason}. {error}")

    def _load_log(self, problems: list[str]) -> tuple[str, ...]:
        try:
            content = read_bounded(self._log, MAX_LOG_BYTES) or b""
        except DiskError as error:
            self._set_aside(self._log, str(error), problems)
            return ()
        good, bad = valid_addresses(line for line in content.decode("ascii", "replace").split("\n") if line)
        if bad:
            problems.append(f"{self._log}: {len(bad)} lines hold no address; they are dropped.")
        freed = tuple(reversed(dict.fromkeys(reversed(good))))
        whole = _render_log(freed)
        if content != whole:
            with contextlib.suppress(DiskError):
                write_atomic(self._log, whole, durable=False)
        return freed

    def _append(self, ips: tuple[str, ...]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._log, flags, 0o600)
        try:
            size_bytes = os.fstat(descriptor).st_size
            lines = _render_log(ips)
            if os.write(descriptor, lines) < len(lines):  # full: half a line would spoil the next one
                os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        self._lines_since_compaction += len(ips)
        if self._lines_since_compaction > COMPACT_LINES:
            self._load_log([])
            self._lines_since_compaction = 0


def _refuse_newer(path: Path) -> None:
    """Raises DiskError for an endpoint's file of a newer version; its shape may be another one too."""
    try:
        version = msgspec.json.decode(read_bounded(path, MAX_FILE_BYTES) or b"", type=_Version).version
    except (DiskError, *MALFORMED):
        return
    if NAME.fullmatch(path.name) and version > VERSION:
        raise DiskError(
            f"{path}: a newer netagent wrote it (format {version}, this one knows {VERSION}). This agent stays not "
            "ready, since it could not keep that pod's policy; what is in the kernel stays in force, and no file was "
            "changed. Run the newer netagent again, or drain the node and remove the file."
        )


def _render_log(ips: Iterable[str]) -> bytes:
    return "".join(f"{ip}\n" for ip in ips).encode()


def current_boot_id() -> str:
    """Names the running boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
