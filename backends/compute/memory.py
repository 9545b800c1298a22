"""The compute `memory`: a pretended engine for tests. Its workloads are entries of a dict, but their programs are real.

Programs run on this machine without any isolation, so nothing here may ever be offered to people. The engine is an
object of its own, as a Docker daemon would be, so that a second driver finds what the first one made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from backends.compute.contract import Found, Pipe, Progress, State, Status, Usage, WorkloadSpec, folders_only
from backends.compute.folder_tar import folder_tar
from backends.compute.hang_up import hang_up
from backends.compute.places import Capacity, GpuDriver, GpuFact, GpuLoad
from storage.errors import BadInput, Conflict, NotFound, Unavailable

MISSING_IMAGE = "missing"
"""The one image that this engine does not have."""
_GONE = "it was removed"
_TAIL = 4096
_ABANDONED_SECONDS = 1.0


@dataclass
class Workload:
    """One pretended container."""

    spec: WorkloadSpec
    directory: Path
    state: State = State.STOPPED
    output: list[bytes] = field(default_factory=list)
    programs: set[asyncio.subprocess.Process] = field(default_factory=set)

    @property
    def home(self) -> Path:
        """Lives as long as the workload; the working directory of its programs."""
        return self.directory / "home"

    @property
    def root(self) -> Path:
        """Below it, mounts are links at the paths that they would have inside; nothing hinders writing to them."""
        return self.directory / "root"

    @property
    def run(self) -> Path:
        """Holds the guest's files."""
        return self.directory / "run"


class MemoryEngine:
    """What all `MemoryCompute` of one test share. `away`: it answers nobody. `fail_start`: why no start works."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.workloads: dict[str, Workload] = {}
        self.away = False
        self.fail_start = ""
        self.usage = Usage(cpu=0.0, memory=0, processes=1)
        """What every running workload is said to take."""
        self.capacity = Capacity(64.0, 256 * 1024**3, is_here=True)
        self.gpus: list[GpuFact] = []
        self.gpu_trouble = ""
        """Why its GPUs cannot be asked."""
        self.gpu_loads: list[GpuLoad] = []
        self.driver: GpuDriver | None = None
        self.image_variables: list[str] = []
        self.images_asked: list[str] = []

    def remove(self, handle: str) -> None:
        """Take a workload away behind its driver's back."""
        workload = self.workloads.pop(handle)
        for program in workload.programs:
            _signal(program, signal.SIGKILL)


