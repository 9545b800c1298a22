"""A program that this process runs for itself and looks after: it dies with its parent and is started again alone.

What it is, and when it is ready, its owner knows: `storage.objects.embedded`, `backends.registry_child`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)
_END_SECONDS = 1.0
_PAUSES = (0.2, 0.5, 1, 2, 5, 10, 30)
_STEADY_SECONDS = 60
_LOG_LIMIT = 16 * 1024 * 1024
# The child asks the kernel to be killed when its parent dies, then becomes the program. A function between fork and
# exec would do the same, but is not safe in a process with threads.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A process in `directory`, which also holds its pid. `mark` is in the command line of every one that is ours."""

    def __init__(self, title: str, directory: Path, *, log: Path, mark: bytes) -> None:
        self._title = title
        self._directory = directory
        self._log = log
        self._mark = mark
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def spawn(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start `command`, whose first word is an absolute path."""
        output = _open_log(self._log)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command,
                cwd=self._directory, env=dict(variables), stdin=asyncio.subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(output)
        write_private(self._directory / "pid", str(self._process.pid))

    async def keep(self, spawn: Callable[[], Awaitable[None]]) -> None:
        """Start it again whenever it ends, after a pause that grows; until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            assert self._process is not None
            status = await self._process.wait()
            failures = 0 if loop.time() - started > _STEADY_SECONDS else failures + 1
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            log.error("%s ended with status %s, starting again in %s s", self._title, status, pause)
            await asyncio.sleep(pause)
            try:
                await spawn()
            except OSError:
                log.exception("%s cannot be started", self._title)

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def end(self, *, seconds: float = _END_SECONDS) -> None:
        """TERM, and KILL so much later: nothing that it has acknowledged waits for its orderly end."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            # Not wait_for: of Python 3.11 it forgets that we were cancelled when the process ends at that moment.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await process.wait()
                break
        (self._directory / "pid").unlink(missing_ok=True)

    def end_stale(self) -> None:
        """End one that outlived its gateway; only if the process is really ours."""
        path = self._directory / "pid"
        try:
            pid = int(path.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            place = Path(f"/proc/{pid}/cwd").resolve()
        except (OSError, ValueError):
            return
        if self._mark in command and place == self._directory.resolve():
            log.warning("ending %s that a former gateway left behind (process %s)", self._title, pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        path.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace the file as a whole, readable by us alone."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def is_free(port: int) -> bool:
    """Whether this port of loopback can be opened."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _open_log(path: Path) -> int:
    if path.exists() and path.stat().st_size > _LOG_LIMIT:
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
