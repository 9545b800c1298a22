"""The Docker engine of this machine, reached as if it were another one: through a real sshd, through TLS, through a
socket that can be cut."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from backends.settings import DockerHostSettings

ENGINE = "/var/run/docker.sock"


class Sshd:
    """OpenSSH's server on the loopback, for root with one key."""

    def __init__(self, directory: Path, *lines: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        for name in ("host", "client"):
            path = directory / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config = directory / "sshd_config"
        config.write_text(
            "\n".join([
                f"ListenAddress 127.0.0.1:{self.port}", f"HostKey {directory}/host",
                f"AuthorizedKeysFile {directory}/client.pub", "StrictModes no", "UsePAM no", "PidFile none",
                "PermitRootLogin prohibit-password", "PerSourcePenalties no" if _knows_penalties() else "", *lines,
            ]) + "\n"
        )  # fmt: skip
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=log)
        self._wait()

    def host(self, path: str = "", **more: object) -> DockerHostSettings:
        """The settings that lead through it, to the engine behind the socket `path`."""
        host_key = (self.directory / "host.pub").read_text().strip()
        values: dict[str, object] = {"host_key": host_key, "key_file": str(self.directory / "client")}
        return DockerHostSettings(url=f"ssh://root@127.0.0.1:{self.port}{path}", **(values | more))  # type: ignore[arg-type]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return
            time.sleep(0.05)
        raise AssertionError((self.directory / "log").read_text())


class SecondEngine:
    """A Docker engine of its own beside this machine's, which knows `debian:bookworm` and no other image.

    What runs in it reaches nothing outside. `stop` leaves nothing of it.
    """

    def __init__(self) -> None:
        # Not pytest's: the socket's name may have 107 letters.
        self._folder = Path(tempfile.mkdtemp(prefix="engine-"))
        self.socket = self._folder / "docker.sock"
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # Networks of its own: beside another engine it would make, and remove, the very same bridge.
                    "unshare", "--net", "dockerd", "--data-root", f"{self._folder}/data",
                    "--exec-root", f"{self._folder}/run", "--host", f"unix://{self.socket}",
                    "--pidfile", f"{self._folder}/pid",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while subprocess.run([*self._client, "info"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.2)
        archive = self._folder / "image.tar"
        subprocess.run(["docker", "save", "-o", str(archive), "debian:bookworm"], check=True, timeout=120)
        self.run("load", "-q", "-i", str(archive))
        archive.unlink()

    def run(self, *words: str) -> str:
        """The answer of Docker's own client."""
        done = subprocess.run([*self._client, *words], check=True, capture_output=True, text=True, timeout=120)
        return done.stdout

    @property
    def _client(self) -> list[str]:
        return ["docker", "--host", f"unix://{self.socket}"]

    def stop(self) -> None:
        if containers := self.run("ps", "-aq").split():
            self.run("rm", "-f", *containers)
        self.run("network", "prune", "-f")
        self._process.terminate()
        self._process.wait(timeout=60)
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (place := mount.split(" ")[1]).startswith(f"{self._folder}/"):
                subprocess.run(["umount", "-l", place], check=True, timeout=30)
        shutil.rmtree(self._folder)


def _knows_penalties() -> bool:
    answer = subprocess.run(["/usr/sbin/sshd", "-V"], capture_output=True, text=True, timeout=20)
    words = (answer.stderr + answer.stdout).partition("OpenSSH_")[2]
    return words[:2].isdigit()  # 10 and later; 9.8 and 9.9 know them too, but forgive what tests do


class Cuttable:
    """A Unix socket in front of another one. `cut` ends what goes through it and turns everybody away."""

    def __init__(self, path: Path, target: str = ENGINE) -> None:
        self.path, self._target = path, target
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def mend(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
        tasks = tuple(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer), name="cuttable")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._target)
        try:
            await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))
        finally:
            for end in (writer, inner_writer):
                end.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def tls_in_front(context: ssl.SSLContext, target: str = ENGINE) -> AsyncIterator[int]:
    """A port that ends TLS as Go's servers do: `close_notify` is the end of one direction, the other goes on."""
    server = await asyncio.get_running_loop().run_in_executor(None, socket.create_server, ("127.0.0.1", 0))
    server.setblocking(False)
    running: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while True:
            raw, _ = await asyncio.get_running_loop().sock_accept(server)
            raw.setblocking(False)
            task = asyncio.create_task(_serve_tls(raw, context, target), name="TLS")
            running.add(task)
            task.add_done_callback(running.discard)

    accepting = asyncio.create_task(accept(), name="TLS port")
    try:
        yield server.getsockname()[1]
    finally:
        tasks = (accepting, *running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()


async def _serve_tls(raw: socket.socket, context: ssl.SSLContext, target: str) -> None:
    loop = asyncio.get_running_loop()
    received, sending = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, sending, server_side=True)
    inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    inner.setblocking(False)

    async def more() -> bool:
        if sending.pending:
            await loop.sock_sendall(raw, sending.read())
        piece = await loop.sock_recv(raw, 65536)
        received.write(piece)
        return bool(piece)

    async def inbound() -> None:
        while True:
            try:
                data = tls.read(65536)
            except ssl.SSLWantReadError:
                if not await more():
                    return
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                inner.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(inner, data)

    async def outbound() -> None:
        while data := await loop.sock_recv(inner, 65536):
            tls.write(data)
            await loop.sock_sendall(raw, sending.read())
        with suppress(ssl.SSLError):
            tls.unwrap()
        await loop.sock_sendall(raw, sending.read())

    with raw, inner, suppress(OSError):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if not await more():
                    return
            except ssl.SSLError:
                await loop.sock_sendall(raw, sending.read())
                return
        await loop.sock_sendall(raw, sending.read())
        await loop.sock_connect(inner, target)
        reading = asyncio.create_task(inbound())
        try:
            await outbound()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
