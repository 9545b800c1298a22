"""Calls to one Docker engine, typed, with its errors in our words. Knows images, volumes, networks and containers as
the Engine has them; what an environment makes of them is `driver`'s business.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from typing import IO, Any, TypeVar

import aiohttp
from aiodocker import Docker
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError
from aiodocker.networks import DockerNetwork
from aiodocker.volumes import DockerVolume

from backends.compute.contract import Progress, RegistryAway
from backends.compute.docker.config import JSON, pull_line
from backends.compute.docker.lines import Line, LineConnector
from storage.errors import AshoreError, BadInput, Conflict, NotFound, Unavailable
from storage.names import printable

log = logging.getLogger(__name__)
T = TypeVar("T")
AWAY = "the Docker engine does not answer"
GONE = "its container was removed"
_CONTROL = aiohttp.ClientTimeout(total=120)
_STREAM = aiohttp.ClientTimeout(sock_connect=30, sock_read=300)
NO_GPU_SUPPORT = "the host's Docker gives no GPUs: it needs the NVIDIA Container Toolkit"
_NO_TOOLKIT = "could not select device driver"
_NO_CONNECTION = 900
"""aiodocker's own status for an Engine that cannot be reached."""
_CONFLICTS = ("container state improper", "already in use", "already exists", "is being used")
"""What Podman says with status 500 where Docker has status 409."""
FULL = "the disk of the host's Docker engine is full: no space left on device"
_REFUSALS = (400, 401, 403, 404)
_REFUSAL_WORDS = (
    "manifest unknown", "name unknown", "not found", "no matching manifest", "no basic auth", "unauthorized",
    "authentication required", "denied", "forbidden", "invalid reference",
)  # fmt: skip
"""Registries' and engines' words for 401, 403 and 404, which engines pass on with status 500 or inside the stream."""
_NO_SPACE = "no space left on device"
_NO_ANSWER = (
    "dial tcp", "no such host", "connection refused", "connection reset", "i/o timeout", "TLS handshake", "x509:",
    "Client.Timeout", "deadline exceeded", "network is unreachable", "no route to host", ": EOF", "Bad Gateway",
    "Service Unavailable", "Gateway Time-out",
)  # fmt: skip
"""What Docker and Podman, which are written in Go, say when a registry could not be asked."""
_REMOVAL_TRIES = 50
_ONCE_SECONDS = 60.0
_START_TRIES = 20


