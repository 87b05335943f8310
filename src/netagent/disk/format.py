"""Which programs may read the state directory at all.

    <state_dir>/format      a number in decimal; no such file means 1, the format of today

The version in an endpoint's file, or in subnets.json, covers that file alone. A release that gives any name in the
directory another meaning, or needs a new one understood, writes `format` with a higher number (durably) before it
changes anything else there. This release never writes it: what is there comes from another one. It is read before
anything else is, and again before anything that other releases read is replaced; so a node that runs today needs
nothing new, and its files can be read by the releases before this one.
"""

import os
from pathlib import Path

from netagent.disk.atomic import DiskError, read_bounded

FORMAT = 1
FILE_NAME = "format"
MAX_BYTES = 4096
IN_FORCE = "Nothing there was read or changed, and what is in the kernel stays in force."


def require_known_format(state_dir: Path) -> None:
    """Raises DiskError where the directory's files may mean something else than this release takes them for."""
    path = state_dir / FILE_NAME
    content = read_bounded(path, MAX_BYTES) if os.path.isdir(state_dir) else None
    if content is None:
        return
    text = content.decode("ascii", "replace").strip()
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if number > FORMAT:
        raise DiskError(
            f"{path}: a newer netagent keeps its state here (format {number}, this one knows {FORMAT}). {IN_FORCE} Run "
            f"the newer netagent again, or drain the node and empty {state_dir}."
        )
    if number < FORMAT:
        raise DiskError(
            f"{path}: {text[:64]!r} is no format of netagent's, so what the other files mean is not known. {IN_FORCE} "
            f"Run the netagent that wrote it, remove this file alone if no newer one ever ran on this node, or drain "
            f"the node and empty {state_dir}."
        )
