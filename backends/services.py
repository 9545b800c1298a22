"""The desk that all doors ask: every use case, in one frozen dataclass.

Built once per process (gateway, TUI worker, operator's command) through
`backends.composition.open_services`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.applications import Applications
from backends.archives.views import Archives
from backends.builders.registry import BuilderCheck
from backends.builds import Builds
from backends.compute.contract import Compute
from backends.environments import Environments
from backends.files import Files
from backends.guest import Guests
from backends.hosts import Hosts
from backends.image_care import ImageCare
from backends.images import Images
from backends.imports import Imports
from backends.published import PublishedPorts
from backends.registry import Registry
from backends.usage import Loads
from storage.accounts import Accounts
from storage.artifacts import Artifacts
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.deletions import Deletions
from storage.links import Links
from storage.models import Models
from storage.moves import Moves
from storage.objects.contract import ObjectStore
from storage.quotas import Quotas
from storage.recordings import Recordings
from storage.sessions import Sessions
from storage.settings import ObjectSettings
from storage.transfers import Transfers
from storage.uploads import Uploads
from storage.uses import Uses


@dataclass(frozen=True)
class Address:
    """Where people reach the gateway from outside, for texts that show them what to type."""

    host: str = "gateway"
    port: int = 2022


@dataclass(frozen=True)
class Services:
    """Every use case. Doors take what they need from here and hold no rule of their own."""

    database: Database
    audit: AuditTrail
    changes: Changes
    accounts: Accounts
    quotas: Quotas
    sessions: Sessions
    recordings: Recordings
    datasets: Datasets
    models: Models
    artifacts: Artifacts
    deletions: Deletions
    uses: Uses
    uploads: Uploads
    transfers: Transfers
    imports: Imports
    images: Images
    builds: Builds
    image_care: ImageCare
    registry: Registry | None
    """Where images are kept; None: nowhere."""
    archives: Archives
    links: Links
    moves: Moves
    store: ObjectStore
    files: Files
    environments: Environments
    applications: Applications
    published: PublishedPorts
    loads: Loads
    hosts: Hosts
    guests: Guests
    computes: Mapping[str, Compute]
    """By place: `local`, `docker/here`, `docker/gpu2`."""
    builders: BuilderCheck | None = None
    """What `doctor` asks about builds."""
    address: Address = Address()
    objects: ObjectSettings = ObjectSettings()
    """How the object store is reached, also when it is our own child; for the probe of `doctor`."""
