"""Where network sysctls are written.

A container's own /proc/sys is read-only unless it is privileged; the manifests mount the node's /proc/sys/net beside
it. Which network namespace such a file means depends on the thread that opens it, not on the mount, so one mount serves
for the node and for its pods.
"""

from pathlib import Path

IN_CONTAINER = Path("/host/proc/sys/net")
"""Where the manifests mount it."""


def find_net() -> Path:
    """The directory of network sysctls that can be written here."""
    return IN_CONTAINER if IN_CONTAINER.is_dir() else Path("/proc/sys/net")


NET = find_net()


def has_link(name: str) -> bool:
    """Whether a link has this as its name.

    An ioctl or a netlink request would find alternative names too, and an ioctl tries to load a module for none.
    """
    return (NET / "ipv4/conf" / name).is_dir()
