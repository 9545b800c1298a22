"""Archives of images, from the last byte to the registry: real `docker save`, `skopeo` and `docker-registry`; and what
is broken, hostile or cut off."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from sqlalchemy import select

from backends.archives import tar
from backends.archives.bytes import GZIP, ZSTD, UnpackedBytes, unpacked
from backends.archives.shelf import ImageShelf
from backends.archives.views import Archives
from backends.images import Images
from backends.reconcilers import archives
from backends.reconcilers.archives import ArchiveReconciler
from backends.registry import Registry
from backends.registry_child import EmbeddedRegistry
from backends.settings import ImageSettings, RegistrySettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AshoreError, BadInput, NotAllowed, NotFound, Unavailable
from storage.records import ArchiveState, FileFact, Image, ImageArchive, ImageState, Upload
from storage.settings import ObjectSettings
from storage.uploads import Uploads
from tests.storage.memory_store import MemoryStore

IMAGE = "debian:bookworm"


class House:
    """The shelf, the reconciler and a real registry over a store in memory."""

    def __init__(
        self, database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, at: RegistrySettings,
        settings: ImageSettings,
    ) -> None:  # fmt: skip
        self.database, self.audit, self.changes, self.accounts = database, audit, changes, accounts
        self.store = MemoryStore()
        self.settings, self.at = settings, at
        self.uploads = Uploads(database, self.store, audit, changes, ObjectSettings())
        self.images = Images(database, audit, changes, at, settings)
        self.registry = Registry(at)
        self.shelf = ImageShelf(
            database, audit, self.store, self.uploads, self.images, settings, None, self.time  # type: ignore[arg-type]
        )  # fmt: skip
        self.archives = Archives(database, self.time)
        self.later = timedelta(0)
        self.free: int | None = None

    def time(self) -> Any:
        return now() + self.later

    def reconciler(self) -> ArchiveReconciler:
        return ArchiveReconciler(
            self.database, self.audit, self.changes, self.accounts, self.uploads, self.images, self.registry,
            self.settings, self.time, free=lambda: self.free,
        )  # fmt: skip

    async def put(self, caller: Caller, name: str, content: bytes) -> None:
        writer = await self.shelf.open_writer(caller, f"/{name}", truncate=True)
        for at in range(0, len(content), 1 << 20):
            await writer.write(at, content[at : at + (1 << 20)])
        await writer.finish()

    async def work(self) -> None:
        """One round over everything."""
        reconciler = self.reconciler()
        for key in await reconciler.look():
            await reconciler.act(key)

    async def sent(self, caller: Caller, name: str, content: bytes) -> ImageArchive:
        """What became of an archive."""
        await self.put(caller, name, content)
        await self.work()
        return (await self.rows())[-1]

    async def rows(self) -> Sequence[ImageArchive]:
        async with self.database.reading() as tx:
            return (await tx.scalars(select(ImageArchive).order_by(ImageArchive.created))).all()

    async def image(self, row: ImageArchive) -> Image:
        async with self.database.reading() as tx:
            return await tx.get_one(Image, row.image_id)

    async def objects(self) -> list[str]:
        return [facts.key async for page in self.store.list("") for facts in page]

    async def facts(self) -> Sequence[FileFact]:
        async with self.database.reading() as tx:
            return (await tx.scalars(select(FileFact))).all()


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[EmbeddedRegistry]:
    child = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    yield child
    await child.close()


@pytest.fixture
async def house(
    database: Database, audit: AuditTrail, changes: Changes, accounts: Accounts, child: EmbeddedRegistry
) -> AsyncIterator[House]:
    house = House(
        database, audit, changes, accounts, await child.start(RegistrySettings()), ImageSettings(archive_gib=1)
    )
    yield house
    await house.uploads.close()
    await house.registry.close()


# ---- archives by hand --------------------------------------------------------------------------------------------
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
    packed: Callable[[bytes], bytes] = lambda content: content,
) -> bytes:  # fmt: skip
    """As `docker save` makes them: layers first, manifest.json last."""
    config = config_of(*layers) if config is None else config
    names = names or [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": None, "Layers": list(names)}]
    files = [File(f"{number}/layer.tar", packed(layer)) for number, layer in enumerate(layers)]
    return tar_of(*files, *extra, File("config.json", config), File("manifest.json", json.dumps(manifest).encode()))


def oci_archive(
    layer: bytes, *, blob: bytes | None = None, size: int | None = None, copies: int = 1, digest: str = ""
) -> bytes:
    blob = gzip.compress(layer) if blob is None else blob
    config = config_of(layer)
    of = "application/vnd.oci.image"
    facts = {
        "schemaVersion": 2,
        "config": {"mediaType": f"{of}.config.v1+json", "digest": digest_of(config), "size": len(config)},
        "layers": [{
            "mediaType": f"{of}.layer.v1.tar+gzip", "digest": digest or digest_of(blob),
            "size": len(blob) if size is None else size,
        }],
    }  # fmt: skip
    manifest = json.dumps(facts).encode()
    one = {"mediaType": f"{of}.manifest.v1+json", "digest": digest_of(manifest), "size": len(manifest)}
    other = {**one, "digest": digest_of(b"another")}
    index = {"schemaVersion": 2, "manifests": [one, *[other] * (copies - 1)]}
    blobs = [File(f"blobs/sha256/{digest_of(part)[7:]}", part) for part in (config, manifest)]
    named = File(f"blobs/sha256/{(digest or digest_of(blob))[7:]}", blob)
    marks = [File("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), File("index.json", json.dumps(index).encode())]
    return tar_of(*marks, *blobs, named)


SMALL = layer_of(b"hello")
NOISE = layer_of(os.urandom(3_000_000))


# ---- what real programs make -------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`docker save` of a real image."""
    path = tmp_path_factory.mktemp("saved") / "image.tar"
    subprocess.run(["docker", "save", "-o", path, IMAGE], check=True)
    return path


