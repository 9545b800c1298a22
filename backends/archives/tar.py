"""The entries of a tar archive, header by header. Its files are never unpacked to a disk, so its names mean nothing but
names: an entry that could mean more (a device, a path that climbs, a link that leaves) makes the archive refused.

POSIX (pax), GNU and old tars. Sparse files are refused: no image archive has them.
"""

from __future__ import annotations

import asyncio
import itertools
import posixpath
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass

from backends.archives.bytes import Cursor, too_short
from storage.errors import BadInput
from storage.names import printable

_BLOCK = 512
_LONGEST_HEADER = 64 * 1024
_LONGEST_NAME = 4096
_LONGEST_NUMBER = 20
_AT_ONCE = 64
"""Headers that are read before everybody else has a turn: those of a packed archive are here already."""
_WANTED = ("path", "linkpath", "size")
_SPARSE = "GNU.sparse"
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)


@dataclass(frozen=True)
class Entry:
    """A file, or a link to one; `target` is empty for a file. Names are relative and normalised."""

    name: str
    size: int
    offset: int
    """Of its content in the unpacked archive."""
    target: str = ""


async def entries(cursor: Cursor, most: int) -> AsyncIterator[Entry]:
    """Files and links, in their order; read the content of one, or not, before asking for the next.

    BadInput: it is no tar, has more than `most` entries, or something that no image has.
    """
    async for header in _headers(cursor, most):
        end = cursor.position + _padded(header.size if header.type in _REGULAR else 0)
        entry = _entry(header, cursor.position)
        if entry is not None:
            yield entry
        if cursor.position < end:
            await cursor.skip(end - cursor.position)


async def _headers(cursor: Cursor, most: int) -> AsyncIterator[tarfile.TarInfo]:
    """Each header with what the extended ones before it say; those count too."""
    extra: dict[str, str] = {}
    for count in itertools.count():
        if count % _AT_ONCE == 0:
            await asyncio.sleep(0)
        block = await cursor.read(_BLOCK)
        if len(block) < _BLOCK:
            raise too_short()
        if not block.strip(b"\0"):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BadInput(
                "this is no archive of an image: it is no tar file, or a damaged one; make one with 'docker save'"
            ) from error
        if header.size < 0:
            raise BadInput("the archive has an entry of impossible size")
        if count >= most:
            raise BadInput(f"the archive has more than {most} entries: that is no image")
        if header.type == tarfile.XHDTYPE:
            extra |= _pax(await _text(cursor, header))
        elif header.type == tarfile.XGLTYPE:
            await _text(cursor, header)
        elif header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            field = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            extra[field] = (await _text(cursor, header)).rstrip(b"\0").decode("utf-8", "surrogateescape")
        else:
            _apply(header, extra)
            extra = {}
            yield header


async def _text(cursor: Cursor, header: tarfile.TarInfo) -> bytes:
    if header.size > _LONGEST_HEADER:
        raise BadInput("the archive has a header of more than 64 KiB: that is no image")
    content = await cursor.read(_padded(header.size))
    if len(content) < _padded(header.size):
        raise too_short()
    return content[: header.size]


def _pax(content: bytes) -> dict[str, str]:
    """What is wanted of an extended header: records `LENGTH KEY=VALUE\\n`, one after the other."""
    found: dict[str, str] = {}
    at, end = 0, len(content.rstrip(b"\0"))
    while at < end:
        space = content.find(b" ", at, at + _LONGEST_NUMBER)
        number = content[at : max(space, at)]
        length = int(number) if number.isdigit() else 0
        if not len(number) + 1 < length <= len(content) - at:
            raise BadInput("the archive has a damaged header")
        written, _, value = content[space + 1 : at + length - 1].partition(b"=")
        key = written.decode("utf-8", "replace")
        if key in _WANTED or key.startswith(_SPARSE):
            found[key if key in _WANTED else _SPARSE] = value.decode("utf-8", "surrogateescape")
        at += length
    return found


def _apply(header: tarfile.TarInfo, extra: dict[str, str]) -> None:
    if _SPARSE in extra or header.type == tarfile.GNUTYPE_SPARSE:
        raise BadInput("the archive has sparse files, which no image has")
    header.name = extra.get("path", header.name)
    header.linkname = extra.get("linkpath", header.linkname)
    if max(len(header.name), len(header.linkname)) > _LONGEST_NAME:
        raise BadInput("the archive has an entry with an endless name: that is no image")
    size = extra.get("size", "0")
    if not (size.isascii() and size.isdigit() and len(size) <= _LONGEST_NUMBER):
        raise BadInput("the archive has an entry of impossible size")
    header.size = int(size) if "size" in extra else header.size


def _entry(header: tarfile.TarInfo, offset: int) -> Entry | None:
    """None for a directory."""
    name = _checked(header.name, header.name)
    if header.type == tarfile.DIRTYPE:
        return None
    if header.type in _LINKS:
        base = posixpath.dirname(name) if header.type == tarfile.SYMTYPE else ""
        if header.linkname.startswith("/"):
            raise _leaves(header.name)
        return Entry(name, 0, offset, _checked(posixpath.join(base, header.linkname), header.name))
    if header.type not in _REGULAR:
        shown = printable(header.name, limit=80)
        raise BadInput(f"the archive has a device or another special file ('{shown}'), which no image archive has")
    return Entry(name, header.size, offset)


def _checked(path: str, shown: str) -> str:
    clean = posixpath.normpath(path)
    if path.startswith("/") or clean == ".." or clean.startswith("../") or "\0" in path:
        raise _leaves(shown)
    return clean


def _leaves(name: str) -> BadInput:
    return BadInput(f"the archive has a path that leaves it ('{printable(name, limit=80)}'): it is refused")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
