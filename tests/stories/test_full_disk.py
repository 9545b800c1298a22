"""A disk that is full: the upload ends in a sentence and goes on when there is room; nothing else stops.

The disks are small ones of their own, so that nobody else's are filled; only root can mount them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stories.clients import run
from tests.stories.conftest import served
from tests.stories.stores import bad_store
from tests.stories.test_resume import Person, digest, parked, stored
from tests.stories.test_transfers import sftp

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


class SmallDisk:
    """A disk of `mib` MiB at `path`."""

    def __init__(self, path: Path, mib: int) -> None:
        self.path = path
        path.mkdir()
        run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "ashore-test", path])

    def resize(self, mib: int) -> None:
        run(["mount", "-o", f"remount,size={mib}m", self.path])

    @contextlib.contextmanager
    def filled(self, *, but: int) -> Iterator[None]:
        """Full, except for `but` bytes."""
        facts = os.statvfs(self.path)
        ballast = self.path / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - but)
        yield
        ballast.unlink()


@contextlib.contextmanager
def small_disk(path: Path, mib: int) -> Iterator[SmallDisk]:
    disk = SmallDisk(path, mib)
    try:
        yield disk
    finally:
        run(["umount", "-l", path])


def _source(directory: Path, size: int) -> Path:
    path = directory / "source"
    path.write_bytes(os.urandom(size))
    return path


def test_uploads_leave_room_for_the_records(tmp_path: Path) -> None:
    """The store shares its disk with the database and the audit trail: with a full disk nobody could log in."""
    source = _source(tmp_path, 160 * MIB)
    with (
        small_disk(tmp_path / "small", 640) as disk,
        served(disk.path, settings="[backends.docker]\nenabled = false\n") as gateway,
    ):
        sftp(gateway, "alice", "mkdir /datasets/d", "mkdir /datasets/d/v1")
        said = sftp(gateway, "alice", f"put {source} /datasets/d/v1/f", check=False)
        assert "the disk of the object store is full" in said
        assert "reput" in said
        kept = parked(gateway, "/datasets/d/v1/f")
        assert 0 < kept < source.stat().st_size
        facts = os.statvfs(disk.path)
        assert facts.f_bavail * facts.f_frsize > 480 * MIB
        gateway.ssh("alice", "dataset", "create", "other")  # what needs no room goes on
        disk.resize(1024)
        Person(gateway, tmp_path).reput(source, "/datasets/d/v1/f")
        assert stored(gateway, "/datasets/d/v1/f") == digest(source)


def test_a_store_elsewhere_that_has_no_room_left(tmp_path: Path) -> None:
    """Nothing tells the gateway beforehand: SeaweedFS answers with an error when its disk takes no more."""
    source = _source(tmp_path, 33_000_001)
    with small_disk(tmp_path / "small", 640) as disk, bad_store(disk.path / "store") as store:
        settings = store.settings(memory_mib=64) + "[backends.docker]\nenabled = false\n"
        with served(tmp_path / "gateway", settings=settings) as gateway:
            sftp(gateway, "alice", "mkdir /datasets/d", "mkdir /datasets/d/v1")
            with disk.filled(but=16 * MIB):
                said = sftp(gateway, "alice", f"put {source} /datasets/d/v1/f", check=False)
                assert "the object store failed" in said
                assert "reput" in said
                assert parked(gateway, "/datasets/d/v1/f") < source.stat().st_size
            Person(gateway, tmp_path).reput(source, "/datasets/d/v1/f")
            assert stored(gateway, "/datasets/d/v1/f") == digest(source)
