"""Parts of the API server's JSON that all kinds share."""

from sys import intern
from typing import Annotated

import msgspec
from msgspec import Raw, Struct

from netagent.ports import NetagentError
from netagent.records import Key

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that is none, or of another shape, or nested too deeply."""


Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""As the API has it. JSON alone knows no limit, and what is larger can be neither reckoned with nor printed."""


class DecodeError(NetagentError):
    """An object, or a part of it, is not what its kind looks like."""


class Meta(Struct, rename="camel"):
    """metadata of an object: what we read of it."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None

    def key(self) -> Key:
        return Key(intern(self.namespace), self.name)


class ListMeta(Struct, rename="camel"):
    """metadata of a list."""

    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class Page(Struct):
    """One page of a list; the objects are not decoded yet."""

    kind: str = ""
    """e.g. PodList."""
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[Raw] | None = None


class Frame(Struct):
    """One line of a watch."""

    type: str
    object: Raw
