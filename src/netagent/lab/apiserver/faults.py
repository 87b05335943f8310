"""What the API server answers when it refuses: a Status object with a code, a reason and, for fields, causes."""

from typing import Any

from msgspec import Struct

from netagent.ports import NetagentError


class Cause(Struct, frozen=True):
    """One wrong field."""

    reason: str
    """FieldValueRequired, FieldValueInvalid, FieldValueDuplicate, FieldValueNotSupported, FieldValueForbidden."""
    message: str
    field: str
    """Path as upstream writes it, e.g. spec.ingress[0].ports[1].port."""


class ApiFault(NetagentError):
    """A request that is refused; nothing was changed."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.list_continue = ""

    def status(self) -> dict[str, Any]:
        """The metav1.Status of the answer."""
        metadata = {"continue": self.list_continue} if self.list_continue else {}
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            status["details"] = self.details
        return {**status, "code": self.code}


def qualified(plural: str, group: str) -> str:
    """The name of a resource in messages: networkpolicies.networking.k8s.io."""
    return f"{plural}.{group}" if group else plural


def _named(plural: str, group: str, name: str) -> dict[str, Any]:
    details = {"name": name, "group": group, "kind": plural}
    return {key: value for key, value in details.items() if value}


def not_found(plural: str, group: str, name: str) -> ApiFault:
    """No such object."""
    message = f'{qualified(plural, group)} "{name}" not found'
    return ApiFault(404, "NotFound", message, **_named(plural, group, name))


def no_such_path() -> ApiFault:
    """No such resource or path."""
    return ApiFault(404, "NotFound", "the server could not find the requested resource")


def already_exists(plural: str, group: str, name: str) -> ApiFault:
    """A create of what exists."""
    message = f'{qualified(plural, group)} "{name}" already exists'
    return ApiFault(409, "AlreadyExists", message, **_named(plural, group, name))


def conflict(plural: str, group: str, name: str, why: str = "") -> ApiFault:
    """The object is not in the state that the request assumes."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return ApiFault(409, "Conflict", message, **_named(plural, group, name))


def bad_request(message: str) -> ApiFault:
    """The request cannot be understood."""
    return ApiFault(400, "BadRequest", message)


def forbidden(plural: str, group: str, name: str, why: str, **more: Any) -> ApiFault:
    """The request is understood and not allowed."""
    message = f'{qualified(plural, group)} "{name}" is forbidden: {why}'
    return ApiFault(403, "Forbidden", message, **_named(plural, group, name), **more)


def expired(message: str) -> ApiFault:
    """The state that the request asks for has been compacted away."""
    return ApiFault(410, "Expired", message)


def too_large_revision(asked: int, current: int) -> ApiFault:
    """The request asks for a state that is still to come."""
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    return ApiFault(504, "Timeout", message, causes=causes, retryAfterSeconds=1)


def method_not_allowed() -> ApiFault:
    """The resource exists and cannot do this."""
    return ApiFault(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def unsupported_media(accepted: str) -> ApiFault:
    """The body has a type that we do not read."""
    message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return ApiFault(415, "UnsupportedMediaType", message)


def invalid(kind: str, group: str, name: str, causes: list[Cause]) -> ApiFault:
    """Fields have impossible values."""
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    summary = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    qualified_kind = f"{kind}.{group}" if group else kind
    details = [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes]
    message = f'{qualified_kind} "{name}" is invalid: {summary}'
    return ApiFault(422, "Invalid", message, **_named(kind, group, name), causes=details)


def required(field: str, why: str = "") -> Cause:
    """A field that must be there and is not."""
    return Cause("FieldValueRequired", f"Required value: {why}" if why else "Required value", field)


def wrong(field: str, value: Any, why: str) -> Cause:
    """A value that cannot be."""
    return Cause("FieldValueInvalid", f"Invalid value: {_shown(value)}: {why}", field)


def duplicate(field: str, value: Any) -> Cause:
    """A value that must be unique and is not."""
    return Cause("FieldValueDuplicate", f"Duplicate value: {_shown(value)}", field)


def unsupported(field: str, value: Any, supported: tuple[str, ...]) -> Cause:
    """A value outside an enumeration."""
    choices = ", ".join(f'"{choice}"' for choice in supported)
    return Cause("FieldValueNotSupported", f"Unsupported value: {_shown(value)}: supported values: {choices}", field)


def not_allowed(field: str, why: str) -> Cause:
    """A field that must not be there."""
    return Cause("FieldValueForbidden", f"Forbidden: {why}", field)


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
