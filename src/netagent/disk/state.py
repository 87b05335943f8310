"""What this node remembers of its subnets, so that it asks for the same ones again."""

from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from netagent.core.addresses import parse_network
from netagent.disk.atomic import MALFORMED, DiskError, ensure_dir, read_bounded, set_aside, write_atomic
from netagent.disk.format import require_known_format

VERSION = 1
FILE_NAME = "subnets.json"
MODE_FILE_NAME = "network-mode"
MAX_BYTES = 64 * 1024


class SubnetFile(Struct, frozen=True, kw_only=True):
    """Content of `subnets.json`."""

    version: int
    subnets: tuple[str, ...]
    """Canonical CIDRs, the ones held last."""


class _Version(Struct):
    """What every version of `subnets.json` has."""

    version: int


class SubnetMemory:
    """The subnets that this node held last, in one small file under the state directory."""

    def __init__(self, state_dir: str | Path) -> None:
        self._path = Path(state_dir) / FILE_NAME

    def load(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(subnets, problems). A file that cannot be read counts as none; it is set aside, but not a newer one."""
        try:
            self._require_ours()
        except DiskError as error:
            return (), (f"{error} The subnets held before are not known.",)
        try:
            content = read_bounded(self._path, MAX_BYTES)
            if content is None:
                return (), ()
            file = msgspec.json.decode(content, type=SubnetFile)
        except (DiskError, *MALFORMED) as error:
            return (), (self._refuse(str(error)),)
        if file.version != VERSION:
            return (), (self._refuse(f"version {file.version} was never in use"),)
        try:
            return tuple(str(parse_network(text)) for text in file.subnets), ()
        except ValueError as error:
            return (), (self._refuse(str(error)),)

    def save(self, subnets: tuple[str, ...]) -> None:
        """Raises DiskError, also where a newer program wrote the file; then it is as it was."""
        ensure_dir(self._path.parent)
        self._require_ours()
        write_atomic(self._path, msgspec.json.encode(SubnetFile(version=VERSION, subnets=subnets)))

    def _require_ours(self) -> None:
        """Raises DiskError where a newer program wrote the file."""
        require_known_format(self._path.parent)
        try:
            version = msgspec.json.decode(read_bounded(self._path, MAX_BYTES) or b"", type=_Version).version
        except (DiskError, *MALFORMED):
            return
        if version > VERSION:
            raise DiskError(
                f"{self._path}: a newer netagent wrote it (version {version}, this one knows {VERSION}). It stays as "
                "it is. Run the newer netagent again, or remove the file."
            )

    def _refuse(self, reason: str) -> str:
        try:
            aside = set_aside(self._path, self._path.parent / "quarantine")
        except DiskError as error:
            return f"{self._path}: {reason}. The subnets held before are not known. {error}"
        return f"{self._path}: {reason}. The subnets held before are not known; the file is now {aside}."


class ModeMemory:
    """The network mode that was found for this node, in one word."""

    def __init__(self, state_dir: str | Path) -> None:
        self.path = Path(state_dir) / MODE_FILE_NAME

    def load(self) -> Literal["lease", "node"] | None:
        """None where nothing (readable) was decided. Raises DiskError where a newer program keeps the directory."""
        require_known_format(self.path.parent)
        try:
            word = (read_bounded(self.path, MAX_BYTES) or b"").decode("ascii", "replace").strip()
        except DiskError:
            return None
        return "lease" if word == "lease" else "node" if word == "node" else None

    def save(self, mode: Literal["lease", "node"]) -> None:
        """Raises DiskError."""
        ensure_dir(self.path.parent)
        require_known_format(self.path.parent)
        write_atomic(self.path, f"{mode}\n".encode())
