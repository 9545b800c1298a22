"""What a workload is to Docker: its container, volume and network as the Engine's JSON, and the scripts inside.

Pure functions, tested as data. No I/O here and nothing about how the Engine is reached; see `driver`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backends.compute.contract import HostMount, Mount, State, Status, Usage, WorkloadSpec
from backends.compute.places import GpuLoad, GpuShare, ProcessLoad
from backends.gpu_load import CardLoad
from backends.gpu_probe import SMI_SCRIPT
from backends.settings import DockerSettings
from storage.errors import BadInput

JSON = dict[str, Any]
"""A piece of the Engine's JSON; its shape is documented in the Engine's API reference."""

GpuDriver = Literal["nvidia", "cdi"]
LABEL = "ashore"
GPU_LABEL = "ashore.gpus"
GPU_PROBE = "ashore.probe"
"""Label of containers that only ask which GPUs there are."""
MOUNTS_LABEL = "ashore.mounts"
DATA = "ashore.data"
"""Label of volumes that hold the files of a version."""
FILL = "ashore.fill"
"""Label of helper containers for such a volume: its name."""
COPY = "/opt/ashore/copy"
"""Where a helper has the volume."""
GUEST = "/opt/ashore/guest"
RUN = "/opt/ashore/run"
HOME = "/workspace"
OUTPUT = f"{HOME}/output"
LOGIN_USER = "developer"
LOGIN_ID = 1000
PIPE_MARK = "ASHORE_PIPE"
"""Environment variable that marks a program which we started, so that it can be found and ended."""
_DROPPED = ("MKNOD", "NET_RAW")
_IMAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,254}")
_MEBIBYTE = 1024 * 1024

# Runs below Docker's init. TERM goes on to every program inside, and the end waits for them (Docker sends KILL after
# the grace). With nothing left, /proc shows just init and this shell.
_MAIN = """\
trap 'ending=1; kill -TERM -1' TERM
echo "$HOSTNAME is up"
while [ -z "$ending" ]; do sleep 3600 & wait $!; done
while set -- /proc/[0-9]*; [ $# -gt 2 ]; do sleep 0.1 2>/dev/null || sleep 1; done
echo "$HOSTNAME is down"
"""

# Only `sh`, `mkdir`, `ln`, `chown` and `chmod` are taken for granted. Does only what the image has not done.
_ACCOUNTS = """\
set -e
umask 022
# Bodies in ( ): their variables stay their own.
has_user() (
  while IFS=: read -r name rest; do [ "$name" != "$1" ] || return 0; done < /etc/passwd
  return 1
)
has_group() (
  while IFS=: read -r name word id rest; do [ "$id" != "$1" ] || return 0; done < /etc/group
  return 1
)
name_of() (
  while IFS=: read -r name word id rest; do
    if [ "$id" = "$1" ]; then echo "$name"; return 0; fi
  done < /etc/passwd
)
[ -e /etc/passwd ] || : > /etc/passwd
[ -e /etc/group ] || : > /etc/group
mkdir -p /run/sshd /gemini "$HOME_DIRECTORY"
chmod 755 /run/sshd /gemini
has_user root || echo root:x:0:0:root:/root:/bin/sh >> /etc/passwd
has_user sshd || echo sshd:x:74:74:sshd:/run/sshd:/bin/false >> /etc/passwd
shell=/bin/sh
[ ! -x /bin/bash ] || shell=/bin/bash
login="$LOGIN"
case "$login" in
*[!0-9]*) ;;
*) found=$(name_of "$login"); if [ -n "$found" ]; then login=$found; else id=$login; login=user$id; fi ;;
esac
if ! has_user "$login"; then
  : "${id:=$LOGIN_ID}"
  has_group "$id" || echo "$login:x:$id:" >> /etc/group
  echo "$login:x:$id:$id::$HOME_DIRECTORY:$shell" >> /etc/passwd
  [ ! -e /etc/shadow ] || echo "$login:*:19000:0:99999:7:::" >> /etc/shadow