class MemoryCompute:
    """A driver for `MemoryEngine`."""

    def __init__(self, engine: MemoryEngine, *, name: str = "memory") -> None:
        self.name = name
        self._engine = engine
        self._tasks: set[asyncio.Task[None]] = set()

    async def capacity(self) -> Capacity:
        self._answer()
        return self._engine.capacity

    async def gpus(self) -> Sequence[GpuFact]:
        self._answer()
        if self._engine.gpu_trouble:
            raise Unavailable(self._engine.gpu_trouble)
        return tuple(self._engine.gpus)

    async def driver(self) -> GpuDriver | None:
        self._answer()
        return self._engine.driver

    async def image_variables(self, image: str) -> Sequence[str]:
        self._answer()
        self._engine.images_asked.append(image)
        return tuple(self._engine.image_variables)

    async def gpu_loads(self) -> Sequence[GpuLoad]:
        self._answer()
        return tuple(self._engine.gpu_loads)

    async def create(self, spec: WorkloadSpec, progress: Progress) -> str:
        self._answer()
        if spec.image == MISSING_IMAGE:
            raise BadInput(f"there is no image '{spec.image}'")
        handle = f"memory-{spec.id}"
        if handle not in self._engine.workloads:
            progress("making it")
            workload = Workload(spec, self._engine.directory / spec.id)
            workload.home.mkdir(parents=True, exist_ok=True)
            self._engine.workloads[handle] = workload
        elif self._engine.workloads[handle].spec.gpus != spec.gpus:
            await _end(self._engine.workloads[handle], 0)
            self._engine.workloads[handle] = Workload(spec, self._engine.directory / spec.id)
        return handle

    async def start(self, handle: str, spec: WorkloadSpec, progress: Progress) -> None:
        workload = self._workload(handle)
        progress("starting")
        if self._engine.fail_start:
            raise Unavailable(self._engine.fail_start)
        workload.run.mkdir(mode=0o700, exist_ok=True)
        for name, content in spec.guest_files.items():
            with os.fdopen(os.open(workload.run / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
        shutil.rmtree(workload.root, ignore_errors=True)
        for mount in folders_only(spec.mounts):
            link = workload.root / mount.path.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(mount.source)
        if workload.state is not State.RUNNING:
            workload.state = State.RUNNING
            workload.output.append(f"{spec.name} is up\n".encode())

    async def stop(self, handle: str, *, grace: float) -> None:
        self._answer()
        workload = self._engine.workloads.get(handle)
        if workload is None:
            return
        workload.state = State.STOPPED
        await _end(workload, grace)
        shutil.rmtree(workload.run, ignore_errors=True)

    async def delete(self, handle: str) -> None:
        self._answer()
        workload = self._engine.workloads.pop(handle, None)
        if workload is not None:
            await _end(workload, 0)
        shutil.rmtree(self._engine.directory / handle.removeprefix("memory-"), ignore_errors=True)

    async def inspect(self, handle: str) -> Status:
        if self._engine.away:
            return Status(State.UNKNOWN, "the engine does not answer")
        workload = self._engine.workloads.get(handle)
        return Status(State.GONE, _GONE) if workload is None else Status(workload.state)

    async def usage(self, handle: str) -> Usage | None:
        self._answer()
        workload = self._engine.workloads.get(handle)
        return self._engine.usage if workload is not None and workload.state is State.RUNNING else None

    async def output(self, handle: str) -> AsyncGenerator[bytes]:
        async with aclosing(folder_tar(self._workload(handle).home / "output")) as pieces:
            async for piece in pieces:
                self._answer()
                yield piece

    async def found(self) -> Sequence[Found]:
        self._answer()
        return [Found(handle, item.spec.id, item.state) for handle, item in self._engine.workloads.items()]

    async def open_pipe(self, handle: str, argv: Sequence[str], variables: Mapping[str, str]) -> Pipe:
        workload = self._workload(handle)
        if workload.state is not State.RUNNING:
            raise Conflict("it does not run")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            program = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", 'exec "$@"', "sh", *argv),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": os.defpath, **workload.spec.variables, **variables},
                cwd=workload.home,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            theirs.close()
            raise
        workload.programs.add(program)
        tail = bytearray()
        task = asyncio.create_task(_attend(workload, program, theirs, tail), name=f"memory program {program.pid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        async def wait() -> int | None:
            await asyncio.wait([task])
            return program.returncode

        return Pipe(ours, wait, lambda: tail.decode("utf-8", "replace").strip())

    async def logs(self, handle: str, *, tail: int) -> AsyncIterator[bytes]:
        for line in self._workload(handle).output[-tail:]:
            yield line

    async def check(self) -> str:
        self._answer()
        return "memory, for tests"

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _answer(self) -> None:
        if self._engine.away:
            raise Unavailable("the engine does not answer")

    def _workload(self, handle: str) -> Workload:
        self._answer()
        workload = self._engine.workloads.get(handle)
        if workload is None:
            raise NotFound(_GONE)
        return workload


async def _attend(workload: Workload, program: asyncio.subprocess.Process, end: socket.socket, tail: bytearray) -> None:
    """Stay with a program until it has ended; kill it when nobody is at the other end of its pipe."""
    assert program.stderr is not None
    closed = asyncio.create_task(hang_up(end), name="memory program hang-up")
    over = asyncio.create_task(program.wait(), name="memory program end")
    reading = asyncio.create_task(_keep_tail(program.stderr, tail), name="memory program stderr")
    try:
        await asyncio.wait((closed, over), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((over,), timeout=_ABANDONED_SECONDS)
    finally:
        if program.returncode is None:
            _signal(program, signal.SIGKILL)
        await program.wait()
        await reading
        closed.cancel()
        await asyncio.gather(closed, over, return_exceptions=True)
        end.close()
        workload.programs.discard(program)


async def _keep_tail(stream: asyncio.StreamReader, tail: bytearray) -> None:
    while piece := await stream.read(65536):
        tail += piece
        del tail[:-_TAIL]


async def _end(workload: Workload, grace: float) -> None:
    programs = tuple(workload.programs)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        waiting = [asyncio.ensure_future(p.wait()) for p in programs if p.returncode is None]
        if not waiting:
            return
        for program in programs:
            _signal(program, number)
        await asyncio.wait(waiting, timeout=seconds)


def _signal(program: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, number)
