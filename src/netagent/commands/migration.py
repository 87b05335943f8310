"""The last step from flannel to netagent on one node, and the first one back: what `netagent migrate` does.

Most of the change needs no command: the agent in node mode takes over flannel's devices, routes and pods in place. This
command does what must not happen by itself: it hands the runtime's configuration over and takes flannel's rules out.
Every step can be repeated; what is done already is not listed again.
"""

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from netagent import config
from netagent.agent.dataplane.forward import remove_accepts
from netagent.commands.output import print_json
from netagent.core.network import migrate as plans
from netagent.core.network.podnet import Step as RouteStep
from netagent.disk.allocations import Allocations
from netagent.disk.atomic import DiskError, read_bounded
from netagent.disk.hostlocal import HostLocal
from netagent.disk.state import ModeMemory
from netagent.kernel import flannel
from netagent.ports import NetagentError

MAX_CONFIG_BYTES = 1 << 20
LEGACY = ("iptables-legacy", "ip6tables-legacy")
"""Programs for tables that nftables does not see: only this command ever runs them, never the agent."""
LEGACY_TABLE_FILES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
LEGACY_TIMEOUT_S = 30.0


class MigrateError(NetagentError):
    """The node is not ready for the step; nothing was changed."""


class Step(Struct, frozen=True):
    """One thing to do."""

    text: str
    """What, for the operator."""
    run: Callable[[], None]
    """Raises NetagentError."""


def run(options: argparse.Namespace) -> int:
    loaded = config.load(options.config, os.environ, {})
    with asyncio.Runner() as runner:
        rules = flannel.FlannelRules()
        try:
            steps = Migration(loaded, rules, runner).steps(back=options.target is not None)
            if options.output == "json":
                return run_as_json(steps, dry_run=options.dry_run)
            for step in steps:
                print(f"{'would ' if options.dry_run else ''}{step.text}")
                if not options.dry_run:
                    step.run()
        finally:
            rules.close()
    if not steps:
        print("nothing to do")
    return 0


def run_as_json(steps: Sequence[Step], *, dry_run: bool) -> int:
    """Run them until one fails, and print which were done, or would be, and why no more were."""
    done: list[str] = []
    problem = ""
    try:
        for step in steps:
            if not dry_run:
                step.run()
            done.append(step.text)
    except NetagentError as error:
        problem = str(error)
    print_json({"dry_run": dry_run, "steps": done, "problem": problem})
    return 1 if problem else 0


