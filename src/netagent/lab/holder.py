"""The process that holds one namespace set of a lab open. Runs alone, by path, with the standard library only.

`python -I -S holder.py SPEC` with SPEC as JSON: {"hostname": str, "node": bool, "plugins": {name: path}, "init": bool,
"directory": str}. It moves itself into new network, mount and UTS namespaces, prints `ready`, and stays until its
standard input ends or it is told to terminate. The one with "init" is process 1 of the lab's PID namespace: when it
leaves, the kernel ends every process of the lab, and before it leaves it removes the lab's directory.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import sys
import threading

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

PRIVATE_DIRECTORIES = ("/etc/cni/net.d", "/opt/cni/bin", "/var/lib/netagent", "/var/lib/cni")
"""What each node has for itself besides /run and /proc, so that agent and plugins use the paths of a real node."""

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise OSError where a libc call failed."""
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode(), flags, options.encode())
    checked(libc.mount(*arguments), f"mount {kind or 'bind'} {source} on {target}")


def loopback_up() -> None:
    """Bring `lo` of this thread's network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def make_room(path: str) -> None:
    """Make the directory `path` in this mount namespace only.

    Where it is missing, its nearest existing ancestor is covered by a tmpfs that shows the ancestor's entries again.
    """
    ancestor = path
    while not os.path.isdir(ancestor):
        ancestor = os.path.dirname(ancestor)
    if ancestor == path:
        return
    covered = os.open(ancestor, os.O_PATH | os.O_DIRECTORY)
    mode = os.fstat(covered).st_mode & 0o7777
    entries = list(os.scandir(f"/proc/self/fd/{covered}"))
    mount("tmpfs", ancestor, "tmpfs", 0, f"mode={mode:o}")
    for entry in entries:
        target = f"{ancestor}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
            continue
        if entry.is_dir():
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(f"/proc/self/fd/{covered}/{entry.name}", target, "", MS_BIND | MS_REC)
    os.close(covered)
    os.makedirs(path)


def furnish(plugins: dict[str, str]) -> None:
    """Give a node its own /proc, /run and state directories, and the plugins that its runtime may chain."""
    for path in PRIVATE_DIRECTORIES:
        make_room(path)
        mount("tmpfs", path, "tmpfs", 0, "mode=755")
    mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    mount("proc", "/proc", "proc")
    os.mkdir("/run/netns", 0o755)
    os.mkdir("/run/lab", 0o700)
    for name, path in plugins.items():
        os.symlink(path, f"/opt/cni/bin/{name}")


def clear(directory: str) -> None:
    """Process 1 only: end everybody else in the PID namespace and remove the lab's directory."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Hold the namespaces until told to let go."""
    spec = json.loads(sys.argv[1])
    let_go = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: let_go.set())
    if spec["init"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        checked(libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    checked(libc.unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS), "unshare")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    socket.sethostname(spec["hostname"])
    loopback_up()
    if spec["node"]:
        furnish(spec["plugins"])
    os.write(1, b"ready\n")

    def await_end() -> None:
        while os.read(0, 64):
            pass
        let_go.set()

    threading.Thread(target=await_end, daemon=True).start()
    let_go.wait()
    if spec["init"]:
        clear(spec["directory"])
    os._exit(0)


if __name__ == "__main__":
    main()
