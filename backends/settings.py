"""Settings of the storey where work runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from backends.image_names import check_plain
from backends.schedule import zone_of
from storage.access import is_loopback
from storage.errors import BadInput
from storage.names import is_resource
from storage.settings import Group

_EMBEDDED = ("local", "docker")
_EXPORT = re.compile(r"[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*")
_OPTIONS = re.compile(r"[A-Za-z0-9._=,-]*")


def checked_image(reference: str) -> str:
    """`reference` if engines may get it; ValueError otherwise."""
    try:
        check_plain(reference)
    except BadInput as error:
        raise ValueError(error.message) from error
    return reference


def checked_folder(path: str) -> str:
    """`path` if it is empty or absolute, without detours; ValueError otherwise."""
    parts = path.split("/")
    if path and (not path.startswith("/") or ".." in parts or not path.isprintable()):
        raise ValueError("write an absolute path, such as /mnt/bucket")
    return path.rstrip("/") or path


def checked_export(text: str) -> str:
    """`text` if it is empty or `SERVER:/PATH`; ValueError otherwise."""
    if text and not _EXPORT.fullmatch(text):
        raise ValueError("write SERVER:/PATH, such as nas.example.org:/srv/homes")
    return text.rstrip("/") if not text.endswith(":/") else text


def checked_options(text: str) -> str:
    """`text` if it can be mount options; ValueError otherwise."""
    if any(word.startswith("addr=") for word in text.split(",")) or not _OPTIONS.fullmatch(text):
        raise ValueError("write mount options with commas between them, without addr=: nfsvers=4.2,hard")
    return text


class LocalSettings(Group):
    enabled: bool = True
    """Offer `local`: bubblewrap sandboxes on this machine."""
    pids_limit: int = 4096
    """Processes and threads in one sandbox."""


class DockerHostSettings(Group):
    url: str
    """`unix:///var/run/docker.sock`, `ssh://USER@HOST[:PORT][/SOCKET]` or `tcp://HOST:PORT` (with TLS)."""
    host_key: str = ""
    """For ssh: the server's public key, `ssh-ed25519 AAAA...`, as in its /etc/ssh/ssh_host_ed25519_key.pub."""
    key_file: str = ""
    """For ssh: our private key, without a passphrase. For tcp: the key of `cert_file`."""
    ca_file: str = ""
    """For tcp: PEM file with the authority that signed the engine's certificate. Empty: the system's authorities."""
    cert_file: str = ""
    """For tcp: PEM file with our certificate, by which the engine knows us."""
    insecure: bool = False
    """For tcp: without TLS. Whoever reaches that port is root on that machine."""
    cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores to share out. 0: all that the machine has."""
    memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory to share out, MiB. 0: all that the machine has."""
    cache_gib: Annotated[int, Field(ge=0)] = 0
    """Data sets and models that its environments have mounted may take this much there, GiB, in volumes named
    `ashore-data-...`; what was not used for longest goes first. 0: no limit. On the gateway's own machine
    `backends.cache.gib` counts."""
    shared_root: str = ""
    """Absolute path where the bucket is mounted on that machine already, by s3fs or JuiceFS: nothing is copied then.
    Empty: data are copied, or on the gateway's own machine what `backends.cache.shared_root` says."""
    homes_nfs: str = ""
    """`SERVER:/PATH` for the homes of environments on that machine. Empty: what `backends.docker.homes_nfs` says."""
    homes_nfs_options: str = ""
    """Empty: what `backends.docker.homes_nfs_options` says."""
    gpus: tuple[str, ...] = ()
    """GPUs to share out, by UUID (`nvidia-smi -L`); that of a card means its MIG devices too. Empty: all."""
    gpu_driver: Literal["nvidia", "cdi"] = "nvidia"
    """How this Docker gives GPUs: `nvidia` by the hook of the NVIDIA Container Toolkit, `cdi` by files that it makes
    (`nvidia-ctk cdi generate --device-name-strategy=uuid`)."""

    @field_validator("shared_root")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        return checked_folder(value)

    @field_validator("homes_nfs")
    @classmethod
    def _is_an_export(cls, value: str) -> str:
        return checked_export(value)

    @field_validator("homes_nfs_options")
    @classmethod
    def _are_options(cls, value: str) -> str:
        return checked_options(value)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        parts = urlsplit(self.url)
        try:
            port_is_fine = parts.port is None or parts.port > 0
        except ValueError:
            port_is_fine = False
        if parts.scheme not in ("unix", "ssh", "tcp") or not port_is_fine or parts.password or parts.query:
            raise ValueError("url must be unix:///PATH, ssh://USER@HOST[:PORT] or tcp://HOST:PORT")
        if parts.scheme == "unix" and (parts.netloc or not parts.path.startswith("/")):
            raise ValueError("write unix:///PATH with three slashes")
        if parts.scheme == "ssh" and not (parts.username and parts.hostname and self.host_key and self.key_file):
            raise ValueError("ssh:// needs USER@HOST, host_key and key_file")
        if parts.scheme == "tcp" and not parts.hostname:
            raise ValueError("tcp:// needs HOST:PORT")
        if parts.scheme == "tcp" and not self.insecure and not (self.cert_file and self.key_file):
            raise ValueError("tcp:// needs cert_file and key_file, or insecure = true in a closed network")
        return self