fi
# The home is the volume, whatever the image says, and belongs to whoever logs in.
while IFS=: read -r name word id group comment home program || [ -n "$name" ]; do
  if [ "$name" = "$login" ]; then
    home=$HOME_DIRECTORY
    case "$program" in */nologin|*/false|"") program=$shell ;; esac
    chown "$id:$group" "$HOME_DIRECTORY"
    for part in code output; do
      # Only what is new is given away, and no link is followed: whoever lives here may have put one.
      if mkdir "$HOME_DIRECTORY/$part" 2>/dev/null; then chown -h "$id:$group" "$HOME_DIRECTORY/$part"; fi
      [ -e "/gemini/$part" ] || [ -h "/gemini/$part" ] || ln -s "$HOME_DIRECTORY/$part" "/gemini/$part"
    done
  fi
  echo "$name:$word:$id:$group:$comment:$home:$program"
done < /etc/passwd > /etc/passwd.ashore
mv /etc/passwd.ashore /etc/passwd
# useradd locks accounts without a password, and sshd refuses locked ones; `*` means just "no password".
if [ -e /etc/shadow ]; then
  umask 077
  while IFS=: read -r name word rest || [ -n "$name" ]; do
    case "$name:$word" in "$login":!*) word="*" ;; esac
    echo "$name:$word:$rest"
  done < /etc/shadow > /etc/shadow.ashore
  mv /etc/shadow.ashore /etc/shadow
fi
umask 077
echo "$login" > "$RUN_DIRECTORY/user"
"""


@dataclass(frozen=True)
class Place:
    """Names of everything that one workload has at the Engine."""

    id: str

    @property
    def container(self) -> str:
        return f"ashore-{self.id}"

    @property
    def volume(self) -> str:
        return f"ashore-{self.id}-home"

    @classmethod
    def of(cls, handle: str) -> Place:
        """The place that `container` names."""
        return cls(handle.removeprefix("ashore-"))


def network_name(workspace: str) -> str:
    """One bridge per workspace: members reach each other, other workspaces do not."""
    return f"ashore-{workspace}"


def labels(spec: WorkloadSpec) -> dict[str, str]:
    """How people find it: `docker ps --filter label=ashore`."""
    return {
        LABEL: spec.id,
        "ashore.name": spec.name,
        "ashore.owner": spec.owner,
        "ashore.workspace": spec.workspace,
    }


def is_podman(info: Mapping[str, Any]) -> bool:
    """Whether what calls itself Docker in `GET /info` is Podman."""
    return "BuildahVersion" in info


def processors(info: Mapping[str, Any]) -> str:
    """The kind of its processors, as the kernel calls it; Podman uses the words of Go."""
    machine = str(info.get("Architecture", ""))
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def check_image(image: str) -> str:
    """`image` if it can name an image; BadInput otherwise."""
    if not _IMAGE.fullmatch(image):
        raise BadInput("the image's name must look like repository/name:tag")
    return image


def image_user(image: JSON) -> str:
    """Who logs in: the image's own user (name or number) if that is not root, else `developer`."""
    config = image.get("Config") or {}
    user = str(config.get("User") or "").partition(":")[0]
    if user in ("", "0", "root") or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", user):
        return LOGIN_USER
    return user


