"""One copy of a version: what arrives, what is refused before anything arrives, and what goes on after every cut."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import data_sync
from backends.data_index import Totals, checked_path
from backends.data_sync import PIECE, Changed, Sync
from storage.errors import AshoreError, BadInput, Unavailable
from tests.storage.memory_store import MemoryStore

PREFIX = "datasets/main/mnist/v1/"
TITLE = "data mnist:v1"


class Bed:
    """A store, a folder, and runs between them."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        self.root, self.scratch = folder / "files", folder / "scratch"
        self.got: list[str] = []
        self.said: list[tuple[int, int]] = []
        self.store.fault = self.count
        self.broken: dict[str, AshoreError] = {}

    def count(self, method: str, key: str) -> AshoreError | None:
        if method != "get":
            return None
        name = key.removeprefix(PREFIX)
        self.got.append(name)
        return self.broken.get(name)

    async def put(self, **files: bytes) -> None:
        for name, content in files.items():
            await self.store.put(PREFIX + name, content)

    async def run(self, parallel: int = 4) -> Totals:
        async def room(totals: Totals) -> None:
            return

        sync = Sync(
            self.store, title=TITLE, prefix=PREFIX, root=self.root, scratch=self.scratch, parallel=parallel,
            on_bytes=lambda here, total: self.said.append((here, total)),
        )  # fmt: skip
        return await sync.run(room)

    def files(self) -> dict[str, bytes]:
        found = [path for path in self.root.rglob("*") if not path.is_dir()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sync, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


# ---- what arrives ------------------------------------------------------------------------------------------------
async def test_files_arrive_as_they_are_and_read_only(bed: Bed, strict_umask: None) -> None:
    files = {"a": b"1", "deep/er/数据 with space": os.urandom(70_000), "empty": b"", "large": os.urandom(3 * PIECE + 5)}
    await bed.put(**files)
    totals = await bed.run()
    assert bed.files() == files
    assert (totals.files, totals.bytes) == (4, sum(map(len, files.values())))
    assert bed.said[-1] == (totals.bytes, totals.bytes)
    for path in bed.root.rglob("*"):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o755 if path.is_dir() else 0o444), path
    assert not list(bed.scratch.glob("*.part"))


async def test_only_what_is_new_comes_a_second_time(bed: Bed) -> None:
    await bed.put(a=b"1", b=b"2", **{"d/c": b"3"})
    await bed.run()
    bed.got.clear()
    assert (await bed.run()).missing == 0
    assert bed.got == []
    await bed.put(b=b"two", e=b"5")
    await bed.store.delete(PREFIX + "d/c")
    assert (await bed.run()).missing == 4
    assert sorted(bed.got) == ["b", "e"]
    assert bed.files() == {"a": b"1", "b": b"two", "e": b"5"}
    assert not (bed.root / "d").exists()


async def test_files_and_directories_change_places(bed: Bed) -> None:
    await bed.put(a=b"1", **{"b/c/d": b"2"})
    await bed.run()
    for name in ("a", "b/c/d"):
        await bed.store.delete(PREFIX + name)
    await bed.put(b=b"3", **{"a/x": b"4", "dir/": b""})
    await bed.run()
    assert bed.files() == {"b": b"3", "a/x": b"4"}
    assert (bed.root / "dir").is_dir()
    await bed.store.delete(PREFIX + "dir/")
    await bed.run()
    assert not (bed.root / "dir").exists()


async def test_what_vanished_from_the_disk_comes_again(bed: Bed) -> None:
    await bed.put(a=b"1", b=b"22")
    await bed.run()
    (bed.root / "a").unlink()
    (bed.root / "b").unlink()
    (bed.root / "b").write_bytes(b"2")
    await bed.run()
    assert bed.files() == {"a": b"1", "b": b"22"}


async def test_many_files_and_no_more_requests_than_allowed(bed: Bed) -> None:
    now = most = 0
    get = bed.store.get

    async def counted(*arguments: object, **more: object) -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        try:
            return await get(*arguments, **more)  # type: ignore[arg-type]
        finally:
            now -= 1

    bed.store.get = counted  # type: ignore[method-assign, assignment]
    await bed.put(large=bytes(5 * PIECE), **{f"{n % 7}/{n}": b"%d" % n for n in range(1500)})
    await bed.run(parallel=3)
    assert most <= 3
    assert len(bed.files()) == 1501


# ---- what is cut off ---------------------------------------------------------------------------------------------
async def test_a_large_file_goes_on_where_it_is_safe(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sync, "_SAFE", PIECE)
    content = os.urandom(9 * PIECE + 1)
    await bed.put(large=content)
    bed.store.fault = lambda method, key: (
        Unavailable("away") if method == "get" and bed.count(method, key) is None and len(bed.got) > 6 else None
    )
    with pytest.raises(Unavailable, match="away"):
        await bed.run()
    assert not bed.files()
    bed.store.fault = bed.count
    bed.got.clear()
    totals = await bed.run()
    assert totals.missing <= len(content) - PIECE
    assert len(bed.got) < 9
    assert bed.said[-1] == (len(content), len(content))
    assert bed.files() == {"large": content}


async def test_a_part_of_another_version_is_not_gone_on_with(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sync, "_SAFE", PIECE)
    await bed.put(large=os.urandom(6 * PIECE))
    bed.store.fault = lambda method, key: Unavailable("away") if bed.count(method, key) or len(bed.got) > 4 else None
    with pytest.raises(Unavailable):
        await bed.run()
    bed.store.fault = bed.count
    content = os.urandom(6 * PIECE)
    await bed.put(large=content)
    assert (await bed.run()).missing == len(content)
    assert bed.files() == {"large": content}


