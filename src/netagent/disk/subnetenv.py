"""subnet.env: what flannel tells other programs of the node about its subnet, written by netagent in its stead."""

from pathlib import Path

from netagent.disk.atomic import DiskError, ensure_dir, read_bounded, write_atomic

SUBNET_ENV = "/run/flannel/subnet.env"
"""Where flannel has it."""
MAX_BYTES = 64 * 1024


def write_subnet_env(path: str, content: str) -> bool:
    """Replace the file unless it says so already; whether it was written. Raises DiskError."""
    target, wanted = Path(path), content.encode()
    try:
        if read_bounded(target, MAX_BYTES) == wanted:
            return False
    except DiskError:
        pass  # unreadable: it is replaced, or the write says why not
    ensure_dir(target.parent, 0o755)
    write_atomic(target, wanted, mode=0o644, durable=False)
    return True