def container(
    spec: WorkloadSpec,
    *,
    image: str,
    login: str,
    guest: Path | str,
    settings: DockerSettings,
    gpu_driver: GpuDriver = "nvidia",
) -> JSON:
    """The body of `POST /containers/create`. `guest` is the tree's folder, or the name of a volume that holds it.

    `no-new-privileges` is on, so setuid programs such as sudo give nothing; software is installed into the home or
    built into an image. The main program and the guest run as root of a container without NET_RAW and MKNOD.
    """
    return {
        "Image": image,
        "Hostname": spec.name.replace("_", "-").replace(".", "-")[:63],
        "User": "0:0",
        "Entrypoint": ["/bin/sh", "-c", _MAIN],
        "Cmd": [],
        "WorkingDir": HOME,
        "Env": [f"{name}={value}" for name, value in sorted(_variables(spec).items())],
        "Labels": {**labels(spec), "ashore.user": login, **gpu_label(spec), **mounts_label(spec)},
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Init": True,
            "NetworkMode": network_name(spec.workspace),
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": ["no-new-privileges"],
            "CapDrop": list(_DROPPED),
            "PidsLimit": settings.pids_limit,
            "ShmSize": settings.shm_mib * _MEBIBYTE,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}},
            "Mounts": [
                {"Type": "volume", "Source": Place(spec.id).volume, "Target": HOME},
                guest_mount(guest),
                # Secrets of this start: in memory only, gone when it stops.
                {"Type": "tmpfs", "Target": RUN, "TmpfsOptions": {"SizeBytes": _MEBIBYTE, "Mode": 0o700}},
                *(_mounted(mount) for mount in spec.mounts),
            ],
            **_limits(spec),
            **_devices(spec, gpu_driver),
        },
    }


def gpu_label(spec: WorkloadSpec) -> dict[str, str]:
    """Which GPUs a container was made with; nothing where it has none."""
    return {GPU_LABEL: ",".join(spec.gpus)} if spec.gpus else {}


def has_these_gpus(spec: WorkloadSpec, labels: Mapping[str, str]) -> bool:
    """Whether a container with these labels was made with the GPUs of `spec`."""
    return set(filter(None, labels.get(GPU_LABEL, "").split(","))) == set(spec.gpus)


def guest_mount(guest: Path | str, *, read_only: bool = True) -> JSON:
    """The guest's tree where environments see it, from a folder of the host or from a volume."""
    if isinstance(guest, Path):
        return {"Type": "bind", "Source": str(guest), "Target": GUEST, "ReadOnly": read_only}
    # Docker would fill an empty volume with what an image has at this path, and everybody would run that guest.
    no_copy = {"VolumeOptions": {"NoCopy": True}}
    return {"Type": "volume", "Source": guest, "Target": GUEST, "ReadOnly": read_only, **no_copy}


def mounts_label(spec: WorkloadSpec) -> dict[str, str]:
    """Which data a container was made with; nothing where it has none."""
    if not spec.mounts:
        return {}
    return {MOUNTS_LABEL: hashlib.sha256(json.dumps([_mounted(one) for one in spec.mounts]).encode()).hexdigest()[:32]}


def has_these_mounts(spec: WorkloadSpec, labels: Mapping[str, str]) -> bool:
    """Whether a container with these labels shows the mounts of `spec`; one without the label was made before it."""
    return MOUNTS_LABEL not in labels or labels[MOUNTS_LABEL] == mounts_label(spec).get(MOUNTS_LABEL)


def _mounted(mount: Mount) -> JSON:
    if isinstance(mount, HostMount):
        return _bind(mount)
    return {
        "Type": "volume",
        "Source": mount.volume,
        "Target": mount.path,
        "ReadOnly": mount.read_only,
        # Or Docker would copy what the image has at this path into a volume that is empty.
        "VolumeOptions": {"NoCopy": True},
    }


def _bind(mount: HostMount) -> JSON:
    return {
        "Type": "bind",
        "Source": str(mount.source),
        "Target": mount.path,
        "ReadOnly": mount.read_only,
        # What is mounted below it on the host later is none of the container's business, and the other way round.
        "BindOptions": {"Propagation": "rprivate"},
    }


def reader_name(place: Place) -> str:
    """Of the container that shows the home of one that was removed."""
    return f"{place.container}-reader"


def reader(place: Place, image: str) -> JSON:
    """A container that never runs: it has the home of `place`, so that its files can be read."""
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh"],
        "Labels": {"ashore.reader": place.id},
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [{"Type": "volume", "Source": place.volume, "Target": HOME, "ReadOnly": True}],
        },
    }


def volume(spec: WorkloadSpec) -> JSON:
    """The body of `POST /volumes/create` for the home."""
    return {"Name": Place(spec.id).volume, "Labels": labels(spec)}


