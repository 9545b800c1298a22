"""`dataset import`, `import …` and `dataset url`: what people type and see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from backends.imports import Imports
from backends.reconcilers.imports import ImportReconciler
from backends.services import Services
from backends.settings import ImportSettings
from gateway.commands.parsing import duration
from storage.access import Caller
from storage.errors import BadInput
from storage.links import Links
from storage.objects.contract import ObjectFacts
from storage.settings import ObjectSettings
from storage.vault import Vault
from tests.backends.web import Web, WebFile
from tests.gateway.commands.conftest import Desk
from tests.gateway.data_tree import MemoryTree


class Places(MemoryTree):
    """A tree in memory whose files are objects too."""

    async def locate(self, caller: Caller, path: str) -> ObjectFacts:
        node = await self.stat(caller, path)
        return ObjectFacts(path[1:], node.size)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web().running() as web:
        yield web


@pytest.fixture
def places() -> Places:
    return Places()


@pytest.fixture
def desk(services: Services, web: Web, places: Places) -> Desk:
    settings = ImportSettings(allow_hosts=(web.host,), attempts=2)
    vault = Vault(b"x" * 43 + b"=")
    imports = Imports(services.database, services.audit, services.changes, places, vault, settings)
    objects = ObjectSettings(endpoint="http://127.0.0.1:8333", access_key="a", secret_key=cast("Any", "secret"))
    links = Links(cast("Any", places), services.audit, objects)
    return Desk(replace(services, imports=imports, links=links, files=cast("Any", places)))


@asynccontextmanager
async def reconciling(desk: Desk, web: Web) -> AsyncIterator[None]:
    services = desk.services
    reconciler = ImportReconciler(
        services.database, services.audit, services.changes, services.accounts, services.files,
        services.imports.vault, ImportSettings(allow_hosts=(web.host,), attempts=2),
    )  # fmt: skip
    loop = asyncio.create_task(reconciler.run(), name="imports reconciler")
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_import_and_wait(desk: Desk, alice: Caller, web: Web, places: Places) -> None:
    web.files["/a/labels.csv"] = WebFile(b"0,1\n")
    async with reconciling(desk, web):
        answer = await desk.run(alice, f"dataset import mnist:v1 --from {web.url}/a/labels.csv?sig=hunter2 --wait")
    assert (answer.status, "done" in answer.out) == (0, True)
    assert "hunter2" not in answer.out + answer.err
    assert "waits for its turn" in answer.err
    assert await places.digest(alice, "/x", "md5") == ""
    reader = await places.open_reader(alice, "/datasets/mnist/v1/labels.csv")
    assert await reader.read(0, 10) == b"0,1\n"
    (row,) = json.loads((await desk.run(alice, "import list --all --json")).out)
    assert (row["state"], row["files_done"], row["bytes_done"], row["percent"]) == ("done", 1, 4, 100)
    assert (await desk.run(alice, "import list")).out == ""


async def test_without_waiting_the_id_is_all_that_is_printed(desk: Desk, alice: Caller, web: Web) -> None:
    web.files["/x"] = WebFile(b"x")
    answer = await desk.run(alice, f"dataset import mnist --from {web.url}/x")
    import_id = answer.out.strip()
    assert (answer.status, len(import_id)) == (0, 16)
    assert "mnist:v1" in answer.err
    assert import_id in (await desk.run(alice, "import list")).out
    shown = json.loads((await desk.run(alice, f"import show {import_id} --json")).out)
    assert (shown["state"], shown["name"], shown["version"]) == ("queued", "mnist", "v1")
    assert "cancelled" in (await desk.run(alice, f"import cancel {import_id}")).out
    assert (await desk.run(alice, f"import cancel {import_id}")).status == 1
    assert "queued" in (await desk.run(alice, f"import retry {import_id}")).out


async def test_a_failure_says_why_and_how_to_go_on(desk: Desk, alice: Caller, web: Web) -> None:
    async with reconciling(desk, web):
        answer = await desk.run(alice, f"dataset import mnist --from {web.url}/nothing --wait")
    assert answer.status == 1
    assert "there is no such file" in answer.out
    assert "import retry" in answer.err


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("dataset import mnist", 2),
        ("dataset import mnist --from nonsense", 2),
        ("dataset import MNIST --from https://example.org/x", 2),
        ("dataset import mnist --from http://127.0.0.1/x", 77),
        ("dataset import mnist --from https://example.org:22/x", 77),
        ("model import bert --from hf://datasets/org/set", 2),
        ("import show nope", 1),
        ("import list --everybody", 77),
    ],
)
async def test_refusals(desk: Desk, alice: Caller, line: str, status: int) -> None:
    assert (await desk.run(alice, line)).status == status


async def test_url(desk: Desk, alice: Caller, places: Places) -> None:
    await desk.services.datasets.create(alice, "mnist")
    await desk.services.datasets.create_version(alice, "mnist", "v1")
    places.put("/datasets/mnist/v1/a.csv", b"1,2")
    answer = await desk.run(alice, "dataset url mnist:v1 a.csv")
    assert answer.status == 0
    assert answer.out.startswith("http://127.0.0.1:8333/ashore/datasets/mnist/v1/a.csv?")
    assert "X-Amz-Expires=3600" in answer.out
    assert "own machine only" in answer.err
    row = json.loads((await desk.run(alice, "dataset url mnist a.csv --expires 30m --json")).out)
    assert "X-Amz-Expires=1800" in row["url"]
    assert (row["only_on_this_machine"], row["bytes"]) == (True, 3)
    for line, status in (
        ("dataset url mnist:v1 ../../secret/v1/x", 2),
        ("dataset url mnist:v1 nothing", 1),
        ("dataset url mnist:v2 a.csv", 1),
        ("dataset url mnist:v1 a.csv --expires 2d", 2),
        ("dataset url mnist:v1 a.csv --expires soon", 2),
    ):
        assert (await desk.run(alice, line)).status == status, line


def test_lengths_of_time() -> None:
    assert [duration(text) for text in ("90", "90s", "30m", "12h", "7d", "1h30m")] == [
        90, 90, 1800, 43200, 604800, 5400,
    ]  # fmt: skip
    for text in ("", "h", "1w", "1.5h", "-1h", "1h x"):
        with pytest.raises(BadInput):
            duration(text)
