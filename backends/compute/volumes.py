"""What a compute must be able to do that does not see this machine's files: take data into volumes of its own engine.

An optional power beside `compute.contract`. Which data, and whether they are whole, is `backends.data_shelves`'
business; here are only volumes, archives and folders.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from backends.compute.contract import Progress


class VolumeWriter(Protocol):
    """A volume that is open for changes. Unavailable: the engine went away, or its disk is full."""

    async def put(self, tar: AsyncGenerator[bytes]) -> None:
        """Unpack an archive over what is there; on return all of it is. What `tar` raises is raised."""
        ...

    async def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and directories that are empty then; a path with a slash at its end is a directory. A thousand
        at most. No error for what is gone."""
        ...

    async def settle(self) -> None:
        """On return everything is safe on the disk over there."""
        ...


@runtime_checkable
class HasVolumes(Protocol):
    """An optional power of a compute."""

    @property
    def is_elsewhere(self) -> bool:
        """It does not see this machine's files. Where it does, nothing else here is asked."""
        ...

    async def has_volume(self, name: str) -> bool: ...

    async def delete_volume(self, name: str) -> None:
        """No-op when it is gone. Conflict: a container still has it."""
        ...

    def volume_writer(self, name: str, progress: Progress) -> AbstractAsyncContextManager[VolumeWriter]:
        """Make the volume unless it is there, and open it."""
        ...

    async def clear_helpers(self, volumes: Collection[str]) -> None:
        """Remove helper containers for these volumes: they are those of a process that was cut off."""
        ...

    async def has_folder(self, folder: Path, progress: Progress) -> bool:
        """Whether containers over there can be shown this folder of their machine."""
        ...
