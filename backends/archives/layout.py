"""What the small files of an archive say: which image is in it, its configuration, its layers. Pure; no I/O.

docker-archive (`docker save`): manifest.json names a configuration and layer files. oci-archive: index.json leads by
digests to a manifest. Newer `docker save` writes both; then the OCI layout counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backends.archives.tar import Entry
from storage.errors import BadInput
from storage.names import printable

LARGEST_FILE = 4 * 1024 * 1024
"""Of a file that is read as JSON."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{64}")
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_CONFIG = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")
"""How `docker save` calls an image's configuration: by its digest."""
_FIELDS = ("architecture", "config", "diff_ids", "Env", "Labels", "OnBuild", "os", "rootfs")
_FOLDED = tuple(map(str.casefold, _FIELDS))
"""Programs in Go, so all engines, take a field in any case for it."""
_MOST_LINKS = 8
_MOST_LAYERS = 500
_MOST_HELD = 64 * 1024 * 1024
"""Bytes of small files together; real images have some hundred KiB."""


@dataclass(frozen=True)
class Layer:
    """A layer: the entry that holds it, and what it must be."""

    entry: Entry
    diff_id: str
    """Digest of its unpacked content."""
    digest: str = ""
    """Digest of its bytes as they are, where the archive says."""


@dataclass(frozen=True)
class Layout:
    """One image. `config` is its configuration as it is in the archive."""

    config: bytes
    layers: Sequence[Layer]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The configuration, read."""

    @property
    def architecture(self) -> str:
        return printable(str(self.facts.get("architecture", "")), limit=32)

    @property
    def cuda(self) -> str:
        found = self._said("CUDA_VERSION", "com.nvidia.cuda.version", "maintainer.cuda")
        return found if re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,30}", found) else ""

    @property
    def driver(self) -> str:
        """`>=450`, of what NVIDIA's images say in NVIDIA_REQUIRE_CUDA."""
        found = re.search(r"driver(>=|>)([0-9.]{1,20})", self._said("NVIDIA_REQUIRE_CUDA").split(" ")[0])
        return f"{found[1]}{found[2]}" if found else ""

    def _said(self, variable: str, *labels: str) -> str:
        config = _object(self.facts.get("config"))
        variables = config.get("Env")
        for one in variables if isinstance(variables, list) else ():
            name, _, value = str(one).partition("=")
            if name == variable:
                return value
        found = _object(config.get("Labels"))
        return next((str(found[label]) for label in labels if label in found), "")


class Files:
    """The entries of an archive by name, and the content of the small ones."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._content: dict[str, bytes] = {}
        self._held = 0

    def add(self, entry: Entry, content: bytes | None) -> None:
        if entry.name in self._entries:
            raise BadInput(f"the archive has '{printable(entry.name, limit=80)}' twice")
        self._entries[entry.name] = entry
        if content is None or content.lstrip()[:1] not in (b"{", b"["):  # a small layer
            return
        self._held += len(content)
        if self._held > _MOST_HELD:
            raise BadInput("the archive has more descriptions than any image needs")
        self._content[entry.name] = content

    def entry(self, name: str) -> Entry:
        """The file of this name, links followed."""
        found = self._entries.get(name)
        for _ in range(_MOST_LINKS):
            if found is None or not found.target:
                break
            found = self._entries.get(found.target)
        if found is None or found.target:
            raise BadInput(f"the archive lacks '{printable(name, limit=80)}': it is not complete")
        return found

    def content(self, name: str) -> bytes:
        entry = self.entry(name)
        if entry.size > LARGEST_FILE:
            raise BadInput(f"'{printable(name, limit=80)}' in the archive has more than 4 MiB: that is no image")
        if entry.name not in self._content:
            raise BadInput(f"'{printable(name, limit=80)}' in the archive is not what it should be")
        return self._content[entry.name]

    def has(self, name: str) -> bool:
        return name in self._entries


def may_be_small(entry: Entry) -> bool:
    """Whether its content could be needed as JSON."""
    if entry.target or entry.size > LARGEST_FILE:
        return False
    name = entry.name
    return name.endswith(".json") or name == "oci-layout" or _BLOB.fullmatch(name) is not None or "/" not in name


def layout_of(files: Files) -> Layout:
    """The one image of an archive. BadInput: it has none, several, or one that does not hold together."""
    if files.has("index.json") and files.has("oci-layout"):
        return _checked(_oci(files))
    if files.has("manifest.json"):
        return _checked(_docker(files))
    raise BadInput(
        "this is no archive of an image: it has neither manifest.json nor index.json; make one with 'docker save'"
    )


def _docker(files: Files) -> Layout:
    found = _json(files.content("manifest.json"), "manifest.json")
    if not isinstance(found, list) or not found:
        raise BadInput("the archive's manifest.json names no image")
    if len(found) > 1:
        raise BadInput(f"the archive has {len(found)} images: save one by itself")
    image = found[0] if isinstance(found[0], dict) else {}
    names = image.get("Layers")
    if not isinstance(names, list) or not isinstance(image.get("Config"), str):
        raise BadInput("the archive's manifest.json cannot be read")
    config = files.content(_inside(image["Config"]))
    named = _CONFIG.fullmatch(_inside(image["Config"]))
    if named is not None and named[1] != hashlib.sha256(config).hexdigest():
        raise _damaged_part()
    layers = [Layer(files.entry(_inside(str(name))), "") for name in names]
    return Layout(config, layers)


def _oci(files: Files) -> Layout:
    facts = _object(_json(files.content("index.json"), "index.json"))
    for _ in range(3):
        one = _descriptor(_only(files, facts))
        facts = _object(_json(_blob(files, one), "the manifest"))
        if one.get("mediaType") not in _INDEXES and "manifests" not in facts:
            break
    layers = facts.get("layers")
    if not isinstance(layers, list):
        raise BadInput("the archive's manifest cannot be read")
    found = []
    for one in map(_descriptor, layers):
        entry = files.entry(_path(one["digest"]))
        if entry.size != one.get("size"):
            raise BadInput("a layer of the archive has another size than its manifest says")
        found.append(Layer(entry, "", one["digest"]))
    return Layout(_blob(files, _descriptor(facts.get("config"))), found)


def _only(files: Files, index: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one image of an index that is in the archive; attestations that builders add do not count.

    Docker writes indexes that name an image for each platform, and saves the one that it has.
    """
    listed = index.get("manifests")
    real = [
        one for one in map(_object, listed)
        if "vnd.docker.reference.type" not in _object(one.get("annotations"))
        and _object(one.get("platform")).get("architecture") != "unknown"
    ] if isinstance(listed, list) else []  # fmt: skip
    if not real:
        raise BadInput("the archive's index.json names no image")
    there = {str(one.get("digest")): one for one in real if files.has(_path(str(one.get("digest"))))}
    if len(there) > 1:
        kinds = printable(", ".join(_platform(one) or "?" for one in there.values()), limit=120)
        raise BadInput(f"the archive has {len(there)} images ({kinds}): save one by itself, for one architecture")
    return next(iter(there.values()), real[0])


