"""Builds with the classic builder of a Docker engine, here or on another machine.

The Engine ends a build, its container included, when the connection over which it was asked for is closed. So a build
ends with our call, and with our process; nothing has to be looked for after a crash. BuildKit would need a gRPC
session back to us, and is not used.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Collection, Mapping
from contextlib import aclosing
from typing import Any

from backends.builders.contract import (
    LABEL,
    BuilderState,
    Fair,
    Order,
    StepFailed,
    Steps,
    Write,
    no_base,
    refuse_triggers,
)
from backends.builders.pulling import PullLines
from backends.compute.contract import RegistryAway
from backends.compute.docker.config import is_podman
from backends.compute.docker.engine import Engine
from backends.compute.docker.hosts import line_to
from backends.dockerfiles.recipes import Recipe
from backends.registry_login import auth_for
from backends.settings import BuildSettings, DockerHostSettings, RegistrySettings
from storage.errors import BadInput, Unavailable
from storage.names import printable

_MIB = 1024 * 1024
_CPU_PERIOD = 100_000


class DockerBuilder:
    """One engine's builder."""

    name = "docker"

    def __init__(self, host: DockerHostSettings, registry: RegistrySettings, settings: BuildSettings) -> None:
        self._engine = Engine(line_to(host))
        self._registry = registry
        self._settings = settings

    @property
    def is_here(self) -> bool:
        """Its engine is on the gateway's own machine."""
        return self._engine.line.is_here

    async def check(self) -> BuilderState:
        info = await self._engine.info()
        engine = "Podman" if is_podman(info) else "Docker"
        return BuilderState(f"{engine} {info['ServerVersion']}, {info['Driver']}")

    async def recover(self) -> None:
        """Nothing is left: see above."""

    async def build(self, order: Order, write: Write) -> str:
        steps, image = Steps(), ""
        recipe = order.recipe.on(await self._base(order.recipe.base, write))
        events = self._engine.build(_context(recipe), self._parameters(order))
        fair = Fair(write)
        async with aclosing(events):
            async for event in events:
                if (failure := event.get("errorDetail")) is not None or "error" in event:
                    raise StepFailed(_failure(failure or {"message": event["error"]}), steps.step)
                if line := _line(event):
                    steps.see(line)
                    await fair.write(line)
                image = (event.get("aux") or {}).get("ID") or image
        if not image:
            raise Unavailable("the Docker engine ended the build without an image")
        return image

    async def _base(self, base: str, write: Write) -> str:
        """The id of the base, fetched if it is not here."""
        try:
            image = await self._engine.image(base, PullLines(write).see, auth=auth_for(self._registry, base))
        except (RegistryAway, BadInput) as error:
            said = error.said if isinstance(error, RegistryAway) else ""
            write(f"{said or error.message}\n".encode())
            raise no_base(base) from error
        refuse_triggers((image.get("Config") or {}).get("OnBuild"))
        return str(image["Id"])

    async def push(self, order: Order, image: str, write: Write) -> str:
        repository, _, tag = order.target.rpartition(":")
        digest = ""
        events = self._engine.push(repository, tag, auth_for(self._registry, order.target))
        async with aclosing(events):
            async for event in events:
                if "error" in event:
                    raise Unavailable(f"the registry does not take it: {printable(str(event['error']), limit=300)}")
                digest = (event.get("aux") or {}).get("Digest") or digest
                if line := _line(event):
                    write(line)
        if not digest:
            raise Unavailable("the Docker engine did not say which digest it pushed")
        return digest

    async def prune(self, *, days: float, keep: Collection[str] = ()) -> int:
        before, removed = time.time() - days * 86400, 0
        for image in await self._engine.images(LABEL):
            digests = {name.partition("@")[2] for name in image["RepoDigests"] or ()}
            if image["Created"] < before and digests.isdisjoint(keep):
                names = [name for name in image["RepoTags"] or () if not name.startswith("<none>")]
                # With its last name goes the image itself.
                removed += any([await self._engine.delete_image(name) for name in names or [image["Id"]]])
        return removed

    async def close(self) -> None:
        await self._engine.close()

    def _parameters(self, order: Order) -> Mapping[str, str]:
        memory, cpus = self._settings.memory_mib, self._settings.cpus
        found = {"t": order.target, "rm": "1", "forcerm": "1", "dockerfile": "Dockerfile"}
        if memory:
            found |= {"memory": str(memory * _MIB), "memswap": str(memory * _MIB)}
        if cpus:
            found |= {"cpuperiod": str(_CPU_PERIOD), "cpuquota": str(int(cpus * _CPU_PERIOD))}
        return found


def _context(recipe: Recipe) -> bytes:
    """The build context. Every file has the same time, or no COPY would come from the cache."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in [("Dockerfile", recipe.text.encode()), *sorted(recipe.files.items())]:
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _line(event: Mapping[str, Any]) -> bytes:
    """What an event says, without the progress of transfers, of which there are hundreds."""
    if "stream" in event:
        return str(event["stream"]).encode("utf-8", "replace")
    if "status" not in event or event.get("progressDetail"):
        return b""
    layer = f"{event['id']}: " if event.get("id") else ""
    return f"{layer}{event['status']}\n".encode("utf-8", "replace")


def _failure(detail: Mapping[str, Any]) -> str:
    if detail.get("code"):
        return f"exit status {detail['code']}"
    return printable(str(detail.get("message", "")).strip(), limit=500)
