"""How images are written, and what a written name may mean. Pure; no I/O.

`model:v1` is mine or an official one, `bob/model:v1` a colleague's, `team/bob/model:v1` another workspace's. Whatever
is none of these is a reference that the engine asks its registries for, as `docker pull` would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.errors import BadInput
from storage.names import check_resource, is_resource, printable

LATEST = "latest"
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST = re.compile(
    r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]{1,5})?"
)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST = 255
_HUB = "docker.io"
LOADED = "loaded.ashore.invalid/"
"""Before the names of images that were brought to an engine, instead of pulled by it. No host can be called so."""
_HUBS = (_HUB, "index.docker.io")
_EXTENSIONS = re.compile(r"\.(?:tar(?:\.(?:gz|zst))?|tgz|tzst)$")


@dataclass(frozen=True)
class ImageName:
    """A name of the catalogue, taken apart; `tag`, `owner` and `workspace` may be empty."""

    name: str
    tag: str = ""
    owner: str = ""
    workspace: str = ""


def check_image(name: str, tag: str) -> None:
    """BadInput unless they may name an image: our rules for names, and the stricter ones of registries."""
    check_resource(name, kind="image")
    check_resource(tag, kind="tag")
    if not _COMPONENT.fullmatch(name):
        raise BadInput(f"'{name}' is no possible image name: registries take one . or _, or some -, between letters")


def parse_image(written: str) -> ImageName | None:
    """None if it cannot be a name of the catalogue."""
    path, _, tag = written.partition(":")
    parts = path.split("/")
    if len(parts) > 3 or (tag and not is_resource(tag)) or not all(map(is_resource, parts)) or written.endswith(":"):
        return None
    workspace, owner, name = ["", "", *parts][-3:]
    return ImageName(name, tag, owner, workspace)


def parse_new(written: str) -> tuple[str, str]:
    """Name and tag that an image is to have, `latest` where none is written; BadInput for `model:`."""
    name, colon, tag = written.partition(":")
    if colon and not tag:
        raise BadInput(f"'{printable(written, limit=80)}' ends with a colon: write NAME:TAG, or NAME alone for latest")
    return name, tag or LATEST


def check_plain(written: str) -> str:
    """`written` in full, as engines and builders get it: `debian` → `docker.io/library/debian:latest`; BadInput.

    The grammar and the defaults are those of Docker's references (github.com/distribution/reference), nothing else:
    Docker also takes ids, by which it finds every image that anybody has pulled there; Podman and buildah also take
    transports (`docker-archive:/path`), and find what ends like a short name, whosever it is. A digest makes the tag
    idle, and not everybody takes both.
    """
    shown = printable(written, limit=80)
    if written.startswith("sha256:"):
        raise BadInput(f"'{shown}' is an id: write the image's name")
    name, at, digest = written.partition("@")
    place, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    host, path = _divided(f"{place}{slash}{last}")
    if (
        len(written) > _LONGEST
        or (at and not _DIGEST.fullmatch(digest))
        or (colon and not _TAG.fullmatch(tag))
        or not _HOST.fullmatch(host)
        or not all(map(_COMPONENT.fullmatch, path.split("/")))
        or (host == _HUB and _is_host(path.partition("/")[0]))
    ):
        raise BadInput(f"'{shown}' is no image: write NAME:TAG, or a reference like repository/name:tag")
    return f"{host}/{path}@{digest}" if at else f"{host}/{path}:{tag or LATEST}"


def _divided(name: str) -> tuple[str, str]:
    """The host and the path that a name without tag means."""
    host, slash, path = name.partition("/")
    if not slash or not (set(host) & set(".:") or host == "localhost" or host != host.lower()):
        host, path = _HUB, name
    if host in _HUBS:
        host, path = _HUB, path if "/" in path else f"library/{path}"
    return host, path


def _is_host(part: str) -> bool:
    """Whether an engine that leaves `docker.io/` out, as Docker does, would take what follows for a registry's host."""
    return "." in part or part == "localhost"


def loaded_name(reference: str) -> str:
    """How an engine calls `HOST/repository@sha256:…` that was brought to it: in an archive an image has tags only."""
    name, _, digest = reference.partition("@")
    return f"{LOADED}{name.partition('/')[2]}:{digest.removeprefix('sha256:')}"


def name_of_file(file: str) -> tuple[str, str]:
    """The image that an archive becomes: `model_v1.tar` → `model`, `v1`; BadInput if its name says none.

    The last underscore divides; without one, the tag is `latest`.
    """
    shown = printable(file, limit=80)
    stem, found = _EXTENSIONS.subn("", file.lower())
    if not found:
        raise BadInput(f"'{shown}' is no archive's name: write NAME_TAG.tar (or .tar.gz, .tar.zst)")
    name, _, tag = stem.rpartition("_")
    if not name:
        name, tag = stem, LATEST
    check_image(name, tag)
    return name, tag