def _platform(descriptor: Mapping[str, Any]) -> str:
    """`linux/arm64`; empty where it does not say."""
    platform = _object(descriptor.get("platform"))
    return "/".join(str(platform[key]) for key in ("os", "architecture", "variant") if platform.get(key))


def _blob(files: Files, descriptor: Mapping[str, Any]) -> bytes:
    content = files.content(_path(descriptor["digest"]))
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != descriptor["digest"]:
        raise _damaged_part()
    return content


def _damaged_part() -> BadInput:
    return BadInput("a part of the archive does not have the digest that it should: it is damaged")


def _descriptor(found: object) -> Mapping[str, Any]:
    if not isinstance(found, dict) or not _DIGEST.fullmatch(str(found.get("digest"))):
        raise BadInput("the archive names a part without a sha256 digest")
    return found


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _inside(name: str) -> str:
    return name.removeprefix("./")


def _checked(layout: Layout) -> Layout:
    """With its configuration read, and each layer knowing what it must unpack to."""
    facts = _object(_json(layout.config, "the image's configuration"))
    rootfs, config = _object(facts.get("rootfs")), _object(facts.get("config"))
    if any(key not in _FIELDS and key.casefold() in _FOLDED for key in (*facts, *rootfs, *config)):
        raise BadInput("the image's configuration has a field in another case than it should, which engines read too")
    diff_ids = rootfs.get("diff_ids")
    if not isinstance(diff_ids, list) or not all(_DIGEST.fullmatch(str(one)) for one in diff_ids):
        raise BadInput("the image's configuration does not say what its layers are")
    if len(layout.layers) > _MOST_LAYERS:
        raise BadInput(f"the image has {len(layout.layers)} layers: no engine runs one of more than {_MOST_LAYERS}")
    if len(diff_ids) != len(layout.layers) or not diff_ids:
        raise BadInput(f"the image has {len(layout.layers)} layers, and its configuration speaks of {len(diff_ids)}")
    layers = [replace(layer, diff_id=str(one)) for layer, one in zip(layout.layers, diff_ids, strict=True)]
    if len({(layer.entry, layer.diff_id) for layer in layers}) > len({layer.entry for layer in layers}):
        raise BadInput("the image has one file as two layers that should differ: the archive is damaged")
    if str(facts.get("os", "linux")) != "linux":
        raise BadInput("the image is not for Linux")
    if config.get("OnBuild"):
        raise BadInput("the image has ONBUILD steps, which would run unchecked in builds from it: save it without them")
    return replace(layout, layers=layers, facts=facts)


def _object(found: object) -> Mapping[str, Any]:
    """Of JSON; empty where something else is written."""
    return found if isinstance(found, dict) else {}


def _json(content: bytes, what: str) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what} in the archive cannot be read") from error


def _unambiguous(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError if a key is there twice: others may read the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the same key twice")
    return found