HERE = "here"
"""Name of the one Docker host of a house that names none."""


class DockerSettings(Group):
    enabled: bool = True
    """Offer `docker` if its socket answers."""
    socket: str = "/var/run/docker.sock"
    """Unix socket of the Docker engine (or of Podman's Docker-compatible service)."""
    default_image: str = "debian:bookworm"
    """Image of environments that name none. Every host needs it: short-lived helpers of Ashore are made of it too."""
    pids_limit: int = 4096
    """Processes and threads in one container."""
    shm_mib: int = 1024
    """Size of /dev/shm, MiB; data loaders of PyTorch need far more than Docker's 64."""
    homes_nfs: str = ""
    """`SERVER:/PATH`: homes of new environments are folders of this NFS export, mounted by their machine. Empty: they
    are volumes on its disk. The export needs no_root_squash, as homes are given to whoever lives in them."""
    homes_nfs_options: str = "nfsvers=4,hard"
    """Mount options for it."""
    hosts: dict[str, DockerHostSettings] = {}
    """Machines that run environments, each with a Docker engine. Empty: one, named `here`, behind `socket`. With a
    table, that one is in it only if you write it down: `[backends.docker.hosts.here]`."""

    @field_validator("default_image")
    @classmethod
    def _is_an_image(cls, value: str) -> str:
        return checked_image(value)

    @field_validator("homes_nfs")
    @classmethod
    def _is_an_export(cls, value: str) -> str:
        return checked_export(value)

    @field_validator("homes_nfs_options")
    @classmethod
    def _are_options(cls, value: str) -> str:
        return checked_options(value)

    @field_validator("hosts")
    @classmethod
    def _has_names(cls, value: dict[str, DockerHostSettings]) -> dict[str, DockerHostSettings]:
        for name in value:
            if not is_resource(name):
                raise ValueError("a host's name is 1 to 48 of a-z 0-9 . _ - and begins and ends with a letter or digit")
        return value


class PlacementSettings(Group):
    policy: Literal["least-used", "pack", "spread"] = "least-used"
    """Which Docker host a new environment gets, of those that have room. `least-used`: the one with most of its cores,
    memory and GPUs left, by what is scarcest there. `pack`: the one with least left, so that others stay empty for
    large ones. `spread`: the one with the fewest environments. By all of them, what asks for no GPU goes to a host
    with GPUs last."""
    cpu_overcommit: Annotated[float, Field(ge=1, le=64)] = 4.0
    """How many times a host's cores may be promised: most programs do not use theirs all the time."""
    memory_overcommit: Annotated[float, Field(ge=1, le=64)] = 4.0
    """How many times its memory may be promised. An environment's memory is what it may have at most, and few need that
    all the time. When they do at once, the kernel ends the largest program; 1: that cannot happen, and fewer
    environments run at the same time."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Every host is asked for a sign of life after this time, seconds; after three without an answer it is offline."""


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