def skopeo(*words: str | Path) -> None:
    subprocess.run(["skopeo", "copy", "--quiet", *map(str, words)], check=True, capture_output=True)


def image_id(reference: str) -> str:
    shown = subprocess.run(["docker", "image", "inspect", "-f", "{{.Id}}", reference], check=True, capture_output=True)
    return shown.stdout.decode().strip()


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "tar.gz", "tar.zst"])
async def test_what_real_programs_save(house: House, alice: Caller, saved: Path, tmp_path: Path, form: str) -> None:
    """The configuration, and so the id of the image, is the same at the end as it was in the engine."""
    content, name = saved.read_bytes(), "debian_v1.tar"
    if form == "oci-archive":
        skopeo(f"docker-archive:{saved}", f"oci-archive:{tmp_path}/oci.tar:x")
        content = (tmp_path / "oci.tar").read_bytes()
    elif form == "tar.gz":
        content, name = gzip.compress(content, 1), "debian_v1.tar.gz"
    elif form == "tar.zst":
        content, name = zstandard.compress(content, 3), "debian_v1.tar.zst"
    row = await house.sent(alice, name, content)
    assert (row.state, row.reason) == (ArchiveState.READY, "")
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    view = await house.images.show(alice, "debian:v1")
    assert (view.state, view.architecture) == (ImageState.READY, "amd64")
    image = await house.image(row)
    found = await house.registry.manifest(image.repository, "v1")
    assert found.digest == view.digest == digest_of(found.body)
    if form != "oci-archive":
        assert found.facts["config"]["digest"] == image_id(IMAGE)
    assert view.size == sum(one["size"] for one in (found.facts["config"], *found.facts["layers"]))
    assert await house.objects() == []
    assert await house.facts() == []


# ---- what is taken -----------------------------------------------------------------------------------------------
LINKED = File("1/layer.tar", b"", tarfile.SYMTYPE, "../0/layer.tar")
LONG = "a/" * 120 + "layer.tar"


@pytest.mark.parametrize(
    "content",
    [
        docker_archive(SMALL),
        docker_archive(SMALL, NOISE),
        docker_archive(SMALL, config=config_of(SMALL, SMALL), names=["0/layer.tar", "1/layer.tar"], extra=[LINKED]),
        docker_archive(SMALL, config=config_of(SMALL, SMALL), names=["0/layer.tar", "0/layer.tar"]),
        docker_archive(SMALL, config=config_of(SMALL, NOISE), names=["0/layer.tar", LONG], extra=[File(LONG, NOISE)]),
        docker_archive(NOISE, packed=gzip.compress),
        docker_archive(NOISE, packed=zstandard.compress),
        docker_archive(NOISE, packed=lambda content: gzip.compress(content[:999]) + gzip.compress(content[999:])),
        oci_archive(NOISE),
        oci_archive(NOISE, blob=NOISE),
        oci_archive(NOISE, blob=zstandard.compress(NOISE)),
        gzip.compress(docker_archive(SMALL)),
    ],
    ids=["one", "two", "link", "twice", "long name", "gzip", "zstd", "members", "oci", "oci plain", "oci zstd", "gz"],
)
async def test_archives_that_become_images(house: House, alice: Caller, content: bytes) -> None:
    row = await house.sent(alice, "model_v1.tar", content)
    assert (row.state, row.reason) == (ArchiveState.READY, "")
    image = await house.image(row)
    found = await house.registry.manifest(image.repository, "v1")
    for one in found.facts["layers"]:
        assert await house.registry.has_blob(image.repository, one["digest"])
    assert await house.objects() == []


