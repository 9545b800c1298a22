"""What Ashore needs of an object store, and nothing more.

Keys are relative to the store's bucket. Bytes travel as they are: a body is any buffer and is never copied on the way
out. Every method is a coroutine that leaves the event loop free. Errors are translated once, here below:
NotFound (no such object), NoSuchUpload, Conflict (a condition did not hold), Away (no answer, overloaded), Full (no
room), Unavailable (keys refused, anything else).
Paths, people and rights must not be here; `storage.namespace` and `storage.uploads` know those.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple, Protocol

from storage.errors import NotFound, Unavailable

Body = bytes | bytearray | memoryview
LARGEST_COPY = 5 * 1024**3
"""Bytes that one server-side copy request may carry; larger objects are copied in ranges."""


class NoSuchUpload(NotFound):
    """The store does not know this multipart upload: completed, aborted, or thrown away by the store."""

    code = "no-such-upload"


class Full(Unavailable):
    """The store has no room for what should be written."""

    code = "store-full"


class Away(Unavailable):
    """The store gives no answer, or none for now: it may come back. Any other Unavailable is for its operator."""


class ObjectFacts(NamedTuple):
    """An object, or with `is_prefix` everything below `key` (which then ends with a slash).

    A named tuple for the same reason as `storage.tree.Node`.
    """

    key: str
    size: int = 0
    etag: str = ""
    """Without quotation marks."""
    modified: datetime | None = None
    """When it was stored; None for prefixes."""
    is_prefix: bool = False
    metadata: Mapping[str, str] = MappingProxyType({})
    """User metadata, names in lower case without `x-amz-meta-`; only from `head`."""


@dataclass(frozen=True)
class Part:
    """One part of a multipart upload, as the store has it."""

    number: int
    etag: str
    size: int


@dataclass(frozen=True)
class Usage:
    """How much lies below a prefix; markers of empty directories are not counted."""

    files: int = 0
    bytes: int = 0


class ObjectStore(Protocol):
    """A bucket."""

    async def start(self) -> None:
        """Make the bucket if it does not exist. May be called again after Away."""
        ...

    async def check(self) -> None:
        """Return if the store answers and knows our bucket; Unavailable with the reason otherwise."""
        ...

    async def close(self) -> None: ...

    async def put(
        self, key: str, body: Body, *, metadata: Mapping[str, str] | None = None, only_new: bool = False
    ) -> str:
        """Store an object at once; its ETag. Conflict if `only_new` and there is one already."""
        ...

    async def get(self, key: str, *, offset: int = 0, size: int | None = None, etag: str = "") -> bytes:
        """`size` bytes from `offset` (all that follow if None); empty past the end.

        With `etag`, Conflict if the object is another one by now.
        """
        ...

    async def head(self, key: str) -> ObjectFacts: ...

    def list(self, prefix: str, *, delimiter: bool = False) -> AsyncGenerator[Sequence[ObjectFacts]]:
        """Everything below `prefix` in pages of up to 1000; with `delimiter` only one level, the rest as prefixes."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        ...

    async def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects, a thousand per request."""
        ...

    async def copy(self, source: str, target: str) -> str:
        """Copy inside the store, in ranges above 5 GiB; the target's ETag. Readers see the old or the new one."""
        ...

    async def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begin a multipart upload; its id."""
        ...

    async def put_part(self, key: str, upload_id: str, number: int, body: Body) -> str:
        """Store part `number` (1 to 10,000); its ETag. Safe to repeat."""
        ...

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectFacts, *, offset: int, size: int
    ) -> str:
        """Store part `number` from `size` bytes of `source`, inside the store; its ETag.

        Conflict if the object is another one than `source` by now.
        """
        ...

    async def list_parts(self, key: str, upload_id: str) -> Sequence[Part]:
        """The parts that the store has, by number; of one that was sent again, maybe the former one too."""
        ...

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[tuple[int, str]], *, only_new: bool = False
    ) -> str:
        """Make the object of `(number, etag)` parts; its ETag. Never repeated by the store's client itself."""
        ...

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Throw the parts away; no error if the upload is gone."""
        ...

    async def usage(self, prefix: str) -> Usage:
        """Count what lies below `prefix`; walks the listing."""
        ...

    async def free(self) -> int | None:
        """Bytes that still fit; None when the store cannot tell."""
        ...


def prefixes_of(keys: Iterable[str], root: str) -> list[str]:
    """The directories of `keys` from `root` down, deepest first, as keys that end with a slash.

    To remove them with their objects costs S3 nothing; SeaweedFS would go on to list them as empty directories.
    """
    if not root.endswith("/"):
        return []
    found = {root}
    for key in keys:
        parent = key.rpartition("/")[0] + "/"
        while len(parent) > len(root) and parent not in found:
            found.add(parent)
            parent = parent[:-1].rpartition("/")[0] + "/"
    return sorted(found, key=lambda prefix: (-len(prefix), prefix))
