"""One object store for all storage tests; a bucket of its own for each test that asks for one.

It is the embedded one, or with `ASHORE_TEST_S3=http://host:port,ACCESS,SECRET` in the environment any other S3 service.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr

from storage.access import Caller
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.models import Models
from storage.namespace import DataTree
from storage.objects.embedded import EmbeddedStore
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings
from storage.tree import Node
from storage.uploads import Uploads


@pytest.fixture(scope="session")
def object_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectSettings]:
    """A running store. Its keeper lives on a loop of its own, because every test has another."""
    if other := os.environ.get("ASHORE_TEST_S3"):
        endpoint, access, secret = other.split(",", 2)
        yield ObjectSettings(endpoint=endpoint, access_key=access, secret_key=SecretStr(secret))
        return
    directory = tmp_path_factory.mktemp("objects")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="object store of the tests")
    thread.start()
    service = EmbeddedStore(directory)
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(60)
    yield service.settings
    asyncio.run_coroutine_threadsafe(service.close(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def object_settings(object_service: ObjectSettings) -> ObjectSettings:
    return object_service.model_copy(update={"bucket": f"test-{secrets.token_hex(6)}", "part_mib": 5})


@pytest.fixture
async def store(object_settings: ObjectSettings) -> AsyncIterator[S3Store]:
    store = S3Store(object_settings)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
async def uploads(
    database: Database, store: S3Store, audit: AuditTrail, changes: Changes, object_settings: ObjectSettings
) -> AsyncIterator[Uploads]:
    uploads = Uploads(database, store, audit, changes, object_settings)
    yield uploads
    await uploads.close()


@pytest.fixture
def datasets(database: Database, audit: AuditTrail, changes: Changes, store: S3Store) -> Datasets:
    return Datasets(database, audit, changes, store)


@pytest.fixture
def models(database: Database, audit: AuditTrail, changes: Changes, store: S3Store) -> Models:
    return Models(database, audit, changes, store)


@pytest.fixture
def tree(
    database: Database,
    audit: AuditTrail,
    changes: Changes,
    store: S3Store,
    uploads: Uploads,
    datasets: Datasets,
    models: Models,
) -> DataTree:
    return DataTree(database, audit, changes, store, uploads, datasets, models)


@dataclass(frozen=True)
class Desk:
    """A tree with one caller, in few words."""

    tree: DataTree
    caller: Caller

    async def put(self, path: str, content: bytes, *, mtime: int | None = None) -> Node:
        writer = await self.tree.open_writer(self.caller, path, truncate=True, mtime=mtime)
        step = 32768
        for start in range(0, len(content), step):
            await writer.write(start, content[start : start + step])
        return await writer.finish()

    async def get(self, path: str) -> bytes:
        reader = await self.tree.open_reader(self.caller, path)
        pieces = []
        offset = 0
        while piece := await reader.read(offset, 261120):
            pieces.append(piece)
            offset += len(piece)
        await reader.close()
        return b"".join(pieces)

    async def names(self, path: str) -> list[str]:
        return [node.name + "/" * node.is_directory async for node in self.tree.list(self.caller, path)]


@pytest.fixture
async def desk(tree: DataTree, alice: Caller) -> Desk:
    """Alice's tree with an empty version `/datasets/d/v1`."""
    await tree.mkdir(alice, "/datasets/d")
    await tree.mkdir(alice, "/datasets/d/v1")
    return Desk(tree, alice)


@pytest.fixture
def root() -> str:
    """The path of the version that `desk` made."""
    return "/datasets/d/v1"
