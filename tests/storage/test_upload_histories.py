"""Random histories: people open, write, break off, go on, rename and remove, processes die, the store fails.

After every step each object is what the model allows: all bytes that somebody sent and closed, or nothing. The seed is
in the name of the test and in every failure; `ASHORE_SEED` runs another one, `ASHORE_STEPS` a longer history.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select

from storage import rewriting, upload_progress
from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import AshoreError, NotFound, Unavailable
from storage.models import Models
from storage.namespace import DataTree
from storage.objects.contract import ObjectStore
from storage.objects.s3 import S3Store
from storage.records import Upload, UploadState
from storage.settings import ObjectSettings
from storage.tree import Writer
from storage.uploads import Uploads
from tests.storage.memory_store import MemoryStore

KIB, MIB = 1024, 1024 * 1024
PART = 64 * KIB
ROOT = "/datasets/d/v1"
PREFIX = "datasets/team/d/v1/"
NAMES = ("a", "b", "c d+%", "数据", "a.filepart", "b.0123abcd.partial", ".in.数据")
SEED = int(os.environ.get("ASHORE_SEED", "0")) or 20_261_124
STEPS = int(os.environ.get("ASHORE_STEPS", "0")) or 10_000


@dataclass(eq=False)
class Client:
    """Somebody who sends `source` to `name`."""

    name: str
    writer: Writer
    source: bytes
    old: bytes | None = None
    """What was there when a file was opened without truncation; its bytes stay where none are sent."""
    at: int = 0
    """How far it has come."""
    whole: int = 0
    """Behind the last byte that was taken."""
    held_back: list[tuple[int, bytes]] = field(default_factory=list)
    """Pieces that overtaken ones of them wait for."""
    hurt: bool = False
    """A write was refused or failed."""
    superseded: bool = False
    """Somebody began anew under the same name later."""
    idle: bool = False
    """It found a finished file, and has not changed anything."""
    begun: bool = False
    """It counts as the one who sends to this name."""

    @property
    def content(self) -> bytes:
        """What the file must be if it is closed now."""
        sent = self.source[: self.whole]
        if self.old is not None and len(self.old) > len(sent):
            return sent + self.old[len(sent) :] if self.whole else self.old
        return sent


class House:
    """The data plane over a store; it can die and come back."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, store: ObjectStore, part: int) -> None:
        self.database, self.audit, self.changes, self.store, self.part = database, audit, changes, store, part
        self.start()

    def start(self) -> None:
        self.uploads = Uploads(
            self.database, self.store, self.audit, self.changes, ObjectSettings(memory_mib=64, parked_most=10_000)
        )
        self.uploads.part_size = self.part
        datasets = Datasets(self.database, self.audit, self.changes, self.store)
        models = Models(self.database, self.audit, self.changes, self.store)
        self.tree = DataTree(self.database, self.audit, self.changes, self.store, self.uploads, datasets, models)

    async def die(self) -> None:
        """As SIGKILL does: no task comes to its end."""
        tasks = [task for task in self.uploads._tasks if not task.done()]
        for writer in tuple(self.uploads.live):
            tasks += [task for task in writer._flights if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.start()
        await self.uploads.recover()


class History:
    """The model, and the steps."""

    def __init__(
        self, house: House, caller: Caller, dice: random.Random, *, largest: int, writes: Sequence[int]
    ) -> None:
        self.house, self.caller, self.dice = house, caller, dice
        self.largest, self.writes = largest, writes
        self.clients: list[Client] = []
        self.allowed: dict[str, set[bytes | None]] = {}
        """Name → what its object may be."""
        self.sources: dict[str, bytes] = {}
        """Name → what its unfinished upload began to send."""
        self.read: dict[str, tuple[str, bytes]] = {}
        """Name → ETag and bytes of the object, as it was read last."""
        self.log: list[str] = []
        self.done: dict[str, int] = {}
        self.name = NAMES[0]
        self.is_looking = True

    # ---- steps -----------------------------------------------------------------------------------------------
    async def step(self) -> None:
        self.is_looking = False
        steps = {
            self.write: 60, self.open_new: 6, self.open_again: 9, self.close: 9, self.kill: 5, self.rename: 4,
            self.remove: 2, self.truncate: 1, self.look: 3, self.die: 0.4,
        }  # fmt: skip
        chosen = self.dice.choices(list(steps), list(steps.values()))[0]
        self.done[chosen.__name__] = self.done.get(chosen.__name__, 0) + 1
        await chosen()

    def note(self, text: str) -> None:
        self.log = [*self.log[-60:], text]

    def some_name(self) -> str:
        """Mostly the one of the last step: what goes wrong needs several steps on one name."""
        if self.dice.random() < 0.4:
            self.name = self.dice.choice(NAMES)
        return self.name

    def fresh(self) -> bytes:
        size = self.dice.choice([0, 1, self.house.part, 2 * self.house.part, self.dice.randrange(self.largest)])
        return self.dice.randbytes(size)

    async def open_new(self) -> None:
        if len(self.clients) > 6:
            return
        name, source = self.some_name(), self.fresh()
        try:
            writer = await self.house.tree.open_writer(self.caller, f"{ROOT}/{name}", truncate=True)
        except Unavailable:
            return
        self.note(f"open {name} for {len(source)}")
        self.clients.append(Client(name, writer, source))
        self.begin(self.clients[-1])

    async def open_again(self) -> None:
        """Go on with what is there, as `reput` does, or send it again without truncation, as `scp` does."""
        name = self.some_name()
        before = await self.object_of(name)
        try:
            try:
                node = await self.house.tree.stat(self.caller, f"{ROOT}/{name}")
            except NotFound:
                return
            writer = await self.house.tree.open_writer(self.caller, f"{ROOT}/{name}", truncate=False)
        except AshoreError as error:
            self.note(f"open {name} again: {error.message}")
            return
        size = writer.size
        self.note(f"open {name} again at {size}, unfinished {node.unfinished}")
        began, resumed = self.sources.get(name, b""), node.unfinished and size
        if node.unfinished and not size:
            before = None
        if node.unfinished and size:
            client = Client(name, writer, began, at=size, whole=size)
            assert size <= len(began), self.story()
            if self.dice.random() < 0.15:
                client.source, client.at, client.whole = self.fresh(), 0, 0
                if not client.source:
                    client.source = b"x"
        elif size and before is not None:
            start = self.dice.choice([0, size, size, self.dice.randrange(size + 1)])
            client = Client(name, writer, before[:start] + self.fresh(), old=before, at=start, whole=start)
        else:
            client = Client(name, writer, self.fresh())
        client.idle = before is not None or bool(resumed)
        client.begun = bool(resumed) and not client.old and client.whole > 0
        self.clients.append(client)
        if before is None and not resumed:
            self.begin(client)

    async def write(self) -> None:
        if not self.clients:
            return
        client = self.dice.choice(self.clients)
        for _ in range(self.dice.choice([1, 1, 3])):
            piece = self.piece_of(client)
            if piece is None:
                return
            offset, data = piece
            try:
                await client.writer.write(offset, data)
            except AshoreError as error:
                self.note(f"write {client.name} at {offset}: {error.message}")
                client.hurt = True
                return
            client.idle = False
            if not client.begun and not client.superseded:
                self.begin(client)
            client.whole = max(client.whole, offset + len(data))

    def piece_of(self, client: Client) -> tuple[int, bytes] | None:
        if client.held_back:
            return client.held_back.pop()
        size = self.dice.choice(self.writes)
        start = client.at
        if start >= len(client.source):
            return None
        if self.dice.random() < 0.03 and start > size and client.old is None:
            return start - size, client.source[start - size : start]  # once more
        data = client.source[start : start + size]
        client.at += len(data)
        if self.dice.random() < 0.1 and client.at < len(client.source) and client.old is None:
            ahead = client.source[client.at : client.at + size]
            client.held_back.append((start, data))
            start, data = client.at, ahead
            client.at += len(ahead)
        return start, data

    async def close(self) -> None:
        if not self.clients:
            return
        client = self.clients.pop(self.dice.randrange(len(self.clients)))
        missing = bool(client.held_back)
        promised = self.dice.random() < 0.2 and not (client.idle and client.whole == 0)
        if promised:
            client.writer.expect_size(len(client.source))
        try:
            node = await client.writer.finish()
        except AshoreError as error:
            self.note(f"close {client.name}: {error.message}")
            if isinstance(error, Unavailable) and not client.hurt and not missing:
                self.may_be(client.name, client.content)
            return
        assert not client.hurt, self.story()
        assert not missing, self.story()
        assert not promised or client.whole == len(client.source) or client.old is not None, self.story()
        self.note(f"close {client.name}: ok, {node.size}, unfinished {node.unfinished}")
        if client.idle and (node.unfinished or not client.begun):
            return
        for other in self.clients:
            other.superseded = other.superseded or other.name == client.name
        if node.unfinished:
            self.sources[client.name] = max(client.content, client.source, key=len)
        else:
            assert node.size == len(client.content), self.story()
            self.allowed[client.name] = {client.content}

    async def kill(self) -> None:
        if not self.clients:
            return
        client = self.clients.pop(self.dice.randrange(len(self.clients)))
        self.note(f"kill {client.name} at {client.whole}")
        await client.writer.abandon()

    async def rename(self) -> None:
        old, new = self.some_name(), self.dice.choice(NAMES)
        if self.dice.random() < 0.6:
            pairs = [("a.filepart", "a"), ("b.0123abcd.partial", "b"), (".in.数据", "数据")]
            old, new = next((pair for pair in pairs if pair[0] == old), self.dice.choice(pairs))
        if old == new:
            return
        was, sealed = await self.object_of(old), self.sources.get(old)
        node = None
        try:
            node = await self.house.tree.stat(self.caller, f"{ROOT}/{old}")
            await self.house.tree.rename(
                self.caller, f"{ROOT}/{old}", f"{ROOT}/{new}", replace=self.dice.random() < 0.7
            )
        except AshoreError as error:
            self.note(f"rename {old} to {new}: {error.message}")
            if node is not None and node.unfinished and sealed is not None:
                self.may_be(new, sealed[: node.size])
                for name in NAMES[:4]:  # it may have been completed under its own name
                    if old.find(name) >= 0 and isinstance(error, Unavailable):
                        self.may_be(name, sealed[: node.size])
            elif isinstance(error, Unavailable) and was is not None:
                self.may_be(new, was)
                self.may_be(old, None)
            return
        self.note(f"rename {old} to {new}: ok")
        if node.unfinished:
            assert sealed is not None
            self.allowed[new] = {sealed[: node.size]}
        else:
            self.allowed[new] = {was}
            self.allowed[old] = {None}

    async def remove(self) -> None:
        name = self.some_name()
        before = await self.object_of(name)
        try:
            await self.house.tree.remove(self.caller, f"{ROOT}/{name}")
        except AshoreError as error:
            self.note(f"remove {name}: {error.message}")
            if isinstance(error, Unavailable):
                self.may_be(name, None)
            return
        is_there = await self.object_of(name) is not None
        self.note(f"remove {name}: ok, of {before is not None}, there {is_there}")
        if before is None or is_there:  # what was removed is an unfinished upload
            assert any(client.name == name for client in self.clients) or name in self.sources, self.story()
            self.clients = [client for client in self.clients if client.name != name]
        else:
            self.allowed[name] = {None}

    async def truncate(self) -> None:
        if not self.clients:
            return
        client = self.dice.choice(self.clients)
        if client.old is None or client.held_back or client.hurt:
            return
        try:
            await client.writer.truncate(client.whole)
        except AshoreError as error:
            self.note(f"truncate {client.name} to {client.whole}: {error.message}")
            return
        if client.whole < len(client.old):
            client.old, client.idle = b"", False

    async def look(self) -> None:
        name = self.some_name()
        try:
            node = await self.house.tree.stat(self.caller, f"{ROOT}/{name}")
            reader = await self.house.tree.open_reader(self.caller, f"{ROOT}/{name}")
        except AshoreError:
            return
        try:
            size = reader.node.size
            data = b""
            while len(data) < size:
                data += await reader.read(len(data), 100_000)
            assert data in self.allowed.get(name, {None}), self.story()
            assert node.unfinished or node.size == size
        except Unavailable:
            return
        finally:
            await reader.close()

    async def die(self) -> None:
        self.note("the process dies")
        self.clients = []
        await self.house.die()

    # ---- the model -------------------------------------------------------------------------------------------
    def begin(self, client: Client) -> None:
        for other in self.clients:
            if other.name == client.name and other is not client:
                other.superseded = True
        client.begun = True
        self.sources[client.name] = client.source

    def may_be(self, name: str, content: bytes | None) -> None:
        self.allowed.setdefault(name, {None}).add(content)

    async def object_of(self, name: str) -> bytes | None:
        """What the store has under this name, whatever the tree says."""
        with self.working():
            try:
                facts = await self.house.store.head(PREFIX + name)
            except NotFound:
                return None
            known = self.read.get(name)
            if known is None or known[0] != facts.etag:
                known = self.read[name] = facts.etag, await self.house.store.get(PREFIX + name)
        return known[1]

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """The store does not fail while the model looks at it."""
        self.is_looking = True
        try:
            yield
        finally:
            self.is_looking = False

    async def check(self) -> None:
        for name in NAMES:
            assert await self.object_of(name) in self.allowed.get(name, {None}), f"{name}: {self.story()}"

    def story(self) -> str:
        return f"seed {SEED}\n" + "\n".join(self.log)


@pytest.fixture(autouse=True)
def _no_rows_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step finds depends on the steps before it, and never on how long they took."""
    monkeypatch.setattr(upload_progress, "_ROW_AFTER", 1e9)


async def play(history: History, steps: int, *, check_every: int) -> None:
    """Until everything has come to rest."""
    house, alice = history.house, history.caller
    await house.tree.mkdir(alice, "/datasets/d")
    await house.tree.mkdir(alice, ROOT)
    for number in range(steps):
        await history.step()
        if number % check_every == 0:
            await history.check()
    history.is_looking = True  # from here on nothing fails
    for client in history.clients:
        await client.writer.abandon()
    await house.uploads.close()
    house.start()
    await house.uploads.recover()
    await history.check()
    await _check_rows(house)
    print(f"seed {SEED}:", history.done)


async def _check_rows(house: House) -> None:
    """Every row is at rest, and what is parked is really there."""
    async with house.database.reading() as tx:
        rows = (await tx.scalars(select(Upload))).all()
    for row in rows:
        assert row.state not in (UploadState.OPEN, UploadState.SEALING, UploadState.COMPLETING)
        if row.state in (UploadState.PARKED, UploadState.SEALED):
            parts = await house.store.list_parts(row.key, row.s3_upload_id)
            assert sum(part.size for part in parts) >= row.size
    assert house.uploads.budget.used == 0


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [SEED])
async def test_random_histories(
    database: Database, audit: AuditTrail, changes: Changes, alice: Caller, seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(rewriting, "SMALLEST_PART", PART)
    dice, memory = random.Random(seed), MemoryStore(smallest=PART)
    house = House(database, audit, changes, memory, PART)
    history = History(house, alice, dice, largest=6 * PART, writes=(4 * KIB, 32 * KIB, 100_000, 256 * KIB))

    def fails(method: str, key: str) -> AshoreError | None:
        is_hit = method in _FAIL and not history.is_looking and dice.random() < 0.01
        return Unavailable("away") if is_hit else None

    def loses(method: str, key: str) -> AshoreError | None:
        return Unavailable("lost") if not history.is_looking and dice.random() < 0.02 else None

    memory.fault, memory.lost_answer = fails, loses
    await play(history, STEPS, check_every=1)


_FAIL = {"put_part", "put", "complete_upload", "head", "create_upload", "list_parts", "abort_upload", "get"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [SEED])
async def test_random_histories_on_a_real_store(
    database: Database, audit: AuditTrail, changes: Changes, store: S3Store, alice: Caller, seed: int
) -> None:
    house = House(database, audit, changes, store, 5 * MIB)
    history = History(house, alice, random.Random(seed), largest=13 * MIB, writes=(256 * KIB, MIB))
    await play(history, STEPS // 10, check_every=10)