class ApplicationSettings(Group):
    title: str
    """What people read, such as `JupyterLab`."""
    argv: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments. It must stay in the foreground and listen on 127.0.0.1. `{port}` is its port,
    `{folder}` a folder that only its user reads, with the file `secret`, and where that is a password also `vncpasswd`
    and `sam` (for NTLM). A program that ends with status 127 says that something is not installed."""
    port: Annotated[int, Field(ge=1024, le=65535)]
    """Where it listens, inside the environment."""
    secret: Literal["token", "password", "none"] = "token"
    """What it asks of people: `token`, 43 characters; `password`, 8, as VNC takes no more; `none`."""
    user: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,32}$")
    """User name that it asks for beside the password; it is shown with it, and stands in the file `sam`."""
    variable: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Environment variable in which the program finds the secret. Empty: it reads the file."""
    address: str = "http://127.0.0.1:{port}/"
    """What people open. `{port}` is the port on their own machine, `{secret}` the secret."""
    advice: str = ""
    """One line about how to use it."""
    install: str = ""
    """What to do where it is missing, such as `pip install jupyterlab`."""


class PortSettings(Group):
    first: Annotated[int, Field(ge=0, le=65535)] = 0
    """First of the gateway's ports that people may publish ports of their environments on. Everybody who reaches the
    gateway reaches those, without SSH and without a key. 0: none, nothing is published."""
    last: Annotated[int, Field(ge=0, le=65535)] = 0
    """The last one."""
    address: str = ""
    """Address to listen on. Empty: all, IPv4 and IPv6."""
    connections: Annotated[int, Field(ge=1)] = 256
    """Connections that one published port may have at the same time."""
    all_connections: Annotated[int, Field(ge=1)] = 1024
    """Connections that all published ports may have together. Each takes up to two file descriptors of the gateway,
    so a quarter of what it may open (`ulimit -n`) is the most, whatever this says."""
    idle_seconds: Annotated[float, Field(ge=1)] = 3600.0
    """A connection through which nothing went for so long is closed, seconds."""
    per_environment: Annotated[int, Field(ge=1)] = 8
    """Ports that one environment may have published."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if bool(self.first) != bool(self.last) or self.last < self.first:
            raise ValueError("first and last are a range of ports, such as 30001 and 30100, or both 0")
        return self


class GpuSettings(Group):
    shares: Annotated[int, Field(ge=1, le=64)] = 4
    """Environments that may have one card together, of those that ask for the mode `shared`. Docker divides neither
    its memory nor its time among them."""


class EnvironmentSettings(Group):
    default_compute: str = ""
    """Compute of environments that name none. Empty: `docker` when it serves, else `local`."""
    ready_seconds: int = 300
    """An environment that is not up after this time has failed, seconds. What its image and its data take to reach its
    machine does not count."""
    pull_stall_minutes: Annotated[float, Field(gt=0)] = 10.0
    """A pull of its image that got nothing for this time is begun anew, minutes. One that gets on may take hours."""
    pull_retry_minutes: Annotated[float, Field(ge=0)] = 60.0
    """While the registry of its image does not answer, the pull is tried again for this time after it got something
    last, minutes. Then the environment has failed."""
    stop_grace_seconds: int = 10
    """Time between TERM and KILL when an environment is stopped, seconds."""
    limit_per_user: int = 20
    """Environments that one person may have, stopped ones included. `quota set --user U --environments N` makes
    exceptions."""
    default_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores of environments that name none. 0: half of their machine's, and at least two where it has them."""
    default_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory of environments that name none, MiB. 0: a quarter of their machine's, and at least 512 MiB. Nothing runs
    without a limit: one program must not take the machine away from everybody."""
    most_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores that one environment may ask for. 0: all that its machine has."""
    most_memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory that one environment may ask for, MiB. 0: nine tenths of its machine's."""
    reconcile_seconds: float = 15.0
    """Pause between two looks at everything, seconds; hints wake the loop at once anyway."""


