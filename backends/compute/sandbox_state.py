"""What is kept on disk about one sandbox, so that every process of the gateway, and the next one, finds it again.

A folder per sandbox: `state.json`, `home/`, `tmp/`, `run/` (the guest's files), `etc/`, `output.log`. Blocks; callers
are in threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.compute import sandbox
from backends.compute.contract import WorkloadSpec

# Host users of sandboxes, when the gateway is root: above everything that distributions and container engines hand out.
FIRST_UID = 0x7000_0000
_UIDS = 0x0100_0000


@dataclass(frozen=True)
class SandboxState:
    """One sandbox. `pid` is its first process (0: none was started), `started` that one's start in clock ticks since
    boot, and `boot` the boot in which that was: together they cannot be mistaken for another process."""

    id: str
    name: str
    uid: int | None
    """The host's user that owns the home and runs everything inside; None: the user who runs the gateway."""
    pid: int = 0
    started: int = 0
    boot: str = ""
    stopped: bool = False
    """Stopped on purpose, or never started."""
    cpus: float = 0.0
    memory: int = 0
    variables: Mapping[str, str] | None = None

    @property
    def runs(self) -> bool:
        return self.pid > 0 and self.boot == boot_id() and start_time(self.pid) == self.started


class SandboxFolder:
    """The folder of one sandbox."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> SandboxState | None:
        """None if there is no such sandbox."""
        try:
            return SandboxState(**json.loads((self.path / "state.json").read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process and thread at a time changes what runs; nothing if the folder is gone."""
        try:
            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def write(self, state: SandboxState) -> None:
        draft = self.path / f".state.{os.getpid()}"
        with open(draft, "w", opener=_private) as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / "state.json")

    def make(self, spec: WorkloadSpec, uid: int | None) -> None:
        """Make everything that stays while the sandbox exists; what is there already stays as it is."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in sandbox.FOLDERS:
            folder = self.path / name
            fresh = not folder.exists()
            folder.mkdir(mode=0o755 if name in ("run", "etc") else 0o700, exist_ok=True)
            if fresh and name == "home":
                _copy_skeleton(folder)
            if fresh and name in ("home", "tmp"):
                _give(folder, uid)
        for name in sandbox.WORK:
            # Only what is new is given away, and no link is followed: whoever lives here may have put one.
            with contextlib.suppress(FileExistsError):
                (self.path / "home" / name).mkdir(mode=0o755)
                if uid is not None:
                    os.chown(self.path / "home" / name, uid, uid, follow_symlinks=False)
        for name, content in sandbox.etc_files(spec.name).items():
            (self.path / "etc" / name).write_text(content)
            (self.path / "etc" / name).chmod(0o644)

    def put_guest_files(self, files: Mapping[str, bytes], uid: int | None) -> None:
        """Bring the guest's files up to date, each at once; connections that come now see the new ones."""
        run = self.path / "run"
        for name, content in files.items():
            draft = run / f".{name}.{os.getpid()}"
            with open(draft, "wb", opener=_private) as file:
                file.write(content)
            _give(draft, uid)
            draft.replace(run / name)

    def empty_tmp(self, uid: int | None) -> None:
        remove(self.path / "tmp")
        (self.path / "tmp").mkdir(mode=0o700)
        _give(self.path / "tmp", uid)


def free_uid(id: str, folder: Path) -> int:
    """A host user for a new sandbox, that no other sandbox in `folder` has."""
    states = [SandboxFolder(path).read() for path in folder.glob("*") if path.name != id]
    taken = {state.uid for state in states if state is not None}
    offset = zlib.crc32(id.encode()) % _UIDS
    while FIRST_UID + offset in taken:
        offset = (offset + 1) % _UIDS
    return FIRST_UID + offset


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 if it is gone or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def remove(folder: Path) -> None:
    """Remove a folder that somebody else filled: never follows a link, and opens folders that were closed to us."""
    if not folder.exists():
        return
    for path, names, _ in os.walk(folder, followlinks=False):
        for name in names:
            child = os.path.join(path, name)
            mode = os.lstat(child).st_mode
            if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
                # Only reached when it is not root who removes; then the owner of the link's target is us as well.
                os.chmod(child, 0o700, follow_symlinks=os.chmod not in os.supports_follow_symlinks)
    shutil.rmtree(folder)


def _copy_skeleton(home: Path) -> None:
    with contextlib.suppress(OSError):
        for path in Path("/etc/skel").iterdir():
            if path.is_file():
                shutil.copyfile(path, home / path.name)


def _give(path: Path, uid: int | None) -> None:
    if uid is None:
        return
    os.chown(path, uid, uid, follow_symlinks=False)
    if path.is_dir():
        for child in path.iterdir():
            os.chown(child, uid, uid, follow_symlinks=False)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
