"""What an import needs of its source: the files that are there, and their bytes from any offset.

Sources know nothing of data sets, rows or retries. Everything blocking runs in their own worker threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from storage.errors import Unavailable


class SourceAway(Unavailable):
    """The source did not answer, or stopped in the middle. To ask again, from where it stopped, may help."""

    code = "source-away"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a source."""

    path: str
    """Below the version that is filled; no dots, no empty segments."""
    location: str = ""
    """What the source calls it, where that is not the path."""
    size: int | None = None
    etag: str = ""
    """The source's name for these very bytes. Empty: it has none, or tells only with the bytes."""
    digest: str = ""
    """`sha256:…`, `md5:…` or `git:…` (SHA-1 of a Git blob), hexadecimal; empty if the source gives none."""
    mtime: int | None = None


@dataclass(frozen=True)
class Listing:
    """All files of a source, and what its moving name (a branch) meant when they were listed."""

    files: Sequence[RemoteFile]
    revision: str = ""


class Stream(Protocol):
    """The bytes of one file, on their way."""

    start: int
    """Where they begin: what was asked for, or 0 where the source cannot, or the file is another one by now."""
    size: int | None
    """Of the whole file."""
    etag: str
    digest: str
    mtime: int | None

    async def read(self) -> bytes:
        """The next bytes, up to a few MiB; empty at the end of the file and nowhere else. SourceAway otherwise."""
        ...

    async def close(self) -> None: ...


class Source(Protocol):
    """One place that can be imported."""

    async def list(self) -> Listing:
        """NotFound, NotAllowed or BadInput if it can never be; SourceAway if it may be later."""
        ...

    async def open(self, file: RemoteFile, *, offset: int = 0, revision: str = "") -> Stream:
        """The bytes of `file` from `offset`; with its `etag` only those of that very file, see `Stream.start`."""
        ...

    async def close(self) -> None: ...
