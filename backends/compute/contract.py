"""What a place that runs environments must be able to do, and the words for it.

A driver translates between these words and one engine; it knows no users, no records and no policy. It is called by
the environments reconciler and by the guest only. Every method may be called again after a crash of the gateway, so
each must accept that its work has been done already. Foreign errors become `storage.errors`, chained.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from storage.errors import BadInput, Unavailable

Progress = Callable[[str], None]
"""Takes one short line for people, such as `pulling debian:bookworm 61 %`; may be called at any rate."""


class RegistryAway(Unavailable):
    """The engine answers, and could not get an image now: trying again may help.

    `said`: what the engine said about it, with addresses that help operators only.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class State(StrEnum):
    """What an engine says of a workload."""

    RUNNING = "running"
    STOPPED = "stopped"
    GONE = "gone"
    """The engine is there and knows no such workload."""
    UNKNOWN = "unknown"
    """The engine cannot be asked now; nothing follows from it."""


@dataclass(frozen=True)
class HostMount:
    """A folder of the host that is seen inside. Its content may change there; the folder itself must not."""

    source: Path
    """Absolute, on the engine's own machine; it is there before `create` and at each `start`."""
    path: str
    """Absolute, inside."""
    read_only: bool = True


@dataclass(frozen=True)
class VolumeMount:
    """A volume of the engine that is seen inside: for engines that do not see the gateway's files."""

    volume: str
    """Its name; it is there, and filled, before `create` and at each `start`."""
    path: str
    """Absolute, inside."""
    read_only: bool = True


Mount = HostMount | VolumeMount


def folders_only(mounts: Sequence[Mount]) -> Sequence[HostMount]:
    """`mounts` for an engine that knows folders only; BadInput if one is a volume."""
    found = [mount for mount in mounts if isinstance(mount, HostMount)]
    if len(found) != len(mounts):
        raise BadInput("this compute has no volumes")
    return found


@dataclass(frozen=True)
class WorkloadSpec:
    """Everything that a driver needs to make one environment. Pure data; the same spec makes the same workload."""

    id: str
    """The environment's id; becomes the label `ashore=<id>`."""
    name: str
    owner: str
    workspace: str
    image: str = ""
    """A reference that its engine can pull."""
    image_title: str = ""
    """What people call it; empty: the same."""
    image_auth: str = field(default="", repr=False)
    """The login for its registry, as the header `X-Registry-Auth` has it; used for the pull and kept nowhere."""
    cpus: float = 0.0
    """Cores; 0: no limit."""
    memory: int = 0
    """Bytes; 0: no limit."""
    gpus: Sequence[str] = ()
    """UUIDs of the GPUs that it sees, and no others. A workload that was made with other ones is made anew by `create`,
    with everything that its owner stored in it."""
    variables: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    """As a rule the same at every start of one workload. One that was made with others is made anew by `create`, with
    everything that its owner stored in it, where the engine cannot change them."""
    guest_files: Mapping[str, bytes] = field(default_factory=dict)
    """File name → content; appear inside, readable by root (or the sandbox's only user) alone, in
    `/opt/ashore/run/`. They are secrets: host key, authorized key, sshd configuration."""


@dataclass(frozen=True)
class Status:
    """What an engine says now. `exit_status` and `reason` tell why it is not running, where the engine knows."""

    state: State
    reason: str = ""
    exit_status: int | None = None


@dataclass(frozen=True)
class Found:
    """A workload that carries our label."""

    handle: str
    environment_id: str
    state: State


@dataclass(frozen=True)
class Pipe:
    """A program that runs inside a workload, its stdin and stdout joined to `socket`.

    Shutting down the writing half of `socket` is EOF for the program; EOF on `socket` is the end of its output.
    Closing `socket` ends the program's pipes, and the driver sees to it that the program does not stay behind.
    """

    socket: socket.socket
    wait: Callable[[], Awaitable[int | None]]
    """The exit status once the program has ended; None if the engine cannot tell."""
    complaint: Callable[[], str]
    """The last lines that the program wrote to stderr; for errors that people read."""


@dataclass(frozen=True)
class Usage:
    """What a running workload takes."""

    cpu: float
    """Core-seconds since it started."""
    memory: int
    """Bytes now, without file cache that the kernel would give back at once."""
    processes: int
    """Processes and threads."""