class KeptOutputSettings(Group):
    persistent: Annotated[int, Field(ge=0, le=3650)] = 0
    """Of environments that only people delete."""
    on_demand: Annotated[int, Field(ge=0, le=3650)] = 0
    """Of those that sleep when idle; they too are deleted by people only."""
    scheduled: Annotated[int, Field(ge=0, le=3650)] = 0
    """Of those that start and stop by the clock; they too are deleted by people only."""
    ephemeral: Annotated[int, Field(ge=0, le=3650)] = 14
    """Of those that delete themselves, when nobody may be there to fetch the results."""


class LifecycleSettings(Group):
    idle_minutes: Annotated[float, Field(gt=0)] = 120.0
    """An `on-demand` environment sleeps after this time without a sign of life, minutes: no key pressed in a terminal,
    no output of a program, nothing sent or fetched worth speaking of, no GPU that computes. `--idle` sets it for one
    environment."""
    ephemeral_minutes: Annotated[float, Field(gt=0)] = 30.0
    """An `ephemeral` environment is deleted this long after its last session ended, minutes."""
    unused_minutes: Annotated[float, Field(gt=0)] = 1440.0
    """An `ephemeral` environment that nobody ever entered is deleted after this time, minutes."""
    warn_minutes: Annotated[float, Field(ge=0)] = 15.0
    """Before an environment is stopped or deleted by itself, its terminals are told for this long, minutes; at most
    half of the time that it may be idle."""
    traffic_kib: Annotated[float, Field(gt=0)] = 16.0
    """What programs send by themselves, through forwards, SFTP and commands without a terminal, is a sign of life if it
    is more than this in a minute, KiB. An editor window that nobody touches sends 1 to 2 (a message of 13 bytes every
    five seconds, both ways, on two connections); one that somebody works in passes this many times in an hour."""
    gpu_percent: Annotated[float, Field(gt=0, le=100)] = 5.0
    """An environment whose GPU computes for more than this share of the time is alive, percent. Of a card that several
    have together, only what the environment's own processes do counts, which the driver of this machine alone tells;
    MIG devices tell nothing. What is not known is no sign of life."""
    timezone: str = "UTC"
    """Time zone of schedules that name none, such as Europe/Berlin."""
    look_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Pause between two looks at what is due, seconds."""
    write_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Signs of life are written to the database together, once in this time, seconds. Nothing is stopped or deleted
    before twice this time has passed, so that no sign is missed."""

    keep_output_gib: Annotated[float, Field(ge=0)] = 100.0
    """How much of one environment's output is kept at most, GiB. An environment that has more is not deleted: its owner
    is told, and takes the rest away or does without it (`env delete --discard-output`). 0: no limit but the quota of
    storage, which the same holds for."""
    keep_output_days: KeptOutputSettings = KeptOutputSettings()
    """For how many days what a deleted environment had in /gemini/output is kept below /artifacts; 0: not at all. `env
    create --keep-output`, `env set` and `env delete` choose otherwise for one environment."""

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        if zone_of(name) is None:
            raise ValueError("there is no such time zone: write it like Europe/Berlin")
        return name


class CacheSettings(Group):
    gib: int = 0
    """Copies of data sets and models that environments of this machine have mounted may take this much, GiB; what was
    not used for longest goes first. 0: as much as the disk gives."""
    spare_gib: int = 2
    """Space on the disk of the data directory that is always left free, GiB."""
    parallel: int = 8
    """Requests to the object store that are on their way at once for the copies of one machine, with up to 8 MiB
    each."""
    shared_root: str = ""
    """Absolute path where the bucket is mounted on this machine already, by s3fs or JuiceFS: nothing is copied then,
    and environments see it as it is. Empty: data are copied."""

    @field_validator("shared_root")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        return checked_folder(value)


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


