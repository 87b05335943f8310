"""The leases of one namespace on the API server: read, create, replace."""

from typing import Any

from msgspec import Raw, Struct

from netagent.kube import decode, leases
from netagent.kube.client import ApiClient, ApiError
from netagent.kube.wire import DecodeError, Meta, Page
from netagent.records import Key, Kind, SubnetLease

PAGE_SIZE = 500


class Stored(Struct, frozen=True):
    """One Lease object as the server holds it."""

    body: dict[str, Any]
    """All of it, so that replacing it keeps what others wrote there."""
    lease: SubnetLease | None
    """None: it cannot be read as a subnet lease."""

    @property
    def holder(self) -> str:
        """spec.holderIdentity, also of a lease that cannot be read otherwise."""
        return str((self.body.get("spec") or {}).get("holderIdentity") or "")

    @property
    def reservation(self) -> bool:
        """It has no duration: it never expires."""
        return (self.body.get("spec") or {}).get("leaseDurationSeconds") is None


class Seen(Struct, frozen=True):
    """The leases of ours that there are."""

    leases: tuple[SubnetLease, ...]
    unreadable: tuple[SubnetLease, ...]
    """Of those that another release wrote, or that somebody spoilt: their subnets, by their names, are taken all the
    same. Nothing else in these records is to be relied on, except that reservations have no duration."""


class _Node(Struct):
    metadata: Meta


class LeaseStore:
    """Every method raises ApiError or Unreachable."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._api = api
        self.namespace = namespace
        self._path = leases.collection(namespace)

    async def all(self) -> Seen:
        """All leases of ours."""
        found: list[SubnetLease] = []
        unreadable: list[SubnetLease] = []
        token = ""
        while True:
            params: dict[str, str | int] = {"labelSelector": leases.SELECTOR, "limit": PAGE_SIZE, "continue": token}
            page = await self._api.get_json(self._path, Page, **params)
            for raw in page.items or ():
                if (lease := _read(raw)) is not None:
                    found.append(lease)
                elif (spoilt := _claim(_stored(raw))) is not None:
                    unreadable.append(spoilt)
            token = page.metadata.continue_ or ""
            if not token:
                return Seen(tuple(found), tuple(unreadable))

    async def get(self, subnet: str) -> Stored | None:
        """The lease of a subnet; None: there is none."""
        try:
            raw = await self._api.get_json(f"{self._path}/{leases.name(subnet)}", Raw)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return _stored(raw)

    async def create(self, body: dict[str, Any]) -> Stored:
        """Raises ApiError with `already_exists` when another node was first."""
        return _stored(await self._api.create(self._path, body, Raw))

    async def replace(self, body: dict[str, Any]) -> Stored:
        """Raises ApiError with `conflict` when the object is not what the body was made from."""
        return _stored(await self._api.update(f"{self._path}/{body['metadata']['name']}", body, Raw))

    async def delete(self, lease: SubnetLease) -> None:
        """Delete exactly what was read. Raises ApiError with `conflict` when it is another object by now."""
        await self._api.delete(
            f"{self._path}/{leases.name(lease.subnet)}", uid=lease.uid, resource_version=lease.resource_version
        )

    async def node_uid(self, node: str) -> str | None:
        """metadata.uid of a Node; None: it does not exist."""
        try:
            return (await self._api.get_json(f"/api/v1/nodes/{node}", _Node)).metadata.uid
        except ApiError as error:
            if error.not_found:
                return None
            raise


def _read(raw: Raw) -> SubnetLease | None:
    try:
        record = decode.record(Kind.LEASE, raw)
    except DecodeError:
        return None
    assert isinstance(record, SubnetLease)  # noqa: S101 - what the kind says
    return record


def _claim(stored: Stored) -> SubnetLease | None:
    """What the name of a lease that cannot be read says; None: nothing."""
    meta = stored.body["metadata"]
    subnet = leases.subnet_named(meta["name"])
    if not subnet:
        return None
    return SubnetLease(
        key=Key(meta.get("namespace", ""), meta["name"]),
        uid="",
        resource_version="",
        subnet=subnet,
        holder=stored.holder or "somebody",
        duration_s=None if stored.reservation else 1,
    )


def _stored(raw: Raw) -> Stored:
    return Stored(decode.tree(raw), _read(raw))
