"""The composition root: builds everything, runs it in one task group, and drains it.

The order matters: the schema before anything reads, what a dead process left before anybody logs in, the port last.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncssh

from backends import guest_tree
from backends.builders.registry import builder_of
from backends.composition import HouseSettings, connect_database, open_services
from backends.data_sites import Sites
from backends.gpu_use import GpuSigns
from backends.image_loads import ImageLoads
from backends.mounts import EnvironmentData
from backends.official import OfficialList
from backends.outputs import Outputs
from backends.quota_watch import QuotaWatch
from backends.reconcilers.applications import ApplicationReconciler
from backends.reconcilers.archives import ArchiveReconciler
from backends.reconcilers.artifacts import ArtifactReconciler
from backends.reconcilers.builds import BuildReconciler
from backends.reconcilers.cache import CacheKeeper
from backends.reconcilers.deletions import DeletionReconciler
from backends.reconcilers.environments import EnvironmentReconciler
from backends.reconcilers.expiry import ExpiryReconciler
from backends.reconcilers.hosts import HostWatch
from backends.reconcilers.images import ImageReconciler
from backends.reconcilers.imports import ImportReconciler
from backends.reconcilers.official import OfficialImages
from backends.registry import official_of
from backends.registry_child import EmbeddedRegistry
from backends.services import Services
from backends.settings import BackendSettings
from gateway import tuning
from gateway.bans import Bans
from gateway.doorstep import Doorstep
from gateway.first_start import first_start
from gateway.house import House, Live
from gateway.menu import MenuWorkers
from gateway.published import PortListeners
from gateway.server import OuterServer
from gateway.settings import Settings
from storage.database.migrate import migrate
from storage.errors import Conflict, Unavailable
from storage.hashing import HashJobs
from storage.objects.contract import Away
from storage.objects.embedded import EmbeddedStore
from storage.parked import UploadSweep
from storage.settings import ObjectSettings

log = logging.getLogger(__name__)
_GOODBYE_SECONDS = 0.2
_DRAIN_SECONDS = 5.0
_STORE_SECONDS = 5.0


async def serve(settings: Settings, data: Path) -> int:
    """Serve `data` until SIGTERM or SIGINT; one `ready ssh ADDRESS:PORT` line on stdout when connections are taken."""
    tuning.install()
    for directory in (data, data / "run", data / "logs"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(_only_one(data))
        port = stack.enter_context(_open_port(settings))
        house_settings, registry = await _prepare(stack, settings, data, port.getsockname()[1])
        services = await stack.enter_async_context(open_services(house_settings, data))
        store_is_there = await _recover(services)
        menu = MenuWorkers(data, data / "run" / "house.json", count=settings.gateway.menu_workers)
        await menu.start()
        stack.push_async_callback(menu.close)
        host_key = await asyncio.to_thread(_host_key, data / "ssh_host_ed25519_key")
        house = _house(settings, services, menu, host_key)
        backends = house_settings.backends
        await stack.enter_async_context(_running(house, data, backends, registry, store_is_there=store_is_there))
        acceptor = await _listen(house, host_key, port)
        address = services.address
        for line in await first_start(
            services.accounts, home=Path.home(), user=_operator(), host=address.host, port=address.port
        ):
            # Not into the log: one of them may be an invitation.
            sys.stderr.write(f"{line}\n")
        sys.stdout.write(f"ready ssh {_printed(port)}:{address.port}\n")
        sys.stdout.flush()
        await stop.wait()
        await _drain(house, acceptor)
    return 0


class _only_one:
    """One `serve` per data directory: the lock goes with the process, however that ends."""

    def __init__(self, data: Path) -> None:
        self._path = data / "run" / "serve.lock"

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise Conflict(f"another ashore serves {self._path.parent.parent} already") from error

    def __exit__(self, *_: object) -> None:
        self._file.close()


async def _prepare(
    stack: AsyncExitStack, settings: Settings, data: Path, port: int
) -> tuple[HouseSettings, EmbeddedRegistry]:
    """Schema, object store and guest tree, side by side; the settings that the lower storeys get, and our registry."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_migrate(settings, data), name="migrations")
        group.create_task(_build_guest(data), name="guest tree")
        if settings.objects.endpoint:
            objects = settings.objects
        else:
            objects = await _embedded_store(stack, settings, data)
        spare = settings.objects.spare_mib << 20
        registry = EmbeddedRegistry(data / "registry", log=data / "logs" / "registry.log", spare=spare)
        backends = await _with_registry(stack, settings, registry)
    house_settings = HouseSettings(
        database=settings.database,
        objects=objects,
        embedded_objects=not settings.objects.endpoint,
        audit=settings.audit,
        quotas=settings.quotas,
        backends=backends,
        imports=settings.imports,
        public_host=settings.gateway.public_name or socket.gethostname(),
        public_port=port,
    )
    house_settings.save(data / "run" / "house.json")
    return house_settings, registry


