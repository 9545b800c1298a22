"""A program whose children cannot outlive it: it runs as the first process of a PID namespace of its own.

A build step may start a session of its own, or a daemon, so that a process group would not be all of it. When the
first process of a namespace is killed, the kernel kills every other one in it. The outermost program is killed with
our own process, and takes the namespace along, so a crash of the gateway ends it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backends.builders.contract import Fair
from storage.errors import Unavailable
from storage.names import printable

_PIECE = 64 * 1024
_END_SECONDS = 20.0
NEEDED = ("setpriv", "unshare", "nice")


def jailed(argv: Sequence[str]) -> Sequence[str]:
    """`argv` in a namespace of its own. Without root, in a user namespace too, with the subordinate ids of our account
    (`/etc/subuid`), among which the programs inside may be root and others."""
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-users=auto", "--map-groups=auto"]
    return [
        "setpriv", "--pdeathsig", "KILL", "--",
        "unshare", *users, "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--",
        "nice", "-n", "10", *argv,
    ]  # fmt: skip


def require_programs(*names: str) -> None:
    """Unavailable, naming what is missing."""
    missing = [name for name in (*names, *NEEDED) if shutil.which(name) is None]
    if missing:
        raise Unavailable(f"the program '{missing[0]}' is not installed on this machine")


async def check_namespaces() -> None:
    """Unavailable if an ordinary account cannot have the many users that images are made of; what is to be done."""
    try:
        account = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        account = str(os.geteuid())
    for file in ("/etc/subuid", "/etc/subgid"):
        if not _has_range(Path(file), account):
            raise Unavailable(
                f"the account {account} has no range in {file}: run "
                f"'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {account}'"
            )
    if shutil.which("newuidmap") is None:
        raise Unavailable("the program 'newuidmap' (package uidmap) is not installed on this machine")
    said = bytearray()
    if await run(["true"], {"PATH": os.environ.get("PATH", os.defpath)}, said.extend) != 0:
        reason = printable(said.decode("utf-8", "replace").strip(), limit=200)
        raise Unavailable(f"this machine gives the account {account} no user namespaces ({reason})")


def _has_range(file: Path, account: str) -> bool:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (account, str(os.geteuid())) for line in lines if line.count(":") == 2)


async def run(argv: Sequence[str], environment: Mapping[str, str], write: Callable[[bytes], None]) -> int:
    """The exit status, when it and everything that it started has ended. stdout and stderr come as one.

    Cancelling the call kills all of it, and waits until it is gone.
    """
    process = await asyncio.create_subprocess_exec(
        *jailed(argv), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    fair = Fair(write)
    try:
        while piece := await process.stdout.read(_PIECE):
            await fair.write(piece)
        return await process.wait()
    finally:
        if process.returncode is None:
            await asyncio.shield(_end(process))


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    assert process.stdout is not None
    async with asyncio.timeout(_END_SECONDS):
        # The end of the pipe is the end of the last process that holds it: `wait` alone tells of `unshare` only.
        while await process.stdout.read(_PIECE):
            pass
        await process.wait()
