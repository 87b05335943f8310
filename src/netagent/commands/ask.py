"""Asking the agent of this node over its HTTP."""

import http.client
from urllib.parse import urlsplit

import msgspec
import orjson
from msgspec import Struct

from netagent.config import HttpConfig
from netagent.ports import NetagentError

TIMEOUT_S = 120.0
"""A simulation of a large cluster takes some seconds; one at a time runs."""
ADDRESS = f"http://{HttpConfig().debug_address}:{HttpConfig().debug_port}"
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Where a listener on every address is found from here."""
NOT_READY = 503


class AskError(NetagentError):
    """The agent gave no answer."""


class UnreachableError(AskError):
    """Nobody answered at all."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Readiness(Struct, kw_only=True):
    """Answer of /readyz."""

    ready: bool
    parts: dict[str, str]
    """Part -> why it is not ready; "" where it is."""
    remarks: dict[str, str] = {}
    """Subject -> what is wrong with it, though the agent does its work."""


def ask(address: str, method: str, path: str, body: bytes | None = None, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """The body of a 200. Raises AskError."""
    status, answer = exchange(address, method, path, body, timeout_s=timeout_s)
    if status != http.client.OK:
        raise AskError(_refusal(status, answer, address))
    return answer


def exchange(
    address: str, method: str, path: str, body: bytes | None = None, *, timeout_s: float = TIMEOUT_S
) -> tuple[int, bytes]:
    """Status and body of an answer, whatever they are. Raises UnreachableError, AskError."""
    connection = _connection(address, timeout_s)
    try:
        connection.request(method, path, body=body, headers={"Accept": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreachableError(
            f"no answer from the agent at {address}: {reason}. Is it running on this node? "
            "Give the address of its http.debug_port with --address.",
            reason,
        ) from None
    finally:
        connection.close()


def readiness(address: str, *, timeout_s: float = TIMEOUT_S) -> Readiness:
    """What the agent behind http.port says of itself. Raises AskError."""
    status, answer = exchange(address, "GET", "/readyz", timeout_s=timeout_s)
    try:
        if status in (http.client.OK, NOT_READY):
            return msgspec.json.decode(answer, type=Readiness)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    raise AskError(f"{address} answered {status} to /readyz, which is not an agent's answer. Is it http.port?")


def base_url(address: str, port: int) -> str:
    """Where a listener of the configuration is found from this node."""
    name = ANYWHERE.get(address, address)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _connection(address: str, timeout_s: float) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(address)
        if parts.scheme == "http" and parts.hostname:
            return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)
    except ValueError:
        pass
    raise AskError(f"--address = {address!r}. Accepted: http://HOST:PORT, e.g. {ADDRESS}.")


def _refusal(status: int, answer: bytes, address: str) -> str:
    try:
        refusal = orjson.loads(answer)
        problems = refusal.get("problems") or [refusal["error"]]
    except (orjson.JSONDecodeError, KeyError, AttributeError):
        return f"{address} answered {status}, which is not an agent's answer. Is --address its debug HTTP?"
    return "; ".join(str(problem) for problem in problems)