async def _embedded_store(stack: AsyncExitStack, settings: Settings, data: Path) -> ObjectSettings:
    wanted = settings.objects
    store = EmbeddedStore(data / "objects", log=data / "logs" / "objects.log", bucket=wanted.bucket)
    await store.start()
    stack.push_async_callback(store.close)
    own = ("endpoint", "access_key", "secret_key", "bucket", "region", "ca_file", "insecure")
    return wanted.model_copy(update={name: getattr(store.settings, name) for name in own})


async def _with_registry(stack: AsyncExitStack, settings: Settings, own: EmbeddedRegistry) -> BackendSettings:
    """The settings with a registry that serves, if the machine has the program for one of our own."""
    wanted = settings.backends
    if wanted.registry.url:
        return wanted
    stack.push_async_callback(own.close)
    return wanted.model_copy(update={"registry": await own.start(wanted.registry)})


async def _migrate(settings: Settings, data: Path) -> None:
    database = connect_database(settings.database, data)
    try:
        await migrate(database)
    finally:
        await database.close()


async def _build_guest(data: Path) -> None:
    try:
        await asyncio.to_thread(guest_tree.build, data / "guest")
    except Unavailable as error:
        log.error("environments cannot be entered: %s", error.message)


async def _recover(services: Services) -> bool:
    """Settle what a process that died left open; whether the object store is there."""
    sessions = await services.sessions.close_orphans()
    recordings = await services.recordings.close_orphans()
    is_there = await _start_store(services)
    uploads = await services.uploads.recover() if is_there else 0
    await services.deletions.recover()
    if sessions or recordings or uploads:
        log.info("closed what was left open: %s sessions, %s recordings, %s uploads", sessions, recordings, uploads)
    return is_there


async def _start_store(services: Services) -> bool:
    """False if the store is away: shells and commands work without it. What its operator must mend is an error."""
    try:
        await services.store.start()
    except Away as error:
        log.error("data sets wait for their store: %s", error.message)
        return False
    return True


async def _await_store(services: Services) -> None:
    """For a store that was away at the start: what could not be done then, when it comes."""
    while True:
        await asyncio.sleep(_STORE_SECONDS)
        with suppress(Away):
            await services.store.start()
            break
    settled = await services.uploads.recover(even_leased=False)
    log.info("the object store is there, settled %s uploads", settled)


def _house(settings: Settings, services: Services, menu: MenuWorkers, host_key: asyncssh.SSHKey) -> House:
    bans = Bans(failures=settings.gateway.ban_failures, seconds=settings.gateway.ban_seconds)
    public_key = " ".join(host_key.export_public_key().decode().split()[:2])
    doorstep = Doorstep(
        per_network=settings.gateway.unauthenticated_per_address, total=settings.gateway.unauthenticated
    )
    return House(
        settings=settings,
        services=services,
        menu=menu,
        bans=bans,
        live=Live(),
        doorstep=doorstep,
        host_keys=[public_key],
    )


