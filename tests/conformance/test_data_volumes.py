"""Data on a Docker engine that does not see this machine's files: volumes over there, through a real SSH server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from backends.compute.contract import VolumeMount, WorkloadSpec
from backends.compute.docker.config import GUEST
from backends.compute.docker.driver import DockerCompute
from backends.compute.docker.guest_volume import GuestVolume
from backends.data_cache import DataCache, measure
from backends.data_shelves import VolumeShelf, Wanted
from backends.settings import CacheSettings, DockerSettings
from storage.audit import AuditTrail
from storage.database.engine import Database
from storage.errors import AshoreError, BadInput, Conflict, OverQuota, Unavailable
from storage.records import AuditEvent
from tests.conformance.conftest import IMAGE, run
from tests.conformance.docker_hosts import Sshd
from tests.storage.memory_store import MemoryStore

MIB = 1024**2
FILES = {
    "f": b"one\n", "empty": b"", "deep/er/数据 with space": b"two\n", ".wh.deep": b"no whiteout\n", "-n": b"a dash\n",
    "l" * 200 + "/" + "n" * 200: b"a long name\n", "large": os.urandom(20 * MIB + 17),
}  # fmt: skip


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    yield sshd
    sshd.stop()


class Far:
    """A host behind SSH with its cache, over a store in memory; `used` is what its environments have mounted."""

    def __init__(self, compute: DockerCompute, directory: Path, audit: AuditTrail) -> None:
        self.compute, self.directory, self.audit = compute, directory, audit
        self.store = MemoryStore()
        self.mark = secrets.token_hex(6)
        """In the names of all its volumes: others may use the same engine meanwhile."""
        self.used: set[str] = set()
        self.gets: list[str] = []
        self.store.fault = self.count
        self.cache = self.again()

    def again(self, gib: int = 0) -> DataCache:
        """Another cache over the same notes, as after a restart."""
        shelf = VolumeShelf(self.store, self.compute, "far")
        self.cache = DataCache(self.directory, shelf, self.audit, CacheSettings(gib=gib), self.in_use)
        return self.cache

    async def in_use(self) -> Collection[str]:
        return self.used

    def count(self, method: str, key: str) -> AshoreError | None:
        if method == "get":
            self.gets.append(key)
        return None

    async def version(self, name: str, files: Mapping[str, bytes], *, sealed: bool = True) -> Wanted:
        for path, content in files.items():
            await self.store.put(f"datasets/main/{name}/v1/{path}", content)
        return self.wanted(name, sealed=sealed)

    def wanted(self, name: str, *, sealed: bool = True) -> Wanted:
        return Wanted(self.id(name), f"data {name}:v1", f"datasets/main/{name}/v1/", sealed)

    def id(self, name: str) -> str:
        return f"{self.mark}-{name}"

    def entry(self, name: str) -> Path:
        return self.directory / self.id(name)

    async def fetch(self, wanted: Wanted) -> list[str]:
        said: list[str] = []
        self.gets.clear()
        await self.cache.fetch(wanted, said.append)
        return said

    async def volume(self, name: str) -> str:
        mount = await self.cache.mount(self.id(name), "/gemini/data-1")
        assert isinstance(mount, VolumeMount)
        return mount.volume

    async def inside(self, name: str) -> dict[str, bytes]:
        """Digests of the files of a volume, by a way that is not ours."""
        script = "cd /v && find . -type f -exec sha256sum {} +; find . -type d -empty -exec echo empty {} ;"
        words = ["docker", "run", "--rm", "-v", f"{await self.volume(name)}:/v:ro", IMAGE, "/bin/sh", "-c", script]
        words[-1] = words[-1].replace(" ;", " \\;")
        done = await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, timeout=60)
        lines = [line.split(b"  ", 1) for line in done.stdout.splitlines() if not line.startswith(b"empty ")]
        return {path.decode().removeprefix("./"): digest for digest, path in lines}

    def volumes(self) -> list[str]:
        return sorted(_docker("volume", "ls", "-q", "--filter", f"name=ashore-data-{self.mark}"))

    def helpers(self) -> list[str]:
        return _docker("ps", "-aq", "--filter", f"name={self.mark}")


def sums(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {path: hashlib.sha256(content).hexdigest().encode() for path, content in files.items()}


def _docker(*words: str) -> list[str]:
    done = subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


@pytest.fixture
async def far(tmp_path: Path, guest: Path, sshd: Sshd, audit: AuditTrail) -> AsyncIterator[Far]:
    compute = DockerCompute(guest, DockerSettings(), sshd.host(), name="docker/far")
    far = Far(compute, tmp_path / "cache-hosts" / "far", audit)
    yield far
    await compute.close()
    assert far.helpers() == []
    for volume in (*far.volumes(), *_docker("volume", "ls", "-q", "--filter", f"name=ashore-guest-{guest.name}")):
        subprocess.run(["docker", "volume", "rm", volume], check=False, capture_output=True, timeout=60)


async def test_files_are_there_as_they_were_sent(far: Far, database: Database) -> None:
    """Also names that tar, shells and Docker's layers treat in their own way, and nothing on this machine's disk."""
    wanted = await far.version("a", FILES)
    said = await far.fetch(wanted)
    assert said[0] == "data a:v1: looking at what is there"
    assert said[-1] == "data a:v1 100 %"
    assert await far.inside("a") == sums(FILES)
    assert sum(path.stat().st_size for path in far.directory.rglob("*") if path.is_file()) < MIB
    assert await far.fetch(wanted) == []
    far.again()
    assert await far.fetch(wanted) == []
    use = measure(far.directory, gib=3)
    assert (use.copies, use.bytes, use.limit) == (1, sum(map(len, FILES.values())), 3 * 1024**3)
    async with database.reading() as tx:
        event = await tx.scalar(select(AuditEvent).where(AuditEvent.action == "cache.fill"))
    assert event is not None
    assert (event.thing, event.detail["host"], event.detail["files"]) == ("data a:v1", "far", len(FILES))


async def test_only_what_is_new_or_was_changed_travels(far: Far) -> None:
    """A version that is not published yet: files are changed, deleted, and become directories."""
    files = {"same": b"1", "changed": b"2", "gone/deep/file": b"3", "place": b"4", "dir/inner": b"5"}
    await far.fetch(await far.version("a", files, sealed=False))
    volume = await far.volume("a")
    newer = {"same": b"1", "changed": b"22", "place/file": b"6", "dir": b"7"}
    for path in files.keys() - newer.keys():
        await far.store.delete(f"datasets/main/a/v1/{path}")
    far.again()
    await far.fetch(await far.version("a", {**newer, "same": b"1"}, sealed=False))
    assert await far.inside("a") == sums(newer)
    assert await far.volume("a") == volume
    assert "datasets/main/a/v1/same" not in far.gets
    assert (await far.fetch(far.wanted("a")))[-1] == "data a:v1 100 %"
    assert far.gets == []


async def test_an_empty_version_is_an_empty_folder(far: Far) -> None:
    await far.fetch(await far.version("a", {"only/": b""}))
    assert await far.inside("a") == {}
    await far.fetch(await far.version("b", {}))
    assert await far.inside("b") == {}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": b"", "a/b": b""}, "has a file and a directory of one name, see 'a'"),
        ({"../x": b""}, "can be no file"),
        ({"n" * 300: b""}, "longer than a file's may be"),
        ({"line\nbreak": b""}, "control characters"),
    ],
)
async def test_names_that_cannot_be(far: Far, files: Mapping[str, bytes], words: str) -> None:
    wanted = await far.version("a", files)
    with pytest.raises(BadInput, match=words):
        await far.fetch(wanted)
    assert far.volumes() == []


async def test_two_who_want_it_at_once_share_the_way(far: Far) -> None:
    wanted = await far.version("a", {f"{number}": b"x" * 1000 for number in range(100)})
    one, two = list[str](), list[str]()
    await asyncio.gather(far.cache.fetch(wanted, one.append), far.cache.fetch(wanted, two.append))
    assert one[-1] == two[-1] == "data a:v1 100 %"
    assert len(far.gets) == 100


async def test_cut_off_it_goes_on_where_it_was(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway ends in the middle, also without a chance to clean up: a helper is left, what was safe stays."""
    monkeypatch.setattr("backends.data_volume_sync._MOST_FILES", 10)
    monkeypatch.setattr("backends.data_volume_sync._SAFE_FILES", 10)
    files = {f"{number:03}": os.urandom(1000) for number in range(100)}
    wanted = await far.version("a", files)
    stuck, get = asyncio.Event(), far.store.get

    async def until_then(key: str, **more: object) -> bytes:
        if key.endswith("/045"):
            stuck.set()
            await asyncio.Event().wait()
        return await get(key, **more)  # type: ignore[arg-type]

    far.store.get = until_then  # type: ignore[method-assign, assignment]
    fetching = asyncio.create_task(far.fetch(wanted))
    await stuck.wait()
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    volume = await far.volume("a")
    _docker("create", "--name", f"{volume}-fill", "--label", f"ashore.fill={volume}", "-v", f"{volume}:/v", IMAGE)
    far.store.get = get  # type: ignore[method-assign]
    far.again()
    await far.fetch(wanted)
    assert sorted(key[-3:] for key in far.gets) == [f"{number:03}" for number in range(40, 100)]
    assert await far.volume("a") == volume
    assert await far.inside("a") == sums(files)


