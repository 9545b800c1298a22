"""Both trees under one root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest

from backends.environments import Environments
from backends.files import Files
from backends.guest import Guests
from storage.access import Caller
from storage.errors import BadInput, NotAllowed, NotFound
from storage.tree import Node
from tests.gateway.data_tree import ALICE, MemoryTree


class NoEnvironments:
    async def list(self, caller: Caller) -> list[object]:
        return []

    async def show(self, caller: Caller, name: str) -> object:
        raise NotFound(f"there is no environment '{name}'")


@pytest.fixture
async def data() -> MemoryTree:
    return MemoryTree()


@pytest.fixture
async def files(data: MemoryTree) -> AsyncIterator[Files]:
    files = Files(data, cast("Environments", NoEnvironments()), cast("Guests", None))
    yield files
    await files.close()


async def entries(files: Files, path: str) -> list[Node]:
    return [node async for node in files.list(ALICE, path)]


async def test_the_root_joins_both(files: Files, data: MemoryTree) -> None:
    data.put("/README.txt", b"another one")
    nodes = await entries(files, "/")
    assert [node.name for node in nodes] == ["README.txt", "d", "envs", "null", "sealed"]
    assert (await files.stat(ALICE, "/")).is_directory
    assert (await files.stat(ALICE, "/envs")).is_directory
    assert await entries(files, "/envs") == []


async def test_the_readme_can_be_read_and_not_changed(files: Files) -> None:
    node = await files.stat(ALICE, "/README.txt")
    reader = await files.open_reader(ALICE, "/README.txt")
    text = await reader.read(0, 100_000)
    await reader.close()
    assert len(text) == node.size
    assert b"/envs/<environment>" in text
    assert await reader.read(node.size, 10) == b""
    for change in (
        files.open_writer(ALICE, "/README.txt", truncate=True),
        files.remove(ALICE, "/README.txt"),
        files.rename(ALICE, "/d", "/README.txt", replace=True),
        files.mkdir(ALICE, "/envs"),
        files.rmdir(ALICE, "/envs"),
        files.set_mtime(ALICE, "/", 1),
    ):
        with pytest.raises(NotAllowed):
            await change
    with pytest.raises(BadInput):
        await entries(files, "/README.txt")


async def test_paths_lead_to_the_right_tree(files: Files, data: MemoryTree) -> None:
    writer = await files.open_writer(ALICE, "/d/x", truncate=True, mtime=5)
    await writer.write(0, b"abc")
    await writer.finish()
    assert data.files["/d/x"] == (b"abc", 5)
    with pytest.raises(NotFound, match="no environment 'train'"):
        await files.stat(ALICE, "/envs/train/x")
    await files.mkdir(ALICE, "/envsx")
    assert "/envsx" in data.directories


async def test_moving_between_them_is_refused(files: Files, data: MemoryTree) -> None:
    data.put("/d/x", b"")
    with pytest.raises(BadInput, match="copy them"):
        await files.rename(ALICE, "/d/x", "/envs/train/x", replace=True)
    assert (await files.space(ALICE, "/envs")).total == 1 << 30
