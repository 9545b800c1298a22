"""Builds `Services` for one process: the gateway, a TUI worker, or the operator's command line.

What only one process may do (migrations, the object store's child, recovery, reconcilers) is not here but in
`gateway.app`.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pydantic import SecretStr

from backends.applications import Applications
from backends.archives.shelf import ImageShelf
from backends.archives.views import Archives
from backends.builders.registry import BuilderCheck, why_not
from backends.builds import Builds
from backends.compute.registry import computes_of
from backends.environments import Environments
from backends.files import Files
from backends.guest import Guests
from backends.hosts import Hosts
from backends.image_care import ImageCare
from backends.images import Images
from backends.imports import Imports
from backends.official import OfficialList
from backends.published import PublishedPorts
from backends.registry import Registry
from backends.services import Address, Services
from backends.settings import BackendSettings, ImportSettings
from backends.usage import Loads
from storage.accounts import Accounts
from storage.artifact_tree import ArtifactTree
from storage.artifacts import Artifacts
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.deletions import Deletions
from storage.links import Links
from storage.models import Models
from storage.namespace import DataTree
from storage.objects.s3 import S3Store
from storage.quotas import Quotas
from storage.recordings import Recordings
from storage.sessions import Sessions
from storage.settings import AuditSettings, DatabaseSettings, Group, ObjectSettings, QuotaSettings
from storage.transfers import Transfers
from storage.uploads import Uploads
from storage.uses import Uses
from storage.vault import Vault


class HouseSettings(Group):
    """The groups that the lower storeys need; `objects` is complete here, also when the store is our own child."""

    database: DatabaseSettings = DatabaseSettings()
    objects: ObjectSettings = ObjectSettings()
    audit: AuditSettings = AuditSettings()
    quotas: QuotaSettings = QuotaSettings()
    """Without its webhook: only the gateway has it."""
    backends: BackendSettings = BackendSettings()
    imports: ImportSettings = ImportSettings()
    """Without its keys: only the process that runs imports has them."""
    embedded_objects: bool = False
    """The object store is our own child, with its files in the data directory."""
    public_host: str = "gateway"
    """Name under which people reach the gateway."""
    public_port: int = 2022
    """The port that it listens on."""

    def save(self, path: Path) -> None:
        """Write everything, also the keys of the object store and the registry, for the workers of this house: readable
        by us alone."""
        facts = self.model_dump(mode="json")
        facts["objects"]["secret_key"] = self.objects.secret_key.get_secret_value()
        facts["backends"]["registry"]["password"] = self.backends.registry.password.get_secret_value()
        facts["quotas"] |= {"webhook": ""}
        facts["imports"] |= {"hf_token": "", "s3_access_key": "", "s3_secret_key": ""}
        draft = path.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(facts, file)
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> HouseSettings:
        return cls.model_validate_json(path.read_bytes())


def connect_database(settings: DatabaseSettings, data: Path) -> Database:
    """The database of the settings, or the SQLite file of the data directory."""
    return Database(settings.url) if settings.url else Database.in_directory(data)


def quotas_of(
    database: Database,
    audit: AuditTrail,
    changes: Changes,
    quotas: QuotaSettings,
    objects: ObjectSettings,
    backends: BackendSettings,
) -> Quotas:
    """The quotas, with what the settings of three rooms allow everybody."""
    environments, builds = backends.environments.limit_per_user, backends.builds.open_per_user
    return Quotas(database, audit, changes, quotas, objects, environments=environments, builds=builds)


def secret(text: str) -> SecretStr:
    """A settings value that is never printed."""
    return SecretStr(text)


@asynccontextmanager
async def open_services(settings: HouseSettings, data: Path) -> AsyncIterator[Services]:
    """Every use case over the database and the stores of `data`; closed in the opposite order."""
    async with AsyncExitStack() as stack:
        database = connect_database(settings.database, data)
        stack.push_async_callback(database.close)
        changes = Changes(data / "run" / "changes")
        await changes.start()
        stack.push_async_callback(changes.close)
        audit = AuditTrail(database)
        await audit.start()
        stack.push_async_callback(audit.close)
        store = S3Store(settings.objects, disk=data / "objects" if settings.embedded_objects else None)
        stack.push_async_callback(store.close)
        computes = await stack.enter_async_context(computes_of(settings.backends, data))
        vault = Vault.in_directory(data)
        guests = Guests(database, vault, computes, changes)
        stack.push_async_callback(guests.close)
        quotas = quotas_of(database, audit, changes, settings.quotas, settings.objects, settings.backends)
        images = Images(
            database, audit, changes, settings.backends.registry, settings.backends.images,
            listed=OfficialList.in_directory(data),
        )  # fmt: skip
        registry = Registry(settings.backends.registry) if settings.backends.registry.url else None
        if registry is not None:
            stack.push_async_callback(registry.close)
        environments = Environments(
            database, audit, changes, computes, settings.backends, quotas=quotas, images=images
        )  # fmt: skip
        await environments.activity.start()
        stack.push_async_callback(environments.activity.close)
        uploads = Uploads(database, store, audit, changes, settings.objects, quotas=quotas)
        stack.push_async_callback(uploads.close)
        datasets = Datasets(database, audit, changes, store)
        models = Models(database, audit, changes, store)
        tree = DataTree(database, audit, changes, store, uploads, datasets, models)
        stack.push_async_callback(tree.moves.close)
        artifacts = Artifacts(database, audit, changes, store)
        kept = ArtifactTree(database, artifacts, store, uploads.budget)
        shelf = ImageShelf(database, audit, store, uploads, images, settings.backends.images, tree)
        files = Files(tree, environments, guests, artifacts=kept, images=shelf)
        stack.push_async_callback(files.close)
        builds = Builds(database, audit, changes, images, quotas, data / "builds", why_not=why_not(settings.backends))
        yield Services(
            database=database,
            audit=audit,
            changes=changes,
            accounts=Accounts(database, audit, changes),
            quotas=quotas,
            sessions=Sessions(database, audit, changes),
            recordings=Recordings(database, audit, data / "recordings"),
            datasets=datasets,
            models=models,
            artifacts=artifacts,
            deletions=Deletions(database, audit, changes, store),
            uses=Uses(database),
            uploads=uploads,
            transfers=Transfers(database, audit, changes, uploads),
            imports=Imports(database, audit, changes, files, vault, settings.imports, own=settings.objects),
            images=images,
            builds=builds,
            image_care=ImageCare(database, audit, images, computes, registry),
            registry=registry,
            archives=Archives(database),
            links=Links(tree, audit, settings.objects),
            moves=tree.moves,
            store=store,
            files=files,
            environments=environments,
            applications=Applications(database, audit, changes, environments, vault, environments.planner.applications),
            published=PublishedPorts(database, audit, changes, environments, settings.backends.ports),
            loads=Loads(computes),
            hosts=Hosts(database, audit, changes, settings.backends, data),
            guests=guests,
            computes=computes,
            builders=BuilderCheck(settings.backends, data),
            address=Address(settings.public_host, settings.public_port),
            objects=settings.objects,
        )
