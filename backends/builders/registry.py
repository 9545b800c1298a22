"""Which builder the settings mean."""

from __future__ import annotations

import shutil
from pathlib import Path

from backends.builders.buildah import BuildahBuilder
from backends.builders.contract import Builder
from backends.builders.docker import DockerBuilder
from backends.settings import HERE, BackendSettings, DockerHostSettings


def is_possible(settings: BackendSettings) -> bool:
    """Whether the settings name a builder at all; whether it answers is another matter."""
    return bool(_kind(settings))


def builder_of(settings: BackendSettings, data: Path) -> Builder | None:
    """The builder of the settings, in a process that builds; None if nothing is built here."""
    match _kind(settings):
        case "docker":
            return DockerBuilder(_host(settings), settings.registry, settings.builds)
        case "buildah":
            return BuildahBuilder(data / "builds" / "buildah", settings.registry, settings.builds)
    return None


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


def _host(settings: BackendSettings) -> DockerHostSettings:
    hosts = settings.docker.hosts or {HERE: DockerHostSettings(url=f"unix://{settings.docker.socket}")}
    return hosts[settings.builds.host] if settings.builds.host else next(iter(hosts.values()))
