"""Files below a prefix of an S3 bucket, with the operator's keys or none."""

from __future__ import annotations

from dataclasses import dataclass

from backends.settings import ImportSettings
from backends.sources.contract import Listing, RemoteFile, SourceAway, Stream
from storage.errors import BadInput, Conflict, NotFound, Unavailable
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings

_PIECE = 8 * 1024 * 1024


@dataclass
class S3Stream:
    """One object, read in ranges that are pinned to its ETag; a `Stream`."""

    store: S3Store
    key: str
    start: int
    size: int | None
    etag: str
    mtime: int | None
    digest: str = ""
    position: int = 0

    async def read(self) -> bytes:
        if self.size is not None and self.position >= self.size:
            return b""
        try:
            piece = await self.store.get(self.key, offset=self.position, size=_PIECE, etag=self.etag)
        except Unavailable as error:
            raise SourceAway(f"the source: {error.message}") from error
        except Conflict as error:
            raise SourceAway("the source was replaced while it was read") from error
        if not piece:
            raise SourceAway(f"the source stopped after {self.position} of {self.size} bytes")
        self.position += len(piece)
        return piece

    async def close(self) -> None:
        pass


class S3Source:
    """A prefix, or a single object; a `Source`."""

    def __init__(self, settings: ImportSettings, bucket: str, prefix: str) -> None:
        self._prefix = prefix
        self._most_files = settings.most_files
        self._store = S3Store(
            ObjectSettings(
                endpoint=settings.s3_endpoint, access_key=settings.s3_access_key, secret_key=settings.s3_secret_key,
                bucket=bucket, region=settings.s3_region, ca_file=settings.ca_file,
            )
        )  # fmt: skip

    async def list(self) -> Listing:
        """What lies below the prefix as a directory; else the object of that very name."""
        root = self._prefix if not self._prefix or self._prefix.endswith("/") else f"{self._prefix}/"
        files: list[RemoteFile] = []
        try:
            async for page in self._store.list(root):
                for facts in page:
                    if facts.key.endswith("/"):
                        continue
                    mtime = int(facts.modified.timestamp()) if facts.modified else None
                    path = facts.key.removeprefix(root)
                    files.append(RemoteFile(path, facts.key, facts.size, facts.etag, mtime=mtime))
                if len(files) > self._most_files:
                    raise BadInput(f"the source has more than {self._most_files} files")
            if not files and self._prefix and not self._prefix.endswith("/"):
                facts = await self._store.head(self._prefix)
                mtime = int(facts.modified.timestamp()) if facts.modified else None
                name = self._prefix.rpartition("/")[2]
                files.append(RemoteFile(name, facts.key, facts.size, facts.etag, mtime=mtime))
        except Unavailable as error:
            raise SourceAway(f"the source: {error.message}") from error
        if not files:
            raise NotFound("the source has no files there")
        return Listing(files)

    async def open(self, file: RemoteFile, *, offset: int = 0, revision: str = "") -> Stream:
        key = file.location or file.path
        try:
            facts = await self._store.head(key)
        except Unavailable as error:
            raise SourceAway(f"the source: {error.message}") from error
        start = offset if facts.etag == file.etag and offset <= facts.size else 0
        mtime = int(facts.modified.timestamp()) if facts.modified else None
        return S3Stream(self._store, key, start, facts.size, facts.etag, mtime, position=start)

    async def close(self) -> None:
        await self._store.close()
