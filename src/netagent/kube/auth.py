"""Where the API server is and how to prove who we are: kubernetes_asyncio's loaders, without its model classes.

`import kubernetes_asyncio` imports some 700 generated classes: 66 MB of memory and 1.1 s of CPU (36.1, Python 3.11).
The loaders need none of them: `_loaders` imports only `kubernetes_asyncio.config` and `client.configuration` under
empty parent packages (4 MB, 0.08 s), then leaves `sys.modules` as it found it, so that a full import by others works.
"""

import asyncio
import functools
import importlib
import importlib.util
import logging
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from netagent.ports import NetagentError

REFRESH_S = 60.0
"""How often tokens are read again: the period of kubernetes_asyncio's in-cluster loader; the kubelet rotates a token
long before it expires."""
REJECTED_PAUSE_S = 5.0
"""After a 401 credentials are loaded anew at most this often: an exec plugin may be expensive."""

log = logging.getLogger(__name__)


class CredentialsError(NetagentError):
    """The kubeconfig or the service account could not be loaded."""


@functools.cache
def _loaders() -> tuple[Any, type[Any]]:
    """kubernetes_asyncio's `config` package and its `Configuration` class."""
    if "kubernetes_asyncio.client" in sys.modules:
        return importlib.import_module("kubernetes_asyncio.config"), sys.modules[
            "kubernetes_asyncio.client"
        ].Configuration
    spec = importlib.util.find_spec("kubernetes_asyncio")
    if spec is None or not spec.submodule_search_locations:
        raise CredentialsError("kubernetes_asyncio is not installed. Nothing was started; install netagent with pip.")
    root = Path(next(iter(spec.submodule_search_locations)))
    before = set(sys.modules)
    try:
        _shell("kubernetes_asyncio", root)
        client = _shell("kubernetes_asyncio.client", root / "client")
        configuration: type[Any] = importlib.import_module("kubernetes_asyncio.client.configuration").Configuration
        client.Configuration = configuration  # type: ignore[attr-defined]
        client.ApiClient = object  # type: ignore[attr-defined]  # only named in annotations of the functions we use
        return importlib.import_module("kubernetes_asyncio.config"), configuration
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "kubernetes_asyncio":
                del sys.modules[name]


def _shell(name: str, path: Path) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = [str(path)]
    sys.modules[name] = module
    return module


class Credentials:
    """Address, TLS and token of one API server; tokens and certificates are read again as they rotate."""

    def __init__(self, kubeconfig: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kubeconfig = kubeconfig
        self._clock = clock
        self._lock = asyncio.Lock()
        self._configuration: Any = None
        self._loader: Any = None
        self._read_s = 0.0
        self._rejected_s = float("-inf")
        self._files: tuple[tuple[str, int], ...] = ()
        self.tls: ssl.SSLContext | None = None

    @property
    def server(self) -> str:
        """Base URL without a slash at the end."""
        return str(self._configuration.host).rstrip("/")

    @property
    def proxy(self) -> str | None:
        """proxy-url of the kubeconfig."""
        return self._configuration.proxy or None

    @property
    def tls_server_name(self) -> str | None:
        return self._configuration.tls_server_name or None

    async def load(self) -> None:
        """Read everything anew. Raises CredentialsError; then what was loaded before still holds."""
        config, configuration_class = _loaders()
        configuration = configuration_class()
        loader = None
        try:
            if self._kubeconfig:
                _expect_file(self._kubeconfig)
                loader = await config.load_kube_config(
                    self._kubeconfig, client_configuration=configuration, persist_config=False
                )
            else:
                config.load_incluster_config(client_configuration=configuration)
            if self.tls is None:
                self.tls = _tls(configuration)
            self._follow_certificates(configuration)
        except Exception as error:
            raise CredentialsError(self._explain(error)) from None
        self._configuration, self._loader, self._read_s = configuration, loader, self._clock()

    async def header(self) -> str | None:
        """The value of `Authorization` now; None: the server asks for none or knows us by certificate."""
        async with self._lock:
            if self._clock() - self._read_s >= REFRESH_S:
                await self._refresh()
            value = await self._configuration.get_api_key_with_prefix("BearerToken")
        return value.strip() if value else None

    async def rejected(self) -> bool:
        """The server said 401: load everything again. False: that was done a moment ago, or failed."""
        async with self._lock:
            if self._clock() - self._rejected_s < REJECTED_PAUSE_S:
                return False
            self._rejected_s = self._clock()
            try:
                await self.load()
            except CredentialsError as error:
                log.warning("%s", error)
                return False
        return True

    async def _refresh(self) -> None:
        self._read_s = self._clock()
        try:
            if self._loader is not None:
                await self._loader.load_and_set(self._configuration)
            self._follow_certificates(self._configuration)
        except Exception as error:
            log.warning("%s The last credentials stay in use; next attempt in %g s.", self._explain(error), REFRESH_S)

    def _follow_certificates(self, configuration: Any) -> None:
        """The connector holds on to one context: rotated certificates are loaded into it."""
        files = _modified(configuration)
        if self.tls is not None and files != self._files:
            _load_certificates(self.tls, configuration)
        self._files = files

    def _explain(self, error: Exception) -> str:
        where = f"kubeconfig {self._kubeconfig}" if self._kubeconfig else "service account of this pod"
        text = str(error) if isinstance(error, OSError) or type(error).__name__ == "ConfigException" else ""
        return f"{where}: credentials could not be loaded: {text or type(error).__name__}."


def _expect_file(path: str) -> None:
    """kubernetes_asyncio only warns about a kubeconfig that does not exist."""
    with Path(path).open("rb"):
        pass


def _modified(configuration: Any) -> tuple[tuple[str, int], ...]:
    """The certificate files and when they were written; a rotation changes it."""
    paths = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    return tuple((path, Path(path).stat().st_mtime_ns) for path in paths if path)


def _tls(configuration: Any) -> ssl.SSLContext | None:
    if not str(configuration.host).startswith("https:"):
        return None
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _load_certificates(context: ssl.SSLContext, configuration: Any) -> None:
    if configuration.ssl_ca_cert:
        context.load_verify_locations(configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