def data_volume(name: str) -> JSON:
    """The body of `POST /volumes/create` for the files of a version."""
    return {"Name": name, "Labels": {DATA: "files"}}


REMOVE = """\
cd "$COPY" || exit 1
for path; do
  case "$path" in
  */) ;;
  *) [ -d "$path" ] && [ ! -h "$path" ] || rm -f -- "$path" || exit 1 ;;
  esac
  folder=${path%/*}
  while rmdir -- "$folder" 2>/dev/null; do
    case "$folder" in ./*/*) folder=${folder%/*} ;; *) break ;; esac
  done
done
exit 0
"""
SETTLE = "command -v sync >/dev/null || exit 0; sync"


def filler(image: str, volume: str, script: str = "exit 0", paths: Sequence[str] = ()) -> JSON:
    """A container that has a data volume and may change it; it gets archives without running, or runs `script`."""
    return {
        "Image": image,
        "User": "0:0",
        "Entrypoint": ["/bin/sh", "-c", script, "sh"],
        # An argument that begins with a dash would be an option to some program.
        "Cmd": [f"./{path}" for path in paths],
        "Env": [f"COPY={COPY}"],
        "Labels": {FILL: volume},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [{"Type": "volume", "Source": volume, "Target": COPY, "VolumeOptions": {"NoCopy": True}}],
        },
    }


def looker(image: str, folder: Path) -> JSON:
    """A container that never runs: the Engine makes it only if `folder` is there on its machine."""
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh"],
        "Labels": {FILL: "look"},
        "HostConfig": {"NetworkMode": "none", "Mounts": [_bind(HostMount(folder, COPY))]},
    }


def network(workspace: str) -> JSON:
    """The body of `POST /networks/create` for a workspace."""
    return {
        "Name": network_name(workspace),
        "CheckDuplicate": True,
        "Driver": "bridge",
        "Labels": {"ashore.workspace": workspace},
    }


