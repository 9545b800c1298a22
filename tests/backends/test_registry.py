"""Which computes serve, and what is said about those that do not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.compute import registry
from backends.compute.registry import computes_of
from backends.settings import BackendSettings, DockerSettings, LocalSettings

NO_LOCAL = LocalSettings(enabled=False)


async def test_both_serve_here(data_dir: Path) -> None:
    async with computes_of(BackendSettings(), data_dir) as computes:
        assert {name: compute.name for name, compute in computes.items()} == {"local": "local", "docker": "docker"}
        assert (await computes["docker"].check()).startswith("Docker ")


async def test_docker_without_its_socket_is_absent(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = BackendSettings(docker=DockerSettings(socket=str(data_dir / "no.sock")), local=NO_LOCAL)
    async with computes_of(settings, data_dir) as computes:
        assert computes == {}
    assert "'docker' is not offered: the Docker engine does not answer" in caplog.text
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
            while "docker" not in late:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.05)
        assert (await late["docker"].check()).startswith("Docker ")


async def test_what_is_switched_off_is_absent(data_dir: Path) -> None:
    settings = BackendSettings(docker=DockerSettings(enabled=False), local=NO_LOCAL)
    async with computes_of(settings, data_dir) as computes:
        assert computes == {}
