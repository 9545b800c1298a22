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
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
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

        def ours() -> float:
            with kit.registry(runner) as at:
                return MIB / seconds(lambda: runner.run(kit.transfer(at)))

        def theirs() -> float:
            with kit.registry(runner) as at:
                auth = bed.directory / "auth.json"
                auth.write_text(auth_file(at))
                return MIB / seconds(lambda: runner.run(kit.skopeo(at, auth)))

        name = f"archive to registry, {MIB} MiB"
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        yield Comparison(name, "MiB/s", interleaved(ours, theirs), "skopeo copy docker-archive: docker://", 0.8)
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak is not None
        yield Figure("archive to registry, memory of the process", "MiB", int(peak[1]) / 1024)
        runner.run(kit.close())


class _Kit:
    """The archive both as a file and in the object store."""

    def __init__(self, directory: Path, source: Path, store: S3Store) -> None:
        self._directory = directory
        self._source = source
        self._store = store
        self._stored: Stored | None = None
        self._number = itertools.count()

    @classmethod
    async def made(cls, bed: Bed, source: Path) -> _Kit:
        settings = json.loads((bed.gateway.data / "run" / "house.json").read_text())["objects"]
        secret = SecretStr(settings.pop("secret_key"))
        kit = cls(bed.directory, source, S3Store(ObjectSettings(**settings, secret_key=secret)))
        await kit._put()
        return kit

    @contextmanager
    def registry(self, runner: asyncio.Runner) -> Iterator[RegistrySettings]:
        """A new one for each round: skopeo remembers where it has pushed a layer to, and would not send it again."""
        directory = self._directory / f"registry-{next(self._number)}"
        child = EmbeddedRegistry(directory, log=self._directory / "registry.log")
        try:
            yield runner.run(child.start(RegistrySettings()))
        finally:
            runner.run(child.close())
            shutil.rmtree(directory)

    async def _put(self) -> None:
        upload = await self._store.create_upload("bench-image")
        parts: list[tuple[int, str]] = []
        with self._source.open("rb") as file:
            while piece := file.read(_PART):
                number = len(parts) + 1
                parts.append((number, await self._store.put_part("bench-image", upload, number, piece)))
        etag = await self._store.complete_upload("bench-image", upload, parts)
        self._stored = Stored("bench-image", etag, self._source.stat().st_size)

    async def transfer(self, at: RegistrySettings) -> None:
        assert self._stored is not None
        registry = Registry(at)
        transfer = Transfer(self._store, self._stored, ImageSettings(), lambda done: None)
        layout = await transfer.look()
        blobs = await transfer.send(layout, registry, "bench/model")
        await transfer.publish(layout, blobs, registry, "bench/model", "v1")
        await registry.close()

    async def skopeo(self, at: RegistrySettings, auth: Path) -> None:
        command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--dest-authfile", str(auth)]
        command += [f"docker-archive:{self._source}", f"docker://{at.prefix}bench/model:v1"]
        # On the loop, which serves the registry's port.
        process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
        _, said = await process.communicate()
        if process.returncode:
            raise RuntimeError(said.decode())

    async def close(self) -> None:
        await self._store.delete("bench-image")
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
