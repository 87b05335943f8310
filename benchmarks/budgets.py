"""What is promised, judged by the figures of a run; where a promise is broken, where the time or the memory goes."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from benchmarks.datapath import TRACKED, TRACKED_NAT
from benchmarks.stats import P99_SAMPLES
from benchmarks.svg import short

Figures = dict[str, Any]
"""Of one benchmark, as it writes them."""
Run = dict[str, Figures]
"""By name of the benchmark."""
Verdict = tuple[str, bool]
"""The figures as text, and whether they are within the bound."""
LAB, REAL = "lab API server, 10000 pods", "kube-apiserver, 10000 pods"
REACHED = 0.95
"""Of a rate of events, to be counted as that."""
SIZE = "10k pods, 1k policies, 110 local pods"
COMMIT, PACKET = "watch event -> commit", "API answer -> first packet"
POLICY, ADD = "policy change -> commit", "CNI ADD"
RELISTS = ("relist of all pods", "relist of all pods, relabelled")
RECOMPILE = "relist of all policies, edited"
BULK_FACTOR = 5.0
"""Beside bulk work, of the idle budget."""
OURS, THEIRS = "netagent", "ptp+host-local"


class Budget(Struct, frozen=True):
    """One line of what is promised. The functions raise KeyError where the run does not have what they ask for."""

    what: str
    under: str
    bound: str
    measured: Callable[[Run], Verdict]
    why: Callable[[Run], str] | None = None
    """A sentence on where the time goes; told only where the budget is missed."""


class Part(Struct, frozen=True):
    """One figure of a series and its bound."""

    limit: float
    benchmark: str
    label: str
    key: str


def below(unit: str, *parts: Part) -> Callable[[Run], Verdict]:
    """All figures within their bounds."""

    def measured(run: Run) -> Verdict:
        found = [(part, run[part.benchmark]["series"][part.label]) for part in parts]
        text = ", ".join(said(one, part.key, unit) for part, one in found)
        return text, all(one[part.key] <= part.limit for part, one in found)

    return measured


def said(one: Figures, key: str, unit: str) -> str:
    """A figure of a series; of few samples there is no p99, only the largest."""
    if key == "p99" and one["samples"] < P99_SAMPLES:
        return f"max {short(one['max'])} {unit} (n {one['samples']})"
    word = {"median": "p50"}.get(key, key) if one["samples"] > 1 else ""
    return f"{word} {short(one[key])} {unit}".strip()


# Convergence


def convergence(load: str, title: str, **limits: float) -> Callable[[Run], Verdict]:
    """Of 10k pods in the lab's API server, and in kube-apiserver where the run has it; milliseconds.

    Other events must have come as fast as the load says.
    """

    def measured(run: Run) -> Verdict:
        stages = run["convergence"]["mean_by_stage"]
        told, met = [], True
        for server in (LAB, REAL):
            name = f"{server}, {load}"
            if server == REAL and name not in stages:
                continue
            parts = (Part(limit, "convergence", f"{name}: {title}", key) for key, limit in limits.items())
            text, within = below("ms", *parts)(run)
            wanted = 0.0 if load == "idle" else float(load.partition(" ")[0])
            reached = stages[name].get("events_per_s", 0.0)
            rate = f" at {reached:.0f} events/s" if wanted else ""
            told.append(f"{server.partition(',')[0]}: {text}{rate}")
            met = met and within and reached >= REACHED * wanted
        return "; ".join(told), met

    return measured


def stages(load: str) -> Callable[[Run], str]:
    """What a change's time consists of."""

    def why(run: Run) -> str:
        of_load = run["convergence"]["mean_by_stage"][f"{LAB}, {load}"]
        found = {name: ms for name, ms in of_load.items() if name[-2:] != "_s"}
        return "Means by stage, ms: " + ", ".join(f"{name} {ms:.2f}" for name, ms in found.items()) + "."

    return why


# Start, memory


def start_stages(run: Run) -> str:
    """What a cold start consists of."""
    series = run["coldstart"]["series"]
    names = ("decode", "store", "compile", "diff", "commit")
    spent = {name: series[f"10000 pods, of it, {name}"]["median"] for name in names}
    rest = series["10000 pods, start -> commit"]["median"] - sum(spent.values())
    parts = ", ".join(f"{name} {ms:.0f}" for name, ms in spent.items())
    return f"Medians by stage, ms: {parts}; {rest:.0f} are the start of Python and waiting for the API server's lists."


def restart(run: Run) -> Verdict:
    """Packets lost and leaked over all restarts."""
    found = run["coldstart"]["restart"].values()
    lost, leaked = (sum(one[word] for one in found) for word in ("lost", "leaked"))
    return f"{lost} lost, {leaked} leaked", not lost and not leaked


def interpreter(run: Run) -> str:
    """What there is before the first pod."""
    return f"An agent of an empty cluster takes {run['memory']['series']['0 pods']['median']:.0f} MB."