class RegistrySettings(Group):
    url: str = ""
    """`https://host[:port]` of a registry (Harbor, `registry:2`, any other that speaks the Registry API v2) that keeps
    the images of this house; the machines with Docker must reach it under this very name. Empty: Ashore runs Debian's
    `docker-registry` as its own child on this machine, if it is installed; the gateway brings its images to others."""
    user: str = ""
    """User or robot account that may push, pull and delete there."""
    password: SecretStr = SecretStr("")
    """Its password or token. It goes to Docker engines with each pull and is stored on none of them."""
    project: str = ""
    """Harbor: the project that all images are kept in. Other registries: a first part of their names, may be empty."""
    official_from: tuple[str, ...] = ()
    """Projects (Harbor), or first parts of names, of this registry whose images everybody is offered by a short name:
    of `library`, the image `library/debian:12` is `debian:12`. The login must be able to list and read them. They are
    asked for every five minutes; nobody pushes there through Ashore. With a `url` of the loopback and a `project`, they
    run on the gateway's own machine only."""
    ca_file: str = ""
    """PEM file with the authority that signed the registry's certificate. Empty: the system's authorities. Docker
    engines read their own: /etc/docker/certs.d/HOST/ca.crt on each machine."""
    insecure: bool = False
    """Accept any certificate, or plain http://, from this registry. Only for a closed network; each Docker engine must
    say so as well (`insecure-registries`)."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        parts = urlsplit(self.url)
        if self.url and (
            parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None
            or parts.path not in ("", "/") or parts.query
        ):  # fmt: skip
            raise ValueError("url must be https://HOST[:PORT], with user, password and project in their own settings")
        if parts.scheme == "http" and not self.insecure and not is_loopback(parts.hostname or ""):
            raise ValueError("http:// needs insecure = true: passwords and images go over the network readable")
        if self.project and not all(map(is_resource, self.project.split("/"))):
            raise ValueError("project must look like name or name/name")
        for one in self.official_from:
            if not all(map(is_resource, one.split("/"))):
                raise ValueError("official_from takes names like library or name/name")
            if self.project and f"{one}/".startswith(f"{self.project}/") | f"{self.project}/".startswith(f"{one}/"):
                raise ValueError("official_from cannot be where people's own images are kept: the project")
        return self

    @property
    def is_here(self) -> bool:
        """It is reached from the gateway's own machine only."""
        return is_loopback(urlsplit(self.url).hostname or "")

    @property
    def prefix(self) -> str:
        """What the references of all images kept here begin with: `host:port/` or `host/project/`; empty if none."""
        host = urlsplit(self.url).netloc
        return host and "/".join(filter(None, (host, self.project))) + "/"

    @property
    def official(self) -> Mapping[str, str]:
        """What the references of official images begin with, by the name in `official_from`."""
        host = urlsplit(self.url).netloc
        return {one: f"{host}/{one}/" for one in self.official_from} if host else {}


class BuildSettings(Group):
    builder: Literal["auto", "docker", "buildah", "none"] = "auto"
    """What makes images of Dockerfiles: `docker` (the classic builder of a Docker engine), `buildah` (a program of this
    machine; its steps share this machine's network, so a trusted team or a machine of its own is needed), `none`.
    `auto`: docker if there is a Docker host, else none."""
    host: str = ""
    """The Docker host that builds, by its name in `backends.docker.hosts`. Empty: the first."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 2
    """Builds that run at once; more wait in the order of their making."""
    open_per_user: Annotated[int, Field(ge=1)] = 4
    """Builds that one person may have waiting or running. It is the quota of builds of everybody whom `quota set
    --builds` gives nothing else; for workspaces `quotas.workspace_builds`."""
    timeout_minutes: Annotated[float, Field(gt=0)] = 60.0
    """A build that takes longer is ended, minutes."""
    cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores that a step may use. 0: all. buildah limits only with the isolation `oci`."""
    memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory that a step may use, MiB. 0: no limit. buildah limits only with the isolation `oci`."""
    log_mib: Annotated[int, Field(ge=1)] = 16
    """Size of one build's log, MiB; of a longer one the middle is left out."""
    history: Annotated[int, Field(ge=1)] = 20
    """Builds of an image that are remembered with their logs."""
    cache_days: Annotated[float, Field(gt=0)] = 14.0
    """Layers that were built longer ago than this are removed from the builder once a day, days."""
    isolation: Literal["chroot", "oci"] = "chroot"
    """buildah: how steps are kept apart. `chroot` takes from a step the rights to leave its folder (CAP_SYS_CHROOT,
    CAP_MKNOD), but it is no container: one that gets out has the rights of the gateway's account. `oci` is one, and
    needs a runtime (crun or runc) and cgroups that it knows."""
    storage: Literal["auto", "overlay", "vfs"] = "auto"
    """buildah: how layers are kept, in `builds/buildah` of the data directory, which must be on a local disk. `auto`:
    overlay where the kernel allows it, else vfs, which needs several times the space."""


