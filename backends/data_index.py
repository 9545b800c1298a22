"""What a copy of a version consists of, and how much of it is here: a small SQLite file beside the files.

It lets a copy of a million files be made, gone on with and compared in constant memory, and dies with the last
missing file. Blocks; callers are in threads. Also the rule of which object names can be file names here.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import BadInput
from storage.names import printable
from storage.objects.contract import ObjectFacts

_LONGEST_NAME = 255
_LONGEST_PATH = 1024
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, folded TEXT NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
    pass INTEGER NOT NULL, here INTEGER NOT NULL DEFAULT 0, part INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
_NOTE = """
INSERT INTO files (path, folded, size, etag, pass) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (path) DO UPDATE SET
    here = CASE WHEN etag = excluded.etag AND size = excluded.size THEN here ELSE 0 END,
    part = CASE WHEN etag = excluded.etag AND size = excluded.size THEN part ELSE 0 END,
    size = excluded.size, etag = excluded.etag, pass = excluded.pass
"""


@dataclass(frozen=True)
class Missing:
    """A file that is to be fetched; `part` bytes of it are safe already. A path with a slash at its end is an empty
    directory."""

    path: str
    size: int
    etag: str
    part: int


@dataclass(frozen=True)
class Totals:
    files: int
    bytes: int
    missing: int
    """Bytes that are still to come."""


def checked_path(path: str, title: str) -> str:
    """`path`, a key without the version's prefix, if it can be a file below a folder; BadInput otherwise."""
    shown = printable(path, limit=80)
    segments = path.removesuffix("/").split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise BadInput(f"{title} holds '{shown}', which can be no file: a part of its name is empty, '.' or '..'")
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise BadInput(f"{title} holds '{shown}', which has control characters in its name")
    try:
        encoded = [segment.encode() for segment in segments]
    except UnicodeEncodeError as error:
        raise BadInput(f"{title} holds '{shown}', whose name is no UTF-8") from error
    if any(len(segment) > _LONGEST_NAME for segment in encoded) or len(path.encode()) > _LONGEST_PATH:
        raise BadInput(f"{title} holds '{shown}', whose name is longer than a file's may be")
    return path


class FileIndex:
    """The index of one copy, at `path`, for the files below `root`. One thread at a time is let in.

    Without `root` nobody can look whether a file is there, and what was noted is believed.
    """

    def __init__(self, path: Path, root: Path | None) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._database.executescript(_SCHEMA)
            (last,) = self._database.execute("SELECT coalesce(max(pass), 0) FROM files").fetchone()
        except sqlite3.Error:
            self._database.close()
            raise
        self._pass = int(last) + 1

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def note(self, page: Sequence[ObjectFacts], prefix: str, title: str) -> None:
        """What a listing tells. What is said to be here, and is not, counts as missing again."""
        paths = [checked_path(facts.key.removeprefix(prefix), title) for facts in page if facts.key != prefix]
        facts_of = [facts for facts in page if facts.key != prefix]
        rows = [
            (path, path.casefold(), 0 if path.endswith("/") else facts.size, facts.etag, self._pass)
            for path, facts in zip(paths, facts_of, strict=True)
        ]
        with self._lock, self._writing():
            self._database.executemany(_NOTE, rows)
            if self._root is not None:
                gone = [(row[0],) for row in rows if not _is_there(self._root / row[0], row[2])]
                self._database.executemany("UPDATE files SET here = 0 WHERE path = ?", gone)

    def totals(self) -> Totals:
        query = (
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(CASE WHEN here THEN 0 ELSE size - part END), 0)"
            " FROM files WHERE pass = ?"
        )
        with self._lock:
            return Totals(*self._database.execute(query, (self._pass,)).fetchone())

    def missing(self, after: str, limit: int) -> Sequence[Missing]:
        """The next files that are not here, by path."""
        query = (
            "SELECT path, size, etag, part FROM files WHERE pass = ? AND here = 0 AND path > ? ORDER BY path LIMIT ?"
        )
        with self._lock:
            return [Missing(*row) for row in self._database.execute(query, (self._pass, after, limit))]

    def superseded(self, limit: int) -> Sequence[str]:
        """Paths of former listings that the present one does not know; `forget` them once they are removed."""
        with self._lock:
            rows = self._database.execute("SELECT path FROM files WHERE pass < ? LIMIT ?", (self._pass, limit))
            return [path for (path,) in rows]

    def forget(self, paths: Sequence[str]) -> None:
        with self._lock, self._writing():
            self._database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])

    def arrived(self, paths: Sequence[str]) -> None:
        """These files are complete, and safe on the disk."""
        with self._lock, self._writing():
            self._database.executemany("UPDATE files SET here = 1, part = 0 WHERE path = ?", [(p,) for p in paths])

    def grown(self, path: str, part: int) -> None:
        """The first `part` bytes of a file that is still on its way are safe on the disk."""
        with self._lock:
            self._database.execute("UPDATE files SET part = ? WHERE path = ?", (part, path))

    def twins(self) -> tuple[str, str] | None:
        """Two files whose names differ in case alone."""
        with self._lock:
            self._database.execute("CREATE INDEX IF NOT EXISTS folded ON files (folded)")
            row = self._database.execute(
                "SELECT a.path, b.path FROM files a JOIN files b ON a.folded = b.folded AND a.path < b.path"
                " WHERE a.pass = :now AND b.pass = :now LIMIT 1",
                {"now": self._pass},
            ).fetchone()
        return None if row is None else (row[0], row[1])

    def clash(self) -> str:
        """A file of whose name there is a directory too; empty if there is none."""
        query = (
            "SELECT a.path FROM files a WHERE a.pass = :now AND a.path NOT LIKE '%/' AND EXISTS ("
            "SELECT 1 FROM files b WHERE b.pass = :now AND b.path >= a.path || '/' AND b.path < a.path || '0') LIMIT 1"
        )
        with self._lock:
            row = self._database.execute(query, {"now": self._pass}).fetchone()
        return "" if row is None else str(row[0])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _is_there(path: Path, size: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return found.st_size == size or not size
