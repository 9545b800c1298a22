"""Reads a tar archive as it comes, entry by entry, and believes nothing in it.

Python's own `tarfile` reads extended headers as a whole into memory, however large they say they are, and needs a
thread. What is kept here is bounded: a header, a long name, and the piece of content that is on its way. What entries
mean, and which names are welcome, is the caller's business; nothing is ever written to a disk here.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from storage.errors import Unavailable

_BLOCK = tarfile.BLOCKSIZE
_MOST_NAME = 64 * 1024
_MOST_EXTENDED = 1024 * 1024
"""Bytes of an extended header: it holds names, and attributes of the file that are up to 64 KiB each."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_BROKEN = "the archive of the output is broken"


class Kind(StrEnum):
    """What an entry is; the values are for people."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    HARD_LINK = "second name of a file"
    OTHER = "neither file nor folder"


@dataclass(frozen=True)
class Entry:
    """One entry. Bytes of names that are no UTF-8 are surrogates, as Python has them in names of files."""

    name: str
    kind: Kind
    size: int
    """Bytes of content; 0 for everything but files."""
    mtime: int
    target: str
    """What a link leads to."""


class TarStream:
    """An archive that `pieces` bring. Unavailable: it is broken, or ends before its end."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._left = 0
        """Bytes of the present entry that were not read."""
        self._padding = 0

    async def next(self) -> Entry | None:
        """The next entry; what was not read of the one before is passed over. None: that was the last one."""
        long_name = long_target = ""
        extended: dict[str, str] = {}
        while True:
            await self._pass_over()
            header = await self._header()
            if header is None:
                await self._drain()
                return None
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                text = _text((await self._take(header.size, _MOST_NAME)).split(b"\0", 1)[0])
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = text
                else:
                    long_target = text
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended = _records(await self._take(header.size, _MOST_EXTENDED))
            elif header.type == tarfile.XGLTYPE:
                self._expect(header.size)
            else:
                name = extended.get("path") or long_name or header.name
                return self._entry(header, name, extended.get("linkpath") or long_target or header.linkname, extended)

    async def content(self) -> AsyncIterator[memoryview]:
        """The content of the present entry, in pieces that are good until the next one is asked for."""
        while self._left:
            if not self._rest:
                await self._more()
            piece, self._rest = self._rest[: self._left], self._rest[self._left :]
            self._left -= len(piece)
            yield piece

    # ---- inside ----------------------------------------------------------------------------------------------
    def _entry(self, header: tarfile.TarInfo, name: str, target: str, extended: dict[str, str]) -> Entry:
        size = _number(extended.get("size"), header.size)
        mtime = _number(extended.get("mtime"), int(header.mtime))
        is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended)
        if header.type in _FILES and not is_sparse:
            kind = Kind.FILE
        elif header.type == tarfile.DIRTYPE:
            kind = Kind.FOLDER
        elif header.type == tarfile.SYMTYPE:
            kind = Kind.LINK
        elif header.type == tarfile.LNKTYPE:
            kind = Kind.HARD_LINK
        else:
            kind = Kind.OTHER
        # Links and devices have no content, whatever their size says (POSIX); unknown kinds have what they say.
        has_content = kind is Kind.FILE or header.type not in (*tarfile.SUPPORTED_TYPES, tarfile.FIFOTYPE)
        self._expect(size if has_content or is_sparse else 0)
        return Entry(name, kind, size if kind is Kind.FILE else 0, max(0, mtime), target)

    async def _header(self) -> tarfile.TarInfo | None:
        """None: the block of zeros at the end."""
        block = await self._exactly(_BLOCK)
        if not any(block):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise Unavailable(_BROKEN) from error
        if header.size < 0:
            raise Unavailable(_BROKEN)
        return header

    def _expect(self, size: int) -> None:
        self._left = size
        self._padding = -size % _BLOCK

    async def _take(self, size: int, most: int) -> bytes:
        if size > most:
            raise Unavailable(_BROKEN)
        self._expect(size)
        return b"".join([bytes(piece) async for piece in self.content()])

    async def _pass_over(self) -> None:
        self._left += self._padding
        self._padding = 0
        async for _ in self.content():
            pass

    async def _exactly(self, size: int) -> bytes:
        self._left = size
        return b"".join([bytes(piece) async for piece in self.content()])

    async def _more(self) -> None:
        piece = b""
        while not piece:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                raise Unavailable(f"{_BROKEN}: it ends too early") from None
        self._rest = memoryview(piece)

    async def _drain(self) -> None:
        """To the end of the stream, where its maker tells whether all went well."""
        self._rest = memoryview(b"")
        async for _ in self._pieces:
            pass


def _records(data: bytes) -> dict[str, str]:
    """`LENGTH KEY=VALUE\\n`, again and again (POSIX, pax)."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or at + length > len(data) or not record.endswith(b"\n"):
            raise Unavailable(_BROKEN)
        found[_text(key)] = _text(value)
        at += length
    return found


def _number(text: str | None, otherwise: int) -> int:
    if text is None:
        return otherwise
    whole = text.partition(".")[0]
    if not whole.removeprefix("-").isascii() or not whole.removeprefix("-").isdigit() or len(whole) > 19:
        raise Unavailable(_BROKEN)
    return int(whole)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
