"""Unfinished uploads as files: what their owners see in the tree in place of objects that are not there yet.

Programs send under a temporary name and rename at the end. In S3 that would be a copy, so such uploads are made for
the final key from the start, and the rename completes them. Which names are temporary is decided here, and only here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storage.records import Upload, UploadState
from storage.tree import Node

_TEMPORARY = (
    re.compile(r"(?P<name>.+)\.filepart"),  # WinSCP
    re.compile(r"(?P<name>.+)\.[0-9a-f]{8}\.partial"),  # rclone
    re.compile(r"\.in\.(?P<name>.+)"),  # lftp, with xfer:use-temp-file
)


def final_key(key: str) -> str:
    """The key that a temporary name is going to be renamed to; other keys come back as they are."""
    directory, slash, name = key.rpartition("/")
    for pattern in _TEMPORARY:
        found = pattern.fullmatch(name)
        if found is not None:
            return directory + slash + found["name"]
    return key


def unfinished_node(row: Upload, owner: str) -> Node:
    """An unfinished upload as its owner sees it."""
    touched = int(row.touched.timestamp())
    mtime = touched if row.mtime is None or row.state is not UploadState.SEALED else row.mtime
    return Node(
        row.path.rpartition("/")[2], is_directory=False, size=row.size, mtime=mtime, mode=0o600, owner=owner,
        unfinished=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Unfinished:
    """The unfinished uploads in and below one directory."""

    files: Mapping[str, Upload] = field(default_factory=dict)
    """By name, those directly in it."""
    directories: frozenset[str] = frozenset()
    """Names of the directories in it that have some."""

    def __bool__(self) -> bool:
        return bool(self.files or self.directories)


def unfinished_in(prefix: str, rows: Sequence[Upload]) -> Unfinished:
    """`rows` below the key `prefix` (ends with a slash), the newest last."""
    files: dict[str, Upload] = {}
    directories: set[str] = set()
    for row in rows:
        name, slash, _ = row.sent_as.removeprefix(prefix).partition("/")
        if slash:
            directories.add(name)
        else:
            files[name] = row
    return Unfinished(files, frozenset(directories))