class Compute(Protocol):
    """One engine. `name` is its name in the settings."""

    name: str

    async def create(self, spec: WorkloadSpec, progress: Progress) -> str:
        """Make the workload, without starting it, and return its handle; if one with this id exists, return that.

        A create that fails leaves nothing behind. BadInput: the spec cannot be met (no such image). RegistryAway: its
        image is not here, and its registry does not answer.
        """
        ...

    async def start(self, handle: str, spec: WorkloadSpec, progress: Progress) -> None:
        """Bring it up, with `spec.guest_files` in place; no-op when it runs. NotFound: it is gone."""
        ...

    async def stop(self, handle: str, *, grace: float) -> None:
        """End its programs: TERM, then KILL after `grace` seconds. What its owner stored in it stays."""
        ...

    async def delete(self, handle: str) -> None:
        """Remove it with everything in it; no-op when it is gone."""
        ...

    async def inspect(self, handle: str) -> Status:
        """What it is doing. Never raises for an engine that is away: that is UNKNOWN."""
        ...

    async def found(self) -> Sequence[Found]:
        """Every workload with our label. Unavailable: the engine cannot be asked."""
        ...

    async def open_pipe(self, handle: str, argv: Sequence[str], variables: Mapping[str, str]) -> Pipe:
        """Run `argv` inside, as root where the workload has a root. Conflict: it does not run."""
        ...

    def logs(self, handle: str, *, tail: int) -> AsyncIterator[bytes]:
        """The last `tail` lines that the workload's own main program wrote."""
        ...

    async def check(self) -> str:
        """One line about the engine (version, storage); Unavailable with a sentence if it cannot serve."""
        ...

    async def close(self) -> None:
        """Let go of connections; workloads go on."""
        ...


@runtime_checkable
class HasUsage(Protocol):
    """An optional power of a compute: it tells what a workload takes."""

    async def usage(self, handle: str) -> Usage | None:
        """None: it does not run, or is gone. Unavailable: the engine cannot be asked."""
        ...


@runtime_checkable
class HasOutput(Protocol):
    """An optional power of a compute: it gives what its owner left in /gemini/output."""

    def output(self, handle: str) -> AsyncGenerator[bytes]:
        """A tar archive of that folder, in pieces as they come, of a workload that does not run.

        Its first entry is the folder itself, or whatever stands in its place; all other names begin with that one's. No
        link is followed, except by Podman a link in its place, inside the container. NotFound: there is no such folder,
        or no such workload any more. Conflict: it cannot be read as it is, so somebody has to go in. Unavailable: it
        cannot be read now.
        """
        ...


@runtime_checkable
class HasImages(Protocol):
    """An optional power of a compute: it keeps images, and takes them before they are needed."""

    @property
    def is_here(self) -> bool:
        """It is on the gateway's own machine."""
        ...

    async def pull_image(self, reference: str, title: str, auth: str, progress: Progress) -> bool:
        """See `WorkloadSpec`. Asks its registry also when it has one of this tag. False: it was there already.

        BadInput: nobody gives it. RegistryAway: its registry does not answer, and it is not there.
        """
        ...

    async def image_id(self, name: str) -> str:
        """What the engine calls an image that it has by this name; empty if it has none. Nothing is pulled."""
        ...

    async def load_image(self, archive: AsyncGenerator[bytes], title: str) -> None:
        """Take an image from an archive, as fast as the engine takes it; `archive` is closed at the end."""
        ...

    async def drop_image(self, reference: str) -> None:
        """Forget its copy, with layers that nothing else needs; no-op if it has none, or something runs from it."""
        ...


@runtime_checkable
class HasPulls(Protocol):
    """An optional power of a compute: images come to it from registries, which may take hours."""

    async def lacks_image(self, spec: WorkloadSpec) -> bool:
        """Whether `create` would have to pull its image first. Unavailable: the engine cannot be asked."""
        ...

    async def bring_image(self, spec: WorkloadSpec, progress: Progress) -> None:
        """Pull its image, unless it is there; `progress` is called with every piece.

        BadInput: nobody gives it. RegistryAway: its registry does not answer.
        """
        ...


@runtime_checkable
class OnAccount(Protocol):
    """An optional power of a compute: its programs run as an account that is there already, and has its own sshd.

    They start in the environment's home, with HOME set to it; the guest's files are in `../run` as seen from there.
    """

    @property
    def account(self) -> str:
        """Whom the guest logs in as."""
        ...