class Migration:
    """The steps of one node, either way."""

    def __init__(self, loaded: config.Config, rules: flannel.FlannelRules, runner: asyncio.Runner) -> None:
        self._config = loaded
        self._rules = rules
        self._runner = runner
        self._conf_dir = Path(loaded.cni.conf_dir)

    def steps(self, *, back: bool) -> list[Step]:
        """What there is to do, in order. Raises MigrateError where the node is not ready for it."""
        if back:
            self._check_stopped()
            return [*self._reserve(), *self._give_back_conflist(), *self._give_back_routes(), *self._give_up_rules()]
        self._check_serving()
        return [*self._take_conflist(), *self._take_rules(), *self._take_legacy_rules()]

    # From flannel

    def _check_serving(self) -> None:
        """netagent must do everything already that flannel's leftovers still do."""
        mode, conflist = self._config.network.mode, self._conf_dir / self._config.cni.conf_name
        if mode == "auto":
            mode = ModeMemory(self._config.state_dir).load() or mode
        if mode != "node":
            raise MigrateError(
                f"network.mode is {mode}, so netagent does not take over what is flannel's. Nothing was changed; set "
                "network.mode to node and restart the agent."
            )
        if not conflist.exists():
            raise MigrateError(
                f"{conflist} does not exist: the agent does not serve this node yet. Nothing was changed; see /readyz "
                "of the agent, then run this again."
            )
        if self._config.network.masquerade and not self._runner.run(self._rules.masquerades()):
            raise MigrateError(
                "netagent's table does not masquerade yet, so flannel's rules are still needed. Nothing was changed; "
                "see /readyz of the agent, then run this again."
            )
        if left := self._runner.run(flannel.left_to_flannel()):
            raise MigrateError(
                f"routes of flannel's are still there ({', '.join(left[:3])}): flanneld runs, or the agent does not. "
                "Nothing was changed; stop flannel on this node, wait until the agent is ready, then run this again."
            )

    def _take_conflist(self) -> list[Step]:
        return [
            Step(f"rename {path} to {path.name}{plans.REPLACED}", _renaming(path, f"{path.name}{plans.REPLACED}"))
            for path, _ in self._flannel_configs(plans.CONFIG_ENDS)
        ]

    def _take_rules(self) -> list[Step]:
        commands = self._runner.run(self._rules.removals())
        if not commands:
            return []
        text = "remove flannel's rules from nftables: " + "; ".join(commands)
        return [Step(text, lambda: self._runner.run(self._rules.remove(commands)))]

    def _take_legacy_rules(self) -> list[Step]:
        steps = []
        for program, file in zip(LEGACY, LEGACY_TABLE_FILES, strict=True):
            if not Path(file).exists() or not shutil.which(f"{program}-save"):
                continue
            script = plans.legacy_removal(_legacy(f"{program}-save", ""))
            if script:
                text = f"remove flannel's chains with {program}-restore: " + "; ".join(script.splitlines())
                steps.append(Step(text, _restoring(f"{program}-restore", script)))
        return steps

    # Back to flannel

    def _check_stopped(self) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self._config.cni.socket)
            except OSError:
                pass
            else:
                raise MigrateError(
                    f"the agent serves {self._config.cni.socket}: it would take everything over again. Nothing was "
                    "changed; stop netagent on this node first."
                )
        if not self._flannel_configs((*plans.CONFIG_ENDS, plans.REPLACED)):
            raise MigrateError(
                f"no configuration of flannel's plugin in {self._conf_dir}, replaced or not: pods could not start. "
                "Nothing was changed; deploy flannel on this node first."
            )

    def _reserve(self) -> list[Step]:
        """Pods of ours live on: host-local must not give their addresses out again, and frees them with their DEL."""
        configs = self._flannel_configs((*plans.CONFIG_ENDS, plans.REPLACED))
        network, local = configs[0][1], HostLocal(self._config.network.host_local_dir)
        taken = local.addresses()
        return [
            Step(
                f"reserve {ip} of {endpoint.pod} in host-local's network {network}",
                _reserving(local, network, ip, endpoint.container_id, endpoint.ifname),
            )
            for endpoint in Allocations(self._config.state_dir).load().endpoints
            for ip in endpoint.ips
            if ip not in taken
        ]

    def _give_back_conflist(self) -> list[Step]:
        steps = []
        for path, _ in self._flannel_configs((plans.REPLACED,)):
            name = path.name.removesuffix(plans.REPLACED)
            if not path.with_name(name).exists():
                steps.append(Step(f"rename {path} to {name}", _renaming(path, name)))
        ours = self._conf_dir / self._config.cni.conf_name
        if ours.exists():
            steps.append(Step(f"remove {ours}", _removing(ours)))
        return steps

    def _give_back_routes(self) -> list[Step]:
        mine, blackholes = self._runner.run(flannel.peer_routes())
        steps = []
        if mine:
            steps.append(Step(f"make {len(mine)} routes flannel's again, in place", self._taking(mine)))
        if blackholes:
            steps.append(Step(f"remove {len(blackholes)} blackhole routes", self._taking(blackholes)))
        return steps

    def _give_up_rules(self) -> list[Step]:
        steps = []
        found = self._runner.run(remove_accepts(dry_run=True))
        if found:
            text = f"remove netagent's accept rules from {', '.join(found)}"
            steps.append(Step(text, lambda: self._runner.run(_remove_accepts())))
        if self._runner.run(self._rules.inventory()).exists:
            text = "remove table inet netagent: from then on no NetworkPolicy is enforced by netagent here"
            steps.append(Step(text, lambda: _ignore(self._runner.run(self._rules.remove_own_table()))))
        return steps

    # Tools

    def _flannel_configs(self, ends: tuple[str, ...]) -> list[tuple[Path, str]]:
        """(file, name of its network) of each configuration of flannel's plugin with one of these ends."""
        found = []
        for path in sorted(self._conf_dir.iterdir()) if self._conf_dir.is_dir() else ():
            if path.name.endswith(ends) and path.is_file():
                name = plans.flannel_network(read_bounded(path, MAX_CONFIG_BYTES) or b"")
                if name is not None:
                    found.append((path, name))
        return found

    def _taking(self, steps: Sequence[RouteStep]) -> Callable[[], None]:
        def take() -> None:
            if refused := self._runner.run(flannel.take_steps(steps)):
                raise MigrateError(
                    f"the kernel refused {len(refused)} routes, the first: {refused[0]}. Run this again."
                )

        return take


async def _remove_accepts() -> None:
    for problem in (await remove_accepts()).values():
        if problem:
            raise MigrateError(problem)


def _ignore(_: object) -> None:
    return None


def _renaming(path: Path, name: str) -> Callable[[], None]:
    def rename() -> None:
        try:
            path.rename(path.with_name(name))
        except OSError as error:
            raise DiskError(f"cannot rename {path} to {name}: {error.strerror}. It is as it was.") from error

    return rename


def _removing(path: Path) -> Callable[[], None]:
    def remove() -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"cannot remove {path}: {error.strerror}. New pods still go to netagent.") from error

    return remove


def _reserving(local: HostLocal, network: str, ip: str, container_id: str, ifname: str) -> Callable[[], None]:
    return lambda: _ignore(local.reserve(network, ip, container_id, ifname))


def _restoring(program: str, script: str) -> Callable[[], None]:
    return lambda: _ignore(_legacy(program, script, "--noflush"))


def _legacy(program: str, text: str, *arguments: str) -> str:
    """Run one of the programs with text as its input; what it printed. Raises MigrateError."""
    try:
        done = subprocess.run(
            [program, *arguments], input=text, capture_output=True, text=True, timeout=LEGACY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MigrateError(f"{program} could not be run: {error}. flannel's chains there stay as they are.") from error
    if done.returncode:
        raise MigrateError(f"{program} failed: {done.stderr.strip()[:300]}. flannel's chains there stay as they are.")
    return done.stdout
