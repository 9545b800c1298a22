"""An `ObjectStore` in memory that keeps S3's rules, and can break them on demand: for tests with many steps.

`test_objects.py` runs the same checks over this and over a real store, so that what holds here holds there.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage.errors import AshoreError, Conflict, NotFound, Unavailable
from storage.objects.contract import Body, NoSuchUpload, ObjectFacts, Part, Usage

_PAGE = 1000
SMALLEST = 5 * 1024**2


@dataclass
class _Object:
    body: bytes
    etag: str
    metadata: Mapping[str, str]
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass
class _Multipart:
    key: str
    metadata: Mapping[str, str]
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


Fault = Callable[[str, str], AshoreError | None]
"""(method, key) → what the method raises before it does anything, or None."""


class MemoryStore:
    """A bucket. `smallest`: bytes that every part but the last must have."""

    def __init__(self, *, smallest: int = SMALLEST) -> None:
        self.objects: dict[str, _Object] = {}
        self.uploads: dict[str, _Multipart] = {}
        self.fault: Fault = lambda method, key: None
        """Before the work."""
        self.lost_answer: Fault = lambda method, key: None
        """After it: the work is done, and nobody hears of it."""
        self._smallest = smallest

    async def start(self) -> None:
        await self._enter("start", "")

    async def check(self) -> None:
        await self._enter("check", "")

    async def close(self) -> None:
        return

    async def put(
        self, key: str, body: Body, *, metadata: Mapping[str, str] | None = None, only_new: bool = False
    ) -> str:
        await self._enter("put", key)
        self._refuse_old(key, only_new)
        content = bytes(body)
        self.objects[key] = _Object(content, _md5(content), metadata or {})
        self._leave("put", key)
        return self.objects[key].etag

    async def get(self, key: str, *, offset: int = 0, size: int | None = None, etag: str = "") -> bytes:
        await self._enter("get", key)
        found = self._find(key)
        if etag and etag != found.etag:
            raise Conflict("the file was replaced meanwhile")
        return found.body[offset : None if size is None else offset + max(0, size)]

    async def head(self, key: str) -> ObjectFacts:
        await self._enter("head", key)
        found = self._find(key)
        return ObjectFacts(key, len(found.body), found.etag, found.modified, metadata=found.metadata)

    async def list(self, prefix: str, *, delimiter: bool = False) -> AsyncGenerator[Sequence[ObjectFacts]]:
        await self._enter("list", prefix)
        found: dict[str, ObjectFacts] = {}
        for key, entry in sorted(self.objects.items()):
            if not key.startswith(prefix):
                continue
            head, slash, _ = key.removeprefix(prefix).partition("/")
            if delimiter and slash:
                found[prefix + head + "/"] = ObjectFacts(prefix + head + "/", is_prefix=True)
            else:
                found[key] = ObjectFacts(key, len(entry.body), entry.etag, entry.modified)
        facts = list(found.values())
        for start in range(0, len(facts), _PAGE):
            yield facts[start : start + _PAGE]

    async def delete(self, key: str) -> None:
        await self._enter("delete", key)
        self.objects.pop(key, None)

    async def delete_many(self, keys: Iterable[str]) -> None:
        await self._enter("delete_many", "")
        for key in list(keys):
            self.objects.pop(key, None)

    async def copy(self, source: str, target: str) -> str:
        await self._enter("copy", target)
        found = self._find(source)
        self.objects[target] = _Object(found.body, found.etag, found.metadata)
        return found.etag

    async def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        await self._enter("create_upload", key)
        upload_id = secrets.token_hex(8)
        self.uploads[upload_id] = _Multipart(key, metadata or {})
        return upload_id

    async def put_part(self, key: str, upload_id: str, number: int, body: Body) -> str:
        self._upload(key, upload_id)
        content = bytes(body)
        await self._enter("put_part", key)
        return self._keep_part(key, upload_id, number, content)

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectFacts, *, offset: int, size: int
    ) -> str:
        await self._enter("copy_part", key)
        found = self._find(source.key)
        if found.etag != source.etag:
            raise Conflict("the file was replaced meanwhile")
        return self._keep_part(key, upload_id, number, found.body[offset : offset + size])

    async def list_parts(self, key: str, upload_id: str) -> Sequence[Part]:
        await self._enter("list_parts", key)
        parts = self._upload(key, upload_id).parts
        return [Part(number, etag, len(body)) for number, (etag, body) in sorted(parts.items())]

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[tuple[int, str]], *, only_new: bool = False
    ) -> str:
        await self._enter("complete_upload", key)
        upload = self._upload(key, upload_id)
        self._refuse_old(key, only_new)
        if [number for number, _ in parts] != sorted({number for number, _ in parts}) or not parts:
            raise Unavailable("the object store failed: InvalidPartOrder")
        bodies = []
        for number, etag in parts:
            there, body = upload.parts.get(number, ("", b""))
            if there != etag:
                raise Unavailable("the object store failed: InvalidPart")
            bodies.append(body)
        if any(len(body) < self._smallest for body in bodies[:-1]):
            raise Unavailable("the object store failed: EntityTooSmall")
        digest = hashlib.md5(b"".join(bytes.fromhex(etag) for _, etag in parts), usedforsecurity=False)
        etag = f"{digest.hexdigest()}-{len(parts)}"
        self.objects[key] = _Object(b"".join(bodies), etag, upload.metadata)
        del self.uploads[upload_id]
        self._leave("complete_upload", key)
        return etag

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._enter("abort_upload", key)
        self.uploads.pop(upload_id, None)

    async def usage(self, prefix: str) -> Usage:
        sizes = [len(o.body) for key, o in self.objects.items() if key.startswith(prefix) and not key.endswith("/")]
        return Usage(len(sizes), sum(sizes))

    async def free(self) -> int | None:
        return None

    # ---- rules -----------------------------------------------------------------------------------------------
    async def _enter(self, method: str, key: str) -> None:
        await asyncio.sleep(0)
        if (error := self.fault(method, key)) is not None:
            raise error

    def _leave(self, method: str, key: str) -> None:
        if (error := self.lost_answer(method, key)) is not None:
            raise error

    def _find(self, key: str) -> _Object:
        found = self.objects.get(key)
        if found is None:
            raise NotFound(f"there is no object '{key}'")
        return found

    def _upload(self, key: str, upload_id: str) -> _Multipart:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NoSuchUpload("the object store does not know this upload any more")
        return upload

    def _keep_part(self, key: str, upload_id: str, number: int, content: bytes) -> str:
        if not 1 <= number <= 10_000:
            raise Unavailable("the object store failed: InvalidArgument")
        etag = _md5(content)
        self._upload(key, upload_id).parts[number] = (etag, content)
        return etag

    def _refuse_old(self, key: str, only_new: bool) -> None:
        if only_new and key in self.objects:
            raise Conflict("the file was replaced meanwhile")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
