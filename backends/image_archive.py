"""An image of the registry as an archive that engines load, made while it is read: nothing of it is on a disk here, and
a few pieces at a time are in memory.

It is both what `docker save` wrote before version 25 (manifest.json) and an OCI layout (index.json), as what it writes
since then: every engine finds what it knows. The manifest and the configuration are checked against their digests
here; an engine checks layers against the configuration itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.registry import Manifest, Registry
from storage.errors import BadInput, Unavailable

_BLOBS = "blobs/sha256/"
_BLOCK = tarfile.BLOCKSIZE
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DAMAGED = "the image in the registry is damaged"


@dataclass(frozen=True)
class _Blob:
    digest: str
    size: int


class ImageArchive:
    """The image `repository@digest` under the name that engines shall know it by."""

    def __init__(self, registry: Registry, repository: str, manifest: Manifest, config: bytes, name: str) -> None:
        self._registry = registry
        self._repository = repository
        self._manifest = manifest
        self._config = config
        self._name = name
        self._layers = [_blob(one) for one in _listed(manifest.facts.get("layers"))]
        self._once = {blob.digest: blob for blob in self._layers}

    @classmethod
    async def of(cls, registry: Registry, repository: str, digest: str, name: str) -> ImageArchive:
        """Look it up. NotFound: it is not there. BadInput: it is several images, or damaged."""
        manifest = await registry.manifest(repository, digest)
        _require(manifest.body, digest)
        if "manifests" in manifest.facts:
            raise BadInput("the image in the registry is made for several machines: bring it here for one")
        config = _blob(manifest.facts.get("config"))
        content = await registry.blob(repository, config.digest)
        _require(content, config.digest)
        return cls(registry, repository, manifest, content, name)

    @property
    def size(self) -> int:
        """Bytes of its layers, as they are sent."""
        return sum(blob.size for blob in self._once.values())

    @property
    def ids(self) -> Sequence[str]:
        """What an engine may call it, depending on how it keeps images."""
        return (_digest(self._config), _digest(self._manifest.body))

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The tar archive. Unavailable: the registry does not give all of it."""
        yield self._front()
        for blob in self._once.values():
            yield _header(_path(blob.digest), blob.size)
            left = blob.size
            async for piece in self._registry.blob_pieces(self._repository, blob.digest):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
            if left:
                raise Unavailable(_DAMAGED)
            yield bytes(-blob.size % _BLOCK)
        yield bytes(2 * _BLOCK)

    def _front(self) -> bytes:
        """Everything but the layers."""
        files = {
            "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
            "index.json": _json(self._index()),
            "manifest.json": _json([
                {
                    "Config": _path(_digest(self._config)), "RepoTags": [self._name],
                    "Layers": [_path(blob.digest) for blob in self._layers],
                }
            ]),
            _path(_digest(self._config)): self._config,
            _path(_digest(self._manifest.body)): self._manifest.body,
        }  # fmt: skip
        folders = [_folder("blobs"), _folder("blobs/sha256")]
        return b"".join([*folders, *(_file(name, content) for name, content in files.items())])

    def _index(self) -> Mapping[str, Any]:
        names = {"io.containerd.image.name": self._name, "org.opencontainers.image.ref.name": self._name}
        one = {
            "mediaType": self._manifest.media_type, "digest": _digest(self._manifest.body),
            "size": len(self._manifest.body), "annotations": names,
        }  # fmt: skip
        return {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [one]}


def _blob(found: object) -> _Blob:
    if not isinstance(found, dict) or not _DIGEST.fullmatch(str(found.get("digest"))):
        raise BadInput(_DAMAGED)
    size = found.get("size")
    if not isinstance(size, int) or size < 0:
        raise BadInput(_DAMAGED)
    return _Blob(str(found["digest"]), size)


def _listed(found: object) -> Sequence[object]:
    if not isinstance(found, list):
        raise BadInput(_DAMAGED)
    return found


def _require(content: bytes, digest: str) -> None:
    if _digest(content) != digest:
        raise BadInput(_DAMAGED)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _path(digest: str) -> str:
    return f"{_BLOBS}{digest.removeprefix('sha256:')}"


def _json(facts: object) -> bytes:
    return json.dumps(facts).encode()


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.mode = size, kind, mode
    return member.tobuf(tarfile.GNU_FORMAT)


def _folder(name: str) -> bytes:
    return _header(name, 0, tarfile.DIRTYPE, 0o755)


def _file(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + bytes(-len(content) % _BLOCK)
