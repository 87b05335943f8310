"""Metrics of one agent, in a registry of its own."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from netagent import __version__

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PolicyDenials(Collector):
    """Denied packets per policy; whoever counts them sets `totals`, policies that are gone leave it."""

    def __init__(self) -> None:
        self.totals: Iterable[tuple[str, str, str, int]] = ()
        """Namespace, policy, direction, packets."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For the registry."""
        family = CounterMetricFamily(
            "netagent_policy_denied_packets",
            "Packets denied in a direction by the policies that isolate; each of them counts it.",
            labels=["namespace", "policy", "direction"],
        )
        for namespace, policy, direction, packets in self.totals:
            family.add_metric([namespace, policy, direction], packets)
        yield family


class Totals(Collector):
    """A counter that somebody else keeps: `read` gives label values and count, `what` is its metric."""

    def __init__(self, what: CounterMetricFamily) -> None:
        self.read: Callable[[], Iterable[tuple[tuple[str, ...], float]]] = tuple
        self._what = what

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For the registry."""
        self._what.samples.clear()
        for labels, count in self.read():
            self._what.add_metric(labels, count)
        yield self._what


class Metrics:
    """Every metric the agent exposes; see docs/metrics.md."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.convergence = Histogram(
            "netagent_convergence_seconds",
            "From the arrival of a watch event to the kernel commit that covers it.",
            ["kind"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.commit = Histogram(
            "netagent_commit_seconds",
            "Duration of one nftables transaction.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.commits = Counter(
            "netagent_commits", "nftables transactions by result and kind.", ["result", "kind"], registry=self.registry
        )
        self.last_commit = Gauge(
            "netagent_last_commit_timestamp_seconds",
            "When the last nftables transaction succeeded, seconds since the epoch.",
            registry=self.registry,
        )
        self.slow_events = Counter(
            "netagent_slow_events",
            "Commits whose oldest event took more than 0.25 s from its arrival to the kernel.",
            ["kind"],
            registry=self.registry,
        )
        self.loop_lag = Histogram(
            "netagent_event_loop_lag_seconds",
            "How late the event loop woke a task that sleeps half a second.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.generation = Gauge(
            "netagent_generation", "Generation stamp that open flows must carry.", registry=self.registry
        )
        self.objects = Gauge(
            "netagent_ruleset_objects", "Objects in the desired ruleset.", ["kind"], registry=self.registry
        )
        self.endpoints = Gauge("netagent_endpoints", "Pods of this node.", registry=self.registry)
        self.policy_problems = Gauge(
            "netagent_policy_problems", "Policies that could not be honoured wholly.", registry=self.registry
        )
        self.undecodable = Gauge(
            "netagent_undecodable_objects", "API objects that could not be read.", ["kind"], registry=self.registry
        )
        self.watch_events = Counter(
            "netagent_watch_events", "Changes delivered by the watches.", ["kind"], registry=self.registry
        )
        self.watch_connected = Gauge(
            "netagent_watch_connected", "1 while the watch of a kind is open.", ["kind"], registry=self.registry
        )
        self.watch_stale = Gauge(
            "netagent_watch_stale_seconds",
            "Since the API server last said anything on the watch of a kind, bookmarks included.",
            ["kind"],
            registry=self.registry,
        )
        self.watch_failures = Totals(
            CounterMetricFamily("netagent_watch_failures", "Lists and watches that failed.", labels=["kind"])
        )
        self.registry.register(self.watch_failures)
        self.api_requests = Totals(
            CounterMetricFamily(
                "netagent_api_requests", "Requests to the API server by verb and outcome.", labels=["verb", "code"]
            )
        )
        self.registry.register(self.api_requests)
        self.clock_offset = Gauge(
            "netagent_api_clock_offset_seconds",
            "The API server's clock minus this node's, where they differ by more than seconds.",
            registry=self.registry,
        )
        self.relists = Gauge("netagent_relists", "Full lists since the start.", ["kind"], registry=self.registry)
        self.dropped = Gauge(
            "netagent_dropped_packets",
            "Packets dropped by our table since it was made.",
            ["reason"],
            registry=self.registry,
        )
        self.policy_denials = PolicyDenials()
        self.registry.register(self.policy_denials)
        self.drop_log = Counter(
            "netagent_drop_log_packets",
            "Denied packets by what became of their line: logged, left_out (rate), lost (kernel buffer), unreadable.",
            ["result"],
            registry=self.registry,
        )
        self.drift = Counter(
            "netagent_drift_repairs",
            "Replacements of the whole table because it was changed by others: seen, missed or found by the audit.",
            ["cause"],
            registry=self.registry,
        )
        self.peers = Gauge("netagent_peers", "Subnets of other nodes that are reachable.", registry=self.registry)
        self.ready = Gauge("netagent_ready", "1 while a part of the agent is ready.", ["part"], registry=self.registry)
        self.cni = Histogram(
            "netagent_cni_seconds",
            "Duration of CNI commands in the agent.",
            ["command", "result"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        Info("netagent_build", "Version of the agent.", registry=self.registry).info({"version": __version__})
