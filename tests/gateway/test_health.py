"""What `doctor` makes of the answers it gets."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from backends.builders import buildah
from backends.builders.registry import BuilderCheck
from backends.registry import Registry
from backends.settings import BackendSettings, BuildSettings, DockerSettings, RegistrySettings
from gateway import health
from gateway.commands.doctor import report
from storage.database.engine import Database
from storage.errors import Unavailable
from storage.settings import ObjectSettings

GOOD = {
    "shell": "/bin/bash", "bash": "/bin/bash", "tar": "/bin/tar", "gzip": "/bin/gzip", "curl": "/usr/bin/curl",
    "wget": "", "git": "", "libc": "glibc 2.36", "machine": "x86_64", "localhost": "yes", "home": "/workspace",
    "writable": "yes", "free": "9999999", "watches": "65536",
}  # fmt: skip


def bad(**changed: str) -> list[str]:
    answer = "\n".join(f"{name}={value}" for name, value in (GOOD | changed).items())
    return [finding.name for finding in health.of_environment(answer) if not finding.ok]


def test_a_good_environment() -> None:
    assert bad() == []
    assert bad(curl="", wget="/usr/bin/wget", free="", watches="", machine="aarch64") == []


@pytest.mark.parametrize(
    ("fact", "value", "finding"),
    [
        ("bash", "", "bash"),
        ("tar", "", "tar"),
        ("curl", "", "curl or wget"),
        ("libc", "glibc 2.17", "C library"),
        ("libc", "ldd (GNU libc) 2.27", "C library"),
        ("libc", "musl libc (x86_64)", "C library"),
        ("libc", "", "C library"),
        ("localhost", "", "localhost"),
        ("writable", "", "home writable"),
        ("free", "1000", "free disk"),
        ("watches", "100", "file watches"),
        ("machine", "mips", "processor"),
    ],
)
def test_what_is_missing(fact: str, value: str, finding: str) -> None:
    assert bad(**{fact: value}) == [finding]


@pytest.mark.parametrize("answer", ["", "garbage", "shell=/bin/sh\n"])
def test_an_environment_that_cannot_be_asked(answer: str) -> None:
    with pytest.raises(Unavailable):
        health.of_environment(answer)


def test_the_probe_is_understood_by_a_plain_shell_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh"], input=health.PROBE, capture_output=True, text=True, check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    findings = {finding.name: finding for finding in health.of_environment(done.stdout)}
    assert findings["home writable"].ok
    assert findings["C library"].detail.startswith("glibc")
    assert list(tmp_path.iterdir()) == []


async def test_a_schema_that_is_too_old(data_dir: Path) -> None:
    database = Database.in_directory(data_dir)
    findings = await health.of_house(database, None, {}, data_dir)
    await database.close()
    assert [(one.name, one.ok) for one in findings][:2] == [("database", False), ("computes", False)]


async def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/nowhere/x.sqlite3")
    before = set(threading.enumerate())
    (finding, _) = await health.of_house(database, None, {}, None)
    await database.close()
    assert not finding.ok
    # Nobody waits for the thread of a connection that failed; it must not speak to a closed loop.
    for thread in set(threading.enumerate()) - before:
        if "connection_worker" in thread.name:
            thread.join(10)


async def test_a_store_that_is_not_there_is_one_finding() -> None:
    objects = ObjectSettings(endpoint="http://127.0.0.1:9", access_key="a", secret_key=SecretStr("hunter2"))
    findings = await health.of_endpoint(objects)
    assert [(finding.name, finding.ok) for finding in findings] == [("store: endpoint", False)]
    assert "hunter2" not in report(findings, as_json=True, colours=False)


def test_what_nobody_can_tell_is_good_and_says_what_to_see_to() -> None:
    finding = health.Finding("store: unfinished uploads", True, "MinIO removes them", "set it higher", known=False)
    assert report([finding], as_json=False, colours=False).splitlines()[0].startswith("?    store: unfinished uploads")
    assert "set it higher" in report([finding], as_json=False, colours=False)
    (row,) = json.loads(report([finding], as_json=True, colours=False))
    assert (row["ok"], row["state"], row["hint"]) == (True, "unknown", "set it higher")


async def test_the_builder(tmp_path: Path) -> None:
    """Docker of this machine; one that was asked for and is not there; and none at all, which is no fault."""

    async def found(**builds: object) -> health.Finding:
        settings = BackendSettings(builds=BuildSettings(**builds), docker=docker)  # type: ignore[arg-type]
        return await health.of_builder(BuilderCheck(settings, tmp_path))

    docker = DockerSettings()
    here = await found()
    assert (here.ok, here.detail.split(" ")[0]) == (True, "Docker")
    buildah = await found(builder="buildah")
    assert buildah.ok
    assert re.fullmatch(r"buildah [0-9.]+, (overlay|vfs)", buildah.detail)
    copying = await found(builder="buildah", storage="vfs")
    assert (copying.ok, copying.known, copying.hint) == (True, True, "")
    none = await found(builder="none")
    assert (none.ok, none.known) == (True, False)
    docker = DockerSettings(socket=str(tmp_path / "none.sock"))
    away = await found(builder="docker")
    assert (away.ok, away.detail) == (False, "the Docker engine does not answer")


async def test_a_builder_on_a_remote_disk_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> None:
        raise Unavailable(f"buildah's storage must be on a local disk, and {directory} is on nfs4")

    monkeypatch.setattr(buildah, "check_local", refuse)
    settings = BackendSettings(builds=BuildSettings(builder="buildah"))
    finding = await health.of_builder(BuilderCheck(settings, tmp_path))
    assert not finding.ok
    assert "must be on a local disk" in finding.detail


async def test_the_registry() -> None:
    """None is told and is no fault; one of the settings that does not answer is."""
    none = await health.of_registry(None)
    assert (none.ok, none.known) == (True, False)
    away = Registry(RegistrySettings(url="http://127.0.0.1:9"))
    assert (await health.of_registry(away)).ok is False
    await away.close()
