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
"""How often everything is read again: the period of kubernetes_asyncio's in-cluster loader; the kubelet rotates a token
long before it expires."""
REJECTED_PAUSE_S = 1.0
"""After a 401 credentials are loaded anew at most this often: an exec plugin may be expensive."""
LOAD_TIMEOUT_S = 15.0
"""For an exec plugin: requests wait for it."""

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
    """Address, TLS and token of one API server; all of it is read again as it changes."""

    def __init__(self, kubeconfig: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kubeconfig = kubeconfig
        self._clock = clock
        self._lock = asyncio.Lock()
        self._configuration: Any = None
        self._read_s = 0.0
        self._rejected_s = float("-inf")
        self._trust: tuple[Any, ...] | None = None
        """What `tls` was made from."""
        self._written: tuple[Any, ...] = ()
        """The state of all files when they were looked at last."""
        self.tls: ssl.SSLContext | None = None
        """For new connections; a rotation makes a new one, so that an authority that is gone is trusted no more."""

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
        configuration, written = configuration_class(), self._kubeconfig and _written(self._kubeconfig)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                if self._kubeconfig:
                    _expect_file(self._kubeconfig)
                    await config.load_kube_config(
                        self._kubeconfig, client_configuration=configuration, persist_config=False
                    )
                else:
                    config.load_incluster_config(client_configuration=configuration, try_refresh_token=False)
            trust = _trust(configuration)
            if trust != self._trust:
                self.tls = _tls(configuration)
        except Exception as error:
            raise CredentialsError(self._explain(error)) from None
        self._configuration, self._trust, self._written = configuration, trust, (written, trust)
        self._read_s = self._clock()

    async def header(self) -> str | None:
        """The value of `Authorization` now; None: the server asks for none or knows us by certificate."""
        async with self._lock:
            if self._clock() - self._read_s >= REFRESH_S:
                self._read_s = self._clock()
                await self._reload(f"The last credentials stay in use; next attempt in {REFRESH_S:g} s.")
            return await self._header()

    async def _header(self) -> str | None:
        value = await self._configuration.get_api_key_with_prefix("BearerToken")
        return value.strip() if value else None

    async def rejected(self, used: str | None) -> bool:
        """The server answered 401 to this header: read everything again. True: there is something else to try now."""
        async with self._lock:
            if await self._header() != used:
                return True
            if self._clock() - self._rejected_s < REJECTED_PAUSE_S:
                return False
            self._rejected_s = self._clock()
            tls = self.tls
            await self._reload("The server refuses the last ones.")
            return await self._header() != used or self.tls is not tls

    async def unreachable(self) -> bool:
        """No connection could be made. True: the files that say where to, and whom to trust, have changed meanwhile."""
        async with self._lock:
            if self._written == self._look():
                return False
            await self._reload("The last ones stay in use.")
            return True

    def _look(self) -> tuple[Any, ...]:
        """The state of the files that were read."""
        return self._kubeconfig and _written(self._kubeconfig), _trust(self._configuration)

    async def _reload(self, consequence: str) -> None:
        self._written = self._look()
        try:
            await self.load()
        except CredentialsError as error:
            log.warning("%s %s", error, consequence)

    def _explain(self, error: Exception) -> str:
        where = f"kubeconfig {self._kubeconfig}" if self._kubeconfig else "service account of this pod"
        text = str(error) if isinstance(error, OSError) or type(error).__name__ == "ConfigException" else ""
        return f"{where}: credentials could not be loaded: {text or type(error).__name__}."


def _expect_file(path: str) -> None:
    """kubernetes_asyncio only warns about a kubeconfig that does not exist."""
    with Path(path).open("rb"):
        pass


def _trust(configuration: Any) -> tuple[Any, ...]:
    """What decides about TLS, and the state of its files; a rotation changes it."""
    verify = (configuration.verify_ssl, configuration.disable_strict_ssl_verification)
    paths = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    files = ((path, _written(path)) for path in paths if path)
    return (str(configuration.host).startswith("https:"), *verify, *files)


def _written(path: str) -> tuple[int, int, int] | None:
    """Changes whenever the file is written or replaced; None: there is none."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _tls(configuration: Any) -> ssl.SSLContext | None:
    if not str(configuration.host).startswith("https:"):
        return None
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    return context
