"""Archives made by hand, right ones and wrong ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

IMAGE = "debian:bookworm"


@dataclass
class File:
    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""


def tar_of(*files: File) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.type, info.linkname, info.size = file.kind, file.target, len(file.content)
            tar.addfile(info, io.BytesIO(file.content))
    return buffer.getvalue()


def header_of(kind: bytes, content: bytes) -> bytes:
    """An extended header with just this in it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def layer_of(text: bytes) -> bytes:
    return tar_of(File("etc/motd", text))


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def config_of(*layers: bytes, **more: object) -> bytes:
    facts = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [*map(digest_of, layers)]},
    }
    return json.dumps(facts | more).encode()


def docker_archive(
    *layers: bytes, config: bytes | None = None, names: Sequence[str] = (), extra: Sequence[File] = (),
    packed: Callable[[bytes], bytes] = lambda content: content, named: str = "config.json",
) -> bytes:  # fmt: skip
    """As `docker save` makes them: layers first, manifest.json last."""
    config = config_of(*layers) if config is None else config
    names = names or [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": named, "RepoTags": ["a:v1", "b:v2"], "Layers": list(names)}]
    files = [File(f"{number}/layer.tar", packed(layer)) for number, layer in enumerate(layers)]
    return tar_of(*files, *extra, File(named, config), File("manifest.json", json.dumps(manifest).encode()))


def oci_archive(
    layer: bytes, *, blob: bytes | None = None, size: int | None = None, digest: str = "",
    platforms: Sequence[str] = ("amd64",), elsewhere: Sequence[str] = (), nested: bool = False,
) -> bytes:  # fmt: skip
    """`platforms`: one image for each, of the same layer; `elsewhere`: named by the index, and not in the archive."""
    blob = gzip.compress(layer) if blob is None else blob
    config = config_of(layer)
    of = "application/vnd.oci.image"
    digest = digest or digest_of(blob)
    size = len(blob) if size is None else size
    parts, images = [config], []
    for platform in (*platforms, *elsewhere):
        manifest = json.dumps({
            "schemaVersion": 2, "annotations": {"for": platform},
            "config": {"mediaType": f"{of}.config.v1+json", "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": f"{of}.layer.v1.tar+gzip", "digest": digest, "size": size}],
        }).encode()  # fmt: skip
        parts += [manifest] if platform in platforms else []
        images.append({
            "mediaType": f"{of}.manifest.v1+json", "digest": digest_of(manifest), "size": len(manifest),
            "platform": {"os": "linux", "architecture": platform},
        })  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "manifests": images}).encode()
    if nested:
        parts.append(index)
        one = {"mediaType": f"{of}.index.v1+json", "digest": digest_of(index), "size": len(index)}
        index = json.dumps({"schemaVersion": 2, "manifests": [one]}).encode()
    blobs = [File(f"blobs/sha256/{digest_of(part)[7:]}", part) for part in parts]
    marks = [File("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), File("index.json", index)]
    return tar_of(*marks, *blobs, File(f"blobs/sha256/{digest[7:]}", blob))


SMALL = layer_of(b"hello")
NOISE = layer_of(os.urandom(3_000_000))
