"""Homes on an NFS server.

This kernel need not know NFS, and no server need be there, so the mount itself is the one thing that is replaced: by
a bind mount, which Docker's `local` driver makes of its options at the same moments. All else is real.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from backends.compute.contract import WorkloadSpec
from backends.compute.docker import nfs_homes
from backends.compute.docker.driver import DockerCompute
from backends.compute.docker.nfs_homes import Export
from backends.settings import DockerSettings
from storage.errors import Unavailable
from tests.conformance.conftest import IMAGE, run


def _docker(*words: str) -> list[str]:
    done = subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()

    def bound(export: Export, part: str = "") -> Mapping[str, str]:
        return {"type": "none", "o": "bind", "device": f"{folder}/{part}"}

    monkeypatch.setattr(nfs_homes, "driver_options", bound)
    return folder


@pytest.fixture
async def compute(guest: Path) -> AsyncIterator[DockerCompute]:
    before = set(_docker("volume", "ls", "-q"))
    compute = DockerCompute(guest, DockerSettings(homes_nfs="nowhere.invalid:/srv/homes"))
    yield compute
    await compute.close()
    left = set(_docker("volume", "ls", "-q")) - before
    assert not [name for name in left if name.startswith("ashore-nfs0")]


def spec_of() -> WorkloadSpec:
    name = f"nfs0{secrets.token_hex(6)}"
    return WorkloadSpec(name, "train", "alice", f"team-{name}", IMAGE)


async def test_a_home_is_a_folder_of_the_export(compute: DockerCompute, export: Path) -> None:
    """Neither seen by others nor left behind; also when the settings say something else by then."""
    one, other = spec_of(), spec_of()
    handles = [await compute.create(spec, print) for spec in (one, other)]
    for handle, spec in zip(handles, (one, other), strict=True):
        await compute.start(handle, spec, print)
    assert await run(compute, handles[0], "echo mine > /workspace/file; ls -A /workspace | wc -l") == (0, b"3\n")
    assert (export / f"ashore-{one.id}" / "file").read_text() == "mine\n"
    assert await run(compute, handles[1], "ls /workspace") == (0, b"code\noutput\n")
    await compute.stop(handles[0], grace=1)
    assert await compute.create(one, print) == handles[0]
    await compute.start(handles[0], one, print)
    assert await run(compute, handles[0], "cat /workspace/file") == (0, b"mine\n")
    compute._export = None
    for handle in handles:
        await compute.delete(handle)
        await compute.delete(handle)
    assert list(export.iterdir()) == []


async def test_what_a_crash_left_is_used_and_removed(compute: DockerCompute, export: Path) -> None:
    """Cut off between volume, folder and container, with a helper that still has the export."""
    spec = spec_of()
    home = f"ashore-{spec.id}-home"
    options = [f"--opt={key}={value}" for key, value in nfs_homes.driver_options(Export("x:/y")).items()]
    _docker("volume", "create", *options, f"ashore-{spec.id}-nfs")
    _docker("create", "--label", f"ashore.fill=ashore-{spec.id}-nfs", "-v", f"ashore-{spec.id}-nfs:/v", IMAGE)
    handle = await compute.create(spec, print)
    await compute.start(handle, spec, print)
    assert await run(compute, handle, "echo x > /workspace/file") == (0, b"")
    assert home in _docker("volume", "ls", "-q")
    await compute.delete(handle)
    assert list(export.iterdir()) == []


async def test_an_export_that_cannot_be_mounted_is_told(compute: DockerCompute) -> None:
    """The server has no address; nothing is left behind."""
    spec = spec_of()
    with pytest.raises(Unavailable, match=r"the home on nowhere.invalid:/srv/homes \(NFS\) cannot be used: "):
        await compute.create(spec, print)
    assert spec.id not in {one.environment_id for one in await compute.found()}
