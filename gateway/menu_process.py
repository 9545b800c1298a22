"""One TUI worker process, kept alive: started, watched, killed when it is mute, started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path

import tui
from tui import sockets
from tui.frames import Decoder, FrameError, Kind, encode

log = logging.getLogger(__name__)

_READY_SECONDS = 180.0
_PING_SECONDS = 2.0
_MUTE_SECONDS = 10.0
_PATIENCE = 12
"""So many times as long a worker may be silent while it waits for a core: killing it would only add to the load."""
_END_SECONDS = 5.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_HEALTHY_SECONDS = 60.0
# Nothing else of our environment: TERM, COLORTERM, NO_COLOR or TEXTUAL would change everybody's menu.
_PASSED_ON = ("HOME", "PATH", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_RUNTIME_DIR")


class MenuProcess:
    """A worker at its own socket. `ready` is set while it serves; `sessions` counts the menus in it."""

    def __init__(self, path: Path, data: Path, settings: Path, *, kit: str = "") -> None:
        self.path = path
        self.ready = asyncio.Event()
        self.sessions = 0
        self.pid: int | None = None
        self._arguments = [str(path), str(data), str(settings), *(["--kit", kit] if kit else [])]
        self._log_file = data / "logs" / "tui.log"
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep a process alive; it serves a moment later."""
        self._log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.path.name}")

    async def close(self) -> None:
        """End the process; its menus leave their terminals in order first."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        self._keeper = None

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            began = loop.time()
            try:
                await self._one_life()
            except OSError as error:
                log.error("a TUI worker cannot be started: %s", error)
            if loop.time() - began > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE
            log.error("TUI worker %s ended (see %s); again in %.1f s", self.path.name, self._log_file, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _one_life(self) -> None:
        process = await self._spawn()
        self.pid = process.pid
        try:
            assert process.stdout is not None
            async with asyncio.timeout(_READY_SECONDS):
                line = await process.stdout.readline()
            if line != b"ready\n":
                return
            self.ready.set()
            await self._watch(process)
        except TimeoutError:
            log.error("TUI worker %s did not become ready", self.path.name)
        finally:
            self.ready.clear()
            self.pid = None
            await _end(process)

    async def _spawn(self) -> asyncio.subprocess.Process:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment["LANG"] = "C.UTF-8"
        # Our own code, also when it runs from a checkout, and never what lies in the current directory.
        environment["PYTHONPATH"] = str(Path(tui.__file__).parents[1])
        environment["PYTHONSAFEPATH"] = "1"
        descriptor = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tui.worker",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=descriptor,
                env=environment,
                # A Ctrl-C for the gateway in a terminal is not one for its workers: they end when told.
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Until the process is dead or mute."""
        ended = asyncio.create_task(process.wait(), name=f"end of {self.path.name}")
        pulse = asyncio.create_task(self._feel_pulse(), name=f"pulse of {self.path.name}")
        try:
            await asyncio.wait((ended, pulse), return_when=asyncio.FIRST_COMPLETED)
            if pulse.done() and not ended.done():
                log.error("TUI worker %s is mute: it is killed", self.path.name)
                process.kill()
        finally:
            for task in (ended, pulse):
                task.cancel()
            await asyncio.gather(ended, pulse, return_exceptions=True)

    async def _feel_pulse(self) -> None:
        """Returns when no answer came in time."""
        with contextlib.suppress(OSError, TimeoutError, FrameError):
            reader, writer = await asyncio.open_unix_connection(sock=await sockets.connect(self.path))
            try:
                decoder = Decoder()
                while True:
                    writer.write(encode(Kind.PING))
                    answer = await self._answer(reader)
                    if not any(frame.kind is Kind.PONG for frame in decoder.feed(answer)):
                        return
                    await asyncio.sleep(_PING_SECONDS)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """What the worker says to a ping; empty when it has had the time and said nothing."""
        for _ in range(_PATIENCE):
            waited = _waited(self.pid)
            try:
                async with asyncio.timeout(_MUTE_SECONDS):
                    return await reader.read(4096)
            except TimeoutError:
                if _waited(self.pid) - waited < _MUTE_SECONDS / 2:
                    break
        return b""


def _waited(pid: int | None) -> float:
    """Seconds that a process has waited for a core so far (schedstat: proc(5)); 0 where that is not told."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
