"""Which builder the settings mean."""

from __future__ import annotations

import shutil
from pathlib import Path

from backends.builders.buildah import BuildahBuilder
from backends.builders.contract import Builder, BuilderState
from backends.builders.docker import DockerBuilder
from backends.compute.docker.hosts import line_to
from backends.settings import HERE, BackendSettings, DockerHostSettings
from storage.errors import Unavailable

NO_BUILDER = "this house builds no images: an administrator can set backends.builds.builder"
ELSEWHERE = (
    "this house builds on another machine, which does not reach the gateway's own registry: an administrator can set "
    "backends.registry.url"
)


def why_not(settings: BackendSettings) -> str:
    """Why the settings allow no builds at all; empty if they do. Whether the builder answers is another matter."""
    match _kind(settings):
        case "":
            return NO_BUILDER
        case "docker" if _host(settings) is None:
            return ELSEWHERE
    return ""


def builder_of(settings: BackendSettings, data: Path) -> Builder | None:
    """The builder of the settings, in a process that builds; None if nothing is built here."""
    match _kind(settings):
        case "docker" if (host := _host(settings)) is not None:
            return DockerBuilder(host, settings.registry, settings.builds)
        case "buildah":
            return BuildahBuilder(data / "builds" / "buildah", settings.registry, settings.builds)
    return None


class BuilderCheck:
    """Looks at the builder of the settings, in whatever process asks."""

    def __init__(self, settings: BackendSettings, data: Path) -> None:
        self._settings = settings
        self._data = data

    async def look(self) -> BuilderState | None:
        """None: nothing is built here, and that is meant so. Unavailable: something is missing."""
        builder = builder_of(self._settings, self._data)
        if builder is None:
            if self._settings.builds.builder in ("docker", "buildah"):
                raise Unavailable(self._missing())
            return None
        try:
            return await builder.check()
        finally:
            await builder.close()

    def _missing(self) -> str:
        if self._settings.builds.builder == "buildah":
            return "the program 'buildah' is not installed on this machine"
        return why_not(self._settings)


def _kind(settings: BackendSettings) -> str:
    """`auto` does not look for buildah: an administrator should know that its steps share this machine's network."""
    match settings.builds.builder:
        case "auto":
            there = settings.docker.hosts or Path(settings.docker.socket).is_socket()
            return "docker" if settings.docker.enabled and there else ""
        case "buildah":
            return "buildah" if shutil.which("buildah") else ""
        case "none":
            return ""
    return "docker"


def _host(settings: BackendSettings) -> DockerHostSettings | None:
    """None if no host that may build reaches the registry: another machine's own address is not ours, and whoever
    listens on it there would get the password."""
    hosts = settings.docker.hosts or {HERE: DockerHostSettings(url=f"unix://{settings.docker.socket}")}
    able = [hosts[settings.builds.host]] if settings.builds.host else hosts.values()
    return next((one for one in able if line_to(one).is_here or not settings.registry.is_here), None)