class Engine:
    """One Docker engine at the end of a line. Make it inside a running event loop; `close` it at the end."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._connector = LineConnector(line)
        self._docker = Docker("unix://localhost", connector=self._connector, timeout=_CONTROL)

    @property
    def api_version(self) -> str:
        """Such as `v1.41`; known after the first call."""
        return self._docker.api_version

    async def close(self) -> None:
        await self._docker.close()
        await self._connector.close()
        await self.line.close()

    async def info(self) -> Mapping[str, Any]:
        with translated():
            answer: Mapping[str, Any] = await self._docker.system.info()
        return answer

    # ---- images ----------------------------------------------------------------------------------------------
    async def image(self, name: str, progress: Progress, *, title: str = "", auth: str = "") -> JSON:
        """The image `name`, pulled if it is not here. BadInput: nobody gives it. RegistryAway: its registry is away.

        `title` is what people call it, `auth` the login that its registry wants: it goes with this pull and no other.
        """
        with translated():
            try:
                return await self._docker.images.inspect(name)
            except DockerError as error:
                if error.status != 404:
                    raise
            progress(f"pulling {title or name}")
            await self.pull(name, progress, title or name, auth)
            found = await _or_none(self._docker.images.inspect(name))
        if found is None:  # the engine was stopped meanwhile, which looks like the end of the stream
            raise RegistryAway(f"the pull of '{title or name}' broke off")
        return found

    async def known_image(self, name: str) -> JSON | None:
        """The image `name`; None if it is not here. Nothing is pulled."""
        with translated():
            return await _or_none(self._docker.images.inspect(name))

    async def pull(self, name: str, progress: Progress, title: str, auth: str) -> None:
        """Ask its registry for it, whether it is here or not. BadInput and RegistryAway as for `image`."""
        layers: dict[str, tuple[int, int]] = {}
        heard: dict[str, object] = {}
        login = json.loads(base64.urlsafe_b64decode(auth)) if auth else None
        try:
            async for line in self._docker.images.pull(name, stream=True, auth=login):
                amounts = line.get("progressDetail") or {}
                # An engine may say the same of a layer again and again while nothing comes: that is no progress.
                news = (line.get("status"), amounts.get("current"))
                if heard.get(line.get("id", "")) == news:
                    continue
                heard[line.get("id", "")] = news
                if line.get("status") == "Downloading" and amounts.get("total"):
                    layers[line["id"]] = (amounts.get("current", 0), amounts["total"])
                elif line.get("id") in layers and line.get("status") in (
                    "Download complete",
                    "Pull complete",
                ):
                    size = layers[line["id"]][1]
                    layers[line["id"]] = (size, size)
                progress(pull_line(title, layers))
        except DockerError as error:
            if error.status == _NO_CONNECTION or _NO_SPACE in error.message:
                raise
            said = printable(error.message, limit=200)
            if not _is_refusal(error, name):
                log.warning("%s was not pulled: %s", printable(name, limit=200), said)
                if any(words in error.message for words in _NO_ANSWER):
                    host = printable(name.partition("/")[0], limit=100)
                    away = f"the registry {host} does not answer, so '{title}' cannot be fetched"
                    raise RegistryAway(away, said) from error
                raise RegistryAway(f"no registry gives the image '{title}' now ({said})") from error
            raise BadInput(f"there is no image '{title}' here, and no registry gave it ({said})") from error

    async def build(self, context: bytes, parameters: Mapping[str, str]) -> AsyncGenerator[Mapping[str, Any]]:
        """What the classic builder says, as it says it; closing this ends the build. No login goes with it.

        Not through aiodocker's own call, which knows no limits.
        """
        headers = {"Content-Type": "application/x-tar"}
        async for event in self._events("build", parameters, headers, context):
            yield event

    async def push(self, repository: str, tag: str, login: str) -> AsyncGenerator[Mapping[str, Any]]:
        """What a push says; its digest comes as `aux`. `login` is the header's value; the Engine demands one."""
        headers = {"X-Registry-Auth": login or _header({})}
        async for event in self._events(f"images/{repository}/push", {"tag": tag}, headers, b""):
            yield event

    async def load(self, archive: AsyncIterator[bytes]) -> None:
        """Take images out of an archive, with the names in it. It ends when `archive` does: see `sending`."""
        async with contextlib.aclosing(
            self._events("images/load", {"quiet": "1"}, {"Content-Type": "application/x-tar"}, archive)
        ) as events:
            async for event in events:
                if "error" in event:
                    raise _translate(DockerError(500, event["error"]))

    async def _events(
        self, path: str, parameters: Mapping[str, str], headers: Mapping[str, str], body: bytes | AsyncIterator[bytes]
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """JSON documents, one a line. One may be as long as what a program wrote at once, six times over."""
        rest = b""
        with translated():
            query = self._docker._query(
                path, "POST", params=dict(parameters), headers=dict(headers), data=body, timeout=aiohttp.ClientTimeout()
            )
            async with query as response:
                try:
                    async for piece in response.content.iter_any():
                        *lines, rest = (rest + piece).split(b"\n")
                        for line in lines:
                            if line.strip():
                                yield json.loads(line)
                finally:
                    response.close()

    async def images(self, label: str) -> Sequence[JSON]:
        """Every image with this label: its Id, RepoTags, Created (seconds since the epoch)."""
        with translated():
            return await self._docker.images.list(filters={"label": [label]})

    async def delete_image(self, name: str) -> bool:
        """False if something uses it; its parents go too where nothing else has them."""
        with translated():
            try:
                await self._docker.images.delete(name)
            except DockerError as error:
                if error.status not in (404, 409):
                    raise
                return False
        return True

    # ---- containers ------------------------------------------------------------------------------------------
    def container(self, name: str) -> DockerContainer:
        return self._docker.containers.container(name)

    async def containers(self, label: str) -> Sequence[JSON]:
        """Every container with this label, running or not: its Id, Names, Labels, State."""
        with translated():
            found = await self._docker.containers.list(all=True, filters={"label": [label]})
        return [{key: shown[key] for key in ("Id", "Names", "Labels", "State")} for shown in found]

    async def container_labels(self, name: str) -> Mapping[str, str] | None:
        """None if there is no such container."""
        with translated():
            shown = await _or_none(self.container(name).show())
        return None if shown is None else shown["Config"]["Labels"]

    async def stats(self, name: str) -> JSON | None:
        """What a container takes, after two looks of the engine, about a second apart; None if there is none."""
        with translated():
            try:
                found = await _or_none(self.container(name).stats(stream=False))
            except json.JSONDecodeError:  # Podman says nothing at all of a container that does not run
                return None
        return found[0] if found else None

    async def create_container(self, name: str, body: JSON) -> None:
        """Make it unless there is one of this name."""
        with translated():
            try:
                await self._docker.containers.create(body, name=name)
            except DockerError as error:
                if _status(error) != 409:
                    raise

    async def run_once(self, body: JSON, *, seconds: float = _ONCE_SECONDS) -> str:
        """Run a container to its end and remove it; what it wrote. Unavailable: it failed, or took too long."""
        with translated():
            container = await self._docker.containers.create(body)
            try:
                async with asyncio.timeout(seconds):
                    await container.start()
                    ended = await container.wait()
                    said = "".join(await container.log(stdout=True, stderr=True))
            finally:
                await asyncio.shield(container.delete(force=True, v=True))
        if ended["StatusCode"] != 0:
            raise Unavailable(f"a container that was to ask it failed: {printable(said, limit=200)}")
        return said

    async def start_container(self, name: str, network: JSON) -> None:
        """Start it; another gateway may be about to make its network a second time, and takes that back at once."""
        for tries_left in reversed(range(_START_TRIES)):
            try:
                with translated():
                    return await self.container(name).start()
            except AshoreError as error:
                if "ambiguous" not in error.message or not tries_left:
                    raise
            await asyncio.sleep(0.1)
            await self.ensure_network(network)

    async def delete_container(self, name: str) -> None:
        with translated():
            await _until_gone(lambda: self.container(name).delete(force=True, v=True))

    async def create_exec(self, name: str, argv: Sequence[str], variables: Mapping[str, str]) -> str:
        """The id of an exec as root with its three streams; Conflict: the container does not run."""
        with translated():
            try:
                made = await self.container(name).exec(argv, stdin=True, user="0:0", environment=variables)
            except DockerError as error:
                if _status(error) == 409:
                    raise Conflict("its container does not run") from error
                raise
        exec_id: str = made.id
        return exec_id

    async def exec_result(self, exec_id: str) -> tuple[bool, int | None]:
        """Whether it runs, and its exit status; `(False, None)` when its container is gone."""
        with translated():
            shown = await _or_none(self._docker.containers.exec(exec_id).inspect())
        return (False, None) if shown is None else (bool(shown["Running"]), shown["ExitCode"])

    async def put_files(self, name: str, path: str, tar: IO[bytes]) -> None:
        """Unpack an archive below `path` of a container, which need not run."""
        with translated():
            await self.container(name).put_archive(path, tar)

    async def put_stream(self, name: str, path: str, tar: AsyncIterator[bytes]) -> None:
        """The same for an archive of any size. It ends when `tar` does: somebody else must watch that it gets on."""
        with translated():
            async with self._docker._query(
                f"containers/{name}/archive", method="PUT", params={"path": path}, data=tar,
                headers={"content-type": "application/x-tar"}, timeout=aiohttp.ClientTimeout(total=None),
            ):  # fmt: skip
                return

    async def has_file(self, name: str, path: str) -> bool:
        """Whether a container, which need not run, has this file."""
        with translated():
            try:
                await self.container(name).get_archive(path)
            except DockerError as error:
                if error.status != 404:
                    raise
                return False
        return True

    async def read_folder(self, name: str, path: str) -> AsyncGenerator[bytes]:
        """A tar archive of a folder of a container, which need not run, as it comes; NotFound: there is none.

        A link in its place is the archive's only entry; with a slash at the end of `path` it would be followed. Not
        aiodocker's `get_archive`: that reads all of it into memory.
        """
        query = self._docker._query(
            f"containers/{name}/archive", params={"path": path}, timeout=_STREAM,
            headers={"Accept-Encoding": "identity"},
        )  # fmt: skip
        with translated():
            async with query as answer:
                try:
                    async for piece in answer.content.iter_any():
                        yield piece
                finally:
                    answer.close()

    # ---- volumes ---------------------------------------------------------------------------------------------
    async def volume_labels(self, name: str) -> Mapping[str, str] | None:
        """None if there is no such volume."""
        with translated():
            shown = await _or_none(DockerVolume(self._docker, name).show())
        return None if shown is None else shown.get("Labels") or {}

    async def create_volume(self, body: JSON) -> None:
        """No-op when it is there."""
        with translated():
            await self._docker.volumes.create(body)

    async def delete_volume(self, name: str) -> None:
        with translated():
            await _until_gone(lambda: DockerVolume(self._docker, name).delete())

    # ---- networks --------------------------------------------------------------------------------------------
    async def ensure_network(self, body: JSON) -> None:
        """Make it unless there is one of this name, and see to it that there is one only.

        Docker lets two gateways make the same name at the same moment, and then takes it for neither. Everybody keeps
        the oldest; the others have no containers yet.
        """
        with translated():
            if not await self._networks_called(body["Name"]):
                try:
                    await self._docker.networks.create(body)
                except DockerError as error:
                    if _status(error) != 409:
                        raise
            for surplus in (await self._networks_called(body["Name"]))[1:]:
                await self._remove_network(surplus)

    async def rejoin_network(self, network: str, container: str) -> None:
        """Tie a container to the network of this name, when the one it knew was made anew."""
        with translated():
            joined = DockerNetwork(self._docker, network)
            with contextlib.suppress(DockerError):
                await joined.disconnect({"Container": container, "Force": True})
            await joined.connect({"Container": container})

    async def delete_network(self, name: str) -> None:
        """No-op when it is gone or still used."""
        with translated():
            found = await self._networks_called(name)
            # By its name where that is enough: asked by the id, Podman removes one that is in use.
            for network in [name] if len(found) == 1 else found:
                await self._remove_network(network)

    async def _networks_called(self, name: str) -> Sequence[str]:
        """Ids of the networks of exactly this name, the oldest first."""
        found = await self._docker.networks.list(filters={"name": [name]})
        named = sorted((one["Created"], one["Id"]) for one in found if one["Name"] == name)
        return [network_id for _, network_id in named]

    async def _remove_network(self, network_id: str) -> None:
        try:
            await DockerNetwork(self._docker, network_id).delete()
        except DockerError as error:
            if _status(error) not in (403, 404, 409):
                raise


@contextlib.contextmanager
def translated() -> Generator[None]:
    """What the Engine and its connection raise, in our words, chained."""
    try:
        yield
    except DockerError as error:
        raise _translate(error) from error
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise Unavailable(AWAY) from error


def _is_refusal(error: DockerError, name: str) -> bool:
    """Whether a registry has answered a pull with no. All else may pass: names, connections, TLS, proxies, quotas."""
    said = error.message.replace(name, "").casefold()
    return error.status in _REFUSALS or any(words in said for words in _REFUSAL_WORDS)


def _status(error: DockerError) -> int:
    """Its status as Docker would give it."""
    if error.status == 500 and any(words in error.message for words in _CONFLICTS):
        return 409
    return error.status


def _translate(error: DockerError) -> AshoreError:
    said = printable(error.message, limit=300)
    if _NO_SPACE in error.message:
        return Unavailable(FULL)
    if _NO_TOOLKIT in error.message:
        return Unavailable(NO_GPU_SUPPORT)
    if error.status == _NO_CONNECTION:
        return Unavailable(AWAY)
    if error.status == 404:
        return NotFound(GONE if "container" in error.message else f"the Docker engine said: {said}")
    if _status(error) == 409:
        return Conflict(f"the Docker engine said: {said}")
    if error.status == 400:
        return BadInput(f"the Docker engine said: {said}")
    return Unavailable(f"the Docker engine said: {said}")


def _header(facts: JSON) -> str:
    return base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()


async def _or_none(question: Awaitable[T]) -> T | None:
    try:
        return await question
    except DockerError as error:
        if error.status == 404:
            return None
        raise


async def _until_gone(remove: Callable[[], Awaitable[None]]) -> None:
    """Remove; no-op when it is gone. A removal under way, or a container that still lets go of a volume, is 409."""
    for _ in range(_REMOVAL_TRIES):
        try:
            await remove()
        except DockerError as error:
            if error.status == 404:
                return
            if _status(error) != 409:
                raise
            await asyncio.sleep(0.1)
        else:
            return
    raise Conflict("the Docker engine still uses what should be removed")
