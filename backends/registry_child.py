"""Ashore's own image registry: Debian's `docker-registry` as a child on loopback, for houses that have no registry.

    registry = EmbeddedRegistry(data / "registry", log=data / "logs" / "registry.log")
    settings = await registry.start(settings.backends.registry)     # unchanged where the program is not installed

Docker takes 127.0.0.0/8 for a registry without TLS; no other machine reaches it, but everybody on this one does. So its
password is made anew at each start, and its port is held by this process (`backends.registry_door`) until the end: one
who takes the port while the gateway is down is sent no password that is good for anything afterwards. What is in it is
`backends.images`' business.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import bcrypt
from pydantic import SecretStr

from backends.registry import Registry
from backends.registry_door import RegistryDoor
from backends.registry_gate import PushGate
from backends.settings import RegistrySettings
from storage.child import Child, write_private
from storage.errors import AshoreError, Unavailable

log = logging.getLogger(__name__)
USER = "ashore"
_READY_SECONDS = 20.0
_COLLECT_SECONDS = 3600.0
_DRAIN_SECONDS = 10
"""How long requests under way are waited for before it is started again to be collected."""
_SOCKET = "socket"
_WRITABLE, _READING = "config.yml", "reading.yml"
_COST = 4
"""Of bcrypt. The password has 256 random bits, which nobody guesses; the registry hashes it with every request."""


@dataclass(frozen=True)
class _Identity:
    """What the registry keeps between starts."""

    secret: str
    port: int

    @classmethod
    def load(cls, path: Path) -> _Identity:
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return cls(secrets.token_urlsafe(32), 0)


class EmbeddedRegistry:
    """The registry of one directory, from `start` to `close`. One process of a house runs it.

    `spare`: bytes that stay free on its disk, for what else is kept there.
    """

    def __init__(self, directory: Path, *, log: Path, spare: int = 0) -> None:
        self._directory = directory
        self._spare = spare
        self._log = log
        self._child = Child("the image registry", directory, log=log, mark=b"registry")
        collecting = directory / "collecting"
        self._collector = Child("the image registry's collector", collecting, log=log, mark=b"garbage-collect")
        self._door = RegistryDoor(directory, _SOCKET)
        self._config = _WRITABLE
        self._program = ""
        self.gate = PushGate()
        """Whoever pushes into this registry enters it."""
        self._client: Registry | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._client is not None

    async def start(self, wanted: RegistrySettings) -> RegistrySettings:
        """How to reach it once it takes requests; `wanted` as it is where the program is missing or does not start.

        Nothing but images needs it, so a house serves without.
        """
        self._program = shutil.which("docker-registry") or ""
        if not self._program:
            log.warning("no images can be kept: the program `docker-registry` (package docker-registry) is missing")
            return wanted
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._directory / "collecting").mkdir(mode=0o700, exist_ok=True)
        self._child.end_stale()
        self._collector.end_stale()
        found = self._prepare(wanted)
        self._client = Registry(found)
        try:
            await self._serve(_WRITABLE)
        except AshoreError as error:
            log.error("no images can be kept: %s", error.message)
            await self.close()
            return wanted
        return found

    async def close(self) -> None:
        await self._stop()
        await self._door.close()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def free(self) -> int | None:
        """Bytes that its disk still takes; None if it does not run."""
        if self._client is None:
            return None
        return max(0, shutil.disk_usage(self._directory).free - self._spare)

    def note_garbage(self) -> None:
        """Something was deleted, or given up half-way: `collect` has something to do."""
        path = self._directory / "garbage"
        if self._client is not None and not path.exists():  # its time is that of the first
            path.touch()

    @property
    def has_garbage(self) -> bool:
        return self._client is not None and (self._directory / "garbage").exists()

    @property
    def garbage_seconds(self) -> float:
        """How long there has been some; 0 if there is none."""
        try:
            return time.time() - (self._directory / "garbage").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    async def collect(self) -> bool:
        """Give back the space of layers that no image has any more; False if somebody pushes just now, or it failed.

        It takes no pushes meanwhile, and is read; it starts again before and after, which cuts off pulls under way.
        A registry that takes pushes may not be collected: layers that are on their way belong to no image yet.
        """
        if self._client is None:
            return False
        with self.gate.collecting() as is_alone:
            if not is_alone:
                return False
            try:
                await self._serve(_READING)
                return await self._run_collector()
            finally:
                await self._serve(_WRITABLE)

    # ---- files -----------------------------------------------------------------------------------------------
    def _prepare(self, wanted: RegistrySettings) -> RegistrySettings:
        path = self._directory / "registry.json"
        former = _Identity.load(path)
        identity = _Identity(former.secret, self._door.open(former.port))
        write_private(path, json.dumps(asdict(identity)))
        password = secrets.token_urlsafe(32)
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(_COST)).decode()
        write_private(self._directory / "htpasswd", f"{USER}:{hashed}\n")
        # JSON is YAML. Its cache of blobs is left out: it would remember those that were collected.
        for name in (_WRITABLE, _READING):
            facts = _config(self._directory.resolve() / "data", identity.secret, is_read_only=name == _READING)
            write_private(self._directory / name, json.dumps(facts))
        return wanted.model_copy(
            update={
                "url": f"http://127.0.0.1:{identity.port}", "user": USER, "password": SecretStr(password),
                "project": "",
            }
        )  # fmt: skip

    # ---- the child -------------------------------------------------------------------------------------------
    async def _serve(self, config: str) -> None:
        """Run it with this configuration from now on. Whoever connects in between waits at the door."""
        await self._stop(seconds=_DRAIN_SECONDS)
        self._config = config
        await self._spawn()
        try:
            await self._wait_until_ready()
        finally:  # one that takes long, or has ended at once, is looked after all the same
            self._keeper = asyncio.create_task(self._child.keep(self._spawn), name="image registry keeper")

    async def _spawn(self) -> None:
        await self._child.spawn([self._program, "serve", self._config], self._variables())

    def _variables(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self._directory), "OTEL_TRACES_EXPORTER": "none"}

    async def _stop(self, *, seconds: float = 1.0) -> None:
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.cancel()
            # Not suppressed: our own end would be taken for the keeper's.
            await asyncio.gather(keeper, return_exceptions=True)
        await self._child.end(seconds=seconds)

    async def _wait_until_ready(self) -> None:
        assert self._client is not None
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not await self._answers(self._client):  # noqa: ASYNC110 - another process gets ready
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise Unavailable(f"the image registry did not start, see {self._log}") from error

    async def _answers(self, client: Registry) -> bool:
        if not self._child.is_alive:
            raise Unavailable(f"the image registry ended at once, see {self._log}")
        try:
            (await self._door.connect()).close()  # the door itself would wait, and not see that it has ended
            await client.check()
        except (AshoreError, OSError):
            return False
        return True

    def _drop_uploads(self) -> None:
        """What was being sent when somebody hung up: the registry keeps it for a day, and it may be a whole layer."""
        for folder in (self._directory / "data").glob("docker/registry/v2/repositories/**/_uploads"):
            shutil.rmtree(folder, ignore_errors=True)

    async def _run_collector(self) -> bool:
        """As a child that dies with us: it must not go on when the next gateway lets people push."""
        await asyncio.to_thread(self._drop_uploads)
        command = [self._program, "garbage-collect", str(self._directory.resolve() / _READING)]
        await self._collector.spawn(command, self._variables())
        try:
            async with asyncio.timeout(_COLLECT_SECONDS):
                status = await self._collector.wait()
        except TimeoutError:
            log.warning("the image registry could not give space back within %s s", _COLLECT_SECONDS)
            return False
        finally:
            await asyncio.shield(self._collector.end())
        (self._directory / "garbage").unlink(missing_ok=True)
        if status:
            log.warning("the image registry could not give space back: its collector ended with status %s", status)
        return not status


def _config(data: Path, secret: str, *, is_read_only: bool) -> dict[str, object]:
    purging = {"enabled": not is_read_only, "age": "24h", "interval": "1h", "dryrun": False}
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(data)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": purging, "readonly": {"enabled": is_read_only}},
        },
        "auth": {"htpasswd": {"realm": "ashore", "path": "htpasswd"}},
        "http": {
            "net": "unix", "addr": _SOCKET, "secret": secret, "relativeurls": True,
            "draintimeout": f"{_DRAIN_SECONDS}s",
        },
    }  # fmt: skip
