"""Packed streams, and headers in them."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator, Callable

import pytest
import zstandard

from backends.archives import tar
from backends.archives.bytes import GZIP, ZSTD, UnpackedBytes, unpacked
from storage.errors import BadInput
from tests.backends.archives.files import File, tar_of


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
    for dust in (b"", b"x"):  # a moment for each, which others wait for
        with pytest.raises(BadInput, match="empty pieces"):
            async for _ in unpacked(pieces(pack(dust) * 60_000, 4 << 20), kind, 1 << 30):
                pass


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
