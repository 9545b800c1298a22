"""The tree that is mounted into every environment."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends import guest_tree
from storage.errors import Unavailable


def test_its_server_starts_with_its_own_loader_and_libraries_alone(guest: Path) -> None:
    loader, libraries = guest / guest_tree.LOADER, guest / guest_tree.LIBRARIES
    command = [str(loader), "--library-path", str(libraries), str(guest / "sshd"), "-t", "-f", "/nonexistent"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, env={})
    assert "/nonexistent: No such file" in answer.stderr
    listed = subprocess.run(
        [str(loader), "--library-path", str(libraries), "--list", str(guest / "sshd")],
        capture_output=True, text=True, timeout=20, check=True,
    ).stdout  # fmt: skip
    paths = [line.split(" => ")[1].split()[0] for line in listed.splitlines() if " => " in line]
    assert paths
    assert all(path.startswith(str(guest)) for path in paths)


def test_it_is_small_and_readable_by_everybody_and_says_what_it_is(guest: Path) -> None:
    files = [path for path in guest.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000_000
    assert all(path.stat().st_mode & 0o444 == 0o444 and not path.is_symlink() for path in files)
    manifest = json.loads((guest / "manifest.json").read_text())
    assert "OpenSSH" in manifest["openssh"]
    assert sorted(manifest["files"] + ["manifest.json"]) == sorted(str(path.relative_to(guest)) for path in files)


def test_building_again_or_at_the_same_time_gives_the_same_tree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        trees = set(pool.map(lambda _: guest_tree.build(tmp_path), range(4)))
    before = (trees.copy().pop() / "manifest.json").stat()
    assert trees == {guest_tree.build(tmp_path)}
    assert (trees.pop() / "manifest.json").stat() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_machine_without_a_server_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_tree, "_SERVERS", (tmp_path / "sshd",))
    with pytest.raises(Unavailable, match="install openssh-server"):
        guest_tree.build(tmp_path)


def test_programs_that_sshd_starts_by_path_get_our_loader(tmp_path: Path) -> None:
    program = tmp_path / "sshd-session"
    program.write_bytes(b"\x7fELF..\0/lib64/ld-linux-x86-64.so.2\0rest")
    guest_tree._use_our_loader(program, Path("/lib64/ld-linux-x86-64.so.2"))
    assert program.read_bytes() == b"\x7fELF..\0/opt/ashore/guest/ld.so\0\0\0\0\0rest"
    with pytest.raises(Unavailable):
        guest_tree._use_our_loader(program, Path("/lib/ld.so"))
