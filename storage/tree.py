"""The words for a tree of files that people see over SFTP, `scp` and in the menu's browser.

`storage.namespace` (objects) and `backends.environment_files` (files inside environments) are such trees;
`backends.files` joins them. Paths are absolute, normalised (`normalize`), and start at the tree's own root. Every
method takes the caller first and asks `decide()`. Errors: NotFound, NotAllowed, AlreadyExists, BadInput, Conflict …
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from storage.access import Caller
from storage.errors import BadInput
from storage.names import printable

_LONGEST_SEGMENT = 255
_LONGEST_PATH = 1000


class Node(NamedTuple):
    """One file or directory. `mtime` is in seconds since 1970; `size` in bytes, 0 for directories.

    A named tuple, because directories have 100,000 of them and it is made in a quarter of the time of a dataclass.
    """

    name: str
    is_directory: bool
    size: int = 0
    mtime: int = 0
    mode: int = 0o644
    """Permission bits without the file type."""
    owner: str = "ashore"
    is_link: bool = False
    """A symbolic link, in listings; the other fields tell of what it leads to. Nobody walks into it by himself."""
    sha256: str = ""
    """Hexadecimal, of a file that was finished just now, if its writer `hashes`."""
    unfinished: bool = False
    """An upload that has not been finished; `size` is what is safely stored. Only its owner sees it."""


@dataclass(frozen=True)
class Space:
    """Bytes of the tree's store, for `df` and statvfs. Zero `total`: unknown."""

    total: int
    used: int


class Reader(Protocol):
    """An open file. Reads see the version that was there at the open, whatever happens to its name."""

    node: Node

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; empty at and past the end; fewer than asked only at the end."""
        ...

    async def close(self) -> None: ...


class Writer(Protocol):
    """A file on its way. Exactly one of `finish` and `abandon` ends it."""

    hashes: bool
    """Whether the node that `finish` returns tells the SHA-256, where it is known without reading the file back."""

    @property
    def size(self) -> int:
        """Bytes received so far, the resumed part included."""
        ...

    async def write(self, offset: int, data: bytes) -> None:
        """Take `data`; waits while memory is short. BadInput for an offset that cannot be honoured: never padded."""
        ...

    async def flush(self) -> None:
        """Return when everything received is in the store, as far as the store can take it before the end."""
        ...

    def set_mtime(self, seconds: int) -> None: ...

    def expect_size(self, size: int) -> None:
        """The client says how large the whole file will be. `finish` with fewer bytes does not make it appear.

        A hint: it never cuts or grows anything, and the last one counts.
        """
        ...

    def doubt(self) -> None:
        """The end that is about to come may be an interrupt: `finish` makes the file appear and marks it `suspect`."""
        ...

    async def truncate(self, size: int) -> None:
        """Only to the present size, or to 0 before anything was sent; BadInput otherwise."""
        ...

    async def finish(self) -> Node:
        """Durable under its final name when this returns."""
        ...

    async def abandon(self) -> None:
        """The connection was lost: nothing appears under the final name."""
        ...


class Tree(Protocol):
    """A tree of files."""

    async def stat(self, caller: Caller, path: str) -> Node: ...

    async def check(self, caller: Caller, path: str) -> None:
        """Return if something is at `path`; NotFound otherwise. Cheaper than `stat`: records may be asked alone."""
        ...

    def list(self, caller: Caller, path: str) -> AsyncIterator[Node]:
        """The entries of a directory, by name; streamed, so that 100,000 of them need no memory."""
        ...

    async def open_reader(self, caller: Caller, path: str) -> Reader: ...

    async def open_writer(
        self,
        caller: Caller,
        path: str,
        *,
        truncate: bool,
        exclusive: bool = False,
        mtime: int | None = None,
    ) -> Writer:
        """A file to write. `truncate`: start anew (the old version stays readable until `finish`); otherwise go on."""
        ...

    async def mkdir(self, caller: Caller, path: str) -> None: ...

    async def rmdir(self, caller: Caller, path: str) -> None:
        """Conflict if something is in it."""
        ...

    async def remove(self, caller: Caller, path: str) -> None: ...

    async def rename(self, caller: Caller, old: str, new: str, *, replace: bool) -> None:
        """AlreadyExists if `new` exists and `replace` is false."""
        ...

    async def set_mtime(self, caller: Caller, path: str, seconds: int) -> None:
        """Of a file, or of a directory where those have times; where they have none, that is no error."""
        ...

    async def space(self, caller: Caller, path: str) -> Space: ...

    async def digest(self, caller: Caller, path: str, algorithm: str) -> str:
        """Hexadecimal `md5` or `sha256` of a file, where it is known without reading the file; else empty."""
        ...


def normalize(path: str, *, base: str = "/") -> str:
    """`path` as an absolute path without `.`, `..` and doubled slashes; it cannot climb above `/`.

    BadInput: control characters, segments over 255 bytes, paths over 1000 bytes.
    """
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise BadInput(f"'{printable(path, limit=80)}' has control characters in it")
    segments: list[str] = []
    for segment in (path if path.startswith("/") else f"{base}/{path}").split("/"):
        if segment == "..":
            segments[-1:] = []
        elif segment not in ("", "."):
            if len(segment.encode()) > _LONGEST_SEGMENT:
                raise BadInput(f"'{printable(segment, limit=40)}' is longer than 255 bytes")
            segments.append(segment)
    clean = "/" + "/".join(segments)
    if len(clean.encode()) > _LONGEST_PATH:
        raise BadInput("this path is longer than 1000 bytes")
    return clean
