"""An import goes on with an upload that it parked in an earlier life: a range of the source, and a hash at the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import huggingface_hub
import pytest

from backends.imports import Imports, ImportView
from backends.reconcilers.imports import ImportReconciler
from backends.settings import ImportSettings
from storage.access import Caller
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, NotFound
from storage.records import ImportState
from storage.tree import Node
from storage.vault import Vault
from tests.backends.web import Web, WebFile
from tests.gateway.data_tree import MemoryReader, MemoryTree

MIB = 1024 * 1024
BIG = os.urandom(9 * MIB + 77)
PATH = "/datasets/mnist/v1/big"


@dataclass
class ParkingTree(MemoryTree):
    """A tree that keeps the beginnings of files, as the upload engine does."""

    parked: dict[str, bytearray] = field(default_factory=dict)
    begun: list[tuple[str, int]] = field(default_factory=list)
    """Every writer: its path, and where it began."""

    def __post_init__(self) -> None:
        super().__init__()

    async def stat(self, caller: Caller, path: str) -> Node:
        if path in self.parked:
            return Node(path, is_directory=False, size=len(self.parked[path]), unfinished=True)
        return await super().stat(caller, path)

    async def open_writer(  # type: ignore[override]
        self, caller: Caller, path: str, *, truncate: bool, exclusive: bool = False, mtime: int | None = None
    ) -> ParkingWriter:
        if truncate:
            self.parked.pop(path, None)
        writer = ParkingWriter(self, path, self.parked.get(path, bytearray()))
        self.begun.append((path, writer.size))
        return writer

    async def remove(self, caller: Caller, path: str) -> None:
        if self.parked.pop(path, None) is None:
            await super().remove(caller, path)


@dataclass
class ParkingWriter:
    tree: ParkingTree
    path: str
    content: bytearray

    @property
    def size(self) -> int:
        return len(self.content)

    async def write(self, offset: int, data: bytes) -> None:
        if offset != len(self.content):
            raise BadInput("not in order")
        self.content += data

    async def flush(self) -> None:
        pass

    def set_mtime(self, seconds: int) -> None:
        pass

    def expect_size(self, size: int) -> None:
        pass

    def doubt(self) -> None:
        pass

    async def truncate(self, size: int) -> None:
        del self.content[size:]

    async def finish(self) -> Node:
        self.tree.parked.pop(self.path, None)
        self.tree.put(self.path, bytes(self.content))
        return Node(self.path, is_directory=False, size=len(self.content))

    async def abandon(self) -> None:
        if self.content:
            self.tree.parked[self.path] = self.content


@dataclass
class Room:
    imports: Imports
    reconciler: ImportReconciler
    tree: ParkingTree
    caller: Caller

    async def over(self, source: str) -> ImportView:
        view = await self.imports.request(self.caller, "dataset", "mnist", "v1", source)
        return await self.finished(view)

    async def finished(self, view: ImportView) -> ImportView:
        loop = asyncio.create_task(self.reconciler.run(), name="imports reconciler")
        try:
            async with asyncio.timeout(60):
                while not view.state.is_over:
                    await asyncio.sleep(0.05)
                    view = await self.imports.show(self.caller, view.id)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
        return view

    async def content(self) -> bytes:
        reader = await self.tree.open_reader(self.caller, PATH)
        assert isinstance(reader, MemoryReader)
        return await reader.read(0, 100 * MIB)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web().running() as web:
        yield web
    huggingface_hub.close_session()


@pytest.fixture
def room(
    database: Database,
    audit: AuditTrail,
    changes: Changes,
    accounts: Accounts,
    web: Web,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> Room:
    monkeypatch.setattr("backends.import_run._NOTE_SECONDS", 0.05)
    monkeypatch.setattr("backends.import_run._FIRST_PAUSE", 0.02)
    settings = ImportSettings(allow_hosts=(web.host,), hf_endpoint=web.url, attempts=1)
    tree, vault = ParkingTree(), Vault(b"x" * 43 + b"=")
    imports = Imports(database, audit, changes, tree, vault, settings)
    reconciler = ImportReconciler(database, audit, changes, accounts, tree, vault, settings)
    return Room(imports, reconciler, tree, alice)


def publish(web: Web, content: bytes = BIG) -> WebFile:
    repository = web.publish("org/set", "dataset", {"big": BIG}, lfs=frozenset({"big"}))
    file = web.files[f"/datasets/org/set/resolve/{repository.commit}/big"] = WebFile(content)
    return file


async def first_life(room: Room, file: WebFile, source: str, cuts: Sequence[int] = (6 * MIB,)) -> ImportView:
    """The source dies in the middle; what was received is parked."""
    file.cuts = [*cuts, *[0] * 20]
    view = await room.over(source)
    assert view.state is ImportState.FAILED
    assert len(room.tree.parked[PATH]) > 5 * MIB
    file.cuts = []
    return view


async def second_life(room: Room, view: ImportView) -> ImportView:
    return await room.finished(await room.imports.retry(room.caller, view.id))


@pytest.fixture(params=["hub", "web"])
def served(request: pytest.FixtureRequest, web: Web) -> tuple[WebFile, str, Sequence[int]]:
    """A file, its address, and where it is cut first: the hub tells digests, a web server an ETag only."""
    if request.param == "hub":
        return publish(web), "hf://datasets/org/set", (6 * MIB,)
    file = web.files["/big"] = WebFile(BIG)
    return file, f"{web.url}/big", (0, 6 * MIB)


Served = tuple[WebFile, str, Sequence[int]]


async def test_what_is_parked_is_not_fetched_again(room: Room, web: Web, served: Served) -> None:
    file, source, cuts = served
    view = await first_life(room, file, source, cuts)
    parked, seen = len(room.tree.parked[PATH]), len(web.asked)
    view = await second_life(room, view)
    assert (view.state, view.reason, view.bytes_done) == (ImportState.DONE, "", len(BIG))
    assert await room.content() == BIG
    assert [asked.headers.get("range") for asked in web.asked[seen:]] == [f"bytes={parked}-"]


async def test_a_store_that_kept_less_than_was_received(room: Room, served: Served) -> None:
    file, source, cuts = served
    view = await first_life(room, file, source, cuts)
    del room.tree.parked[PATH][5 * MIB :]
    view = await second_life(room, view)
    assert (view.state, await room.content() == BIG) == (ImportState.DONE, True)
    assert room.tree.begun[-1] == (PATH, 5 * MIB)


async def test_all_of_it_is_parked(room: Room, web: Web, served: Served) -> None:
    file, source, cuts = served
    view = await first_life(room, file, source, cuts)
    room.tree.parked[PATH] = bytearray(BIG)
    seen = len(web.asked)
    view = await second_life(room, view)
    assert (view.state, await room.content() == BIG) == (ImportState.DONE, True)
    assert len(web.asked) == seen


async def test_more_is_parked_than_the_file_has(room: Room, served: Served) -> None:
    file, source, cuts = served
    view = await first_life(room, file, source, cuts)
    room.tree.parked[PATH] = bytearray(len(BIG) + 5)
    view = await second_life(room, view)
    assert (view.state, await room.content() == BIG) == (ImportState.DONE, True)


async def test_parked_bytes_that_are_not_ours_are_found_and_nothing_of_them_stays(room: Room, served: Served) -> None:
    """Somebody begins an upload of another file under the same name while the import is down."""
    file, source, cuts = served
    view = await first_life(room, file, source, cuts)
    room.tree.parked[PATH][100] ^= 1
    view = await second_life(room, view)
    assert (view.state, "hash" in view.reason) == (ImportState.FAILED, True)
    with pytest.raises(NotFound):
        await room.tree.stat(room.caller, PATH)
    view = await second_life(room, view)
    assert (view.state, await room.content() == BIG) == (ImportState.DONE, True)


async def test_parked_bytes_from_before_the_import_are_not_gone_on_with(room: Room, served: Served) -> None:
    _, source, _ = served
    room.tree.parked[PATH] = bytearray(5 * MIB)
    view = await room.over(source)
    assert (view.state, await room.content() == BIG) == (ImportState.DONE, True)
    assert room.tree.begun[-1] == (PATH, 0)


async def test_a_wrong_byte_in_the_second_life_is_found(room: Room, web: Web) -> None:
    file = publish(web)
    view = await first_life(room, file, "hf://datasets/org/set")
    wrong = bytearray(BIG)
    wrong[-1] ^= 1
    file.content = bytes(wrong)
    view = await second_life(room, view)
    assert (view.state, "hash" in view.reason) == (ImportState.FAILED, True)
    with pytest.raises(NotFound):
        await room.tree.stat(room.caller, PATH)


async def test_a_source_without_ranges_is_read_again_and_only_the_rest_is_written(room: Room, served: Served) -> None:
    file, source, cuts = served
    view = await first_life(room, file, source, cuts)
    parked, file.ranges = len(room.tree.parked[PATH]), False
    view = await second_life(room, view)
    assert (view.state, await room.content() == BIG) == (ImportState.DONE, True)
    assert room.tree.begun[-1] == (PATH, parked)


async def test_a_changed_file_is_taken_from_its_beginning(room: Room, web: Web) -> None:
    file = web.files["/big"] = WebFile(os.urandom(9 * MIB))
    view = await first_life(room, file, f"{web.url}/big", (0, 6 * MIB))
    file.content = BIG
    view = await second_life(room, view)
    assert (view.state, view.reason) == (ImportState.DONE, "")
    assert await room.content() == BIG
