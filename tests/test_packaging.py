"""The promises of packaging: pinned versions are complete and plain, and the scripts can be parsed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from backends.dockerfiles.reading import parse
from backends.dockerfiles.recipes import recipe
from backends.dockerfiles.rules import check

ROOT = Path(__file__).parents[1]


def test_constraints_pin_everything_that_is_needed_and_nothing_else_is_said() -> None:
    """Every distribution that the project pulls in has one exact version, without an address."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    pinned = {_canonical(line.partition("==")[0]) for line in lines}
    assert _needed() - pinned == set()


def test_shell_scripts_parse() -> None:
    for script in (".ci/run", "packaging/setup.sh"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_without_root_setup_names_everything_that_is_missing_at_once() -> None:
    """One line says what lacks and the next what to type; nothing is changed."""
    machine = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/usr/sbin", "--unshare-user"]
    ended = subprocess.run(
        [*machine, "--uid", "1000", "--chdir", ROOT, "packaging/setup.sh", "programs"],
        env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1, ended
    assert "lacks:" in ended.stderr
    assert "openssh-server" in ended.stderr
    assert "sudo packaging/setup.sh programs" in ended.stderr


def _needed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        key = (_canonical(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in distribution(requirement.name).requires or []:
            inner = Requirement(text)
            extras = [*requirement.extras, ""]
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return {name for name, _ in seen}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["ubuntu-python", "pytorch", "micromamba"])
def test_shipped_dockerfiles_are_what_people_may_build_too(name: str) -> None:
    """Everything behind FROM passes the rules for everybody, and nothing in it opens a door of its own."""
    text = (ROOT / "packaging" / "images" / f"{name}.Dockerfile").read_text()
    head, _, body = text.partition("FROM ${BASE}\n")
    assert re.search(r"^ARG BASE=[a-z0-9/.:-]+:[a-z0-9.-]+$", head, re.MULTILINE)
    found = parse(body)
    assert [str(problem) for problem in check(found)] == []
    assert recipe(found, "debian:bookworm").text.startswith("FROM debian:bookworm\n")
    for word in ("passwd", "sshd", "openssh-server", "NOPASSWD", "PermitRootLogin", "token", "EXPOSE"):
        assert word not in body


@pytest.mark.parametrize(
    "path", sorted((ROOT / "packaging" / "images").glob("*.Dockerfile")), ids=lambda path: path.stem
)
def test_a_mirror_replaces_every_address_of_packages(path: Path, tmp_path: Path) -> None:
    """Both ways to write sources; addresses of others stay."""
    (script,) = set(re.findall(r'"s#https.*?"', path.read_text()))
    sources = tmp_path / "sources.list"
    sources.write_text(
        "deb http://archive.ubuntu.com/ubuntu jammy main\n"
        "URIs: http://deb.debian.org/debian-security\n"
        "deb https://security.ubuntu.com/ubuntu jammy-security main\n"
        "deb https://download.docker.com/linux/debian bookworm stable\n"
    )
    subprocess.run(["sh", "-c", f'MIRROR=http://mirror.example; sed -i -E {script} "$1"', "sh", sources], check=True)
    assert sources.read_text() == (
        "deb http://mirror.example/ubuntu jammy main\n"
        "URIs: http://mirror.example/debian-security\n"
        "deb http://mirror.example/ubuntu jammy-security main\n"
        "deb https://download.docker.com/linux/debian bookworm stable\n"
    )