@asynccontextmanager
async def _running(
    house: House, data: Path, backends: BackendSettings, own_registry: EmbeddedRegistry, *, store_is_there: bool
) -> AsyncIterator[None]:
    """The loops of this process, each named; one that dies is an error that everybody sees."""
    services = house.services
    sites = Sites(data, services.store, services.audit, house.settings.backends, services.computes, services.uses)
    reconciler = EnvironmentReconciler(
        services.database,
        services.audit,
        services.changes,
        services.computes,
        services.guests,
        house.settings.backends,
        data=EnvironmentData(services.database, services.accounts, sites),
        outputs=Outputs(services.database, services.artifacts, services.uploads, house.settings.backends.lifecycle),
        images=services.images,
        loads=ImageLoads(services.registry),
    )
    hosts = HostWatch(
        services.database, services.audit, services.changes, services.computes, house.settings.backends.placement
    )
    await hosts.look()  # or the first environments would find no host
    keeper = CacheKeeper(sites, services.database, services.changes)
    importer = ImportReconciler(
        services.database, services.audit, services.changes, services.accounts, services.files,
        services.imports.vault, house.settings.imports,
    )  # fmt: skip
    registry = services.registry
    images = ImageReconciler(
        services.database, services.audit, services.changes, registry, own_registry, images=services.images,
        computes=services.computes,
    )  # fmt: skip
    archives = ArchiveReconciler(
        services.database, services.audit, services.changes, services.accounts, services.uploads, services.images,
        registry, house.settings.backends.images, free=own_registry.free, note_garbage=own_registry.note_garbage,
        gate=own_registry.gate,
    )  # fmt: skip
    expiry = ExpiryReconciler(
        services.database, services.audit, services.changes, services.accounts, services.environments,
        house.settings.backends.lifecycle,
    )  # fmt: skip
    deletions = DeletionReconciler(services.deletions, services.changes)
    hashes = HashJobs(services.database, services.store, services.changes)
    signs = GpuSigns(
        services.database, services.computes, services.environments.activity, house.settings.backends.lifecycle
    )
    quotas = QuotaWatch(services.database, services.changes, services.quotas, house.settings.quotas)
    applications = ApplicationReconciler(
        services.database, services.changes, services.accounts, services.guests, services.applications,
        house.settings.backends.environments.reconcile_seconds,
    )  # fmt: skip
    listeners = PortListeners(services, house.settings.backends.ports)
    loops = [
        asyncio.create_task(reconciler.run(), name="environments reconciler"),
        asyncio.create_task(expiry.run(), name="life cycle reconciler"),
        asyncio.create_task(applications.run(), name="applications reconciler"),
        asyncio.create_task(listeners.run(), name="published ports"),
        asyncio.create_task(house.notices.run(services), name="notices in terminals"),
        asyncio.create_task(hosts.run(), name="host watch"),
        asyncio.create_task(keeper.run(), name="cache of data sets"),
        asyncio.create_task(deletions.run(), name="deletions reconciler"),
        asyncio.create_task(
            ArtifactReconciler(services.artifacts, services.changes).run(), name="artifacts reconciler"
        ),
        asyncio.create_task(importer.run(), name="imports reconciler"),
        asyncio.create_task(images.run(), name="images reconciler"),
        asyncio.create_task(archives.run(), name="archives reconciler"),
        asyncio.create_task(house.live.end_wanted(services), name="session ender"),
        asyncio.create_task(UploadSweep(services.uploads, house.settings.objects).run(), name="upload sweep"),
        asyncio.create_task(hashes.run(), name="hashes of files"),
        asyncio.create_task(quotas.run(), name="quota watch"),
        asyncio.create_task(signs.run(), name="signs of life of GPUs"),
        asyncio.create_task(services.moves.run(), name="moves of directories"),
        asyncio.create_task(house.live.end_stale(services), name="connection ender"),
    ]
    official = official_of(house.settings.backends.registry)
    if official:
        watch = OfficialImages(official, OfficialList.in_directory(data))
        loops.append(asyncio.create_task(watch.run(), name="official images of the registry"))
    if registry is not None and (builder := builder_of(backends, data)) is not None:
        builds = BuildReconciler(
            services.database, services.audit, services.changes, services.images, services.builds, builder,
            backends.builds, registry, gate=own_registry.gate,
        )  # fmt: skip
        loops.append(asyncio.create_task(builds.run(), name="builds reconciler"))
    else:
        loops.append(asyncio.create_task(services.builds.give_up(), name="end of builds that nothing builds"))
    if not store_is_there:
        loops.append(asyncio.create_task(_await_store(services), name="wait for the object store"))
    for task in loops:
        task.add_done_callback(_report)
    try:
        yield
    finally:
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        for listing in official.values():
            await listing.close()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("the %s died", task.get_name(), exc_info=task.exception())


def _open_port(settings: Settings) -> socket.socket:
    """The listening socket, opened first: a port that is taken is an error before anything else is started."""
    address, port = settings.gateway.address, settings.gateway.port
    dual = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=512, dualstack_ipv6=dual)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)  # create_server adds the address to `strerror`
        raise Unavailable(f"port {port} cannot be opened: {why}") from error


async def _listen(house: House, host_key: asyncssh.SSHKey, port: socket.socket) -> asyncssh.SSHAcceptor:
    options = tuning.options(house.settings, [host_key])
    return await asyncssh.listen(sock=port, server_factory=lambda: OuterServer(house), backlog=512, **options)


def _host_key(path: Path) -> asyncssh.SSHKey:
    if not path.exists():
        key = asyncssh.generate_private_key("ssh-ed25519", comment="ashore")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.export_private_key())
        path.with_suffix(".pub").write_bytes(key.export_public_key())
    return asyncssh.read_private_key(path)


def _printed(port: socket.socket) -> str:
    """The address for the `ready` line; listening on all of them reads as loopback."""
    host: str = port.getsockname()[0]
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _operator() -> str:
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or "admin"


async def _drain(house: House, acceptor: asyncssh.SSHAcceptor) -> None:
    """Take no more connections, say goodbye to the open ones, and wait for what they write last."""
    acceptor.close()
    for end in list(house.live.ends.values()):
        end("the gateway is being stopped")
    await asyncio.sleep(_GOODBYE_SECONDS)
    # A client that has stalled never answers the goodbye.
    for connection in list(house.live.people):
        if connection.ssh is not None:
            connection.ssh.close()
    await asyncio.sleep(0)
    pending = list(house.live.connections)
    if pending:
        await asyncio.wait(pending, timeout=_DRAIN_SECONDS)
