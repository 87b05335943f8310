"""How well this agent hears the API server: remarks for /readyz, figures for /metrics.

Once everything has been listed, an API server that is away does not make the node unready. The agent enforces what it
knows, running pods lose nothing, and a restart or a taint would help nobody: an outage of the API server would only
become one of the nodes. What suffers has parts of its own that do turn unready: the first list (dataplane), and the
lease when it runs out. So that nobody takes old for new, /readyz remarks what fails and since when, and the age of what
is known is a metric.
"""

from collections.abc import Mapping

from netagent.config import ApiConfig
from netagent.kube.client import ApiClient
from netagent.kube.reflector import Reflector, ReflectorStatus
from netagent.metrics import Metrics
from netagent.records import Kind

UNHEARD_S = 10.0
"""So much over the time after which a silent watch is given up: then not even a new one was opened."""


class ApiState:
    """Looks at one agent's reflectors and its client."""

    def __init__(
        self, api: ApiClient, reflectors: Mapping[Kind, Reflector], settings: ApiConfig, metrics: Metrics
    ) -> None:
        self._api = api
        self._reflectors = reflectors
        self._unheard_s = settings.watch_silence_s + UNHEARD_S
        self._metrics = metrics
        metrics.api_requests.read = lambda: sorted(api.answers.items())
        metrics.watch_failures.read = self._failures

    def remarks(self) -> dict[str, str]:
        """Subject -> what is wrong with a watch, and since when."""
        found = {}
        for kind, reflector in self._reflectors.items():
            if text := remark(reflector.status, self._unheard_s):
                found[f"watch {kind}"] = text
        return found

    def sample(self) -> None:
        """Set the gauges."""
        metrics = self._metrics
        for kind, reflector in self._reflectors.items():
            status = reflector.status
            metrics.watch_connected.labels(kind).set(status.connected)
            metrics.watch_stale.labels(kind).set(status.silent_s)
            metrics.relists.labels(kind).set(status.relists)
            metrics.undecodable.labels(kind).set(status.unreadable)
        metrics.clock_offset.set(self._api.clock.offset_s)

    def _failures(self) -> list[tuple[tuple[str, ...], float]]:
        return [((str(kind),), reflector.status.failures) for kind, reflector in self._reflectors.items()]


def remark(status: ReflectorStatus, unheard_s: float) -> str:
    """What is wrong with one watch; empty: nothing."""
    if not status.last_error and status.silent_s < unheard_s:
        return ""
    why = f"fails for {status.failing_s:.0f} s: {status.last_error}" if status.last_error else "nothing is heard."
    if not status.listed:
        return f"{why} Nothing is known yet, and the kernel stays as it is."
    return f"{why} What was known {status.silent_s:.0f} s ago stays in force; news wait."
