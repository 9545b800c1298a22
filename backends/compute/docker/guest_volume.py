"""The guest's tree for an engine that does not see this machine's files: a volume of the Engine, filled once.

The volume is named after the tree's content, so a newer OpenSSH makes another one and what runs keeps its own.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path

from backends.compute.docker.config import GUEST, JSON, guest_mount
from backends.compute.docker.engine import Engine

_LAST = "manifest.json"
"""Unpacked after everything else: where it is, the tree is whole."""


class GuestVolume:
    """The volume of one engine for the tree in `guest`, a folder that `backends.guest_tree` made.

    `image` is what the container that fills it is made of: one of the settings, never one that a person chose.
    """

    def __init__(self, engine: Engine, guest: Path, image: str) -> None:
        self._engine = engine
        self._guest = guest
        self._image = image
        self._lock = asyncio.Lock()
        self._is_filled = False
        self.name = f"ashore-guest-{guest.name}"
        """Of the volume, and of the container that never runs and only serves to fill it."""

    async def bring(self) -> None:
        """Make and fill it, unless that was done."""
        async with self._lock:
            # An operator may have pruned it; Docker would then make an empty one without a word.
            if await self._engine.volume_labels(self.name) is None:
                self._is_filled = False
            if not self._is_filled:
                await self._fill()
                self._is_filled = True

    async def _fill(self) -> None:
        await self._engine.image(self._image, lambda line: None)
        labels = {"ashore.guest": self._guest.name}
        await self._engine.create_volume({"Name": self.name, "Labels": labels})
        await self._engine.create_container(self.name, _filler(self._image, self.name, labels))
        try:
            if not await self._engine.has_file(self.name, f"{GUEST}/{_LAST}"):
                await self._engine.put_files(self.name, GUEST, await asyncio.to_thread(_packed, self._guest))
        finally:
            await self._engine.delete_container(self.name)


def _filler(image: str, volume: str, labels: dict[str, str]) -> JSON:
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh"],
        "Labels": labels,
        "HostConfig": {"NetworkMode": "none", "Mounts": [guest_mount(volume, read_only=False)]},
    }


def _packed(folder: Path) -> io.BytesIO:
    """The tree as an archive that belongs to root, `_LAST` at its end."""
    paths = sorted(folder.rglob("*"), key=lambda path: (path.name == _LAST, str(path)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in paths:
            archive.add(path, str(path.relative_to(folder)), recursive=False, filter=_owned_by_root)
    buffer.seek(0)
    return buffer


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
