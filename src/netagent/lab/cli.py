"""`netagent lab ...`: the lab from a shell. Modules that cost start-up time are imported by the command that runs."""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netagent.lab.plan import Settings

DOWN_TIMEOUT_S = 30.0


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `lab` and its commands."""
    lab = subparsers.add_parser(
        "lab", help="a whole cluster on this machine", description="A whole cluster on this machine, for root."
    )
    commands = lab.add_subparsers(required=True, metavar="LAB-COMMAND")
    up = _add(commands, "up", _up, "start a lab and leave it running")
    up.add_argument("--nodes", type=int, default=3, metavar="N", help="number of nodes (default 3)")
    up.add_argument("--dual-stack", action="store_true", help="IPv6 besides IPv4")
    up.add_argument("--foreground", action="store_true", help="stay attached; Ctrl-C ends the lab")
    up.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    _add(commands, "down", _down, "end a lab")
    _add(commands, "status", _status, "show a lab")
    _add(commands, "kubeconfig", _kubeconfig, "print the path of a lab's kubeconfig")
    run = _add(commands, "exec", _exec, "run a program in a node, a pod's network or an external")
    run.add_argument("place", help="node:K, namespace/pod or external:ADDRESS")
    run.add_argument("command", nargs=argparse.REMAINDER, help="program and arguments (default: sh)")
    logs = _add(commands, "logs", _logs, "print the log of one of a lab's processes")
    logs.add_argument("process", help="apiserver, kubelet or node-K")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    probe = _add(commands, "probe", _probe, "try whether one endpoint reaches another; exit status 1 if not")
    probe.add_argument("--from", dest="source", required=True, metavar="PLACE")
    probe.add_argument("--to", dest="destination", required=True, metavar="PLACE")
    probe.add_argument("--port", type=int, required=True)
    probe.add_argument("--protocol", default="TCP", choices=("TCP", "UDP", "SCTP"))
    probe.add_argument("--family", type=int, default=4, choices=(4, 6))
    external = _add(commands, "external", _external, "add a host outside the cluster")
    external.add_argument("ip", help="its address, e.g. 192.0.2.10")
    external.add_argument("--serves", default="80/TCP", help="what it listens on (default 80/TCP)")
    demo = _add(commands, "demo", _demo, "show the whole thing and clean up; exit status 1 if something is wrong")
    demo.set_defaults(name="")


def _add(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--name", default="lab", help="which lab (default: lab)")
    parser.set_defaults(run=run)
    return parser


def _call(options: argparse.Namespace, method: str, path: str, body: Any = None, **query: str) -> Any:
    from netagent.lab import control  # noqa: PLC0415

    return asyncio.run(control.call(options.name, method, path, body, **query))


def _settings(options: argparse.Namespace) -> "Settings":
    from netagent.lab.plan import Settings  # noqa: PLC0415
    from netagent.lab.processes import LabError  # noqa: PLC0415

    if not 1 <= options.nodes <= 200:
        raise LabError(f"--nodes {options.nodes}. Accepted: 1 to 200.")
    if os.geteuid() != 0:
        raise LabError("a lab needs root, for network namespaces and nftables. Nothing was started.")
    families = (4, 6) if options.dual_stack else (4,)
    return Settings(name=options.name, nodes=options.nodes, families=families)


def _up(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.foreground:
        return asyncio.run(_serve(settings, options.ready_fd))
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "netagent", "lab", "up", "--foreground", "--ready-fd", str(writing)]
    argv += ["--name", options.name, "--nodes", str(options.nodes)] + ["--dual-stack"] * options.dual_stack
    # The lab must not die with the shell it was started from: a session of its own.
    daemon = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[writing],
        start_new_session=True,
    )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    if not answer.startswith("up\n"):
        daemon.wait()
        sys.stderr.write(f"netagent: {answer or 'the lab died at start'}\n")
        return 1
    daemon.returncode = 0  # It goes on; Popen must not complain that nobody waits for it.
    return _status(options)


async def _serve(settings: "Settings", ready_fd: int) -> int:
    """Run a lab until asked to end. Tells `ready_fd` "up" or the error."""
    from netagent.lab.cluster import Lab  # noqa: PLC0415
    from netagent.lab.control import Control  # noqa: PLC0415
    from netagent.lab.processes import LabError  # noqa: PLC0415

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        async with Lab(settings) as lab:
            control = Control(lab)
            control.down = ended
            await control.start()
            _tell(ready_fd, "up\n")
            if ready_fd < 0:
                print(f"up; KUBECONFIG={lab.kubeconfig}; Ctrl-C ends it", flush=True)
            await ended.wait()
            await control.stop()
    except LabError as error:
        _tell(ready_fd, str(error))
        raise
    return 0


def _tell(fd: int, text: str) -> None:
    if fd >= 0:
        os.write(fd, text.encode())
        os.close(fd)


def _down(options: argparse.Namespace) -> int:
    from netagent.lab.directory import base_directory  # noqa: PLC0415
    from netagent.lab.processes import LabError  # noqa: PLC0415

    state = _call(options, "GET", "/state")
    _call(options, "POST", "/down")
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while Path(f"/proc/{state['supervisor']}").exists() or (base_directory() / options.name).exists():
        if time.monotonic() > deadline:
            raise LabError(f"lab {options.name!r} does not end; its supervisor is process {state['supervisor']}.")
        time.sleep(0.05)
    return 0


def _status(options: argparse.Namespace) -> int:
    state = _call(options, "GET", "/state")
    print(f"lab {state['name']}: API server {state['url']}, supervisor {state['supervisor']}")
    print(f"KUBECONFIG={state['kubeconfig']}")
    for node in state["nodes"]:
        agent = f"agent {node['agent']}" if node["agent"] else "no agent"
        print(f"{node['name']}: {', '.join(node['ips'])}; pods {', '.join(node['subnets'])}; {agent}")
    for external in state["externals"]:
        print(f"external: {external}")
    return 0


def _kubeconfig(options: argparse.Namespace) -> int:
    print(_call(options, "GET", "/state")["kubeconfig"])
    return 0


def _exec(options: argparse.Namespace) -> int:
    state = _call(options, "GET", "/state")
    place = _call(options, "GET", "/place", name=options.place)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    # In the lab's PID namespace too, so that the program ends with the lab.
    joins = [f"--net={place['net']}", f"--pid=/proc/{state['init']}/ns/pid"]
    if place["node_pid"]:
        joins += [f"--mount=/proc/{place['node_pid']}/ns/mnt", f"--uts=/proc/{place['node_pid']}/ns/uts"]
    # A node has a /run of its own, with a kubeconfig.
    environment = {**os.environ, "KUBECONFIG": "/run/lab/kubeconfig"} if place["node_pid"] else None
    return subprocess.run(["nsenter", *joins, "--", *(command or ["sh"])], check=False, env=environment).returncode


def _logs(options: argparse.Namespace) -> int:
    from netagent.lab.processes import LabError  # noqa: PLC0415

    directory = Path(_call(options, "GET", "/state")["kubeconfig"]).parent / "logs"
    names = sorted(path.stem for path in directory.iterdir())
    if options.process not in names:
        raise LabError(f"no process {options.process!r} in lab {options.name!r}. There are: {', '.join(names)}.")
    how = ["-n", "+1"] + ["-F"] * options.follow
    return subprocess.run(["tail", *how, str(directory / f"{options.process}.log")], check=False).returncode


def _probe(options: argparse.Namespace) -> int:
    names = {"from": options.source, "to": options.destination}
    body = {**names, "port": options.port, "protocol": options.protocol, "family": options.family}
    verdict = _call(options, "POST", "/probe", body)
    word = f"allowed, answered by {verdict['answer']}" if verdict["allowed"] else f"denied ({verdict['detail']})"
    print(f"{options.source} -> {options.destination} {options.port}/{options.protocol}: {word}")
    return 0 if verdict["allowed"] else 1


def _external(options: argparse.Namespace) -> int:
    _call(options, "POST", "/external", {"ip": options.ip, "serves": options.serves})
    return 0


def _demo(options: argparse.Namespace) -> int:
    from netagent.lab import demo  # noqa: PLC0415

    return demo.main(options.name)
