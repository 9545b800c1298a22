"""Which machine gets data by which way: its own copy, a volume over there, or the bucket that is mounted already."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from pydantic import ValidationError

from backends.compute.contract import HostMount, Progress, VolumeMount, folders_only
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.compute.volumes import VolumeWriter
from backends.data_shelves import Wanted
from backends.data_sites import Sites
from backends.settings import BackendSettings, CacheSettings, DockerHostSettings, DockerSettings
from storage.audit import AuditTrail
from storage.clock import now
from storage.database.engine import Database
from storage.errors import BadInput, Unavailable
from storage.records import Environment
from storage.uses import Uses
from tests.storage.memory_store import MemoryStore

WANTED = Wanted("v", "data mnist:v1", "datasets/main/mnist/v1/", sealed=True)


class FarCompute(MemoryCompute):
    """An engine on another machine, whose folders are told."""

    def __init__(self, engine: MemoryEngine, folders: Collection[str] = ()) -> None:
        super().__init__(engine)
        self.folders = folders
        self.asked: list[str] = []

    is_elsewhere = True

    async def has_volume(self, name: str) -> bool:
        return False

    async def delete_volume(self, name: str) -> None:
        return

    def volume_writer(self, name: str, progress: Progress) -> AbstractAsyncContextManager[VolumeWriter]:
        raise AssertionError

    async def clear_helpers(self, volumes: Collection[str]) -> None:
        return

    async def has_folder(self, folder: Path, progress: Progress) -> bool:
        self.asked.append(str(folder))
        return str(folder) in self.folders


class House:
    def __init__(self, database: Database, audit: AuditTrail, data: Path) -> None:
        self.root = data / "bucket"
        self.far = FarCompute(MemoryEngine(data / "far"), ["/mnt/jfs/datasets/main/mnist/v1"])
        self.near = MemoryCompute(MemoryEngine(data / "near"))
        hosts = {
            "far": DockerHostSettings(url="tcp://far:1", insecure=True, shared_root="/mnt/jfs/", cache_gib=7),
            "plain": DockerHostSettings(url="tcp://plain:1", insecure=True, cache_gib=5),
            "near": DockerHostSettings(url="unix:///x"),
        }
        settings = BackendSettings(
            docker=DockerSettings(hosts=hosts), cache=CacheSettings(gib=3, shared_root=str(self.root))
        )
        computes = {"docker/far": self.far, "docker/plain": self.far, "docker/near": self.near, "local": self.near}
        self.sites = Sites(data, MemoryStore(), audit, settings, computes, Uses(database))


@pytest.fixture
def house(database: Database, audit: AuditTrail, data_dir: Path) -> House:
    return House(database, audit, data_dir)


def on(compute: str, host: str = "") -> Environment:
    return Environment(compute=compute, host=host, created=now())


async def test_the_bucket_that_is_mounted_here(house: House) -> None:
    for environment in (on("local"), on("docker", "near")):
        site = house.sites.of(environment)
        words = r"data mnist:v1 is not to be seen on this machine: there is no folder .*mnist/v1; is the bucket mounted"
        with pytest.raises(Unavailable, match=words):
            await site.bring(WANTED, print)
    (house.root / WANTED.prefix).mkdir(parents=True)
    await site.bring(WANTED, print)
    assert await site.point("v", WANTED.prefix, "/gemini/data-1") == HostMount(
        house.root / "datasets/main/mnist/v1", "/gemini/data-1"
    )
    with pytest.raises(Unavailable, match="leads nowhere"):  # or the whole bucket would be shown
        await site.point("", "", "/gemini/data-1")


async def test_the_bucket_that_is_mounted_elsewhere(house: House) -> None:
    """It is looked for over there, by what the environment is made of."""
    site = house.sites.of(on("docker", "far"))
    await site.bring(WANTED, print)
    assert house.far.asked == ["/mnt/jfs/datasets/main/mnist/v1"]
    house.far.folders = ()
    with pytest.raises(Unavailable, match=r"not to be seen on the host far: .* is the bucket mounted at /mnt/jfs\?"):
        await site.bring(WANTED, print)


async def test_every_other_host_has_a_cache_of_its_own(house: House, data_dir: Path) -> None:
    plain = house.sites.of(on("docker", "plain"))
    assert (plain.root, plain.cache._settings.gib) == ("", 5)
    assert plain.cache is house.sites.of(on("docker", "plain")).cache
    assert plain.cache is not house.sites.of(on("local")).cache
    assert list(house.sites.caches()) == ["of this machine"]
    (data_dir / "cache-hosts" / "plain").mkdir(parents=True)
    assert list(house.sites.caches()) == ["of this machine", "on the host plain"]


def test_an_engine_without_volumes_says_so() -> None:
    with pytest.raises(BadInput, match="no volumes"):
        folders_only([VolumeMount("v", "/gemini/data-1")])


@pytest.mark.parametrize("path", ["relative", "/mnt/../etc", "/line\nbreak"])
def test_roots_are_absolute(path: str) -> None:
    with pytest.raises(ValidationError, match="absolute path"):
        CacheSettings(shared_root=path)
    with pytest.raises(ValidationError, match="absolute path"):
        DockerHostSettings(url="unix:///x", shared_root=path)