class OfficialImageSettings(Group):
    name: str
    """What people write after --image: `pytorch:2.4`, without a host."""
    reference: str
    """What Docker pulls for it: `docker.io/pytorch/pytorch:2.4.1-cuda12.4-cudnn9-runtime`, best with its digest."""
    title: str = ""
    """One line that says what is in it."""
    architecture: str = ""
    """Of the processors that it is for, `amd64` or `arm64`. Empty: not told."""
    cuda: str = ""
    """Version of CUDA inside. Empty: none, or not told."""
    driver: str = ""
    """NVIDIA driver that it needs on the host, such as `>=550`."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        name, _, tag = value.partition(":")
        if not is_resource(name) or not is_resource(tag):
            raise ValueError("write NAME:TAG, each of a-z 0-9 . _ -")
        return value

    @field_validator("reference")
    @classmethod
    def _is_an_image(cls, value: str) -> str:
        return checked_image(value)


class ImageSettings(Group):
    official: tuple[OfficialImageSettings, ...] = ()
    """Images that everybody is offered by a short name."""
    archive_hours: Annotated[float, Field(gt=0)] = 6.0
    """An archive of an image that has not become one, interrupted uploads included, is thrown away this long after its
    last byte, hours."""
    archive_gib: Annotated[float, Field(gt=0)] = 100.0
    """Size that an archive may have, and all layers of its image together, unpacked, GiB. One that the image has twice
    counts twice, as where it runs."""
    archive_files: Annotated[int, Field(ge=16)] = 10_000
    """Entries that an archive may have."""
    archive_ratio: Annotated[float, Field(ge=2)] = 200.0
    """How many times its size a compressed archive or layer may unpack to; what is more is made to fill disks."""
    archives_parallel: Annotated[int, Field(ge=1)] = 2
    """Archives that are read at once; more wait in the order of their arrival. One that takes longer than a quarter of
    an hour and a second for each 4 MiB has failed."""


class BackendSettings(Group):
    local: LocalSettings = LocalSettings()
    docker: DockerSettings = DockerSettings()
    placement: PlacementSettings = PlacementSettings()
    gpus: GpuSettings = GpuSettings()
    environments: EnvironmentSettings = EnvironmentSettings()
    cache: CacheSettings = CacheSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    """When environments are stopped, started or deleted without anybody asking. Which of these rules one goes by is
    said when it is made: `env create --lifecycle`."""
    images: ImageSettings = ImageSettings()
    """What environments are made from."""
    registry: RegistrySettings = RegistrySettings()
    """Where images are kept that people build or bring."""
    builds: BuildSettings = BuildSettings()
    """How images are built of Dockerfiles."""
    ports: PortSettings = PortSettings()
    """Ports of environments that are open without SSH: `env create --publish`."""
    applications: Mapping[str, ApplicationSettings] = {}
    """Programs that environments may be made with (`env create --app NAME`), beside those that are built in (jupyter,
    vnc, rdp); one of the same name replaces it."""
    machines: Mapping[str, MachineSettings] = {}
    """Existing machines, reached over SSH; NAME is what people write after --compute."""

    @field_validator("applications")
    @classmethod
    def _name_applications(cls, found: Mapping[str, ApplicationSettings]) -> Mapping[str, ApplicationSettings]:
        if not all(is_resource(name) for name in found):
            raise ValueError("an application's name has 1 to 48 of a-z 0-9 . _ -")
        return found

    @field_validator("machines")
    @classmethod
    def _are_names(cls, machines: Mapping[str, MachineSettings]) -> Mapping[str, MachineSettings]:
        for name in machines:
            if not is_resource(name) or name in _EMBEDDED:
                raise ValueError("a machine's name has 1 to 48 of a-z 0-9 . _ - and is not 'local' or 'docker'")
        return machines
