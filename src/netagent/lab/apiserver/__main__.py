"""`python -m netagent.lab.apiserver`: run the API server until SIGTERM or SIGINT."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import yaml

from netagent.lab.apiserver.server import ApiServer, Settings


def main() -> int:
    """Parse the flags, serve; the exit status."""
    flags = _flags().parse_args()
    sockets = [_bound(address) for address in flags.listen] + [socket.socket(fileno=fd) for fd in flags.listen_fd]
    if not sockets:
        sockets = [_bound("127.0.0.1:0")]
    settings = Settings(
        token=os.environ.get("NETAGENT_LAB_TOKEN", ""),
        history_events=flags.history_events,
        bookmark_s=flags.bookmark_s,
        schedule=not flags.no_scheduler,
    )
    asyncio.run(_serve(settings, sockets, flags.kubeconfig))
    return 0


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m netagent.lab.apiserver",
        description="A Kubernetes API server in memory. NETAGENT_LAB_TOKEN sets a bearer token that it demands.",
    )
    parser.add_argument("--listen", action="append", default=[], metavar="ADDRESS:PORT", help="repeatable; port 0: any")
    parser.add_argument(
        "--listen-fd", action="append", default=[], type=int, metavar="FD", help="a bound socket; repeatable"
    )
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="write a kubeconfig for the first socket")
    parser.add_argument("--history-events", type=int, default=10_000, help="writes that watches can resume from")
    parser.add_argument("--bookmark-s", type=float, default=10.0, help="pause between bookmarks, seconds")
    parser.add_argument("--no-scheduler", action="store_true", help="leave pods without a node alone")
    return parser


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    return listener


async def _serve(settings: Settings, sockets: list[socket.socket], kubeconfig: str) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    urls = [url_of(listener) for listener in sockets]
    server = ApiServer(settings)
    await server.start(sockets)
    if kubeconfig:
        write_kubeconfig(Path(kubeconfig), urls[0], settings.token)
    for url in urls:
        sys.stdout.write(url + "\n")
    sys.stdout.flush()
    await stopping.wait()
    await server.stop()


def url_of(listener: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def write_kubeconfig(path: Path, url: str, token: str) -> None:
    """A kubeconfig of one cluster; written aside and renamed, mode 0600."""
    user = {"token": token} if token else {}
    tree = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": url}}],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    }
    draft = path.with_name(path.name + ".new")
    draft.write_text(yaml.safe_dump(tree))
    draft.chmod(0o600)
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
