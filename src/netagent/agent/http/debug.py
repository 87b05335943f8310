"""What the debug listener of one agent answers, put together: sections of the state, and every page."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from msgspec import Struct

from netagent import __version__
from netagent.agent.dataplane.droplog import DropLog
from netagent.agent.dataplane.forward import ForwardAccepts
from netagent.agent.dataplane.sync import Dataplane
from netagent.agent.http import questions, views
from netagent.agent.http.dump import DumpPage
from netagent.agent.http.guard import guard
from netagent.agent.http.health import Health
from netagent.agent.http.page import StatusPage
from netagent.agent.http.pages import Pages, View
from netagent.agent.http.reading import Everything, PatientReader, RulesetPage
from netagent.agent.http.views import plain
from netagent.agent.network.lease import LeaseKeeper
from netagent.agent.network.nodenet import NodeNet
from netagent.agent.network.podnetwork import PodNetwork
from netagent.agent.pods.cni import CniServer
from netagent.config import Config
from netagent.core.policy.frame import frame_settings
from netagent.core.questions.replay import Situation
from netagent.kube.reflector import Reflector
from netagent.records import Kind


class Services(Struct, frozen=True, kw_only=True):
    """What is told about."""

    config: Config
    origins: Mapping[str, str]
    """Option -> where its value comes from."""
    node_name: str
    ready: Health
    metrics: Callable[[], Awaitable[bytes]]
    dataplane: Dataplane
    nft: Everything
    """Not the one that commits go through."""
    reflectors: Mapping[Kind, Reflector]
    keeper: LeaseKeeper | NodeNet
    pod_network: PodNetwork
    forward: ForwardAccepts
    cni: CniServer
    drop_log: DropLog | None
    """None where it is switched off."""

    @property
    def network_on(self) -> bool:
        return self.config.network.mode != "off"

    def situation(self) -> Situation:
        """What the compiler needs beside the view."""
        return Situation(
            node=self.node_name,
            frame=frame_settings(self.config),
            own_subnets=self.dataplane.own_subnets,
            mark=self.dataplane.mark,
            overlay=self.network_on,
        )


def application(services: Services) -> web.Application:
    """All routes."""
    app = web.Application(middlewares=[guard(services.config.http)])
    dataplane = services.dataplane
    reader = PatientReader(dataplane, services.nft)
    view = questions.add_routes(app, dataplane, reader, node_name=services.node_name, overlay=services.network_on)
    StatusPage(
        dataplane,
        view,
        node_name=services.node_name,
        ready=services.ready,
        network=services.pod_network if services.network_on else None,
        drop_log=services.drop_log,
    ).add_routes(app)
    pages = Pages(services.config, services.origins, _sections(services), lambda: views.sizes(dataplane))
    pages.add_routes(app)
    RulesetPage(dataplane, reader).add_routes(app)
    DumpPage(dataplane, reader, pages, situation=services.situation, metrics=services.metrics).add_routes(app)
    return app


def _sections(services: Services) -> dict[str, View]:
    dataplane, started_s = services.dataplane, time.time()
    return {
        "agent": lambda: views.agent(dataplane, __version__, services.node_name, started_s, services.ready.problems()),
        "watches": lambda: [plain(reflector.status) for reflector in services.reflectors.values()],
        "leases": lambda: plain(list(services.keeper.held)),
        "peers": lambda: plain(list(dataplane.store.leases.values())),
        "pod_network": lambda: plain(services.pod_network.status),
        "forward": lambda: plain(services.forward.status),
        "cni": lambda: plain(services.cni.status),
        "endpoints": lambda: views.endpoints(dataplane),
        "policies": lambda: views.policies(dataplane),
        "drops": lambda: _drops(services.drop_log),
        "transactions": lambda: plain(dataplane.transactions),
        "slow_events": lambda: plain(dataplane.slow_events),
    }


def _drops(drop_log: DropLog | None) -> Any:
    return drop_log.view() if drop_log is not None else {"problem": "policy.drop_log is off"}
