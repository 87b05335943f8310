"""Whose a link without a record is: only the one pod that everything points to."""

import pytest

from netagent.agent.pods.strays import Strays, stand_ins
from netagent.core.policy.store import Store
from netagent.records import Endpoint, Key, Kind, Listed, Pod
from support import words

LINK = "nap0123456789ab"
IPS = ("10.244.0.9", "fd00::9")


def pod(name: str = "x/web", *ips: str, **more: object) -> Pod:
    return words.pod(name, *(ips or IPS), **more)  # type: ignore[arg-type]


class View:
    """A view in which a link has turned up."""

    def __init__(self, *pods: Pod, listed: bool = True) -> None:
        self.store = Store()
        self.strays = Strays(self.store, "node-0")
        (self.stray,) = stand_ins(dict.fromkeys(IPS, LINK), {LINK, "nap000000000000"}).values()
        self.store.admit(self.stray)
        self.strays.watch((self.stray,))
        for one in pods:
            self.store.apply(words.put(one))
        if listed:
            self.store.apply(Listed(Kind.POD))

    @property
    def endpoint(self) -> Endpoint:
        (sandbox,) = (one for one in self.store.sandboxes.values() if one.endpoint.host_ifname == LINK)
        return sandbox.endpoint


def test_the_pod_at_its_addresses_is_its_pod() -> None:
    view = View(pod(uid="u"), pod("x/other", "10.244.0.8"))
    touched = view.strays.identify()
    assert touched.pods >= {Key("x", "web"), Key("", LINK)}
    assert (view.endpoint.pod, view.endpoint.pod_uid, view.endpoint.ips) == (Key("x", "web"), "u", IPS)
    assert view.store.owner(IPS[0]) == Key("x", "web")
    assert not view.strays.identify()


@pytest.mark.parametrize(
    "pods",
    [
        (),
        (pod(node="node-1"),),
        (pod("x/web", IPS[0]),),
        (pod("x/one", IPS[0]), pod("x/two", IPS[1])),
        (pod("x/one"), pod("x/two")),
        (pod("x/one"), pod("x/two", node="node-1")),
        (pod(phase="Succeeded"),),
        (pod(host_network=True),),
    ],
    ids=["none", "of another node", "at one of two", "one at each", "two at both", "two nodes", "finished", "host"],
)
def test_it_stays_closed_where_anything_is_in_doubt(pods: tuple[Pod, ...]) -> None:
    view = View(*pods)
    assert not view.strays.identify()
    assert view.endpoint == view.stray
    (sandbox,) = view.store.sandboxes.values()
    assert sandbox.pod is None


def test_a_pod_that_has_a_sandbox_of_its_own_is_not_taken_for_another() -> None:
    view = View(pod())
    own = Endpoint(
        pod=Key("x", "web"), pod_uid="", container_id="c", ifname="eth0", host_ifname="napfff", ips=("10.244.0.7",)
    )
    view.store.admit(own)
    assert not view.strays.identify()
    assert view.endpoint == view.stray


def test_nothing_is_said_before_the_view_is_whole() -> None:
    view = View(pod(), listed=False)
    assert not view.strays.identify()
    view.store.apply(Listed(Kind.POD))
    assert view.strays.identify()


def test_a_link_that_went_is_forgotten() -> None:
    view = View()
    view.store.withdraw(view.stray)
    view.store.apply(words.put(pod()))
    assert not view.strays.identify()
    assert not view.store.sandboxes


def test_stand_ins_are_for_links_that_exist() -> None:
    assert stand_ins({"10.244.0.9": "napgone"}, {LINK}) == {}
