"""What every compute must do with folders of the host: they are seen, and what is read only stays so."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.compute.contract import Compute, HostMount, WorkloadSpec
from tests.conformance.conftest import Kit, make_kit, run

Up = tuple[Kit, str, WorkloadSpec]
DATA = "/gemini/data-1"


@pytest.fixture(params=["memory", "local", "docker"])
async def kit(request: pytest.FixtureRequest, tmp_path: Path, guest: Path) -> AsyncIterator[Kit]:
    """Those that show folders of the host at all; an existing machine refuses."""
    made: list[Compute] = []
    yield make_kit(request, tmp_path, guest, made)
    for compute in made:
        await compute.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As the data cache keeps it: below a folder that nobody else may enter, files read only."""
    top = tmp_path / "cache"
    top.mkdir(mode=0o700)
    folder = top / "version"
    (folder / "deep").mkdir(parents=True)
    (folder / "small").write_bytes(b"one\n")
    (folder / "deep" / "数据 with space").write_bytes(b"two\n")
    (folder / "large").write_bytes(os.urandom(40_000_000))
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)
    return folder


@pytest.fixture
async def up(kit: Kit, folder: Path) -> AsyncIterator[Up]:
    """A running workload that has the folder twice."""
    spec = kit.spec(mounts=(HostMount(folder, DATA), HostMount(folder / "deep", "/gemini/pretrain1")))
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        yield kit, handle, spec
    finally:
        await kit.compute.delete(handle)


async def test_content_can_be_read(up: Up, folder: Path) -> None:
    kit, handle, _ = up
    at = f"{kit.root}{DATA}"
    assert await run(kit.compute, handle, f"cat {at}/small {at}/deep/*") == (0, b"one\ntwo\n")
    assert await run(kit.compute, handle, f"cat {kit.root}/gemini/pretrain1/*") == (0, b"two\n")
    _, said = await run(kit.compute, handle, f"sha256sum < {at}/large")
    assert said.split()[0].decode() == hashlib.sha256((folder / "large").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "attempt",
    [
        "echo x > {at}/new",
        "echo x >> {at}/small",
        "rm -f {at}/small",
        "mkdir {at}/deep/er",
        "chmod 0777 {at}/small",
        "touch {at}/small",
        "ln -s /etc/passwd {at}/link",
        "mv {at}/small {at}/other",
        "mount -o remount,rw {at} && echo x > {at}/new",
    ],
)
async def test_nothing_can_be_written(up: Up, folder: Path, attempt: str) -> None:
    kit, handle, _ = up
    before = sorted((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in folder.rglob("*"))
    if kit.isolates:
        status, _ = await run(kit.compute, handle, attempt.format(at=DATA))
        assert status != 0
    after = sorted((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in folder.rglob("*"))
    assert after == before


async def test_it_is_there_after_a_restart_and_shows_what_is_new(up: Up, folder: Path) -> None:
    kit, handle, spec = up
    await kit.compute.stop(handle, grace=1)
    (folder / "later").write_bytes(b"three\n")
    assert await kit.compute.create(spec, print) == handle
    await kit.compute.start(handle, spec, print)
    at = f"{kit.root}{DATA}"
    assert await run(kit.compute, handle, f"cat {at}/small {at}/later") == (0, b"one\nthree\n")


async def test_what_is_not_read_only_can_be_written(kit: Kit, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    folder.chmod(0o777)
    spec = kit.spec(mounts=(HostMount(folder, "/gemini/scratch", read_only=False),))
    handle = await kit.compute.create(spec, print)
    try:
        await kit.compute.start(handle, spec, print)
        assert await run(kit.compute, handle, f"echo mine > {kit.root}/gemini/scratch/file") == (0, b"")
        assert (folder / "file").read_bytes() == b"mine\n"
    finally:
        await kit.compute.delete(handle)


async def test_delete_leaves_the_hosts_folder_alone(kit: Kit, folder: Path) -> None:
    spec = kit.spec(mounts=(HostMount(folder, DATA),))
    handle = await kit.compute.create(spec, print)
    await kit.compute.start(handle, spec, print)
    await kit.compute.delete(handle)
    assert not kit.leftovers(spec.id)
    assert (folder / "small").read_bytes() == b"one\n"


async def test_code_and_output_are_folders_of_the_home(up: Up) -> None:
    kit, handle, spec = up
    if not kit.isolates:
        return
    assert await run(kit.compute, handle, "echo 1 > /gemini/code/a; echo 2 > /gemini/output/b") == (0, b"")
    await kit.compute.stop(handle, grace=1)
    await kit.compute.start(handle, spec, print)
    status, said = await run(kit.compute, handle, f"cat {kit.home}/code/a /gemini/output/b")
    assert (status, said) == (0, b"1\n2\n")


async def test_links_in_the_home_give_nothing_away(up: Up) -> None:
    """Somebody puts links where `code` and `output` belong: at the next start nothing behind them changes hands."""
    kit, handle, spec = up
    if not kit.isolates:
        return
    await run(kit.compute, handle, f"rmdir {kit.home}/code {kit.home}/output; ln -s /usr {kit.home}/code")
    await run(kit.compute, handle, f"ln -s /nowhere {kit.home}/output")
    await kit.compute.stop(handle, grace=1)
    await kit.compute.start(handle, spec, print)
    status, said = await run(kit.compute, handle, f"readlink {kit.home}/code; stat -c %U /usr; ls /nowhere")
    assert (status, said.split()[0]) == (2, b"/usr")
    assert said.split()[1] in (b"root", b"nobody", b"UNKNOWN")