async def test_cuda_and_driver_are_told(house: House, alice: Caller) -> None:
    variables = ["PATH=/bin", "CUDA_VERSION=12.4.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.4,driver>=470 brand=tesla"]
    content = docker_archive(SMALL, config=config_of(SMALL, config={"Env": variables}))
    await house.sent(alice, "model_v1.tar", docker_archive(SMALL))
    await house.sent(alice, "model_v1.tar", content)
    view = await house.images.show(alice, "model:v1")
    assert view.cuda == "12.4.1"


# ---- what is refused ---------------------------------------------------------------------------------------------
ZEROS = bytes(100_000_000)
BOMB = gzip.compress(ZEROS, 1)
PADDED = docker_archive(SMALL, extra=[File("pad", ZEROS)])
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends too early"),
    "words": (b"hello" * 1000, "no tar file"),
    "cut off": (docker_archive(NOISE)[:-1_000_000], "ends too early"),
    "cut off gz": (gzip.compress(docker_archive(NOISE))[:-1000], "ends too early"),
    "damaged gz": (b"\x1f\x8b" + os.urandom(5000), "damaged"),
    "damaged zst": (b"\x28\xb5\x2f\xfd" + os.urandom(5000), "damaged"),
    "no image": (tar_of(File("a", b"b")), "neither manifest.json"),
    "climbs": (docker_archive(SMALL, extra=[File("../../etc/passwd", b"x")]), "leaves it"),
    "absolute": (docker_archive(SMALL, extra=[File("/etc/passwd", b"x")]), "leaves it"),
    "link that leaves": (docker_archive(SMALL, extra=[File("a", b"", tarfile.SYMTYPE, "../../x")]), "leaves it"),
    "link to /": (docker_archive(SMALL, extra=[File("a", b"", tarfile.SYMTYPE, "/etc/passwd")]), "leaves it"),
    "hard link": (docker_archive(SMALL, extra=[File("a", b"", tarfile.LNKTYPE, "../x")]), "leaves it"),
    "circle": (docker_archive(names=["a"], config=config_of(SMALL), extra=[File("a", b"", tarfile.SYMTYPE, "b"),
                              File("b", b"", tarfile.SYMTYPE, "a")]), "lacks 'a'"),
    "device": (docker_archive(SMALL, extra=[File("sda", b"", tarfile.BLKTYPE)]), "device"),
    "pipe": (docker_archive(SMALL, extra=[File("pipe", b"", tarfile.FIFOTYPE)]), "device"),
    "twice": (docker_archive(SMALL, extra=[File("0/layer.tar", b"x")]), "twice"),
    "lacks a layer": (docker_archive(SMALL, names=["5/layer.tar"]), "lacks"),
    "other layer": (docker_archive(SMALL, config=config_of(NOISE)), "digest"),
    "layers missing": (docker_archive(SMALL, config=config_of(SMALL, NOISE)), "has 1 layers"),
    "no layers": (docker_archive(), "0 layers"),
    "bad config": (docker_archive(SMALL, config=b"{"), "cannot be read"),
    "deep config": (docker_archive(SMALL, config=b"[" * 100_000), "cannot be read"),
    "list as config": (docker_archive(SMALL, config=b"[]"), "does not say"),
    "windows": (docker_archive(SMALL, config=config_of(SMALL, os="windows")), "not for Linux"),
    "steps for others": (docker_archive(SMALL, config=config_of(SMALL, config={"OnBuild": ["USER root"]})), "ONBUILD"),
    "bomb": (gzip.compress(PADDED, 1), "fill disks"),
    "zstd bomb": (zstandard.compress(PADDED, 1), "fill disks"),
    "bomb in a layer": (docker_archive(BOMB, config=config_of(SMALL)), "fill disks"),
    "bomb in oci": (oci_archive(SMALL, blob=BOMB), "fill disks"),
    "oci digest": (oci_archive(NOISE, digest="sha256:" + "0" * 64), "digest"),
    "oci size": (oci_archive(NOISE, size=7), "another size"),
    "oci two": (oci_archive(NOISE, copies=2), "2 images"),
    "layer is no gz": (docker_archive(SMALL, packed=lambda content: b"\x1f\x8b" + content), "damaged"),
    "layer cut off": (docker_archive(NOISE, packed=lambda content: gzip.compress(content)[:-99]), "ends too early"),
    "two images": (tar_of(File("manifest.json", json.dumps([{}, {}]).encode())), "2 images"),
    "manifest of numbers": (tar_of(File("manifest.json", b"[7]")), "cannot be read"),
    "index of numbers": (tar_of(File("oci-layout", b"{}"), File("index.json", b'{"manifests": [7]}')), "without a sha"),
    "many entries": (tar_of(*[File(f"f{n}") for n in range(11_000)]), "more than 10000 entries"),
    "many extended headers": (header_of(tarfile.XHDTYPE, b"6 a=b\n") * 11_000, "more than 10000 entries"),
    "many global headers": (header_of(tarfile.XGLTYPE, b"6 a=b\n") * 11_000, "more than 10000 entries"),
    "many long names": (gzip.compress(header_of(tarfile.GNUTYPE_LONGNAME, b"a") * 11_000), "more than 10000 entries"),
    "long header": (header_of(tarfile.XHDTYPE, b"6 a=b\n" * 20_000), "more than 64 KiB"),
    "endless number": (header_of(tarfile.XHDTYPE, b"1" * 5000 + b" a=b\n"), "damaged header"),
    "endless size": (header_of(tarfile.XHDTYPE, b"5012 size=" + b"1" * 5001 + b"\n") + SMALL, "impossible size"),
    "odd size": (header_of(tarfile.XHDTYPE, "11 size=²\n".encode()) + SMALL, "impossible size"),
    "endless name": (header_of(tarfile.GNUTYPE_LONGNAME, b"a" * 5000) + SMALL, "endless name"),
    "terminal": (docker_archive(SMALL, extra=[File("../\x1b[31m", b"")]), "leaves it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_archives_that_are_refused(house: House, alice: Caller, case: str) -> None:
    """Each with a sentence, and nothing of it stays: no object, no image that could be used, no blob half-way."""
    content, sentence = REFUSED[case]
    row = await house.sent(alice, "model_v1.tar", content)
    assert row.state is ArchiveState.FAILED
    assert sentence in row.reason
    assert "\x1b" not in row.reason
    assert await house.objects() == []
    assert await house.facts() == []
    for view in await house.images.list(alice):
        assert (view.state, view.is_usable) == (ImageState.FAILED, False)
    again = await house.sent(alice, "model_v1.tar", docker_archive(SMALL))
    assert again.state is ArchiveState.READY


@pytest.mark.parametrize("name", ["model.zip", "a/b_v1.tar", "_v1.tar", "MODEL%_v1.tar"])
async def test_names_that_say_no_image_are_refused_at_once(house: House, alice: Caller, name: str) -> None:
    with pytest.raises((BadInput, NotFound)):
        await house.shelf.open_writer(alice, f"/{name}", truncate=True)
    assert await house.objects() == []


async def test_without_a_registry_nothing_is_taken(house: House, alice: Caller) -> None:
    house.images = Images(house.database, house.audit, house.changes, RegistrySettings())
    shelf = ImageShelf(
        house.database, house.audit, house.store, house.uploads, house.images, house.settings, None,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(Unavailable, match="docker-registry"):
        await shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    with pytest.raises(NotAllowed):
        await shelf.mkdir(alice, "/x")


# ---- whose, and cut off ------------------------------------------------------------------------------------------
async def test_two_people_send_the_same_name(house: House, alice: Caller, bob: Caller) -> None:
    one, other = docker_archive(SMALL), docker_archive(NOISE)
    await house.put(alice, "model_v1.tar", one)
    await house.put(bob, "model_v1.tar", other)
    assert [node.name async for node in house.shelf.list(alice, "/")] == ["model_v1.tar"]
    assert (await house.shelf.stat(alice, "/model_v1.tar")).size == len(one)
    await house.work()
    mine, theirs = await house.images.show(alice, "model:v1"), await house.images.show(bob, "model:v1")
    assert mine.digest != theirs.digest
    assert mine.reference != theirs.reference
    assert [view.owner for view in await house.archives.list(alice, ready=True)] == ["alice"]


async def test_a_client_still_finds_the_size_of_what_it_sent(house: House, alice: Caller) -> None:
    """It asks after CLOSE, and a small archive is an image by then."""
    content = docker_archive(SMALL)
    await house.sent(alice, "model_v1.tar", content)
    assert (await house.shelf.stat(alice, "/model_v1.tar")).size == len(content)
    house.later = timedelta(hours=2)
    with pytest.raises(NotFound):
        await house.shelf.stat(alice, "/model_v1.tar")


@pytest.mark.parametrize("step", ["has_blob", "upload", "put_manifest"])
async def test_it_goes_on_after_a_crash(
    house: House, alice: Caller, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is cut off, the next process makes one image of it, and announces it once."""
    await house.put(alice, "model_v1.tar", docker_archive(SMALL, NOISE))
    with monkeypatch.context() as patch:

        def die(*_: object, **__: object) -> None:
            raise asyncio.CancelledError

        patch.setattr(Registry, step, die)
        with pytest.raises(asyncio.CancelledError):
            await house.work()
    await house.work()
    (row,) = await house.rows()
    assert (row.state, row.reason, row.attempts) == (ArchiveState.READY, "", 2)
    assert len(await house.images.list(alice)) == 1
    assert await house.objects() == []


async def test_one_that_ends_the_process_each_time_is_given_up(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.put(alice, "model_v1.tar", docker_archive(SMALL))
    with monkeypatch.context() as patch:

        async def die(*_: object) -> None:
            raise asyncio.CancelledError

        patch.setattr("backends.archives.transfer.Transfer.look", die)
        for _ in range(10):
            with pytest.raises(asyncio.CancelledError):
                await house.work()
    await house.work()
    (row,) = await house.rows()
    assert row.state is ArchiveState.FAILED
    assert "too often" in row.reason


async def test_a_registry_that_is_away_is_waited_for(house: House, child: EmbeddedRegistry, alice: Caller) -> None:
    await house.put(alice, "model_v1.tar", docker_archive(SMALL))
    await child.close()
    with pytest.raises(Unavailable):
        await house.work()
    (row,) = await house.rows()
    assert not row.state.is_over
    assert "does not answer" in row.reason
    await child.start(RegistrySettings())
    await house.work()
    assert (await house.rows())[0].state is ArchiveState.READY


async def test_after_six_hours_it_is_given_up(house: House, child: EmbeddedRegistry, alice: Caller) -> None:
    await house.put(alice, "model_v1.tar", docker_archive(SMALL))
    await child.close()
    with pytest.raises(Unavailable):
        await house.work()
    house.later = timedelta(hours=6, minutes=1)
    await house.work()
    (row,) = await house.rows()
    assert row.state is ArchiveState.FAILED
    assert await house.objects() == []


async def test_a_full_disk_is_waited_for(house: House, alice: Caller) -> None:
    house.free = 1000
    await house.put(alice, "model_v1.tar", docker_archive(NOISE))
    with pytest.raises(Unavailable, match="no room"):
        await house.work()
    house.free = None
    await house.work()
    assert (await house.rows())[0].state is ArchiveState.READY


async def test_a_newer_file_of_the_name_is_another_archive(house: House, alice: Caller) -> None:
    """What is read is the very object that arrived; its successor is not removed with it."""
    await house.put(alice, "model_v1.tar", docker_archive(SMALL))
    reconciler = house.reconciler()
    (first,) = await reconciler.look()
    await house.put(alice, "model_v1.tar", docker_archive(NOISE))
    await reconciler.act(first)
    await house.work()
    states = [row.state for row in await house.rows()]
    assert states == [ArchiveState.FAILED, ArchiveState.READY]
    assert await house.objects() == []


async def test_interrupted_uploads_are_swept_six_hours_after_their_last_byte(house: House, alice: Caller) -> None:
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    content = os.urandom(1 << 20)
    for at in range(20):
        await writer.write(at << 20, content)
    await writer.abandon()
    node = await house.shelf.stat(alice, "/model_v1.tar")
    assert node.unfinished
    assert node.size == 16 << 20
    await house.work()
    assert (await house.shelf.stat(alice, "/model_v1.tar")).unfinished
    async with house.database.writing() as tx:
        for row in await tx.scalars(select(Upload)):
            row.touched = now() - timedelta(hours=6, minutes=1)
    await house.work()
    with pytest.raises(NotFound):
        await house.shelf.stat(alice, "/model_v1.tar")


async def test_an_interrupt_that_looked_like_an_end_goes_on(house: House, alice: Caller) -> None:
    """OpenSSH's sftp closes the file at Ctrl-C as if it were whole: it is refused, kept, and reput sends the rest."""
    content = docker_archive(layer_of(os.urandom(20 << 20)))
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    for at in range(0, 18 << 20, 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    writer.doubt()
    await writer.finish()
    await house.work()
    assert [(row.state, "too early" in row.reason) for row in await house.rows()] == [(ArchiveState.FAILED, True)]
    node = await house.shelf.stat(alice, "/model_v1.tar")
    assert node.size == 18 << 20
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=False)
    for at in range(18 << 20, len(content), 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    await writer.finish()
    await house.work()
    assert [row.state for row in await house.rows()] == [ArchiveState.FAILED, ArchiveState.READY]
    assert await house.objects() == []


async def test_a_resumed_one_gets_its_hash_nevertheless(house: House, alice: Caller) -> None:
    content = docker_archive(layer_of(os.urandom(20 << 20)))
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=True)
    for at in range(0, 18 << 20, 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    await writer.abandon()
    node = await house.shelf.stat(alice, "/model_v1.tar")
    writer = await house.shelf.open_writer(alice, "/model_v1.tar", truncate=False)
    await writer.write(node.size, content[node.size : node.size + (1 << 20)])
    for at in range(node.size + (1 << 20), len(content), 1 << 20):
        await writer.write(at, content[at : at + (1 << 20)])
    await writer.finish()
    await house.work()
    (row,) = await house.rows()
    assert (row.state, row.sha256) == (ArchiveState.READY, hashlib.sha256(content).hexdigest())


async def test_no_layer_is_held_in_memory(house: House, alice: Caller) -> None:
    """Pieces of 4 MiB, a few of them; not one of the 100 MiB of this layer."""
    import tracemalloc

    await house.put(alice, "model_v1.tar", docker_archive(layer_of(os.urandom(100 << 20))))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    await house.work()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert (await house.rows())[0].state is ArchiveState.READY
    assert peak < 48 << 20


@pytest.mark.parametrize(("kind", "pack"), [(GZIP, gzip.compress), (ZSTD, zstandard.compress)], ids=["gzip", "zstd"])
async def test_packed_streams_of_many_members(kind: bytes, pack: Callable[[bytes], bytes]) -> None:
    """Some empty ones among others are fine, thousands in a row are not; nothing is lost wherever pieces end."""
    parts = [os.urandom(n) for n in (1, 5000, 70_000)] + [bytes(9_000_000), b""] + [b"x", b""] * 2000
    whole = b"".join(map(pack, parts)) + (bytes(512) if kind == GZIP else b"")

    async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(content), size):
            yield content[at : at + size]

    for size in (len(whole), 4097, 1 << 16):
        found = b"".join([one async for one in unpacked(pieces(whole, size), kind, 1 << 30)])
        assert found == b"".join(parts)
    with pytest.raises(BadInput, match="empty pieces"):
        async for _ in unpacked(pieces(pack(b"") * 60_000, 4 << 20), kind, 1 << 30):
            pass


async def test_one_that_takes_too_long_lets_others_go_on(
    house: House, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(archives, "_SLOWEST", 1 << 60)
    row = await house.sent(alice, "model_v1.tar", docker_archive(SMALL))
    assert (row.state, "longer" in row.reason) == (ArchiveState.FAILED, True)
    assert await house.objects() == []


async def test_others_have_their_turn_while_headers_are_read() -> None:
    """4 MiB that are unpacked already hold 8192 headers: nothing else would be waited for between them."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def packed() -> AsyncIterator[bytes]:
        yield gzip.compress(tar_of(*[File(f"f{n}") for n in range(6000)]))

    task = asyncio.create_task(others())
    found = [entry.name async for entry in tar.entries(UnpackedBytes(packed(), GZIP, 1 << 30), 10_000)]
    task.cancel()
    assert found == [f"f{n}" for n in range(6000)]
    assert turns > 80


async def test_errors_of_the_tree_are_ours(house: House, alice: Caller) -> None:
    for question in (
        house.shelf.remove(alice, "/nothing_v1.tar"), house.shelf.rename(alice, "/a_v1.tar", "/b_v1.tar", replace=True),
        house.shelf.open_reader(alice, "/"), house.shelf.rmdir(alice, "/"), house.shelf.stat(alice, "/a/b"),
    ):  # fmt: skip
        with pytest.raises(AshoreError):
            await question