def growth(run: Run) -> Verdict:
    """Over the cycles after warm-up."""
    value = run["memory"]["growth_percent"]
    return f"{value:.2f} %", value < 2


# CNI


def added(run: Run, pods: int, plugin: str, how: str = "serial") -> float:
    """Median of an ADD, ms."""
    return float(run["cni"]["series"][f"{pods} pods, {how}, {plugin}: ADD"]["median"])


def cni(run: Run) -> Verdict:
    """Ours beside the reference's, medians, at 110 pods, one after the other and ten at once."""
    found = {how: [added(run, 110, plugin, how) for plugin in (OURS, THEIRS)] for how in ("serial", "10 at once")}
    text = "; ".join(f"{how} p50 {ours:.1f} ms, {THEIRS} {theirs:.1f} ms" for how, (ours, theirs) in found.items())
    return text, all(ours <= theirs for ours, theirs in found.values())


def cni_growth(run: Run) -> str:
    """What a full node adds."""
    ours, theirs = (added(run, 1, plugin) for plugin in (OURS, THEIRS))
    return f"With 1 pod on the node, serial, it is {ours:.1f} ms; {THEIRS} {theirs:.1f} ms."


# Datapath


MOST = "netagent, 10000 policies"
WHOLE = f"{MOST}, masquerading, VXLAN filter"


def throughput(run: Run) -> Verdict:
    """Of bare forwarding."""
    found = run["datapath"]["ratios"]
    one = found[f"TCP throughput: {MOST}"]
    spread = f"{one['from']:.1%} to {one['to']:.1%}; {again(run, 'TCP throughput')}"
    return f"{one['median']:.1%} ({spread}), {beside_tracking(one)}", one["median"] >= 0.97


def again(run: Run, load: str) -> str:
    """How much of a difference is chance."""
    return f"bare forwarding again: {run['datapath']['ratios'][f'{load}: no rules, again']['median']:.1%}"


def beside_tracking(ratio: Figures) -> str:
    """What is left of that of a node as it is with kube-proxy alone."""
    return f"{ratio['of_tracked']:.1%} of {TRACKED_NAT}"


def tracked(load: str, work: str) -> Callable[[Run], str]:
    """What connection tracking costs by itself; `work` is what the processor's time is told for."""

    def why(run: Run) -> str:
        found = run["datapath"]["ratios"]
        names = (TRACKED, TRACKED_NAT, WHOLE)
        shares = ", ".join(f"{name} {found[f'{load}: {name}']['median']:.1%}" for name in names)
        time = f"processor time per {work}"
        bare_us = run["datapath"]["series"][f"{time}: no rules"]["median"]
        more = [bare_us * (found[f"{time}: {name}"]["median"] - 1) for name in names]
        tracking, nat, ours = more[0], more[1] - more[0], more[2] - more[1]
        return (
            f"Of bare forwarding: {shares}. {time.capitalize()}: {bare_us:.1f} us without rules, conntrack "
            f"{tracking:+.2f}, the kernel's NAT {nat:+.2f}, all rules of netagent {ours:+.2f}."
        )

    return why


def connections(run: Run) -> Verdict:
    """Of bare forwarding, and the spread over the numbers of policies."""
    found = run["datapath"]["ratios"]
    rows = [found[f"TCP connections: netagent, {count} policies"] for count in (1, 100, 1000, 10_000)]
    least = min(rows, key=lambda row: float(row["median"]))
    spread = 1 - least["median"] / max(row["median"] for row in rows)
    text = f"{least['median']:.1%} of bare, spread {spread:.1%} ({again(run, 'TCP connections')})"
    return f"{text}, {beside_tracking(least)}", least["median"] >= 0.9 and spread <= 0.05


# Kernel


def one_member(way: str) -> str:
    """Series of the largest grid; one that leaves takes an allow away, which costs a generation."""
    return f"2000x100/2000x10 one member, {way}: netagent"


def members(run: Run) -> Verdict:
    """One in and one out."""
    found = {way: run["dataplane"]["series"][one_member(way)] for way in ("in", "out")}
    text = "; ".join(f"{way} p50 {one['median']:.3f} ms, {said(one, 'p99', 'ms')}" for way, one in found.items())
    return text, all(one["median"] <= 0.2 for one in found.values())


def members_cpu(run: Run) -> str:
    """How much of it is work."""
    cpu_ms = [run["dataplane"]["series"][f"{one_member(way)}, CPU"]["median"] for way in ("in", "out")]
    return f"CPU time, in the kernel and before it: {cpu_ms[0]:.3f} and {cpu_ms[1]:.3f} ms; the rest is waiting."


def route(work: str, who: str = "") -> str:
    """A series of the pod network at 5k peers."""
    return f"5000 peers{who}: {work}"


def routes(run: Run) -> Verdict:
    """From empty, and one peer in, out and moved."""
    series = run["routes"]["series"]
    empty_ms = series[route("from empty")]["median"]
    one_ms = max(series[route(work)]["median"] for work in ("one in", "one out", "address changed"))
    return f"p50 {empty_ms / 1e3:.2f} s / {one_ms:.1f} ms", empty_ms <= 1000 and one_ms <= 20


