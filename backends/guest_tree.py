"""The guest: a directory with OpenSSH's server, its libraries and its loader, to be mounted into every environment.

Copied from this machine, so nothing is downloaded and nothing is installed in anybody's image; the loader comes along,
so images with another C library, or a much older one, are fine. Contents are the same for every user: no key and no
configuration belongs in here (those are `backends.guest.guest_files`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from storage.errors import Unavailable

MOUNT = "/opt/ashore/guest"
"""Where an environment sees the tree, read only."""
LOADER = "ld.so"
LIBRARIES = "lib"
_INSTALL = "the guest cannot be built: install openssh-server on this machine"
_SERVERS = (Path("/usr/sbin/sshd"), Path("/usr/local/sbin/sshd"), Path("/usr/bin/sshd"))
# OpenSSH 9.8 and later serve each connection in programs of their own; sshd starts them by path, without our loader.
_HELPERS = ("sshd-session", "sshd-auth")
_HELPER_FOLDERS = (Path("/usr/lib/openssh"), Path("/usr/libexec/openssh"), Path("/usr/lib/ssh"))
# Images whose nsswitch.conf says `compat` need this one; the C library has `files` built in.
_NAME_SERVICE = "libnss_compat.so.2"
_NEEDED = re.compile(r"^\s*(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x[0-9a-f]+\)$")


@dataclass(frozen=True)
class _Parts:
    """What goes into a tree: name inside → file of this machine."""

    programs: dict[str, Path]
    libraries: dict[str, Path]
    loader: Path


def build(directory: Path) -> Path:
    """Copy the guest of this machine to `directory`/<hash> unless it is there, and return that folder.

    May run in several processes at once: a tree appears whole or not at all. Blocks for a moment (about 10 MB are
    read). Unavailable: this machine has no OpenSSH server, or no `ldd`.
    """
    parts = _collect()
    target = directory / _digest(parts)
    if (target / "manifest.json").is_file():
        return target
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".guest-", dir=directory))
    try:
        _fill(draft, parts)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError as error:
            if not (target / "manifest.json").is_file():
                raise Unavailable(f"the guest cannot be built: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _collect() -> _Parts:
    server = next((path for path in _SERVERS if os.access(path, os.X_OK)), None)
    if server is None:
        raise Unavailable(_INSTALL)
    programs = {"sshd": server}
    for name in _HELPERS:
        found = next((folder / name for folder in _HELPER_FOLDERS if (folder / name).is_file()), None)
        if found is not None:
            programs[name] = found
    libraries: dict[str, Path] = {}
    loader: Path | None = None
    for program in programs.values():
        needed, its_loader = _needs(program)
        libraries |= needed
        loader = loader or its_loader
    if loader is None:
        raise Unavailable("the guest cannot be built: ldd does not name sshd's loader")
    name_service = libraries["libc.so.6"].parent / _NAME_SERVICE if "libc.so.6" in libraries else None
    if name_service is not None and name_service.exists():
        libraries |= {_NAME_SERVICE: name_service} | _needs(name_service)[0]
    return _Parts(programs, libraries, loader)


def _needs(program: Path) -> tuple[dict[str, Path], Path | None]:
    """The libraries of a program by the names that it asks for, and its loader."""
    try:
        answer = subprocess.run(
            ["ldd", str(program)], capture_output=True, text=True, timeout=20, check=True, env={"LC_ALL": "C"} | _PATH
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable("the guest cannot be built: ldd does not work on this machine") from error
    if "not found" in answer.stdout:
        raise Unavailable(f"the guest cannot be built: {program} misses a library")
    libraries: dict[str, Path] = {}
    loader = None
    for line in answer.stdout.splitlines():
        match = _NEEDED.match(line)
        if match is None:
            continue
        path = Path(match["path"])
        if match["name"] and not path.name.startswith("ld-"):
            libraries[match["name"]] = path
        else:
            loader = path
    return libraries, loader


_PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _digest(parts: _Parts) -> str:
    digest = hashlib.sha256()
    for name, path in sorted((parts.programs | parts.libraries | {LOADER: parts.loader}).items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _fill(draft: Path, parts: _Parts) -> None:
    (draft / LIBRARIES).mkdir(mode=0o755)
    _copy(parts.loader, draft / LOADER, 0o755)
    for name, path in parts.programs.items():
        _copy(path, draft / name, 0o755)
        if name in _HELPERS:
            _use_our_loader(draft / name, parts.loader)
    for name, path in parts.libraries.items():
        _copy(path, draft / LIBRARIES / name, 0o644)
    names = sorted(str(path.relative_to(draft)) for path in draft.rglob("*") if path.is_file())
    manifest = {"files": names, "openssh": _version(parts.programs["sshd"])}
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
    (draft / "manifest.json").chmod(0o644)


def _copy(source: Path, target: Path, mode: int) -> None:
    shutil.copyfile(source, target)
    target.chmod(mode)


def _use_our_loader(program: Path, loader: Path) -> None:
    """Write our loader's path over the one that is compiled in; it is shorter, and padded with zeros."""
    old = str(loader).encode() + b"\0"
    new = f"{MOUNT}/{LOADER}".encode().ljust(len(old), b"\0")
    content = program.read_bytes()
    if len(new) != len(old) or old not in content:
        raise Unavailable(f"the guest cannot be built: {program.name} uses an unknown loader")
    program.write_bytes(content.replace(old, new, 1))


def _version(server: Path) -> str:
    # `-V` came with OpenSSH 9.3; older servers complain about it, and name their version in the complaint.
    answer = subprocess.run([str(server), "-V"], capture_output=True, text=True, timeout=20)
    match = re.search(r"OpenSSH_\S+", answer.stderr + answer.stdout)
    return match.group().rstrip(",") if match else "OpenSSH"
