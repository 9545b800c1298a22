"""Which computes serve, and what is said about those that do not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.compute import registry
from backends.compute.registry import computes_of
from backends.settings import BackendSettings, DockerHostSettings, DockerSettings, LocalSettings
from storage.errors import Unavailable

NO_LOCAL = LocalSettings(enabled=False)


async def test_both_serve_here(data_dir: Path) -> None:
    async with computes_of(BackendSettings(), data_dir) as computes:
        names = {name: compute.name for name, compute in computes.items()}
        assert names == {"local": "local", "docker/here": "docker/here"}
        assert (await computes["docker/here"].check()).startswith("Docker ")


async def test_docker_without_its_socket_is_absent(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = BackendSettings(docker=DockerSettings(socket=str(data_dir / "no.sock")), local=NO_LOCAL)
    async with computes_of(settings, data_dir) as computes:
        assert computes == {}
    assert "'docker/here' is not offered: the Docker engine does not answer" in caplog.text
    assert str(data_dir / "no.sock") in caplog.text


async def test_an_engine_that_starts_later_serves_then(
    data_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LOOK_SECONDS", 0.05)
    sock = data_dir / "late.sock"
    async with computes_of(BackendSettings(docker=DockerSettings(socket=str(sock)), local=NO_LOCAL), data_dir) as late:
        await asyncio.sleep(0.3)
        assert late == {}
        assert caplog.text.count("is not offered") == 1
        sock.symlink_to(BackendSettings().docker.socket)
        async with asyncio.timeout(60):
            while "docker/here" not in late:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.05)
        assert (await late["docker/here"].check()).startswith("Docker ")


async def test_what_is_switched_off_is_absent(data_dir: Path) -> None:
    settings = BackendSettings(docker=DockerSettings(enabled=False), local=NO_LOCAL)
    async with computes_of(settings, data_dir) as computes:
        assert computes == {}


async def test_hosts_of_the_settings_are_there_whether_they_answer_or_not(data_dir: Path) -> None:
    hosts = {name: DockerHostSettings(url=f"unix://{data_dir}/{name}.sock") for name in ("gpu1", "gpu2")}
    (data_dir / "gpu1.sock").symlink_to(DockerSettings().socket)
    async with computes_of(BackendSettings(docker=DockerSettings(hosts=hosts), local=NO_LOCAL), data_dir) as computes:
        assert set(computes) == {"docker/gpu1", "docker/gpu2"}
        assert (await computes["docker/gpu1"].check()).startswith("Docker ")
        with pytest.raises(Unavailable):
            await computes["docker/gpu2"].check()