async def test_a_draft_that_lost_its_bytes_is_begun_anew(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sync, "_SAFE", PIECE)
    content = os.urandom(6 * PIECE)
    await bed.put(large=content)
    bed.store.fault = lambda method, key: Unavailable("away") if bed.count(method, key) or len(bed.got) > 4 else None
    with pytest.raises(Unavailable):
        await bed.run()
    (draft,) = bed.scratch.glob("*.part")
    os.truncate(draft, 10)
    bed.store.fault = bed.count
    await bed.run()
    assert bed.files() == {"large": content}


async def test_cancelled_at_any_moment_it_goes_on(bed: Bed) -> None:
    files = {f"{n}": os.urandom(1000) for n in range(300)} | {"large": os.urandom(4 * PIECE)}
    await bed.put(**files)
    for moment in (0.001, 0.01, 0.02, 0.05, 0.1):
        task = asyncio.create_task(bed.run())
        await asyncio.sleep(moment)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for name, content in bed.files().items():
            assert content == files[name]
    await bed.run()
    assert bed.files() == files


async def test_a_store_that_fails_for_a_moment_is_asked_again(bed: Bed) -> None:
    await bed.put(a=b"1")
    bed.store.fault = lambda method, key: (
        Unavailable("away") if method == "get" and bed.count(method, key) is None and len(bed.got) < 3 else None
    )
    await bed.run()
    assert bed.files() == {"a": b"1"}
    assert len(bed.got) == 3


@pytest.mark.parametrize("size", [100, 3 * PIECE])
async def test_what_is_replaced_meanwhile_never_mixes(bed: Bed, size: int) -> None:
    await bed.put(a=bytes(size))

    def replaced(method: str, key: str) -> AshoreError | None:
        if method == "get":
            bed.store.objects[key].etag = "another"
        return None

    bed.store.fault = replaced
    with pytest.raises(Changed, match="data mnist:v1 was changed while it was copied"):
        await bed.run()
    assert not bed.files()


async def test_too_few_bytes_are_no_file(bed: Bed) -> None:
    await bed.put(a=b"12345")
    bed.store.objects[PREFIX + "a"].body = b"123"
    listed = bed.store.list

    async def lying(prefix: str, *, delimiter: bool = False) -> object:
        async for page in listed(prefix, delimiter=delimiter):
            yield [type(facts)(facts.key, 5, facts.etag) for facts in page]

    bed.store.list = lying  # type: ignore[method-assign, assignment]
    with pytest.raises(Unavailable, match="less than it has"):
        await bed.run()
    assert not bed.files()


async def test_a_full_disk_is_said(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_sync, "_write_at", full)
    await bed.put(a=b"1")
    with pytest.raises(Unavailable, match="data mnist:v1 cannot be kept on this machine: No space left"):
        await bed.run()


@pytest.mark.parametrize("harm", ["nothing", "garbage"])
async def test_without_its_index_nothing_of_former_times_is_left(bed: Bed, harm: str) -> None:
    await bed.put(a=b"1", **{"d/b": b"2"})
    await bed.run()
    folder = bed.root.stat().st_ino
    for path in bed.scratch.glob("index*"):
        path.unlink()
    if harm == "garbage":
        (bed.scratch / "index.sqlite").write_bytes(os.urandom(10_000))
    await bed.store.delete(PREFIX + "d/b")
    await bed.run()
    assert bed.files() == {"a": b"1"}
    assert bed.root.stat().st_ino == folder


# ---- names -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "../escape", "a/../../escape", "a/..", "..", ".", "a/./b", "/etc/passwd", "a//b", "a//", "//", "x\ny", "x\0y",
        "\x7f", "x" * 256, "a/" + "数" * 86, "/".join(["x" * 200] * 6), "\ud800",
    ],
)  # fmt: skip
async def test_names_that_no_file_can_have(bed: Bed, name: str) -> None:
    await bed.put(fine=b"1")
    await bed.put(**{name: b"x"})
    with pytest.raises(BadInput, match="data mnist:v1 holds"):
        await bed.run()
    assert bed.got == []
    assert not bed.files()
    assert sorted(path.name for path in bed.root.parent.iterdir()) == ["files", "scratch"]


@pytest.mark.parametrize("name", ["...", "a/..b", "-rf", "~", "a\\b", "con", " ", "x" * 255, "e\u0301", "\u202e"])
def test_names_that_are_odd_and_possible(name: str) -> None:
    assert checked_path(name, TITLE) == name


async def test_a_file_and_a_directory_of_one_name(bed: Bed) -> None:
    await bed.put(a=b"1", **{"a/b": b"2"})
    with pytest.raises(BadInput, match="a file and a directory of one name"):
        await bed.run()


async def test_upper_and_lower_case(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    await bed.put(**{"d/Readme": b"1", "d/README": b"2"})
    await bed.run()
    assert bed.files() == {"d/Readme": b"1", "d/README": b"2"}
    monkeypatch.setattr(data_sync, "ignores_case", lambda folder: True)
    with pytest.raises(BadInput, match="'d/README' and 'd/Readme'"):
        await bed.run()


async def test_links_that_somebody_put_there_are_not_followed(bed: Bed, tmp_path: Path) -> None:
    """Nobody but us writes there. If somebody managed to, still nothing outside is touched."""
    (tmp_path / "outside").write_bytes(b"mine")
    bed.root.mkdir()
    (bed.root / "a").symlink_to(tmp_path / "outside")
    await bed.put(a=b"1")
    await bed.run()
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert not (bed.root / "a").is_symlink()
