"""buildah for a gateway that is an ordinary account: what `process.jailed` does with its subordinate ids."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from backends.settings import RegistrySettings
from tests.backends.test_local import ROOT, _python
from tests.conformance import registries


@pytest.fixture
def account() -> Iterator[str]:
    """An account with ranges of ids, as `useradd` gives them."""
    name = f"ashore-{secrets.token_hex(4)}"
    subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/sh", name], check=True)
    yield name
    subprocess.run(["userdel", name], check=True)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistrySettings]:
    registries.make_tiny("tiny-rootless:v1")
    try:
        with registries.served(tmp_path / "registry") as settings:
            registries.push_base(settings, tmp_path, "tiny-rootless:v1")
            yield settings
    finally:
        subprocess.run(["docker", "rmi", "tiny-rootless:v1"], check=True, capture_output=True)


@pytest.fixture
def folder(account: str) -> Iterator[Path]:
    """The account's own; what lies in it afterwards belongs to ids of its range. Not pytest's: those are closed."""
    folder = Path(tempfile.mkdtemp(prefix="rootless-"))
    os.chown(folder, *_ids(account))
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def code() -> Iterator[Path]:
    """A second place for the repository, which may lie where others may not go."""
    folder = Path(tempfile.mkdtemp(prefix="code-"))
    yield folder
    folder.rmdir()


def build(account: str, folder: Path, registry: RegistrySettings, code: Path) -> Mapping[str, object]:
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    path = os.pathsep.join(part.replace(str(ROOT), str(code)) for part in path.split(os.pathsep))
    command = [
        "unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", str(ROOT), str(code),
        "setpriv", "--reuid", account, "--regid", account, "--init-groups", _python(),
        str(code / "tests/conformance/rootless.py"), str(folder), registry.url, registries.USER, registries.PASSWORD,
    ]  # fmt: skip
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=variables, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    found: Mapping[str, object] = json.loads(done.stdout)
    return found


def test_an_ordinary_account_builds(account: str, folder: Path, registry: RegistrySettings, code: Path) -> None:
    """Build, push, failure, cancelling, cache and pruning; files of an image may have other owners than root."""
    facts = build(account, folder, registry, code)
    assert "error" not in facts, facts
    assert facts["uid"] == _ids(account)[0] != 0
    assert str(facts["check"]).startswith("buildah ")
    assert "\nof 33\n" in str(facts["log"])
    assert str(facts["digest"]).startswith("sha256:")
    assert (facts["failed"], facts["pruned"]) == (3, True)
    assert int(str(facts["cached"])) >= 2
    assert not _runs(account)


def test_an_account_without_ids_is_told_what_to_do(
    account: str, folder: Path, registry: RegistrySettings, code: Path
) -> None:
    start = next(line for line in Path("/etc/subuid").read_text().splitlines() if line.startswith(f"{account}:"))
    _, first, count = start.split(":")
    subprocess.run(["usermod", "--del-subuids", f"{first}-{int(first) + int(count) - 1}", account], check=True)
    said = str(build(account, folder, registry, code)["error"])
    assert said.startswith(f"the account {account} has no range in /etc/subuid: run 'usermod --add-subuids ")


def _ids(account: str) -> tuple[int, int]:
    found = pwd.getpwnam(account)
    return found.pw_uid, found.pw_gid


def _runs(account: str) -> Sequence[str]:
    found = subprocess.run(["pgrep", "-u", account], capture_output=True, text=True, check=False)
    return found.stdout.split()
