"""A Podman of its own beside this machine's Docker: real containers behind Podman's Docker-compatible socket.

Everything it has lies in a folder of its own, so that a Podman which the machine uses otherwise sees nothing of it.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

# Podman asks for more open files and processes than a root without CAP_SYS_RESOURCE, as in many containers, may
# give; and it takes the kernel's count of process ids for its own limit.
_CONFIG = """\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
init_path = "/usr/bin/docker-init"
lock_type = "file"
tmp_dir = "{folder}/tmp"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""


class Podman:
    """`podman system service` on `socket`, with this machine's `debian:bookworm`. `stop` leaves nothing of it.

    `storage` is where it keeps images and containers, if that is not below its own folder. crun of Debian 12 refuses
    machines that have controllers in both hierarchies of control groups; runc does not.
    """

    def __init__(self, storage: Path | None = None) -> None:
        # Not pytest's: Podman takes no `runroot` of more than 50 letters.
        folder = self._folder = Path(tempfile.mkdtemp(prefix="podman-"))
        self._storage = storage or folder / "root"
        config = folder / "containers.conf"
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)
        processes = int(Path("/proc/sys/kernel/pid_max").read_text()) // 2
        config.write_text(_CONFIG.format(folder=folder, files=files, processes=processes))
        (folder / "tmp").mkdir()
        self._environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CONTAINERS_CONF": str(config),
            "HOME": str(folder),
        }
        self.socket = folder / "podman.sock"
        self._load()
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command("system", "service", "--time=0", f"unix://{self.socket}"),
                env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        self._wait()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def run(self, *words: str) -> str:
        """The answer of Podman's own client."""
        return subprocess.run(
            self._command(*words), env=self._environment, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    def stop(self) -> None:
        self.run("rm", "-fa", "-t", "0")
        self.run("network", "prune", "-f")
        self._process.terminate()
        self._process.wait(timeout=30)
        self._end_monitors()
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (place := mount.split(" ")[1]).startswith((f"{self._folder}/", f"{self._storage}/")):
                subprocess.run(["umount", "-l", place], check=True, timeout=30)
        shutil.rmtree(self._folder)

    def _end_monitors(self) -> None:
        """For five minutes after each exec one waits to clear it away, and would make our folder again for that."""
        mark = os.fsencode(f"{self._folder}/")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(FileNotFoundError, ProcessLookupError):
                    if mark in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                        os.kill(int(entry.name), signal.SIGKILL)

    def _command(self, *words: str) -> list[str]:
        return ["podman", "--root", str(self._storage), "--runroot", f"{self._folder}/run", *words]

    def _load(self) -> None:
        archive = self._folder / "image.tar"
        subprocess.run(["docker", "save", "-o", str(archive), "debian:bookworm"], check=True, timeout=120)
        self.run("load", "-q", "-i", str(archive))
        # Its Docker-compatible side takes a short name for one of Docker Hub.
        self.run("tag", "localhost/debian:bookworm", "docker.io/library/debian:bookworm")
        archive.unlink()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.socket))
                return
            time.sleep(0.05)
        raise AssertionError((self._folder / "log").read_text())
