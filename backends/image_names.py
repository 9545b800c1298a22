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
_PLAIN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,254}")
_ID = re.compile(r"(sha256:)?[0-9a-f]{1,64}")
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


def check_plain(written: str) -> str:
    """`written`, with a tag, if it may go to an engine as a reference; BadInput otherwise.

    An engine also takes ids, by which it finds every image that anybody has pulled there. So they are refused, and
    whatever could be one gets its tag, after which it is a name.
    """
    shown = printable(written, limit=80)
    if not _PLAIN.fullmatch(written):
        raise BadInput(f"'{shown}' is no image: write NAME:TAG, or a reference like repository/name:tag")
    if written.startswith("sha256:"):
        raise BadInput(f"'{shown}' is an id: write the image's name")
    if "/" not in written and "@" not in written and _ID.fullmatch(written):
        return f"{written}:{LATEST}"
    return written


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
