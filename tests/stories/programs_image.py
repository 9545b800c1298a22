"""An image with programs of this machine's Debian packages, made without a registry and without a mirror."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.stories.clients import run

BASE = "debian:bookworm"
_NOT_NEEDED = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/javascript/mathjax/")
_NO = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")


@contextmanager
def image_with(packages: Sequence[str], name: str) -> Iterator[str]:
    """`name` for as long as the context lasts: the base image with these packages and all that they depend on."""
    container = run(["docker", "create", BASE, "true"]).stdout.decode().strip()
    try:
        with subprocess.Popen(["docker", "cp", "-", f"{container}:/"], stdin=subprocess.PIPE) as copying:
            assert copying.stdin is not None
            with tarfile.open(fileobj=copying.stdin, mode="w|") as archive:
                for path in _files(_closure(packages)):
                    # Where a folder is a link, as /lib is, the engine would put a folder in its place.
                    place = path.parent.resolve() / path.name
                    archive.add(path, arcname=str(place).lstrip("/"), recursive=False)
            copying.stdin.close()
            assert copying.wait(300) == 0
        run(["docker", "commit", container, name], timeout=300)
    finally:
        run(["docker", "rm", "-f", container], check=False)
    try:
        yield name
    finally:
        run(["docker", "rmi", "-f", name], check=False)


def _closure(packages: Sequence[str]) -> list[str]:
    """Those that the base image lacks."""
    switches = [f"--no-{word}" for word in _NO]
    found = run(["apt-cache", "depends", "--recurse", "--installed", *switches, *packages]).stdout.decode().split("\n")
    names = {line for line in found if line and not line.startswith((" ", "<"))}
    installed = ["dpkg-query", "-W", "-f", "${Package}\n"]
    here = set(run(installed).stdout.decode().split())
    base = set(run(["docker", "run", "--rm", BASE, *installed], timeout=300).stdout.decode().split())
    assert set(packages) <= here, f"not installed: {set(packages) - here}"
    return sorted(names & here - base)


def _files(packages: Sequence[str]) -> Iterator[Path]:
    listed = run(["dpkg-query", "-L", *packages], timeout=300).stdout.decode().split("\n")
    for path in (
        Path(line) for line in sorted(set(listed)) if line.startswith("/") and not line.startswith(_NOT_NEEDED)
    ):
        if path.is_symlink() or path.is_file():
            yield path