def routes_cpu(run: Run) -> str:
    """How much of it is work."""
    series = run["routes"]["series"]
    cpu = [series[route(work, ", CPU")]["median"] for work in ("from empty", "one in")]
    return f"CPU time, with the kernel's on its behalf: {cpu[0] / 1e3:.2f} s / {cpu[1]:.1f} ms; the rest is waiting."


# Beside bulk work


def beside_relist(run: Run) -> Verdict:
    """A policy change while all pods are listed again: the worse of unchanged and changed pods."""
    found = [run["bulk"]["series"][f"{name}: {POLICY}"] for name in RELISTS]
    worst = {key: max(found, key=lambda one: float(one[key])) for key in ("median", "p99")}
    limits = {"median": 5 * BULK_FACTOR, "p99": 25 * BULK_FACTOR}
    text = ", ".join(said(one, key, "ms") for key, one in worst.items())
    return text, all(one[key] <= limits[key] for key, one in worst.items())


def beside_recompile(run: Run) -> Verdict:
    """An ADD while all policies are compiled anew, and while all pods are listed: against the idle budget."""
    bound_ms = BULK_FACTOR * added(run, 110, THEIRS)
    found = {name: run["bulk"]["series"][f"{name}: {ADD}"] for name in (RECOMPILE, *RELISTS)}
    text = "; ".join(f"{name}: p50 {one['median']:.1f} ms, {said(one, 'p99', 'ms')}" for name, one in found.items())
    return f"{text}. Bound {bound_ms:.1f} ms", all(one["median"] <= bound_ms for one in found.values())


def idle_stages(run: Run) -> str:
    """What the change takes with nothing beside it, in so large a cluster."""
    idle = run["bulk"]["series"][f"idle: {POLICY}"]["median"]
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in run["bulk"]["median_by_stage"]["idle"].items())
    return (
        f"With nothing beside it the same change takes p50 {idle:.1f} ms in a cluster of this size; medians by stage, "
        f"ms: {parts}. Where a chain comes or goes, the kernel looks for loops from every base chain on, so a commit's "
        "time grows with the number of chains."
    )


def stalls(run: Run) -> str:
    """How long nothing else could run."""
    late = run["bulk"]["series"][f"{RECOMPILE}: stall"]
    return (
        f"The event loop was late by p99 {late['p99']:.0f} ms, at most {late['max']:.0f} ms, while policies compiled."
    )


BUDGETS = (
    Budget(
        "watch event → kernel commit",
        f"{SIZE}, idle",
        "p50 5 ms, p99 25 ms",
        convergence("idle", COMMIT, median=5, p99=25),
        stages("idle"),
    ),
    Budget(
        "the same",
        "under 200 pod events/s",
        "p99 100 ms",
        convergence("200 events/s", COMMIT, p99=100),
        stages("200 events/s"),
    ),
    Budget(
        "API write → first packet obeys",
        f"{SIZE}, idle",
        "p99 50 ms",
        convergence("idle", PACKET, p99=50),
        stages("idle"),
    ),
    Budget("one set member", "2000 sets x 100, 2000 chains x 10 rules", "0.2 ms", members, members_cpu),
    Budget(
        "start → synced and enforced",
        "10k pods, 1k policies",
        "2 s",
        below("ms", Part(2000, "coldstart", "10000 pods, start -> first packet obeys", "median")),
        start_stages,
    ),
    Budget("packets lost or leaked by a restart", "1k to 50k pods", "none", restart),
    Budget(
        "memory (RSS)",
        "10k / 100k pods",
        "120 MB / 300 MB",
        below("MB", *(Part(mb, "memory", f"{pods} pods", "median") for pods, mb in ((10_000, 120), (100_000, 300)))),
        interpreter,
    ),
    Budget("growth of memory", "20 cycles of 10k pods", "< 2 %", growth),
    Budget("CNI ADD incl. policy", "110 pods on the node", f"{THEIRS}, same run", cni, cni_growth),
    Budget(
        "TCP throughput, established",
        "10k policies, of bare forwarding",
        ">= 97 %",
        throughput,
        tracked("TCP throughput", "packet"),
    ),
    Budget(
        "new connections/s",
        "1 to 10k policies",
        "flat within 5 %, >= 90 % of bare",
        connections,
        tracked("TCP connections", "connection"),
    ),
    Budget("routes", "5k peers from empty / one peer in, out, moved", "1 s / 20 ms", routes, routes_cpu),
    Budget(
        "policy change → commit beside bulk work",
        "relist of 50k pods",
        "5x idle: p50 25 ms, p99 125 ms",
        beside_relist,
        idle_stages,
    ),
    Budget(
        "CNI ADD beside bulk work",
        "recompile of 10k policies, relists of 50k pods",
        f"5x idle: p50 of five {THEIRS} at 110 pods, same run",
        beside_recompile,
        stalls,
    ),
)
