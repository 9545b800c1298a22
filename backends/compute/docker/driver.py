"""The compute `docker`: environments as containers of one Docker engine, on this machine or another one.

What is said to the Engine is made by `config`, said by `engine`, and bytes go through `stream`. The handle of a
workload is its container's name, so that its volume can be found even when the container is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import platform
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from pathlib import Path

from backends import gpu_desk
from backends.compute.contract import Found, Pipe, Progress, RegistryAway, State, Status, Usage, WorkloadSpec
from backends.compute.dial import open_namespace
from backends.compute.docker import config
from backends.compute.docker.config import Place
from backends.compute.docker.data_volume import DataVolumes
from backends.compute.docker.engine import AWAY, GONE, Engine, translated
from backends.compute.docker.guest_volume import GuestVolume
from backends.compute.docker.hosts import line_to
from backends.compute.docker.nfs_homes import Export, NfsHomes, home_volume
from backends.compute.docker.sending import send
from backends.compute.docker.stream import ExecStream, open_stream
from backends.compute.places import Capacity, GpuDriver, GpuFact, GpuLoad
from backends.compute.volumes import VolumeWriter
from backends.gpu_load import DRIVER_SCRIPT, LOAD_SCRIPT, card_loads, driver_here, parse_driver, parse_load
from backends.gpu_probe import parse_smi, probe
from backends.image_names import check_plain
from backends.settings import DockerHostSettings, DockerSettings
from storage.errors import AshoreError, BadInput, Conflict, NotFound, Unavailable
from storage.names import printable

log = logging.getLogger(__name__)

_ASK_SECONDS = 10
_NVIDIA = "nvidia"
"""The runtime of the NVIDIA Container Toolkit, as an engine names it."""
_GPUS_SECONDS = 300
"""How long what another machine said of its GPUs is believed."""
_LOADS_SECONDS = 15
"""The same of how busy they are; a container is made for each answer."""
_UNPACK_SECONDS = 3600.0
"""What an engine may take to unpack an image that it has got."""
MIB = 1024**2
_NOT_FOUND = 127
"""What a shell says when there is no such program."""
_SETTLE_SECONDS = 2.0
"""How long a program may go on after its pipe has ended before it is killed."""
_END_LOOKS, _END_PAUSE = 10, 0.1
"""How often, and how many seconds apart, the engine is asked whether a container has ended."""


class DockerCompute:
    """One Docker engine. Make it inside a running event loop; `close` it at the end.

    `guest` is the read-only tree that every container gets. `host` tells where the Engine is; without it, it is behind
    the socket of the settings.
    """

    def __init__(
        self, guest: Path, settings: DockerSettings, host: DockerHostSettings | None = None, *, name: str = "docker"
    ) -> None:
        self.name = name
        # In full: Podman may find a person's image by a short name, and helpers are given what is other people's.
        settings = settings.model_copy(update={"default_image": check_plain(settings.default_image)})
        self._settings = settings
        self._host = host or DockerHostSettings(url=f"unix://{settings.socket}")
        self._engine = Engine(line_to(self._host))
        self._guest = guest
        self._guest_volume = GuestVolume(self._engine, guest, settings.default_image)
        self._data = DataVolumes(self._engine, settings.default_image)
        self._export = Export.of(settings, self._host)
        self._nfs = NfsHomes(self._engine, self._data, settings.default_image)
        self._networks = asyncio.Lock()
        self._gpus_seen: Sequence[GpuFact] = ()
        self._gpus_until = 0.0
        self._loads_seen: Sequence[GpuLoad] = ()
        self._loads_until = 0.0
        self._loads_at = 0.0
        self._driver_seen: GpuDriver | None = None
        self._driver_until = 0.0
        self._probing = asyncio.Lock()
        """Around containers that ask: what a former gateway left of them is removed, and must not be another's."""
        self._streams: dict[asyncio.Task[int | None], ExecStream] = {}

    # ---- life ------------------------------------------------------------------------------------------------
    async def create(self, spec: WorkloadSpec, progress: Progress) -> str:
        place = Place(spec.id)
        if spec.gpus and config.is_podman(await self._engine.info()):
            raise Unavailable("the host's engine is Podman, which gives no GPUs to containers")
        labels = await self._engine.container_labels(place.container)
        if labels is not None and _is_as(spec, labels):
            return place.container
        name = self._image_name(spec.image)
        title = spec.image_title or name
        image = await self._engine.image(name, progress, title=title, auth=spec.image_auth)
        progress(f"making a container of {title}")
        body = config.container(
            spec, image=name, login=config.image_user(image), guest=await self._tree(), settings=self._settings,
            gpu_driver=self._host.gpu_driver,
        )  # fmt: skip
        if labels is not None:  # its devices and mounts cannot be changed; the home is a volume and stays
            await self._engine.delete_container(place.container)
        had_volume = await self._engine.volume_labels(place.volume) is not None
        try:
            await self._make_home(spec)
            async with self._networks:
                await self._engine.ensure_network(config.network(spec.workspace))
                await self._engine.create_container(place.container, body)
        except BaseException:
            await asyncio.shield(self._undo(spec, keep_volume=had_volume))
            raise
        return place.container

    async def _make_home(self, spec: WorkloadSpec) -> None:
        place = Place(spec.id)
        labels = await self._engine.volume_labels(place.volume)
        if labels is None:
            body = config.volume(spec)
            if self._export is not None:
                body = home_volume(body, self._export, place)
            await self._engine.create_volume(body)
            labels = body["Labels"]
        await self._nfs.make_for(labels, place)

    async def start(self, handle: str, spec: WorkloadSpec, progress: Progress) -> None:
        labels = await self._engine.container_labels(handle)
        if labels is None:
            raise NotFound(GONE)
        progress("starting")
        # The label, not the spec: the workspace may have another name by now, the container's network has not.
        await self._start(handle, labels.get("ashore.workspace", spec.workspace))
        # Also when it runs already: the gateway may have been cut off between the start and this.
        script = config.setup_script(spec.guest_files, labels.get("ashore.user") or config.LOGIN_USER)
        try:
            pipe = await self.open_pipe(handle, ["/bin/sh", "-s"], {})
        except Conflict as error:
            raise await self._ended_at_once(handle) from error
        if await _feed(pipe, script) == 0:
            return
        if await self._ends(handle):
            raise await self._ended_at_once(handle)
        said = printable(pipe.complaint(), limit=300)
        raise Unavailable(f"the container could not be prepared: {said}")

    async def stop(self, handle: str, *, grace: float) -> None:
        if (await self.inspect(handle)).state is State.GONE:
            return
        seconds = math.ceil(grace)
        with translated():
            async with asyncio.timeout(seconds + 60):
                await self._engine.container(handle).stop(t=seconds)

    async def delete(self, handle: str) -> None:
        place = Place.of(handle)
        labels = await self._engine.volume_labels(place.volume)
        await self._engine.delete_container(config.reader_name(place))
        await self._engine.delete_container(place.container)
        await self._nfs.remove_for(labels or {}, place)
        await self._engine.delete_volume(place.volume)
        if labels is not None and "ashore.workspace" in labels:
            await self._drop_network(labels["ashore.workspace"])

    # ---- questions -------------------------------------------------------------------------------------------
    async def inspect(self, handle: str) -> Status:
        try:
            with translated():
                async with asyncio.timeout(_ASK_SECONDS):
                    return config.status_of(await self._engine.container(handle).show())
        except NotFound:
            return Status(State.GONE, GONE)
        except AshoreError:
            return Status(State.UNKNOWN, AWAY)

    async def usage(self, handle: str) -> Usage | None:
        return config.usage_of(await self._engine.stats(handle))

    async def output(self, handle: str) -> AsyncGenerator[bytes]:
        place = Place.of(handle)
        if await self._engine.container_labels(place.container) is not None:
            async with aclosing(self._engine.read_folder(place.container, config.OUTPUT)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        if await self._engine.volume_labels(place.volume) is None:
            raise NotFound(GONE)
        # Somebody removed the container; the home is a volume and was left. A container that never runs shows it.
        await self._engine.image(self._settings.default_image, _nobody)
        reader = config.reader_name(place)
        await self._engine.create_container(reader, config.reader(place, self._settings.default_image))
        try:
            async with aclosing(self._engine.read_folder(reader, config.OUTPUT)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await asyncio.shield(self._engine.delete_container(reader))

    async def network_namespace(self, handle: str) -> int | None:
        if not self._engine.line.is_here or os.geteuid() != 0:
            return None
        try:
            with translated():
                async with asyncio.timeout(_ASK_SECONDS):
                    shown = await self._engine.container(handle).show()
        except AshoreError:
            return None
        return await asyncio.to_thread(_namespace_of, int(shown["State"]["Pid"]), str(shown["Id"]))

    async def found(self) -> Sequence[Found]:
        containers = await self._engine.containers(config.LABEL)
        places = [(Place(shown["Labels"][config.LABEL]), shown) for shown in containers]
        return [
            Found(place.container, place.id, config.state_of(shown["State"]))
            for place, shown in places
            if f"/{place.container}" in shown["Names"]
        ]

    async def check(self) -> str:
        with translated():
            async with asyncio.timeout(_ASK_SECONDS):
                info = await self._engine.info()
        machine = config.processors(info)
        if machine and machine != platform.machine():
            raise Unavailable(f"its processors are {machine}, those of the gateway {platform.machine()}")
        engine = "Podman" if config.is_podman(info) else "Docker"
        return f"{engine} {info['ServerVersion']}, {info['Driver']}"

    async def capacity(self) -> Capacity:
        with translated():
            async with asyncio.timeout(_ASK_SECONDS):
                info = await self._engine.info()
        return Capacity(
            cpus=self._host.cpus or float(info["NCPU"]),
            memory=self._host.memory_mib * MIB or int(info["MemTotal"]),
            is_here=self._engine.line.is_here,
        )

    @property
    def is_here(self) -> bool:
        return self._engine.line.is_here

    async def pull_image(self, reference: str, title: str, auth: str, progress: Progress) -> bool:
        name = config.check_image(reference)
        before = await self._engine.known_image(name)
        if before is not None and "@" in name:
            return False
        try:
            with translated():
                await self._engine.pull(name, progress, title, auth)
        except (RegistryAway, BadInput):
            if before is None:
                raise
            return False
        after = await self._engine.known_image(name)
        return before is None or after is None or before["Id"] != after["Id"]

    async def image_id(self, name: str) -> str:
        found = await self._engine.known_image(config.check_image(name))
        # Podman leaves the algorithm out.
        return "" if found is None else f"sha256:{str(found['Id']).removeprefix('sha256:')}"

    async def load_image(self, archive: AsyncGenerator[bytes], title: str) -> None:
        await send(archive, self._engine.load, title=f"'{title}'", settle_seconds=_UNPACK_SECONDS)

    async def lacks_image(self, spec: WorkloadSpec) -> bool:
        labels = await self._engine.container_labels(Place(spec.id).container)
        if labels is not None and _is_as(spec, labels):
            return False
        return await self._engine.known_image(self._image_name(spec.image)) is None

    async def bring_image(self, spec: WorkloadSpec, progress: Progress) -> None:
        name = self._image_name(spec.image)
        await self._engine.image(name, progress, title=spec.image_title or name, auth=spec.image_auth)

    async def drop_image(self, reference: str) -> None:
        await self._engine.delete_image(reference)

    async def gpus(self) -> Sequence[GpuFact]:
        if config.is_podman(await self._engine.info()):
            return []
        found = await gpu_desk.HERE.ask(probe) if self._engine.line.is_here else await self._gpus_over_there()
        chosen = set(self._host.gpus)
        return [fact for fact in found if not chosen or {fact.uuid, fact.parent} & chosen]

    async def driver(self) -> GpuDriver | None:
        if self._engine.line.is_here:
            return await gpu_desk.HERE.ask(driver_here)
        async with self._probing:
            moment = asyncio.get_running_loop().time()
            if moment >= self._driver_until:
                found = None
                if await self._gpus_known():
                    body = config.gpu_probe(self._settings.default_image, DRIVER_SCRIPT)
                    found = parse_driver(await self._engine.run_once(body))
                self._driver_seen, self._driver_until = found, moment + _GPUS_SECONDS
            return self._driver_seen

    async def image_variables(self, image: str) -> Sequence[str]:
        shown = await self._engine.known_image(config.check_image(image or self._settings.default_image))
        return [] if shown is None else [str(one) for one in (shown.get("Config") or {}).get("Env") or ()]

    async def gpu_loads(self) -> Sequence[GpuLoad]:
        if not self._engine.line.is_here:
            return await self._gpu_loads_over_there()
        moment = asyncio.get_running_loop().time()
        try:
            cards = await gpu_desk.HERE.ask(card_loads)
        except Unavailable:
            if not self._loads_seen:
                raise
            return [replace(load, age=moment - self._loads_at) for load in self._loads_seen]
        if not cards:
            return ()
        names = {str(shown["Id"]): Place(shown["Labels"][config.LABEL]).container
                 for shown in await self._engine.containers(config.LABEL)}  # fmt: skip
        self._loads_seen, self._loads_at = await asyncio.to_thread(config.shared_out, cards, names), moment
        return self._loads_seen

    async def logs(self, handle: str, *, tail: int) -> AsyncIterator[bytes]:
        with translated():
            pieces = await self._engine.container(handle).log(stdout=True, stderr=True, tail=tail)
        for piece in pieces:
            yield piece.encode()

    # ---- pipes -----------------------------------------------------------------------------------------------
    async def open_pipe(self, handle: str, argv: Sequence[str], variables: Mapping[str, str]) -> Pipe:
        mark = secrets.token_hex(8)
        # By way of the shell, for the usual words and statuses (126, 127) when there is no such program: the Engine
        # would write its own complaint into the program's output.
        command = ["/bin/sh", "-c", 'exec "$@"', "sh", *argv]
        exec_id = await self._engine.create_exec(handle, command, {**variables, config.PIPE_MARK: mark})
        stream = await open_stream(self._engine.line, self._engine.api_version, exec_id)
        watch = asyncio.create_task(self._watch(handle, exec_id, mark, stream), name=f"exec watch {exec_id[:12]}")
        self._streams[watch] = stream
        watch.add_done_callback(self._forget)

        async def wait() -> int | None:
            await asyncio.wait([watch])
            return None if watch.cancelled() else watch.result()

        return Pipe(stream.inner, wait, lambda: stream.complaint)

    async def close(self) -> None:
        for watch, stream in list(self._streams.items()):
            await stream.close()
            watch.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        await self._engine.close()

    # ---- data for an engine elsewhere ------------------------------------------------------------------------
    @property
    def is_elsewhere(self) -> bool:
        return not self._engine.line.is_here

    async def has_volume(self, name: str) -> bool:
        return await self._data.has(name)

    async def delete_volume(self, name: str) -> None:
        await self._data.delete(name)

    def volume_writer(self, name: str, progress: Progress) -> AbstractAsyncContextManager[VolumeWriter]:
        return self._data.writer(name, progress)

    async def clear_helpers(self, volumes: Collection[str]) -> None:
        await self._data.clear(volumes)

    async def has_folder(self, folder: Path, progress: Progress) -> bool:
        return await self._data.has_folder(folder, progress)

    # ---- inside ----------------------------------------------------------------------------------------------
    def _image_name(self, image: str) -> str:
        return config.check_image(image or self._settings.default_image)

    async def _tree(self) -> Path | str:
        """Where the Engine finds the guest's tree."""
        if self._engine.line.is_here:
            return self._guest
        await self._guest_volume.bring()
        return self._guest_volume.name

    async def _gpus_over_there(self) -> Sequence[GpuFact]:
        """By a container that asks `nvidia-smi`, which its toolkit brings; each few minutes, as it costs a second."""
        async with self._probing:
            return await self._gpus_known()

    async def _gpus_known(self) -> Sequence[GpuFact]:
        moment = asyncio.get_running_loop().time()
        if moment < self._gpus_until:
            return self._gpus_seen
        with translated():
            info = await self._engine.info()
        found: Sequence[GpuFact] = ()
        if _NVIDIA in info.get("Runtimes", {}):
            for left in await self._engine.containers(config.GPU_PROBE):  # of a gateway that crashed
                if config.state_of(left["State"]) is not State.RUNNING:
                    await self._engine.delete_container(left["Id"])
            await self._engine.image(self._settings.default_image, _nobody)
            found = parse_smi(await self._engine.run_once(config.gpu_probe(self._settings.default_image)))
        self._gpus_seen, self._gpus_until = found, moment + _GPUS_SECONDS
        return found

    async def _gpu_loads_over_there(self) -> Sequence[GpuLoad]:
        """The same way. Whose processes they are cannot be told: a container sees no process of another one."""
        async with self._probing:
            moment = asyncio.get_running_loop().time()
            if moment >= self._loads_until:
                if not await self._gpus_known():
                    return ()
                said = await self._engine.run_once(config.gpu_probe(self._settings.default_image, LOAD_SCRIPT))
                self._loads_seen = [GpuLoad(one.uuid, one.utilization, one.used, one.memory)
                                    for one in parse_load(said)]  # fmt: skip
                self._loads_until = asyncio.get_running_loop().time() + _LOADS_SECONDS
            return self._loads_seen

    async def _undo(self, spec: WorkloadSpec, *, keep_volume: bool) -> None:
        """Take back a create that failed half-way."""
        place = Place(spec.id)
        try:
            await self._engine.delete_container(place.container)
            if not keep_volume:
                labels = await self._engine.volume_labels(place.volume)
                with contextlib.suppress(AshoreError):  # it may be what failed, and is empty
                    await self._nfs.remove_for(labels or {}, place)
                await self._engine.delete_volume(place.volume)
            await self._drop_network(spec.workspace)
        except AshoreError as error:
            log.warning("what was made for environment %s could not be removed: %s", spec.id, error.message)

    async def _start(self, handle: str, workspace: str) -> None:
        container = self._engine.container(handle)
        network = config.network(workspace)
        async with self._networks:
            await self._engine.ensure_network(network)
        try:
            await self._engine.start_container(handle, network)
        except NotFound as error:
            if "network" not in error.message:
                raise
            await self._engine.rejoin_network(network["Name"], handle)
            with translated():
                await container.start()

    async def _ends(self, handle: str) -> bool:
        """Whether it has ended, or is about to: the engine notices a moment after the programs inside."""
        for _ in range(_END_LOOKS):
            if (await self.inspect(handle)).state is not State.RUNNING:
                return True
            await asyncio.sleep(_END_PAUSE)
        return False

    async def _ended_at_once(self, handle: str) -> AshoreError:
        status = await self.inspect(handle)
        if status.exit_status == _NOT_FOUND:  # from Docker's init, which runs the shell
            return BadInput("the image has no /bin/sh, which an environment needs")
        said = b"".join([piece async for piece in self.logs(handle, tail=1)]).decode("utf-8", "replace").strip()
        reason = ": ".join(filter(None, (status.reason, printable(said, limit=200))))
        return Unavailable(f"its container ended at once: {reason}")

    async def _drop_network(self, workspace: str) -> None:
        """Remove a workspace's network with its last container; there are only some thirty to be had."""
        async with self._networks:
            # A stopped container would not hold the network, but could not start without it.
            if not await self._engine.containers(f"ashore.workspace={workspace}"):
                await self._engine.delete_network(config.network_name(workspace))

    async def _watch(self, handle: str, exec_id: str, mark: str, stream: ExecStream) -> int | None:
        """The exit status once the stream has ended; kills the program if it does not end by itself."""
        await asyncio.wait([stream.finished])
        try:
            runs, status = await self._settled(exec_id)
            if runs:
                await self._sweep(handle, mark)
                _, status = await self._settled(exec_id)
        except AshoreError as error:
            log.info("exit status of exec %s is not known: %s", exec_id[:12], error.message)
            return None
        return status

    async def _settled(self, exec_id: str) -> tuple[bool, int | None]:
        """What the Engine says of a program once it has ended, or after a while."""
        deadline = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        pause = 0.01
        while True:
            runs, status = await self._engine.exec_result(exec_id)
            if not runs or asyncio.get_running_loop().time() > deadline:
                return runs, status
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.25)

    async def _sweep(self, handle: str, mark: str) -> None:
        pipe = await self.open_pipe(handle, ["/bin/sh", "-c", config.sweep_script(mark)], {})
        await _feed(pipe, b"")

    def _forget(self, watch: asyncio.Task[int | None]) -> None:
        del self._streams[watch]
        if not watch.cancelled() and (error := watch.exception()) is not None:
            log.error("watching an exec failed", exc_info=error)


def _is_as(spec: WorkloadSpec, labels: Mapping[str, str]) -> bool:
    """Whether the container with these labels can be kept for `spec`."""
    return config.has_these_gpus(spec, labels) and config.has_these_mounts(spec, labels)


def _nobody(line: str) -> None:
    """Progress that nobody waits for."""


async def _feed(pipe: Pipe, data: bytes) -> int | None:
    """Give `data` to a short program, drop what it says, and return its exit status."""
    loop = asyncio.get_running_loop()
    with pipe.socket as end:
        await loop.sock_sendall(end, data)
        end.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(end, 65536):
            pass
    return await pipe.wait()


def _namespace_of(pid: int, container_id: str) -> int | None:
    if pid <= 0:
        return None
    try:
        namespace = open_namespace(pid)
    except OSError:
        return None
    # An engine in a virtual machine or behind another pid namespace counts its own process ids: one of ours that
    # happens to have the number is not meant. The control group carries the container's id.
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        groups = ""
    if container_id in groups:
        return namespace
    os.close(namespace)
    return None
