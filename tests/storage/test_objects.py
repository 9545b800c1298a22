"""The S3 client against a real store, and the store itself: how it starts, dies and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import BadInput, Conflict, InUse, NotFound, Unavailable
from storage.objects.contract import NoSuchUpload, prefixes_of
from storage.objects.embedded import EmbeddedStore
from storage.objects.parts import MOST_PARTS, Coverage, slot_at
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings

MIB = 1024 * 1024


async def _keys(store: S3Store, prefix: str = "", *, delimiter: bool = False) -> list[str]:
    return [facts.key async for page in store.list(prefix, delimiter=delimiter) for facts in page]


@pytest.mark.parametrize("key", ["a", "with space/+ %25 %", "数据/e\u0301", "a?b=c&d#e", "x/" * 100 + "deep"])
async def test_objects_come_back(store: S3Store, key: str) -> None:
    etag = await store.put(key, memoryview(b"hello world"))
    facts = await store.head(key)
    assert (facts.size, facts.etag) == (11, etag)
    assert await store.get(key) == b"hello world"
    assert await store.get(key, offset=6) == b"world"
    assert await store.get(key, offset=4, size=3, etag=etag) == b"o w"
    assert await store.get(key, offset=11, size=5) == b""
    assert await store.get(key, offset=100, size=5) == b""
    await store.delete(key)
    await store.delete(key)
    for attempt in (store.head(key), store.get(key)):
        with pytest.raises(NotFound):
            await attempt


async def test_conditions(store: S3Store) -> None:
    etag = await store.put("k", b"one", only_new=True)
    with pytest.raises(Conflict):
        await store.put("k", b"two", only_new=True)
    await store.put("k", b"two")
    with pytest.raises(Conflict):
        await store.get("k", etag=etag)


async def test_listings_are_streamed_in_pages(store: S3Store) -> None:
    names = [f"many/{n:04}" for n in range(1203)]
    gate = asyncio.Semaphore(16)

    async def put(name: str) -> None:
        async with gate:
            await store.put(name, b"x")

    await asyncio.gather(*map(put, names))
    await store.put("other/x", b"")
    pages = [len(page) async for page in store.list("many/")]
    assert pages == [1000, 203]
    assert await _keys(store, "many/") == names
    assert await _keys(store, delimiter=True) == ["many/", "other/"]
    usage = await store.usage("many/")
    assert (usage.files, usage.bytes) == (1203, 1203)
    await store.delete_many(names)
    assert await _keys(store) == ["other/x"]


async def test_copies(store: S3Store) -> None:
    await store.put("a +%/文", b"content")
    etag = await store.copy("a +%/文", "b/文 +%")
    assert (await store.head("b/文 +%")).etag == etag
    with pytest.raises(NotFound):
        await store.copy("none", "c")


async def test_multipart_uploads(store: S3Store) -> None:
    first, last = os.urandom(5 * MIB), b"the end"
    upload = await store.create_upload("big")
    assert await store.list_parts("big", upload) == []
    etags = [await store.put_part("big", upload, n, body) for n, body in ((1, first), (2, last))]
    assert [(p.number, p.etag, p.size) for p in await store.list_parts("big", upload)] == [
        (1, etags[0], len(first)),
        (2, etags[1], len(last)),
    ]
    with pytest.raises(NotFound):
        await store.head("big")
    etag = await store.complete_upload("big", upload, [(1, etags[0]), (2, etags[1])])
    assert (await store.head("big")).etag == etag
    assert await store.get("big", offset=len(first) - 2) == first[-2:] + last
    with pytest.raises(NoSuchUpload):
        await store.list_parts("big", upload)
    await store.abort_upload("big", upload)


async def test_a_store_that_is_away() -> None:
    store = S3Store(ObjectSettings(endpoint="http://127.0.0.1:9", access_key="k", secret_key="s"))  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await store.start()
    with pytest.raises(Unavailable):
        await store.head("x")
    await store.close()


async def test_wrong_keys(object_settings: ObjectSettings) -> None:
    store = S3Store(object_settings.model_copy(update={"access_key": "nobody"}))
    with pytest.raises(Unavailable, match="keys"):
        await store.put("x", b"")
    await store.close()


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:9000", "ftp://x", "http://"])
def test_endpoints_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(BadInput):
        S3Store(ObjectSettings(endpoint=endpoint))


# ---- arithmetic ------------------------------------------------------------------------------------------------
def test_the_part_schedule_has_no_gaps_and_fits_s3() -> None:
    offset, number = 0, 0
    while (slot := slot_at(offset, 8 * MIB)) is not None:
        number += 1
        assert (slot.number, slot.start) == (number, offset)
        assert slot_at(slot.end - 1, 8 * MIB) == slot
        offset = slot.end
    assert number == MOST_PARTS == 10_000
    assert offset > 700 * 1024**3


def test_coverage_merges_what_touches() -> None:
    coverage = Coverage()
    for start, end in ((10, 20), (30, 40), (0, 5), (5, 10), (15, 32)):
        coverage.add(start, end)
    assert coverage.spans == [(0, 40)]
    assert (coverage.prefix, coverage.end) == (40, 40)
    coverage.add(50, 60)
    assert (coverage.prefix, coverage.end) == (40, 60)


def test_prefixes_of() -> None:
    assert prefixes_of(["r/a/b/c", "r/a/d", "r/e/"], "r/") == ["r/a/b/", "r/a/", "r/e/", "r/"]
    assert prefixes_of(["r/a"], "r/a") == []


# ---- the child -------------------------------------------------------------------------------------------------
async def test_the_store_keeps_its_content_keys_and_ports(tmp_path: Path) -> None:
    directory = tmp_path / "objects"
    async with EmbeddedStore(directory, log=tmp_path / "logs" / "objects.log") as service:
        first = service.settings
        assert EmbeddedStore.running(directory) == first
        with pytest.raises(InUse):
            await EmbeddedStore(directory).start()
        store = S3Store(first, disk=directory)
        await store.put("kept", b"content")
        await store.check()
        assert (await store.free() or 0) > 0
        await store.close()
    assert EmbeddedStore.running(directory) is None
    for private in ("store.json", "s3.json", "security.toml"):
        assert stat.S_IMODE((directory / private).stat().st_mode) == 0o600
    async with EmbeddedStore(directory) as service:
        assert service.settings == first
        store = S3Store(service.settings)
        assert await store.get("kept") == b"content"
        await store.close()


async def test_a_store_that_dies_comes_back(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path) as service:
        store = S3Store(service.settings)
        await store.put("kept", b"content")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        async with asyncio.timeout(40):
            while True:
                try:
                    assert await store.get("kept") == b"content"
                    break
                except (Unavailable, NotFound):
                    await asyncio.sleep(0.2)
        await store.close()


_PARENT = """
import asyncio, sys
from pathlib import Path
from storage.objects.embedded import EmbeddedStore
async def main():
    async with EmbeddedStore(Path(sys.argv[1])):
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_killed_gateway_takes_its_store_along(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    async with EmbeddedStore(tmp_path) as service:
        store = S3Store(service.settings)
        await store.check()
        await store.close()


async def test_only_a_stale_store_of_ours_is_ended(tmp_path: Path) -> None:
    stale = subprocess.Popen(["weed", "1000"], executable="/bin/sleep", cwd=tmp_path, start_new_session=True)
    innocent = subprocess.Popen(["sleep", "1000"], cwd=tmp_path, start_new_session=True)
    try:
        for process in (innocent, stale):
            (tmp_path / "pid").write_text(str(process.pid))
            async with EmbeddedStore(tmp_path):
                pass
        assert await asyncio.to_thread(stale.wait, 10) == -signal.SIGKILL
        assert innocent.poll() is None
    finally:
        for process in (stale, innocent):
            process.kill()
            process.wait()


async def test_strangers_on_this_machine_get_nothing(tmp_path: Path) -> None:
    """Local environments share the gateway's loopback, so that its ports are open to their people."""
    async with EmbeddedStore(tmp_path) as service:
        store = S3Store(service.settings)
        await store.put("secret", b"the secret bytes")
        await store.close()
        ports = json.loads((tmp_path / "store.json").read_text())["ports"]
        for port in ports.values():
            assert b"the secret bytes" not in await _ask(port, f"/{service.settings.bucket}/secret")
            assert b"the secret bytes" not in await _ask(port, f"/buckets/{service.settings.bucket}/secret")
        for role in ("master", "volume", "filer", "s3"):
            for tls in (True, False):
                assert await _http2_settings(ports[f"{role}_grpc"], tls=tls) == b"", role


async def _ask(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    try:
        return await asyncio.wait_for(reader.read(), 30)
    except (TimeoutError, ConnectionError):
        return b""
    finally:
        writer.close()


async def _http2_settings(port: int, *, tls: bool) -> bytes:
    """What a gRPC port says to a client that has no certificate of ours: no HTTP/2 settings, if it is well."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context if tls else None)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        answer = await asyncio.wait_for(reader.read(100), 30)
        writer.close()
    except (OSError, TimeoutError):
        return b""
    return answer if answer[3:4] == b"\x04" else b""
