"""Data sets and models as people see them, and how they are referred to. Pure; no I/O.

A reference is `mnist`, `mnist:v1`, or `other/mnist:v1` for what another workspace shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from storage.access import Caller, Owned, Visibility
from storage.errors import NotFound
from storage.names import check_resource, printable
from storage.objects.contract import Usage
from storage.records import AssetKind, VersionState


@dataclass(frozen=True)
class Reference:
    """A reference, taken apart; `workspace` and `version` may be empty."""

    name: str
    version: str = ""
    workspace: str = ""

    @property
    def asset(self) -> str:
        """Without the version, as use cases take it."""
        return f"{self.workspace}/{self.name}" if self.workspace else self.name


@dataclass(frozen=True)
class VersionView:
    """A version as people see it."""

    name: str
    state: VersionState
    created: datetime
    published: datetime | None
    files: int
    bytes: int
    id: str = ""
    prefix: str = ""
    """Keys of its files begin with it; ends with a slash. Of the version that it links to, if it is a link."""
    counted: bool = False
    """`files` and `bytes` were counted in the store when it was published, and nothing can have changed since."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_link: bool = False
    link: str = ""
    """`workspace/name:version` of what it links to; empty if it is no link, or leads nowhere for this caller."""

    @property
    def sealed(self) -> bool:
        return self.state is VersionState.READY

    @property
    def is_broken(self) -> bool:
        """A link to a version that is gone, or that the caller may not read any more."""
        return self.is_link and not self.link


@dataclass(frozen=True)
class AssetView:
    """A data set or model as people see it; versions in the order of their making."""

    id: str
    kind: AssetKind
    name: str
    owner: str
    owner_id: str
    workspace_id: str
    workspace: str
    created: datetime
    versions: tuple[VersionView, ...] = ()
    description: str = ""
    visibility: Visibility = Visibility.WORKSPACE
    tags: tuple[str, ...] = ()
    chosen_version: str = ""
    framework: str = ""
    task: str = ""
    shares: Mapping[str, str] = field(default_factory=dict)
    """Id → name of the workspaces that it is shared with; known where it was asked for."""

    @property
    def files(self) -> int:
        return sum(version.files for version in self.versions)

    @property
    def bytes(self) -> int:
        """Its own; what it links to is not copied."""
        return sum(version.bytes for version in self.versions if not version.is_link)

    @property
    def default_version(self) -> VersionView | None:
        """The one that its owner chose, else the newest published one, else the newest."""
        chosen = [version for version in self.versions if version.name == self.chosen_version]
        published = [version for version in self.versions if version.sealed]
        candidates = chosen or published or list(self.versions)
        return candidates[-1] if candidates else None

    def owned(self, version: VersionView | None = None) -> Owned:
        """What `decide` needs to know of it."""
        name = self.name if version is None else f"{self.name}:{version.name}"
        return Owned(
            self.kind.noun, name, self.owner_id, self.workspace_id, sealed=version is not None and version.sealed,
            visibility=self.visibility, shared_with=frozenset(self.shares),
        )  # fmt: skip

    def version(self, name: str = "") -> VersionView:
        """The version of that name, the default one without a name; NotFound otherwise."""
        if not name and self.default_version is not None:
            return self.default_version
        for version in self.versions:
            if version.name == name:
                return version
        if not name:
            raise NotFound(f"the {self.kind.noun} '{self.name}' has no version at all")
        raise NotFound(f"the {self.kind.noun} '{self.name}' has no version '{printable(name, limit=60)}'")

    def reference(self, caller: Caller, version: str = "") -> str:
        """What `caller` types to mean it."""
        name = self.name if self.workspace_id == caller.workspace_id else f"{self.workspace}/{self.name}"
        return f"{name}:{version}" if version else name


@dataclass(frozen=True)
class AssetFile:
    """A file of a version: path relative to the version, bytes, seconds since 1970."""

    path: str
    size: int
    mtime: int


@dataclass(frozen=True)
class Filter:
    """What a list is narrowed to; what is empty does not narrow."""

    tag: str = ""
    visibility: Visibility | None = None
    framework: str = ""
    task: str = ""

    def takes(self, view: AssetView) -> bool:
        return (
            (not self.tag or self.tag in view.tags)
            and self.visibility in (None, view.visibility)
            and self.framework in ("", view.framework)
            and self.task in ("", view.task)
        )


EVERYTHING = Filter()


def parse_reference(text: str, kind: AssetKind = AssetKind.DATASET) -> Reference:
    """`NAME`, `NAME:VERSION`, `WORKSPACE/NAME` or `WORKSPACE/NAME:VERSION`; BadInput for what cannot be a name."""
    front, separator, version = text.partition(":")
    workspace, slash, name = front.rpartition("/")
    check_resource(name, kind=kind.noun)
    if slash:
        check_resource(workspace, kind="workspace")
    if separator:
        check_resource(version, kind="version")
    return Reference(name, version, workspace)


def parse_version(text: str) -> tuple[str, str]:
    """`NAME:VERSION` or `NAME` of a data set of one's own workspace as (name, version or empty); BadInput otherwise."""
    name, separator, version = text.partition(":")
    check_resource(name, kind=AssetKind.DATASET.noun)
    if separator:
        check_resource(version, kind="version")
    return name, version


def prefix_of(workspace: str, name: str, version: str = "", *, kind: AssetKind = AssetKind.DATASET) -> str:
    """The key prefix of an asset or of one version; it ends with a slash."""
    return f"{kind.folder}/{workspace}/{name}/" + (f"{version}/" if version else "")


def with_usage(version: VersionView, usage: Usage) -> VersionView:
    return replace(version, files=usage.files, bytes=usage.bytes)
