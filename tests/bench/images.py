"""An archive of an image from the object store into a registry, against `skopeo copy docker-archive: docker://` of the
same file into the same registry.

skopeo reads the file from the disk and packs the layers again; Ashore reads it from its object store, checks it, and
sends the layers as they are. `BENCH_IMAGE_MIB` (1024) is the size of the archive; half of it can be packed.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import json
import os
import resource
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from backends.archives.transfer import Stored, Transfer
from backends.registry import Registry
from backends.registry_child import EmbeddedRegistry
from backends.registry_login import auth_file
from backends.settings import ImageSettings, RegistrySettings
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings
from tests.bench.bed import Bed
from tests.bench.measure import Comparison, Figure, Result, interleaved, seconds

MIB = int(os.environ.get("BENCH_IMAGE_MIB", "1024"))
_LAYERS = 4
_PART = 8 << 20


def results(bed: Bed) -> Iterator[Result]:
    source = _archive(bed.directory, MIB)
    with asyncio.Runner() as runner:
        kit = runner.run(_Kit.made(bed, source))
        number = itertools.count()

        def ours() -> float:
            return MIB / seconds(lambda: runner.run(kit.transfer(f"ours-{next(number)}")))

        def theirs() -> float:
            return MIB / seconds(lambda: kit.skopeo(f"theirs-{next(number)}"))

        name = f"archive to registry, {MIB} MiB"
        yield Comparison(name, "MiB/s", interleaved(ours, theirs), "skopeo copy docker-archive: docker://", 0.8)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield Figure("archive to registry, memory of the process", "MiB", peak)
        runner.run(kit.close())


class _Kit:
    """A registry, and the archive both as a file and in the object store."""

    def __init__(self, source: Path, store: S3Store, child: EmbeddedRegistry, at: RegistrySettings, auth: Path) -> None:
        self._source = source
        self._store = store
        self._child = child
        self._at = at
        self._auth = auth
        self._registry = Registry(at)
        self._stored: Stored | None = None

    @classmethod
    async def made(cls, bed: Bed, source: Path) -> _Kit:
        child = EmbeddedRegistry(bed.directory / "registry", log=bed.directory / "registry.log")
        at = await child.start(RegistrySettings())
        auth = bed.directory / "auth.json"
        auth.write_text(auth_file(at))
        settings = json.loads((bed.gateway.data / "run" / "house.json").read_text())["objects"]
        secret = SecretStr(settings.pop("secret_key"))
        store = S3Store(ObjectSettings(**settings, secret_key=secret))
        kit = cls(source, store, child, at, auth)
        await kit._put()
        return kit

    async def _put(self) -> None:
        upload = await self._store.create_upload("bench-image")
        parts: list[tuple[int, str]] = []
        with self._source.open("rb") as file:
            while piece := file.read(_PART):
                number = len(parts) + 1
                parts.append((number, await self._store.put_part("bench-image", upload, number, piece)))
        etag = await self._store.complete_upload("bench-image", upload, parts)
        self._stored = Stored("bench-image", etag, self._source.stat().st_size)

    async def transfer(self, repository: str) -> None:
        assert self._stored is not None
        transfer = Transfer(self._store, self._stored, ImageSettings(), lambda done: None)
        layout = await transfer.look()
        blobs = await transfer.send(layout, self._registry, repository)
        await transfer.publish(layout, blobs, self._registry, repository, "v1")

    def skopeo(self, repository: str) -> None:
        command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--dest-authfile", str(self._auth)]
        command += [f"docker-archive:{self._source}", f"docker://{self._at.prefix}{repository}:v1"]
        subprocess.run(command, check=True, capture_output=True)

    async def close(self) -> None:
        await self._store.delete("bench-image")
        await self._registry.close()
        await self._child.close()
        await self._store.close()


def _archive(directory: Path, size: int) -> Path:
    """As `docker save` makes them, of a few layers, one half random and the other not."""
    path = directory / "image.tar"
    each = (size << 20) // _LAYERS
    names, digests = [], []
    with tarfile.open(path, "w") as tar:
        for number in range(_LAYERS):
            layer = directory / "layer.tar"
            with tarfile.open(layer, "w") as inner:
                info = tarfile.TarInfo(f"data-{number}")
                info.size = each // 2
                inner.addfile(info, io.BytesIO(os.urandom(info.size)))
                info.name = f"words-{number}"
                words = f"{number} words that repeat\n".encode()
                inner.addfile(info, io.BytesIO((words * (info.size // len(words) + 1))[: info.size]))
            names.append(f"{number}/layer.tar")
            tar.add(layer, names[-1])
            with layer.open("rb") as file:
                digests.append(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
            layer.unlink()
        rootfs = {"type": "layers", "diff_ids": digests}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
        manifest = [{"Config": "config.json", "RepoTags": None, "Layers": names}]
        for name, facts in (("config.json", config), ("manifest.json", manifest)):
            content = json.dumps(facts).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
