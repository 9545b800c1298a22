"""Files into the store and out of it, against `rclone serve sftp` and a bare multipart upload on the same store.

`BENCH_MIB` (1024), `BENCH_FILES` (5000), `BENCH_ENTRIES` (100000) and `BENCH_OBJECTS`
(200000) make it smaller, for a quick look.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import SecretStr

from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings
from tests.bench.bed import Bed
from tests.bench.measure import Comparison, Figure, Result, interleaved, seconds, timed
from tests.stories.clients import run

MIB = int(os.environ.get("BENCH_MIB", "1024"))
FILES = int(os.environ.get("BENCH_FILES", "5000"))
ENTRIES = int(os.environ.get("BENCH_ENTRIES", "100000"))
OBJECTS = int(os.environ.get("BENCH_OBJECTS", "200000"))
_TOP = "/datasets/bench/v1"
_PART = 8 << 20
_FILLERS = 16


def results(bed: Bed) -> Iterator[Result]:
    sides = _Sides(bed)
    sides.batch(sides.ours, "mkdir /datasets/bench\nmkdir /datasets/bench/v1\n")
    yield from _large(bed, sides)
    yield from _small(bed, sides)
    yield from _crowded(bed, sides)


class _Sides:
    """`sftp` and `lftp` to the gateway, and to rclone."""

    def __init__(self, bed: Bed) -> None:
        self._config = str(bed.gateway.config("alice"))
        self._home = bed.gateway.home
        port = str(bed.rclone_port)
        self.ours = ["sftp", "-q", "-F", self._config, "-b", "-", "alice@gw"]
        self.theirs = ["sftp", "-q", "-F", self._config, "-P", port, "-b", "-", "alice@127.0.0.1"]
        self.our_ssh = f"ssh -a -x -F {self._config}"
        self.their_ssh = f"ssh -a -x -F {self._config} -p {port}"

    def batch(self, arguments: list[str], lines: str) -> None:
        done = subprocess.run(arguments, input=lines.encode(), capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr

    def lftp(self, ssh: str, command: str) -> None:
        host = "sftp://gw" if ssh == self.our_ssh else "sftp://127.0.0.1"
        script = f"set sftp:connect-program '{ssh}'; set net:max-retries 1; set cmd:fail-exit yes"
        run(["env", f"HOME={self._home}", "lftp", "--norc", "-c", f"{script}; open -u alice, {host}; {command}; bye"],
            timeout=600)  # fmt: skip


# ---- one large file --------------------------------------------------------------------------------------------


def _large(bed: Bed, sides: _Sides) -> Iterator[Result]:
    source, number = _payload(bed.directory, MIB), itertools.count()

    def put(arguments: list[str], folder: str) -> float:
        name = f"{folder}/file-{next(number)}"
        taken = seconds(lambda: sides.batch(arguments, f"put {source} {name}\n"))
        sides.batch(arguments, f"rm {name}\n")
        return MIB / taken

    def get(arguments: list[str], name: str) -> float:
        taken = seconds(lambda: sides.batch(arguments, f"get {name} /dev/null\n"))
        return MIB / taken

    ours, theirs = (lambda: put(sides.ours, _TOP)), (lambda: put(sides.theirs, ""))
    yield Comparison(f"sftp put, {MIB} MiB", "MiB/s", interleaved(ours, theirs), "rclone serve sftp", 1.3)
    pairs = interleaved(ours, lambda: MIB / asyncio.run(_bare(bed, source)))
    yield Comparison(f"sftp put, {MIB} MiB", "MiB/s", pairs, "multipart upload without SSH", 0.95)
    sides.batch(sides.ours, f"put {source} {_TOP}/get\n")
    sides.batch(sides.theirs, f"put {source} /get\n")
    pairs = interleaved(lambda: get(sides.ours, f"{_TOP}/get"), lambda: get(sides.theirs, "/get"))
    yield Comparison(f"sftp get, {MIB} MiB", "MiB/s", pairs, "rclone serve sftp", 1.2)
    sides.batch(sides.ours, f"rm {_TOP}/get\n")
    sides.batch(sides.theirs, "rm /get\n")
    source.unlink()


def _payload(directory: Path, mib: int) -> Path:
    source = directory / "payload"
    with source.open("wb") as file:
        for _ in range(mib // 16):
            file.write(os.urandom(16 << 20))
    return source


async def _bare(bed: Bed, source: Path) -> float:
    """Seconds of a multipart upload by the library that the gateway uses, three parts at a time."""
    store = _store(bed)
    room, parts = asyncio.Semaphore(3), list[tuple[int, str]]()

    async def upload() -> None:
        upload_id = await store.create_upload("bench/bare")

        async def send(number: int, body: bytes) -> None:
            parts.append((number, await store.put_part("bench/bare", upload_id, number, body)))
            room.release()

        async with asyncio.TaskGroup() as group:
            with source.open("rb") as file:
                for number in itertools.count(1):
                    await room.acquire()
                    if not (body := file.read(_PART)):
                        break
                    group.create_task(send(number, body))
        await store.complete_upload("bench/bare", upload_id, sorted(parts))

    taken = await timed(upload())
    await store.delete("bench/bare")
    await store.close()
    return taken


def _store(bed: Bed) -> S3Store:
    facts = json.loads((bed.gateway.data / "objects" / "store.json").read_text())
    return S3Store(
        ObjectSettings(
            endpoint=f"http://127.0.0.1:{facts['ports']['s3']}",
            access_key=facts["access_key"],
            secret_key=SecretStr(facts["secret_key"]),
        )
    )


# ---- many small ones -------------------------------------------------------------------------------------------


def _small(bed: Bed, sides: _Sides) -> Iterator[Result]:
    folder, number = bed.directory / "many", itertools.count()
    folder.mkdir()
    for index in range(FILES):
        (folder / f"{index:05}").write_bytes(os.urandom(4096))

    def mirror(ssh: str, top: str) -> float:
        target = f"{top}/many-{next(number)}"
        command = f"mirror -R -P 8 {folder} {target}"
        return FILES / seconds(lambda: sides.lftp(ssh, command))

    pairs = interleaved(lambda: mirror(sides.our_ssh, _TOP), lambda: mirror(sides.their_ssh, ""))
    yield Comparison(f"lftp mirror -R -P 8, {FILES} of 4 KiB", "1/s", pairs, "rclone serve sftp", 1.5)


# ---- a store that is full of others' files ---------------------------------------------------------------------


def _crowded(bed: Bed, sides: _Sides) -> Iterator[Result]:
    source, number = _payload(bed.directory, 16), itertools.count()
    (bed.directory / "little").write_bytes(os.urandom(4096))
    little = "".join(f"put {bed.directory / 'little'} {_TOP}/{{top}}/little-{at}\n" for at in range(50))

    def lone(top: str) -> float:
        return seconds(lambda: sides.batch(sides.ours, f"put {source} {_TOP}/{top}/file-{next(number)}\n"))

    def few(top: str) -> float:
        return seconds(lambda: sides.batch(sides.ours, little.format(top=top)))

    sides.batch(sides.ours, f"mkdir {_TOP}/empty\nmkdir {_TOP}/full\n")
    _fill(bed, "full", ENTRIES)
    taken = _median(lambda: seconds(lambda: sides.batch(sides.ours, f"ls -1 {_TOP}/full\n")))
    yield Figure(f"ls of {ENTRIES} entries, login included (at most 1.5)", "s", taken)
    if OBJECTS > ENTRIES:
        _fill(bed, "full", OBJECTS, start=ENTRIES)
    for work, name in ((lone, "put of 16 MiB"), (few, "put of 50 small files")):
        pairs = interleaved(lambda work=work: work("full"), lambda work=work: work("empty"))
        other = f"an empty folder; full: {OBJECTS} objects"
        yield Comparison(f"{name} into a full folder", "s", pairs, other, 1.15, at_least=False)
    source.unlink()


def _median(measure: Callable[[], float]) -> float:
    return sorted(measure() for _ in range(5))[2]


def _fill(bed: Bed, folder: str, count: int, *, start: int = 0) -> None:
    """Objects straight into the store, beside the gateway."""
    workspace = json.loads(bed.gateway.ssh("alice", "whoami", "--json").stdout)["workspace"]
    prefix = f"datasets/{workspace}/bench/v1/{folder}/"

    def work(first: int) -> None:
        async def put() -> None:
            store = _store(bed)
            for index in range(start + first, count, _FILLERS):
                await store.put(f"{prefix}{index:06}", b"0123456789abcdef")
            await store.close()

        asyncio.run(put())

    threads = [threading.Thread(target=work, args=(first,)) for first in range(_FILLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