async def test_helpers_of_a_crash_go_with_the_sweep(far: Far) -> None:
    await far.fetch(await far.version("a", {"f": b"x"}))
    volume = await far.volume("a")
    _docker("create", "--name", f"{volume}-run", "--label", f"ashore.fill={volume}", "-v", f"{volume}:/v", IMAGE)
    other = _docker("create", "--label", "ashore.fill=ashore-data-of-another-house", IMAGE)
    await far.cache.sweep(_all)
    assert far.helpers() == []
    assert set(other) <= set(_docker("ps", "-aq", "--no-trunc"))
    _docker("rm", *other)


async def test_a_volume_that_was_removed_is_filled_anew(far: Far) -> None:
    """Docker would mount an empty one without a word."""
    files = {"f": b"content"}
    for sealed in (True, False):
        wanted = await far.version("a", files, sealed=sealed)
        await far.fetch(wanted)
        _docker("volume", "rm", await far.volume("a"))
        await far.fetch(wanted)
        assert await far.inside("a") == sums(files)


async def test_the_store_and_the_host_fail(
    tmp_path: Path, far: Far, guest: Path, audit: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong is said, not that the request was cut off by it."""
    monkeypatch.setattr("backends.data_sync._PAUSES", (0.0,))
    wanted = await far.version("a", {f"{number}": b"x" for number in range(50)})
    far.store.fault = lambda method, key: Unavailable("the object store is away") if key.endswith("/30") else None
    with pytest.raises(Unavailable, match="the object store is away"):
        await far.fetch(wanted)
    far.store.fault = lambda method, key: Conflict("replaced") if key.endswith("/30") else None
    with pytest.raises(Conflict, match=r"data a:v1 was changed while it was copied"):
        await far.fetch(wanted)
    far.store.fault = far.count
    broken = Sshd(tmp_path / "broken")
    compute = DockerCompute(guest, DockerSettings(), broken.host(), name="docker/far")
    other = Far(compute, tmp_path / "cache-hosts" / "other", audit)
    wanted = await other.version("b", {"f": bytes(MIB)})
    get = other.store.get

    async def cut(key: str, **more: object) -> bytes:
        pid = broken.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        broken.process.terminate()
        return await get(key, **more)  # type: ignore[arg-type]

    other.store.get = cut  # type: ignore[method-assign, assignment]
    with pytest.raises(Unavailable, match="does not answer"):
        await other.fetch(wanted)
    await compute.close()
    broken.process.wait(timeout=20)
    _docker("rm", "-f", *other.helpers())
    _docker("volume", "rm", *other.volumes())


# ---- room --------------------------------------------------------------------------------------------------------
async def _all(names: Collection[str]) -> Collection[str]:
    return names


async def test_room_is_made_and_what_is_mounted_stays(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least recently used first; never what an environment of the host has, at rest or not."""
    monkeypatch.setattr("backends.data_cache.GIB", MIB)
    far.again(gib=3)
    versions = {name: await far.version(name, {"f": bytes(MIB)}) for name in "abcd"}
    for seconds, name in enumerate("abc"):
        await far.fetch(versions[name])
        os.utime(far.entry(name) / "state.json", (seconds, seconds))
    far.used = {far.id("a")}
    await far.fetch(versions["d"])
    assert sorted(path.name[-1] for path in far.directory.iterdir()) == ["a", "c", "d"]
    assert len(far.volumes()) == 3
    far.used = {far.id(name) for name in "acd"}
    with pytest.raises(OverQuota, match=r"there is no room for data b:v1 on the host far"):
        await far.fetch(versions["b"])
    far.used = {far.id("c")}
    far.again(gib=1)
    await far.cache.sweep(_all)
    assert far.volumes() == [await far.volume("c")]


async def test_deleted_versions_go(far: Far) -> None:
    await far.fetch(await far.version("a", {"f": b""}))

    async def nothing(names: Collection[str]) -> Collection[str]:
        return ()

    far.used = {far.id("a")}
    await far.cache.sweep(nothing)
    assert len(far.volumes()) == 1
    far.used = set()
    await far.cache.sweep(nothing)
    assert far.volumes() == []
    assert list(far.directory.iterdir()) == []


async def test_a_volume_that_somebody_else_mounts_is_left(far: Far) -> None:
    """The records say that nobody has it; the engine knows better, and the sweep goes on."""
    await far.fetch(await far.version("a", {"f": b"kept"}))
    held = _docker("create", "-v", f"{await far.volume('a')}:/v", IMAGE)

    async def nothing(names: Collection[str]) -> Collection[str]:
        return ()

    await far.cache.sweep(nothing)
    assert (far.entry("a") / "state.json").exists()
    _docker("rm", *held)
    assert await far.inside("a") == sums({"f": b"kept"})


# ---- inside ------------------------------------------------------------------------------------------------------
async def test_environments_see_it_read_only(far: Far) -> None:
    """What the image has at the path never gets into the volume; another version is seen by a container made anew."""
    await far.fetch(await far.version("a", {"f": b"one\n"}))
    await far.fetch(await far.version("b", {"f": b"two\n"}))
    await far.fetch(await far.version("void", {}))
    void = VolumeMount(await far.volume("void"), "/usr/share/common-licenses")
    name = secrets.token_hex(8)
    spec = WorkloadSpec(
        name,
        "train",
        "alice",
        f"team-{name}",
        IMAGE,
        mounts=(VolumeMount(await far.volume("a"), "/gemini/data-1"), void),
    )
    handle = await far.compute.create(spec, print)
    try:
        await far.compute.start(handle, spec, print)
        script = "cat /gemini/data-1/f; ls /usr/share/common-licenses | wc -l; echo mine > /workspace/file"
        assert await run(far.compute, handle, script) == (0, b"one\n0\n")
        for attempt in ("echo x > /gemini/data-1/new", "rm -f /gemini/data-1/f", "touch /gemini/data-1/f"):
            status, _ = await run(far.compute, handle, attempt)
            assert status != 0
        with pytest.raises(Conflict):
            await far.compute.delete_volume(await far.volume("a"))
        await far.compute.stop(handle, grace=1)
        spec = replace(spec, mounts=(VolumeMount(await far.volume("b"), "/gemini/data-1"), void))
        assert await far.compute.create(spec, print) == handle
        await far.compute.start(handle, spec, print)
        assert await run(far.compute, handle, "cat /gemini/data-1/f /workspace/file") == (0, b"two\nmine\n")
    finally:
        await far.compute.delete(handle)


async def test_folders_over_there_are_looked_for(far: Far, tmp_path: Path) -> None:
    assert await far.compute.has_folder(tmp_path, print)
    assert not await far.compute.has_folder(tmp_path / "nothing", print)
    assert not (tmp_path / "nothing").exists()


async def test_no_image_brings_its_own_guest(far: Far, tmp_path: Path) -> None:
    """Docker fills an empty volume with what an image has at that path: everybody there would run a stranger's sshd."""
    guest = tmp_path / far.mark
    guest.mkdir()
    for name in ("sshd", "manifest.json"):
        (guest / name).write_text("ours\n")
    image, volume = f"hostile-{far.mark}", GuestVolume(far.compute._engine, guest, f"hostile-{far.mark}")
    plant = f"mkdir -p {GUEST} && echo theirs | tee {GUEST}/sshd {GUEST}/manifest.json"
    _docker("run", "--name", image, IMAGE, "/bin/sh", "-c", plant)
    try:
        _docker("commit", image, image)
        await volume.bring()
        assert _docker("run", "--rm", "-v", f"{volume.name}:/v:ro", IMAGE, "cat", "/v/sshd") == ["ours"]
    finally:
        _docker("rm", image)
        _docker("volume", "rm", volume.name)
        _docker("rmi", image)
