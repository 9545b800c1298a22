"""Settings of the storey where work runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from storage.names import is_resource
from storage.settings import Group

_EMBEDDED = ("local", "docker")


class LocalSettings(Group):
    enabled: bool = True
    """Offer `local`: bubblewrap sandboxes on this machine."""
    pids_limit: int = 4096
    """Processes and threads in one sandbox."""


class DockerSettings(Group):
    enabled: bool = True
    """Offer `docker` if its socket answers."""
    socket: str = "/var/run/docker.sock"
    """Unix socket of the Docker engine (or of Podman's Docker-compatible service)."""
    default_image: str = "debian:bookworm"
    """Image of environments that name none."""
    pids_limit: int = 4096
    """Processes and threads in one container."""
    shm_mib: int = 1024
    """Size of /dev/shm, MiB; data loaders of PyTorch need far more than Docker's 64."""


class MachineSettings(Group):
    address: str = Field(min_length=1)
    """Host name or address of a Linux machine that runs OpenSSH."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    """Port of its SSH server."""
    user: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")
    """An ordinary account there, not root. All environments on this machine share it."""
    host_key: str
    """The machine's public host key, one line `ssh-ed25519 AAAA…` as in its /etc/ssh/ssh_host_ed25519_key.pub. Nothing
    is sent to a machine that shows another one."""
    key_file: str = Field(pattern=r"^/")
    """Absolute path, on the gateway, of the private key that may log in there. No passphrase, readable by the gateway
    alone."""
    folder: str = Field(default=".ashore", pattern=r"^[A-Za-z0-9/._][A-Za-z0-9/._-]*$")
    """Where environments are kept: below the account's home, or an absolute path."""
    users: tuple[str, ...] = ()
    """People who may have environments there. They can read and change each other's files. Administrators always
    may."""
    workspaces: tuple[str, ...] = ()
    """Workspaces whose people may."""

    @field_validator("host_key")
    @classmethod
    def _is_a_public_key(cls, value: str) -> str:
        # Here, as it takes a tenth of a second: every program of the operator reads settings, few of them machines.
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key

        words = value.split()
        try:
            load_ssh_public_key(" ".join(words[:2]).encode())
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("write the machine's public key as one line, ssh-ed25519 AAAA...") from None
        return " ".join(words[:2])


class EnvironmentSettings(Group):
    default_compute: str = ""
    """Compute of environments that name none. Empty: `docker` when it serves, else `local`."""
    ready_seconds: int = 300
    """An environment that is not up after this time has failed, seconds."""
    stop_grace_seconds: int = 10
    """Time between TERM and KILL when an environment is stopped, seconds."""
    limit_per_user: int = 20
    """Environments that one person may have, stopped ones included. `quota set --user U --environments N` makes
    exceptions."""
    default_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores of environments that name none. 0: half of this machine's, and at least two where it has them."""
    default_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory of environments that name none, MiB. 0: a quarter of this machine's, and at least 512 MiB. Nothing runs
    without a limit: one program must not take the machine away from everybody."""
    most_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores that one environment may ask for. 0: all that this machine has."""
    most_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory that one environment may ask for, MiB. 0: nine tenths of this machine's."""
    reconcile_seconds: float = 15.0
    """Pause between two looks at everything, seconds; hints wake the loop at once anyway."""


class CacheSettings(Group):
    gib: int = 0
    """Copies of data sets and models that environments of this machine have mounted may take this much, GiB; what was
    not used for longest goes first. 0: as much as the disk gives."""
    spare_gib: int = 2
    """Space on the disk of the data directory that is always left free, GiB."""
    parallel: int = 8
    """Requests to the object store that are on their way at once for these copies, with up to 8 MiB each."""


class ImportSettings(Group):
    enabled: bool = True
    """Let people fill data sets and models from elsewhere: `dataset import NAME --from https://…`."""
    parallel: int = 2
    """Imports that run at once; more wait in the order of their making."""
    files_parallel: int = 4
    """Files of one import that travel at once."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts that may be asked although their address is private, on any port and over plain http: mirrors of your own.
    `name` or `name:port`. Everything else must have a public address, so that nobody reaches your network through an
    import."""
    plain_http: bool = False
    """Also take http:// from public addresses. Anybody on the way can then change what is imported."""
    ports: tuple[int, ...] = (80, 443)
    """TCP ports that may be asked at public addresses."""
    ca_file: str = ""
    """PEM file with the authority that signed your mirrors' certificates. Empty: the system's authorities."""
    idle_seconds: int = 60
    """A source that sends nothing for this time counts as lost and is asked again, seconds."""
    attempts: int = 8
    """Times in a row that a source may fail without sending anything new before the import fails."""
    most_files: int = 200_000
    """Files that one import may have."""
    most_gib: int = 4096
    """Size that one import may have, GiB."""
    hf_endpoint: str = "https://huggingface.co"
    """Where `hf://…` leads: the Hugging Face hub, or a mirror such as `https://hf-mirror.com`."""
    hf_token: SecretStr = SecretStr("")
    """Token for the hub. With it, everybody here can import what it may read."""
    s3_endpoint: str = "https://s3.amazonaws.com"
    """Where `s3://…` leads."""
    s3_access_key: str = ""
    """Access key for `s3://…`. Empty: public buckets only."""
    s3_secret_key: SecretStr = SecretStr("")
    """Secret key for `s3://…`. With it, everybody here can import what it may read."""
    s3_region: str = "us-east-1"
    """Region written into signatures."""
    s3_buckets: tuple[str, ...] = ()
    """Buckets that may be imported from. Empty: all that the keys may read."""


class BackendSettings(Group):
    local: LocalSettings = LocalSettings()
    docker: DockerSettings = DockerSettings()
    environments: EnvironmentSettings = EnvironmentSettings()
    cache: CacheSettings = CacheSettings()
    machines: Mapping[str, MachineSettings] = {}
    """Existing machines, reached over SSH; NAME is what people write after --compute."""

    @field_validator("machines")
    @classmethod
    def _are_names(cls, machines: Mapping[str, MachineSettings]) -> Mapping[str, MachineSettings]:
        for name in machines:
            if not is_resource(name) or name in _EMBEDDED:
                raise ValueError("a machine's name has 1 to 48 of a-z 0-9 . _ - and is not 'local' or 'docker'")
        return machines
