"""A folder of this machine as a tar archive, made by `tar` and read as it comes: bounded memory, no thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from storage.errors import Conflict, NotFound
from storage.names import printable

_PIECE = 256 * 1024


async def folder_tar(folder: Path) -> AsyncGenerator[bytes]:
    """`folder` and what is in it. No link is followed, and no other file system entered.

    NotFound: there is no such folder. Conflict: it is a link, or holds what cannot be read. Nobody may change what is
    in it meanwhile.
    """
    if await asyncio.to_thread(folder.is_symlink):
        raise Conflict("its output is a link, and links are not followed")
    if not await asyncio.to_thread(folder.is_dir):
        raise NotFound("it has no output")
    process = await asyncio.create_subprocess_exec(
        *("tar", "--create", "--file=-", "--format=gnu", "--one-file-system", "--warning=no-file-ignored"),
        f"--directory={folder.parent}", "--", folder.name,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}, limit=2 * _PIECE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    # What it complains about is read beside it, or it would wait for a reader with its pipe full.
    complaints = asyncio.create_task(_tail(process.stderr), name="complaints of tar")
    try:
        while piece := await process.stdout.read(_PIECE):
            yield piece
        if await process.wait() != 0:
            said = printable(await complaints, limit=300)
            raise Conflict(f"its output cannot be read: {said}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                process.kill()
        # asyncio does not notice the end of a program before that of its output.
        while await process.stdout.read(_PIECE):
            pass
        await process.wait()
        complaints.cancel()
        await asyncio.gather(complaints, return_exceptions=True)


async def _tail(stream: asyncio.StreamReader) -> str:
    last = b""
    while piece := await stream.read(4096):
        last = (last + piece)[-1000:]
    return last.decode("utf-8", "replace").strip()
