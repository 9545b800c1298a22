"""A PostgreSQL server of our own for the tests: Debian's programs, a socket in a temporary folder, no port."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
# Nothing here must survive a power cut, and a test has many databases.
_OPTIONS = "-c listen_addresses= -c fsync=off -c full_page_writes=off -c max_connections=200"


class PostgreSql:
    """One server; `create` gives a database of it, empty or as a copy of another."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ashore-postgresql-"))
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(self.directory, "postgres")
        self._data = self.directory / "data"
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        self.start()

    def start(self) -> None:
        options = f"-k {self.directory} {_OPTIONS}"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self.directory / "log"), "-w", "start")

    def stop(self) -> None:
        """At once: who is connected is thrown out."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def create(self, template: str = "template0") -> str:
        """The name of a new database."""
        name = f"ashore_{secrets.token_hex(6)}"
        self._run("createdb", "-h", str(self.directory), "-T", template, name)
        return name

    def drop(self, name: str) -> None:
        self._run("dropdb", "-h", str(self.directory), "--force", name)

    def url(self, name: str) -> str:
        user = "postgres" if os.geteuid() == 0 else ""
        return f"postgresql+asyncpg://{user}@/{name}?host={self.directory}"

    def _run(self, program: str, *arguments: str) -> None:
        other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*other, str(_PROGRAMS[-1] / program), *arguments]
        # A server that goes on running must not hold a pipe of ours.
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", timeout=60)
        assert done.returncode == 0, done.stderr.decode()
