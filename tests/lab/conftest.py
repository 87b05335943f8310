"""Labs for tests. Each lives in a directory of the test run, so that tests never meet a lab that somebody uses."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from netagent.lab.cluster import Lab
from netagent.lab.plan import Settings

Object = dict[str, Any]


@pytest.fixture(autouse=True, scope="session")
def lab_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETAGENT_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
        yield


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two nodes, shared by the tests of one file."""
    async with Lab(Settings(nodes=2)) as running:
        yield running


@pytest.fixture(scope="session")
def make_pod() -> Callable[..., Object]:
    """A Pod that serves TCP 80 and UDP 81."""

    def build(
        namespace: str, name: str, node: int, *, annotations: dict[str, str] | None = None, **spec: Any
    ) -> Object:
        ports = [{"containerPort": 80}, {"containerPort": 81, "protocol": "UDP"}]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "annotations": annotations or {}},
            "spec": {
                "nodeName": f"node-{node}",
                "containers": [{"name": "main", "image": "test", "ports": ports}],
                **spec,
            },
        }

    return build


@pytest.fixture(scope="session")
def make_namespace() -> Callable[[str], Object]:
    def build(name: str) -> Object:
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}

    return build
