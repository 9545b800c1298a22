"""The compute `local`: environments as bubblewrap sandboxes on this machine.

A sandbox has an init of its own that outlives connections and the gateway, a home that persists, this machine's system
read only, and a network with nothing but a loopback. It works for root, who gives every sandbox a host user of its
own, and for an ordinary user. What it looks like inside is `sandbox`; what is kept about it is `sandbox_state`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import shutil
import socket
import subprocess
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path

from backends.compute import sandbox, sandbox_limits
from backends.compute.contract import Found, Pipe, Progress, State, Status, Usage, WorkloadSpec, folders_only
from backends.compute.dial import open_namespace
from backends.compute.folder_tar import folder_tar
from backends.compute.sandbox_process import (
    HELPER_ENVIRONMENT,
    bubblewrap,
    deliver,
    helper_command,
    kill,
    last_lines,
    launch,
    may_give_users,
    stage_folder,
)
from backends.compute.sandbox_state import SandboxFolder, SandboxState, boot_id, free_uid, remove, start_time
from backends.compute.sandbox_usage import usage_of
from backends.settings import BackendSettings
from storage.errors import BadInput, Conflict, NotFound, Unavailable
from storage.names import printable

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}")
_STDERR_LINES = 20


class LocalCompute:
    """Sandboxes below `directory`/environments; `directory` is the data directory and hidden from all of them."""

    name = "local"

    def __init__(self, directory: Path, guest: Path, settings: BackendSettings) -> None:
        self._directory = directory.resolve()
        self._folder = self._directory / "environments"
        self._guest = guest.resolve()
        self._settings = settings.local
        self._may_give: bool | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._helpers: set[asyncio.subprocess.Process] = set()

    async def create(self, spec: WorkloadSpec, progress: Progress) -> str:
        if spec.image:
            raise BadInput("'local' takes no image: it shows this machine's own system, read only")
        if not _ID.fullmatch(spec.id):
            raise BadInput("the environment's id cannot name a folder")
        gives = await self._gives()
        progress("making its home")
        await asyncio.to_thread(self._create, spec, gives)
        return spec.id

    async def start(self, handle: str, spec: WorkloadSpec, progress: Progress) -> None:
        await self._known(handle)
        progress("starting its sandbox")
        await asyncio.to_thread(self._start, self._at(handle), spec)

    async def stop(self, handle: str, *, grace: float) -> None:
        state = await asyncio.to_thread(self._at(handle).read)
        if state is None:
            return
        if grace > 0 and await asyncio.to_thread(lambda: state.runs):
            with contextlib.suppress(OSError):
                await self._end_programs(state, grace)
        await asyncio.to_thread(self._stop, self._at(handle))

    async def delete(self, handle: str) -> None:
        await self.stop(handle, grace=0)
        try:
            await asyncio.to_thread(self._remove, handle)
        except OSError as error:
            raise Unavailable(f"its files cannot be removed: {error.strerror}") from error

    async def inspect(self, handle: str) -> Status:
        try:
            return await asyncio.to_thread(self._inspect, handle)
        except (OSError, ValueError, TypeError) as error:
            return Status(State.UNKNOWN, f"its state cannot be read: {error}")

    async def found(self) -> Sequence[Found]:
        try:
            return await asyncio.to_thread(self._found)
        except (OSError, ValueError, TypeError) as error:
            raise Unavailable(f"the sandboxes cannot be listed: {error}") from error

    async def open_pipe(self, handle: str, argv: Sequence[str], variables: Mapping[str, str]) -> Pipe:
        state = await self._known(handle)
        if not await asyncio.to_thread(lambda: state.runs):
            raise Conflict(f"'{state.name}' does not run")
        request = await asyncio.to_thread(self._entry, state)
        inside = dict(state.variables or {}) | dict(variables)
        request |= {"argv": list(argv), "variables": inside, "folder": sandbox.HOME}
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await self._run_helper("enter", request, theirs)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return self._pipe(process, ours)

    async def network_namespace(self, handle: str) -> int | None:
        state = await asyncio.to_thread(self._at(handle).read)
        # Joining a namespace is root's: an ordinary user's gateway forwards through the guest.
        if state is None or state.pid <= 0 or os.geteuid() != 0:
            return None
        try:
            namespace = open_namespace(state.pid)
        except OSError:
            return None
        if not state.runs:
            os.close(namespace)
            return None
        return namespace

    async def usage(self, handle: str) -> Usage | None:
        return await asyncio.to_thread(self._usage, handle)

    def output(self, handle: str) -> AsyncGenerator[bytes]:
        return folder_tar(self._at(handle).path / "home" / "output")

    async def logs(self, handle: str, *, tail: int) -> AsyncIterator[bytes]:
        await self._known(handle)
        path = self._at(handle).path / "output.log"
        for line in await asyncio.to_thread(last_lines, path, tail):
            yield line

    async def check(self) -> str:
        program = bubblewrap()
        await self._gives()
        answer = await asyncio.to_thread(
            subprocess.run, [program, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
        return answer.stdout.strip() or "bubblewrap"

    async def close(self) -> None:
        for process in tuple(self._helpers):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- inside: state ---------------------------------------------------------------------------------------
    def _at(self, handle: str) -> SandboxFolder:
        if not _ID.fullmatch(handle):
            raise NotFound("there is no such sandbox")
        return SandboxFolder(self._folder / handle)

    async def _known(self, handle: str) -> SandboxState:
        state = await asyncio.to_thread(self._at(handle).read)
        if state is None:
            raise NotFound("its sandbox is gone")
        return state

    def _create(self, spec: WorkloadSpec, gives: bool) -> None:
        folder = self._at(spec.id)
        if folder.read() is not None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            uid = free_uid(spec.id, self._folder) if gives else None
            folder.make(spec, uid)
            folder.write(_described(SandboxState(spec.id, spec.name, uid, stopped=True), spec))
        except OSError as error:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise Unavailable(f"its home cannot be made: {error.strerror}") from error

    def _remove(self, handle: str) -> None:
        remove(self._at(handle).path)
        sandbox_limits.release(handle)  # also where the folder was gone before, so that `stop` knew nothing

    def _inspect(self, handle: str) -> Status:
        state = self._at(handle).read()
        if state is None:
            return Status(State.GONE)
        if state.runs:
            return Status(State.RUNNING)
        if state.stopped:
            return Status(State.STOPPED)
        reason = "this machine was started anew" if state.boot != boot_id() else "its first process was ended"
        return Status(State.STOPPED, reason)

    def _usage(self, handle: str) -> Usage | None:
        state = self._at(handle).read()
        return usage_of(state.id, state.pid) if state is not None and state.runs else None

    def _found(self) -> Sequence[Found]:
        if not self._folder.is_dir():
            return []
        states = [SandboxFolder(path).read() for path in sorted(self._folder.iterdir())]
        return [
            Found(state.id, state.id, State.RUNNING if state.runs else State.STOPPED)
            for state in states
            if state is not None
        ]

    def _stop(self, folder: SandboxFolder) -> None:
        # Under the lock: a start that its caller gave up may still be under way in another thread or process.
        with folder.locked():
            state = folder.read()
            if state is None:
                return
            if state.runs:
                kill(state)
            folder.write(dataclasses.replace(state, pid=0, started=0, stopped=True))
            sandbox_limits.release(state.id)

    # ---- inside: starting and stopping -----------------------------------------------------------------------
    async def _gives(self) -> bool:
        """Whether sandboxes get host users of their own; Unavailable if no sandbox can be made at all."""
        if self._may_give is None:
            self._may_give = await asyncio.to_thread(may_give_users, self._directory)
        return self._may_give

    def _start(self, folder: SandboxFolder, spec: WorkloadSpec) -> None:
        try:
            with folder.locked():
                state = folder.read()
                if state is None:
                    raise NotFound("its sandbox is gone")
                folder.put_guest_files(spec.guest_files, state.uid)
                if not state.runs:
                    self._bring_up(folder, state, spec)
        except OSError as error:
            raise Unavailable(f"its sandbox cannot be started: {error.strerror}") from error

    def _bring_up(self, folder: SandboxFolder, state: SandboxState, spec: WorkloadSpec) -> None:
        folder.make(spec, state.uid)
        folder.empty_tmp(state.uid)
        stage = stage_folder() if state.uid is not None else ""
        folders = {name: str(folder.path / name) for name in sandbox.FOLDERS} | {"guest": str(self._guest)}
        layout = sandbox.Layout.below(stage or str(folder.path), f"{stage}/guest" if stage else str(self._guest))
        sources = {f"mount-{number}": str(mount.source) for number, mount in enumerate(folders_only(spec.mounts))}
        folders |= sources if stage else {}
        request = self._confined(state, spec.cpus, spec.memory) | {
            "stage": stage,
            "folders": folders,
            "program": bubblewrap(),
            "arguments": list(sandbox.options(_staged(spec, stage), layout, self._directory)),
            "main": list(sandbox.MAIN),
            "output": str(folder.path / "output.log"),
        }
        pid = launch(request, folder.path / "output.log")
        began = start_time(pid)
        if not began:
            raise Unavailable("its sandbox ended at once")
        fresh = dataclasses.replace(state, pid=pid, started=began, boot=boot_id(), stopped=False)
        folder.write(_described(fresh, spec))

    def _confined(self, state: SandboxState, cpus: float, memory: int) -> dict[str, object]:
        bounds = sandbox_limits.bound(state.id, cpus=cpus, memory=memory, processes=self._settings.pids_limit)
        return {
            "uid": state.uid,
            "cgroups": [str(path / "cgroup.procs") for path in bounds.cgroups],
            "processes": bounds.processes,
            "data": bounds.data,
            "cores": bounds.cores,
            "first_core": zlib.crc32(state.id.encode()),
        }

    def _entry(self, state: SandboxState) -> dict[str, object]:
        confined = self._confined(state, state.cpus, state.memory)
        return confined | {"pid": state.pid, "started": state.started}

    async def _end_programs(self, state: SandboxState, grace: float) -> None:
        request = await asyncio.to_thread(self._entry, state)
        process = await self._run_helper("end", request | {"grace": grace}, None)
        self._watch(process, deque(maxlen=_STDERR_LINES))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace + 5):
                await process.wait()

    # ---- inside: helpers -------------------------------------------------------------------------------------
    async def _run_helper(
        self, what: str, request: Mapping[str, object], joined: socket.socket | None
    ) -> asyncio.subprocess.Process:
        reading = deliver(request)
        end = subprocess.DEVNULL if joined is None else joined.fileno()
        try:
            process = await asyncio.create_subprocess_exec(
                *helper_command(what, reading), pass_fds=(reading,), start_new_session=True,
                stdin=end, stdout=end, stderr=subprocess.PIPE,
                env=HELPER_ENVIRONMENT, cwd="/",
            )  # fmt: skip
        finally:
            os.close(reading)
        self._helpers.add(process)
        return process

    def _pipe(self, process: asyncio.subprocess.Process, ours: socket.socket) -> Pipe:
        said: deque[str] = deque(maxlen=_STDERR_LINES)
        watcher = self._watch(process, said)

        async def wait() -> int | None:
            await asyncio.shield(watcher)
            return process.returncode

        return Pipe(ours, wait, lambda: "\n".join(said))

    def _watch(self, process: asyncio.subprocess.Process, said: deque[str]) -> asyncio.Task[None]:
        task = asyncio.create_task(_listen(process, said), name=f"sandbox helper {process.pid}")
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._helpers.discard(process)

        task.add_done_callback(done)
        return task


async def _listen(process: asyncio.subprocess.Process, said: deque[str]) -> None:
    """Take what a helper says until it has ended."""
    stream = process.stderr
    while stream is not None and (piece := await stream.read(4096)):
        said.extend(printable(line, limit=300) for line in piece.decode("utf-8", "replace").splitlines())
    await process.wait()


def _staged(spec: WorkloadSpec, stage: str) -> WorkloadSpec:
    """The spec as bubblewrap meets it: where there is a stage, it shows the sources of the mounts."""
    if not stage:
        return spec
    mounts = [
        dataclasses.replace(mount, source=Path(stage, f"mount-{number}"))
        for number, mount in enumerate(folders_only(spec.mounts))
    ]
    return dataclasses.replace(spec, mounts=mounts)


def _described(state: SandboxState, spec: WorkloadSpec) -> SandboxState:
    return dataclasses.replace(state, cpus=spec.cpus, memory=spec.memory, variables=dict(sandbox.variables(spec)))
