"""Paths of a layer that climb out of it (`../../etc/passwd`). Engines unpack layers as root; they guard themselves, and
no honest image has such a path.

Only headers are looked at, so this costs little beside the hash of a layer. An absolute path stays inside an engine's
root and some builders write it, so it is left alone; so are links. What cannot be read is for the engine to refuse.
"""

from __future__ import annotations

import re
import tarfile

from storage.errors import BadInput
from storage.names import printable

_BLOCK = 512
_MOST_TEXT = 64 * 1024
_NAME, _SIZE, _TYPE, _PREFIX = slice(0, 100), slice(124, 136), slice(156, 157), slice(345, 500)
_EXTENDED, _EXTENDED_MORE = 482, 504
"""Where headers of old GNU sparse files say that another block of their map follows."""
_CLIMBS = re.compile(rb"(?:^|/)\.\.(?:/|$)")
_PATH = re.compile(rb"\d+ path=([^\n]*)\n")
_TEXTS = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_NO_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class Climbing:
    """Sees the bytes of one unpacked layer, in pieces of any size."""

    def __init__(self) -> None:
        self._held = b""
        self._wanted = _BLOCK
        """How many bytes are read as a whole next."""
        self._skip = 0
        """Bytes of content that come before."""
        self._text = b""
        """The type of the extended header whose content is wanted."""
        self._mapped = 0
        """The content of a sparse file whose map is wanted."""
        self._is_lost = False

    def see(self, piece: bytes) -> None:
        """BadInput: it has a path that climbs."""
        at = 0
        while not self._is_lost and at < len(piece):
            step = min(self._skip, len(piece) - at)
            self._skip -= step
            at += step
            found = piece[at : at + self._wanted - len(self._held)]
            self._held += found
            at += len(found)
            if len(self._held) == self._wanted:
                block, self._held = self._held, b""
                self._read(block)

    def _read(self, block: bytes) -> None:
        if self._text:
            kind, self._text, self._wanted = self._text, b"", _BLOCK
            for path in _PATH.findall(block) if kind == tarfile.XHDTYPE else [block.rstrip(b"\0")]:
                _check(path)
        elif self._mapped:
            if not block[_EXTENDED_MORE]:
                self._skip, self._mapped = self._mapped, 0
        elif block.strip(b"\0"):
            self._read_header(block)

    def _read_header(self, block: bytes) -> None:
        kind = block[_TYPE]
        try:
            size = 0 if kind in _NO_CONTENT else tarfile.nti(block[_SIZE])  # type: ignore[attr-defined]
        except tarfile.HeaderError:
            size = -1
        if size < 0:
            self._is_lost = True
            return
        name, prefix = block[_NAME].partition(b"\0")[0], block[_PREFIX].partition(b"\0")[0]
        if kind in _TEXTS and 0 < size <= _MOST_TEXT:
            self._text, self._wanted = kind, -(-size // _BLOCK) * _BLOCK
            return
        _check(b"%b/%b" % (prefix, name) if prefix and block[257:262] == b"ustar" else name)
        content = -(-size // _BLOCK) * _BLOCK
        if kind == tarfile.GNUTYPE_SPARSE and block[_EXTENDED]:
            self._mapped = content
        else:
            self._skip = content


def _check(path: bytes) -> None:
    if _CLIMBS.search(path):
        shown = printable(path.decode("utf-8", "replace"), limit=80)
        raise BadInput(f"a layer of the image has a path that climbs out of it ('{shown}')")
