"""What the reference IPAM plugin host-local has given out: one file per address, named by it.

    <root>/<network>/<address>          container ID, then (since 0.8) the interface's name, on lines that end in CRLF
    <root>/<network>/last_reserved_ip.* where its next search begins
    <root>/<network>/lock               flock(2) held while it changes any of this

A file exists from ADD to DEL. netagent never hands out such an address, and ends a reservation for a container whose
DEL came to netagent instead.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from netagent.core.addresses import parse_address
from netagent.disk.atomic import DiskError

MAX_FILE_BYTES = 4096
LINE_END = "\r\n"


class Reservation(Struct, frozen=True, gc=False):
    """One address in use."""

    network: str
    ip: str
    container_id: str
    ifname: str


class HostLocal:
    """The reservations of all networks under one directory. Methods block for as long as small local files take."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)

    def holds(self, ip: str) -> bool:
        """Whether an address (canonical text) is reserved in any network."""
        return any((network / ip).is_file() for network in self._networks())

    def addresses(self) -> frozenset[str]:
        """All reserved addresses."""
        return frozenset(ip for network in self._networks() for ip in _addresses(network))

    def reservations(self) -> tuple[Reservation, ...]:
        """Everything, in order of network and address text."""
        found = []
        for network in self._networks():
            for ip in sorted(_addresses(network)):
                container_id, ifname = _read(network / ip)
                found.append(Reservation(network.name, ip, container_id, ifname))
        return tuple(found)

    def release(self, container_id: str) -> tuple[str, ...]:
        """End a container's reservations, as host-local's DEL would. Returns the addresses. Raises DiskError."""
        freed: list[str] = []
        for network in self._networks():
            if not any(_read(network / ip)[0] == container_id for ip in _addresses(network)):
                continue
            with _locked(network):
                for ip in _addresses(network):
                    if _read(network / ip)[0] == container_id:
                        _unlink(network / ip)
                        freed.append(ip)
        return tuple(freed)

    def reserve(self, network: str, ip: str, container_id: str, ifname: str) -> bool:
        """Make a reservation, as host-local's ADD would; False: the address is reserved already. Raises DiskError."""
        directory = self._root / network
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            with _locked(directory):
                descriptor = os.open(directory / ip, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "w", newline="") as file:
                    file.write(f"{container_id}{LINE_END}{ifname}")
        except FileExistsError:
            return False
        except OSError as error:
            raise DiskError(
                f"cannot reserve {ip} in {directory}: {error.strerror}. host-local may give it out again."
            ) from error
        return True

    def _networks(self) -> list[Path]:
        try:
            return sorted(path for path in self._root.iterdir() if path.is_dir())
        except OSError:
            return []  # host-local was never used here


def _addresses(network: Path) -> list[str]:
    try:
        entries = os.listdir(network)
    except OSError:
        return []
    found = []
    for name in entries:
        with contextlib.suppress(ValueError):
            found.append(str(parse_address(name)))
    return found


def _read(path: Path) -> tuple[str, str]:
    """(container ID, interface name); empty text where the file went or says nothing."""
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_FILE_BYTES).decode("utf-8", "replace").split()
    except OSError:
        return "", ""
    return (lines[0] if lines else ""), (lines[1] if len(lines) > 1 else "")


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"cannot free {path}: {error.strerror}. Its address stays taken; remove the file.") from error


@contextmanager
def _locked(network: Path) -> Iterator[None]:
    """host-local's own lock: it changes nothing meanwhile."""
    try:
        descriptor = os.open(network / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DiskError(f"cannot lock {network}: {error.strerror}. Nothing was changed there.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
