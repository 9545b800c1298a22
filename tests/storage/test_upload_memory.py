"""Many uploads at once in a process whose memory stays bounded. `ASHORE_UPLOAD_MIB=256` is the full size."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from storage.access import Caller
from storage.database.engine import Database
from storage.objects.s3 import S3Store
from storage.records import FileFact
from storage.settings import ObjectSettings

MIB = 1024 * 1024
UPLOADS = 32
SIZE = int(os.environ.get("ASHORE_UPLOAD_MIB", "20"))
MOST_MIB = 900

_MANY = """
import asyncio, hashlib, os, sys
from pathlib import Path
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings
from storage.upload_writer import Target
from storage.uploads import Uploads

MIB = 1024 * 1024

async def main():
    data, endpoint, access, secret, bucket, user, count, size = sys.argv[1:]
    settings = ObjectSettings(endpoint=endpoint, access_key=access, secret_key=secret, bucket=bucket)
    database, store = Database.in_directory(Path(data)), S3Store(settings)
    uploads = Uploads(database, store, AuditTrail(database), Changes(), settings)
    block = os.urandom(MIB)

    async def send(n):
        writer = await uploads.open(Caller(user, "alice", False, "w", "team"), Target(f"/f{n}", f"f{n}"))
        for number in range(int(size)):
            for start in range(0, MIB, 32768):
                await writer.write(number * MIB + start, block[start : start + 32768])
        await writer.finish()

    await asyncio.gather(*(send(n) for n in range(int(count))))
    digest = hashlib.sha256()
    for _ in range(int(size)):
        digest.update(block)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
    print(peak, digest.hexdigest(), flush=True)
    await uploads.close()
    await store.close()
    await database.close()

asyncio.run(main())
"""


@pytest.mark.timeout(900)
async def test_many_uploads_at_once(
    store: S3Store, database: Database, data_dir: Path, alice: Caller, object_settings: ObjectSettings
) -> None:
    arguments = [
        str(data_dir), object_settings.endpoint, object_settings.access_key,
        object_settings.secret_key.get_secret_value(), object_settings.bucket, alice.user_id, str(UPLOADS), str(SIZE),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _MANY, *arguments, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    peak, digest = said.decode().split()
    print(f"{UPLOADS} uploads of {SIZE} MiB: {peak} MiB at most")
    assert int(peak) < MOST_MIB
    async with database.reading() as tx:
        facts = (await tx.scalars(select(FileFact))).all()
    assert [(fact.size, fact.sha256) for fact in facts] == [(SIZE * MIB, digest)] * UPLOADS
    assert (await store.head("f7")).size == SIZE * MIB
