"""Where a path of the data tree leads, and how the things there look as files. Pure; no I/O.

/datasets/<name>/<version>/…                        the same below /models
/shared/<workspace>/datasets|models/<name>/…        what other workspaces share; read-only
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.access import Caller
from storage.asset_views import AssetView, VersionView
from storage.errors import NotFound
from storage.names import printable
from storage.records import AssetKind
from storage.tree import Node

_README = """\
This is the data tree of Ashore, workspace {workspace}.

/datasets/NAME/VERSION/...   files of the data sets of your workspace
/models/NAME/VERSION/...     files of its models
/shared/WORKSPACE/...        what other workspaces share with yours, read-only

  mkdir /datasets/mnist        makes a data set
  mkdir /datasets/mnist/v1     makes a version of it; then put your files there
  put -r, mirror -R, scp -r    send directories, and make them on the way

A file appears under its name when it has arrived as a whole, and not before.
Only the owner of a data set or model changes it. A published version is read-only.
Files cannot be changed in place: send them again.
"""
_KINDS = {kind.folder: kind for kind in AssetKind}


@dataclass(frozen=True)
class Place:
    """A path, taken apart: asset, version, and what is below the version. What it does not reach is empty."""

    path: str
    kind: AssetKind | None = None
    asset: str = ""
    """As use cases take it: `mnist`, below /shared `other/mnist`."""
    version: str = ""
    rest: str = ""
    workspace: str = ""
    """Below /shared: the other workspace."""
    is_shared: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def top(self) -> str:
        """The path of its asset."""
        depth = 5 if self.is_shared else 3
        return "/".join(self.path.split("/")[:depth])


@dataclass(frozen=True)
class Spot:
    """A path inside a version that exists."""

    place: Place
    asset: AssetView
    version: VersionView
    root: str
    """Key prefix of the version; ends with a slash."""
    stored_at: str = ""
    """The key where it lies, while its directory is being moved; empty: where its path says."""

    @property
    def key(self) -> str:
        return self.stored_at or self.root + self.place.rest

    @property
    def prefix(self) -> str:
        """Key prefix of what is in it, if it is a directory."""
        return f"{self.key}/" if self.place.rest else self.root

    @property
    def is_read_only(self) -> bool:
        return self.version.sealed or self.place.is_shared

    @property
    def ancestors(self) -> list[str]:
        """The keys that must not be files."""
        segments = self.place.rest.split("/")
        return [self.root + "/".join(segments[:count]) for count in range(1, len(segments))]


def place_of(path: str) -> Place:
    """NotFound for a path that cannot lead anywhere."""
    segments = path.strip("/").split("/")
    clean = "/" + "/".join(segments)
    if clean in ("/", "/README.txt"):
        return Place(clean)
    if segments[0] == "shared":
        return _shared_place(clean, segments[1:])
    kind = _KINDS.get(segments[0])
    if kind is None:
        raise NotFound(f"there is no '{printable(path)}'")
    name, version = (*segments[1:3], "", "")[:2]
    return Place(clean, kind, name, version, "/".join(segments[3:]))


def _shared_place(path: str, segments: list[str]) -> Place:
    workspace, folder, name, version = (*segments[:4], "", "", "", "")[:4]
    if folder and folder not in _KINDS:
        raise NotFound(f"there is no '{printable(path)}'")
    return Place(
        path, _KINDS.get(folder), f"{workspace}/{name}" if name else "", version, "/".join(segments[4:]),
        workspace=workspace, is_shared=True,
    )  # fmt: skip


def readme(caller: Caller) -> bytes:
    return _README.format(workspace=caller.workspace).encode()


def readme_node(caller: Caller) -> Node:
    return Node("README.txt", is_directory=False, size=len(readme(caller)), mode=0o444)


def folder_node(name: str, *, is_shared: bool = False) -> Node:
    """A directory of the tree itself."""
    return Node(name, is_directory=True, mode=0o555 if is_shared else 0o755)


def directory_node(name: str, spot: Spot) -> Node:
    mode = 0o555 if spot.is_read_only else 0o755
    created = int(spot.version.created.timestamp())
    return Node(name, is_directory=True, mtime=created, mode=mode, owner=spot.asset.owner)


def asset_node(asset: AssetView, *, is_shared: bool = False) -> Node:
    created = int(asset.created.timestamp())
    mode = 0o555 if is_shared else 0o755
    return Node(asset.name, is_directory=True, mtime=created, mode=mode, owner=asset.owner)


def version_node(asset: AssetView, version: VersionView, *, is_shared: bool = False) -> Node:
    created = int(version.created.timestamp())
    mode = 0o555 if version.sealed or is_shared else 0o755
    return Node(version.name, is_directory=True, mtime=created, mode=mode, owner=asset.owner)
