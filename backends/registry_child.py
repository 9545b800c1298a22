"""Ashore's own image registry: Debian's `docker-registry` as a child on loopback, for houses that have no registry.

    registry = EmbeddedRegistry(data / "registry", log=data / "logs" / "registry.log")
    settings = await registry.start(settings.backends.registry)     # unchanged where the program is not installed

Its password is made here, once per installation: everybody on the machine shares loopback. Docker takes 127.0.0.0/8
for a registry without TLS; no other machine reaches it. What is in it is `backends.images`' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import bcrypt
from pydantic import SecretStr

from backends.registry import Registry
from backends.settings import RegistrySettings
from storage.child import Child, free_port, is_free, write_private
from storage.errors import AshoreError, Unavailable

log = logging.getLogger(__name__)
USER = "ashore"
_READY_SECONDS = 20.0
_COLLECT_SECONDS = 3600.0
_COST = 4
"""Of bcrypt. The password has 256 random bits, which nobody guesses; the registry hashes it with every request."""


@dataclass(frozen=True)
class _Identity:
    """What the registry keeps between starts."""

    password: str
    secret: str
    port: int

    @classmethod
    def load(cls, path: Path) -> _Identity:
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), 0)


class EmbeddedRegistry:
    """The registry of one directory, from `start` to `close`. One process of a house runs it.

    `spare`: bytes that stay free on its disk, for what else is kept there.
    """

    def __init__(self, directory: Path, *, log: Path, spare: int = 0) -> None:
        self._directory = directory
        self._spare = spare
        self._log = log
        self._child = Child("the image registry", directory, log=log, mark=b"registry")
        self._program = ""
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
        self._child.end_stale()
        found = self._prepare(wanted)
        self._client = Registry(found)
        try:
            await self._spawn()
            await self._wait_until_ready()
        except AshoreError as error:
            log.error("no images can be kept: %s", error.message)
            await self.close()
            return wanted
        self._keeper = asyncio.create_task(self._child.keep(self._spawn), name="image registry keeper")
        return found

    async def close(self) -> None:
        await self._stop()
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
        if self._client is not None:
            (self._directory / "garbage").touch()

    @property
    def has_garbage(self) -> bool:
        return self._client is not None and (self._directory / "garbage").exists()

    async def collect(self) -> None:
        """Give back the space of layers that no image has any more. It is away meanwhile, so nothing may be pushed.

        A running registry may not be collected: layers that are just being pushed belong to no image yet.
        """
        if self._client is None:
            return
        await self._stop()
        try:
            await self._run_collector()
        finally:
            await self._spawn()
            self._keeper = asyncio.create_task(self._child.keep(self._spawn), name="image registry keeper")
            await self._wait_until_ready()

    # ---- files -----------------------------------------------------------------------------------------------
    def _prepare(self, wanted: RegistrySettings) -> RegistrySettings:
        path = self._directory / "registry.json"
        identity = _Identity.load(path)
        if not identity.port or not is_free(identity.port):
            identity = _Identity(identity.password, identity.secret, free_port())
        write_private(path, json.dumps(asdict(identity)))
        hashed = bcrypt.hashpw(identity.password.encode(), bcrypt.gensalt(_COST)).decode()
        write_private(self._directory / "htpasswd", f"{USER}:{hashed}\n")
        # JSON is YAML. Its cache of blobs is left out: it would remember those that were collected.
        write_private(self._directory / "config.yml", json.dumps(_config(identity)))
        return wanted.model_copy(
            update={
                "url": f"http://127.0.0.1:{identity.port}", "user": USER, "password": SecretStr(identity.password),
                "project": "",
            }
        )  # fmt: skip

    # ---- the child -------------------------------------------------------------------------------------------
    async def _spawn(self) -> None:
        await self._child.spawn([self._program, "serve", "config.yml"], self._variables())

    def _variables(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self._directory), "OTEL_TRACES_EXPORTER": "none"}

    async def _stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._child.end()

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
            await client.check()
        except AshoreError:
            return False
        return True

    def _drop_uploads(self) -> None:
        """What was being sent when somebody hung up: the registry keeps it for a day, and it may be a whole layer."""
        for folder in (self._directory / "data").glob("docker/registry/v2/repositories/**/_uploads"):
            shutil.rmtree(folder, ignore_errors=True)

    async def _run_collector(self) -> None:
        await asyncio.to_thread(self._drop_uploads)
        process = await asyncio.create_subprocess_exec(
            self._program, "garbage-collect", "config.yml", cwd=self._directory, env=self._variables(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_COLLECT_SECONDS):
                status = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        (self._directory / "garbage").unlink(missing_ok=True)
        if status:
            log.warning("the image registry could not give space back: its collector ended with status %s", status)


def _config(identity: _Identity) -> dict[str, object]:
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": "data"},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": True, "age": "24h", "interval": "1h", "dryrun": False}},
        },
        "auth": {"htpasswd": {"realm": "ashore", "path": "htpasswd"}},
        "http": {"addr": f"127.0.0.1:{identity.port}", "secret": identity.secret, "relativeurls": True},
    }
