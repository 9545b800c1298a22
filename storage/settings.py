"""Settings of the lowest storey: where records and objects are kept.

`gateway.settings` composes these groups into one file; each part receives only its own group.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator


class Group(BaseModel):
    """A group of settings: unknown keys are errors, values never change, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return fine and url.isascii() and url.isprintable() and " " not in url and "@" not in parts.netloc


class DatabaseSettings(Group):
    url: str = ""
    """SQLAlchemy async URL. Empty: SQLite in the data directory. PostgreSQL: `postgresql+asyncpg://…`."""


class ObjectSettings(Group):
    endpoint: str = ""
    """`http://host:port` or `https://host:port` of an S3 service. Empty: Ashore starts its own store in the data
    directory."""
    access_key: str = ""
    """Access key of that service."""
    secret_key: SecretStr = SecretStr("")
    """Secret key of that service."""
    bucket: str = "ashore"
    """Bucket for data sets and models; made at start if it does not exist."""
    region: str = "us-east-1"
    """Region written into signatures; most stores ignore it."""
    ca_file: str = ""
    """PEM file with the authority that signed the endpoint's certificate. Empty: the system's authorities."""
    insecure: bool = False
    """Accept any certificate from this endpoint. Only for a closed network; `ashore check` warns."""
    public_endpoint: str = ""
    """`https://host[:port]` under which people reach the same service, for links that `dataset url` makes. Empty: the
    endpoint itself; the embedded store is reached on the gateway's own machine only."""
    link_max_hours: Annotated[int, Field(ge=1, le=168)] = 24
    """The longest life of such a link, hours; S3 knows no more than 168."""
    part_mib: int = 8
    """Size of the first parts of an upload, MiB (5 to 64). Eight keeps a resumed upload's re-sent tail short."""
    spare_mib: Annotated[int, Field(ge=0)] = 512
    """Space on the disk of Ashore's own store that uploads leave free, MiB: the records and the audit trail are usually
    on the same disk, and must go on when it is full of data. Archives of images leave as much on the disk of Ashore's
    own registry."""
    memory_mib: int = 512
    """Memory for upload parts and read-ahead in one process, MiB. Writers wait when it is used up."""
    parked_days: int = 7
    """Days for which what came of an interrupted upload is kept. The store must not throw it away sooner."""
    parked_most: int = 200
    """How many uploads one person may have unfinished, those that run included."""
    parked_gib: int = 500
    """How much they may hold together, GiB. They take room in the store and no listing of S3 shows them. Both for
    everybody whom `quota set` gives nothing else."""
    workspace_gib: Annotated[float, Field(ge=0)] = 0
    """How much the files of one workspace may hold, GiB, also a fraction. 0: as much as the store takes. `quota set
    --workspace W --storage SIZE` makes exceptions."""


class QuotaSettings(Group):
    user_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores that the environments of one person may have together while they run. 0: no limit."""
    user_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory that the environments of one person may have together while they run, MiB. 0: no limit."""
    user_gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs that the environments of one person may have together while they run; one that is shared, and a MIG device,
    count as one. 0: no limit."""
    user_storage_gib: Annotated[float, Field(ge=0)] = 0
    """What the files of one person's data sets and models may hold, GiB, also a fraction. 0: no limit."""
    workspace_environments: Annotated[int, Field(ge=0)] = 0
    """Environments that the people of one workspace may have together. 0: no limit."""
    workspace_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores that the environments of one workspace may have together while they run. 0: no limit."""
    workspace_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory that the environments of one workspace may have together while they run, MiB. 0: no limit."""
    workspace_gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs that the environments of one workspace may have together while they run. 0: no limit."""
    workspace_builds: Annotated[int, Field(ge=0)] = 0
    """Builds of images that the people of one workspace may have waiting or running together. 0: no limit. For each
    person it is `backends.builds.open_per_user`."""
    webhook: SecretStr = SecretStr("")
    """`http://…` or `https://…` that gets one JSON message when somebody's usage crosses `warn_percent`; its `text` is
    what chat services show. Empty: nobody is told. Only this address is asked, redirects are not followed."""
    warn_percent: Annotated[int, Field(ge=1, le=100)] = 90
    """How much of a quota may be used before the webhook is told, percent."""
    webhook_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Time for one attempt to tell it, seconds; it is tried three times, and again a minute later."""

    @field_validator("webhook")
    @classmethod
    def _is_an_address(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url and not _is_plain_url(url):
            raise ValueError("write http://host/path or https://host/path, without a user and a password")
        return value


class AuditSettings(Group):
    recording: bool = True
    """Record terminals as asciicast v2. Refusing to record is a decision of the operator, never of a user."""
    recording_max_mib: int = 256
    """A recording stops growing at this size, MiB, and says so inside; the session goes on."""