def setup_script(files: Mapping[str, bytes], login: str) -> bytes:
    """A program for `sh -s`, run as root at each start: accounts, the home's owner, and the guest's files.

    It comes on stdin because arguments can be read by everybody inside. The files are there completely or not at
    all: each is written beside its place and renamed.
    """
    values = {
        "HOME_DIRECTORY": HOME,
        "RUN_DIRECTORY": RUN,
        "LOGIN": login,
        "LOGIN_ID": str(LOGIN_ID),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(_ACCOUNTS)
    for name, content in files.items():
        target = shlex.quote(f"{RUN}/{name}")
        lines.append(f": > {target}.new")
        lines += [f"printf '%b' '{piece}' >> {target}.new" for piece in octal(content)]
        lines.append(f"mv {target}.new {target}")
    return "\n".join(lines).encode() + b"\n"


def sweep_script(mark: str) -> str:
    """A program for `sh -c` that ends whatever still carries `mark` in its environment."""
    return (
        "for p in /proc/[0-9]*; do"
        f' case "$(cat $p/environ 2>/dev/null)" in *{PIPE_MARK}={mark}*) kill -KILL ${{p#/proc/}};; esac;'
        " done 2>/dev/null; exit 0"
    )


def state_of(word: str) -> State:
    """The Engine's word for a container's state."""
    return State.RUNNING if word in ("running", "paused", "restarting") else State.STOPPED


def status_of(shown: JSON) -> Status:
    """What `GET /containers/<id>/json` tells."""
    state = shown["State"]
    if state_of(state["Status"]) is State.RUNNING:
        return Status(State.RUNNING)
    if state["Status"] == "created":
        return Status(State.STOPPED, state.get("Error") or "")
    code = int(state.get("ExitCode", 0))
    if state.get("OOMKilled"):
        return Status(State.STOPPED, "it ran out of memory", code)
    reason = state.get("Error") or (f"its main program ended with status {code}" if code else "it was stopped")
    return Status(State.STOPPED, reason, code)


def usage_of(stats: JSON | None) -> Usage | None:
    """What `GET /containers/<id>/stats` tells, memory counted as `docker stats` does; None: it does not run."""
    memory = (stats or {}).get("memory_stats") or {}
    if stats is None or "usage" not in memory:
        return None
    known = memory.get("stats") or {}
    cache = known.get("total_inactive_file", known.get("inactive_file", 0))
    return Usage(
        cpu=stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
        memory=max(0, int(memory["usage"]) - int(cache)),
        processes=int((stats.get("pids_stats") or {}).get("current") or 0),
    )


def pull_line(image: str, layers: Mapping[str, tuple[int, int]]) -> str:
    """One line about a pull: `layers` maps a layer to bytes that are here and bytes in all."""
    here = sum(done for done, _ in layers.values())
    total = sum(size for _, size in layers.values())
    return f"pulling {image} {100 * here // total} %" if total else f"pulling {image}"


def _variables(spec: WorkloadSpec) -> dict[str, str]:
    # CUDA images say NVIDIA_VISIBLE_DEVICES=all; where nvidia is the default runtime that would show every card.
    return {**spec.variables, "NVIDIA_VISIBLE_DEVICES": ",".join(spec.gpus) or "void"}


def shared_out(cards: Sequence[CardLoad], names: Mapping[str, str], groups: Path = Path("/proc")) -> Sequence[GpuLoad]:
    """The cards with what each workload takes of them. `names` maps ids of containers of this machine to handles.

    A process is a container's if its control group carries the container's id: where NVML counts processes by another
    namespace than ours, an id of its may be that of any other process here. Reads `/proc`; call it in a thread.
    """
    return [
        GpuLoad(
            card.uuid, card.utilization, card.used, card.memory,
            None if card.processes is None else _shares(card.processes, names, groups),
        )
        for card in cards
    ]  # fmt: skip


def _shares(processes: Sequence[ProcessLoad], names: Mapping[str, str], groups: Path) -> Mapping[str, GpuShare] | None:
    found: dict[str, GpuShare] = {}
    for process in processes:
        try:
            group = (groups / str(process.pid) / "cgroup").read_text()
        except OSError:
            continue  # it has ended, or is none of ours
        for container_id, name in names.items():
            if container_id in group:
                before = found.get(name, GpuShare(0, 0))
                known = before.utilization is not None and process.utilization is not None
                percent = min(100, (before.utilization or 0) + (process.utilization or 0)) if known else None
                found[name] = GpuShare(percent, before.memory + process.memory, (*before.processes, process))
    # Processes of whom nothing can be said may be anybody's: nobody is told to take nothing then.
    return found if found or not processes else None


def gpu_probe(image: str, script: str = SMI_SCRIPT) -> JSON:
    """A container that tells which GPUs its machine has (or what else `script` asks of `nvidia-smi`), and ends."""
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh", "-c", script],
        "Cmd": [],
        "Env": ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=utility,compute"],
        "Labels": {GPU_PROBE: "gpus"},
        "HostConfig": {"Runtime": "nvidia", "NetworkMode": "none"},
    }


def _devices(spec: WorkloadSpec, driver: GpuDriver) -> JSON:
    # Never `Count`: with it, Docker gives everybody the same cards.
    if not spec.gpus:
        return {}
    if driver == "cdi":
        return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid}" for uuid in spec.gpus]}]}
    request = {"Driver": "nvidia", "DeviceIDs": list(spec.gpus), "Capabilities": [["gpu"]]}
    return {"DeviceRequests": [request]}


def _limits(spec: WorkloadSpec) -> JSON:
    limits: JSON = {}
    if spec.memory:
        limits["Memory"] = limits["MemorySwap"] = spec.memory
    if spec.cpus:
        limits["NanoCpus"] = int(spec.cpus * 1_000_000_000)
    return limits


def octal(content: bytes) -> Sequence[str]:
    """`content` for printf's %b, in pieces that any shell takes."""
    return [
        "".join(f"\\0{byte:03o}" for byte in content[start : start + 1024]) for start in range(0, len(content), 1024)
    ]
