"""What `doctor` and `check` look at: is this house able to serve, and can an editor work in this environment?

Each check gives one `Finding`, never an exception. Nothing is repaired here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.compute.places import HasCuda, HasGpus, host_of
from backends.compute.registry import Computes
from backends.cuda import words_of
from backends.registry_probe import probe as probe_registry
from storage.database.migrate import pending
from storage.errors import AshoreError, Unavailable
from storage.objects.probe import State, probe

if TYPE_CHECKING:
    from backends.builders.registry import BuilderCheck
    from backends.compute.contract import Compute
    from backends.registry import Registry
    from storage.database.engine import Database
    from storage.objects.contract import ObjectStore
    from storage.settings import ObjectSettings

_GIB = 1024**3
_SEE_MACHINES = "see [backends.machines] in the settings, and try ssh from this machine with the same key"
_PATIENCE = 15.0
_PROBE_PATIENCE = 90.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `hint` tells what to do when it is not `ok`, or what to see to when not `known`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    known: bool = True
    """False: nobody could tell, so it counts as good."""


async def of_house(
    database: Database,
    store: ObjectStore | None,
    computes: Mapping[str, Compute],
    data: Path | None,
    objects: ObjectSettings | None = None,
) -> list[Finding]:
    """Database, object store, computes, and the disk under `data`; what is None is not looked at.

    Machines of the settings that are not among the computes now are told as well. With `objects` the store is not
    only asked for a sign of life but for everything that uploads need of it; that writes about 5 MiB into it and
    removes them again.
    """
    findings = [await _of_database(database)]
    if objects is not None:
        findings += await of_endpoint(objects)
    elif store is not None:
        findings.append(await _of_store(store))
    absent = computes.absent if isinstance(computes, Computes) else {}
    findings += await asyncio.gather(*(_of_compute(name, compute) for name, compute in computes.items()))
    findings += [Finding(f"compute {name}", False, why, _SEE_MACHINES) for name, why in sorted(absent.items())]
    gpus = await asyncio.gather(
        *(_of_gpus(name, one) for name, one in computes.items() if host_of(name) and isinstance(one, HasGpus))
    )
    findings += gpus
    if not computes:
        findings.append(Finding("computes", False, "none serves", "install bubblewrap for 'local', or start Docker"))
    if data is not None:
        findings.append(await asyncio.to_thread(_of_disk, data))
    return findings


async def _of_database(database: Database) -> Finding:
    try:
        async with asyncio.timeout(_PATIENCE):
            old = await pending(database)
    except TimeoutError:
        return Finding("database", False, "does not answer", "see whether it runs, and [database] url")
    except AshoreError as error:
        return Finding("database", False, error.message)
    except Exception as error:  # the wall: every database driver has its own errors, and a check never raises
        return Finding("database", False, f"cannot be used ({type(error).__name__})", "see [database] url")
    if old:
        return Finding("database", False, "the schema is older than this program", "run 'ashore migrate'")
    return Finding("database", True, "SQLite" if database.is_sqlite else database.engine.dialect.name)


async def _of_store(store: ObjectStore) -> Finding:
    try:
        async with asyncio.timeout(_PATIENCE):
            await store.check()
    except TimeoutError:
        return Finding("object store", False, "does not answer", "see [objects] endpoint")
    except AshoreError as error:
        return Finding("object store", False, error.message)
    return Finding("object store", True, "answers")


async def of_endpoint(objects: ObjectSettings) -> list[Finding]:
    """What an S3 endpoint offers of that which uploads need."""
    try:
        async with asyncio.timeout(_PROBE_PATIENCE):
            checks = await probe(objects)
    except TimeoutError:
        return [Finding("object store", False, "does not answer in time", "see [objects] endpoint")]
    return [
        Finding(
            f"store: {check.name}", check.state is not State.MISSING, check.detail, check.hint,
            known=check.state is not State.UNKNOWN,
        )
        for check in checks
    ]  # fmt: skip


async def of_registry(registry: Registry | None) -> Finding:
    """Whether the place where images are kept answers. A house without is a good house, so that is only told."""
    if registry is None:
        hint = "install docker-registry, or see [backends.registry]"
        return Finding("image registry", True, "none: nobody can bring or build images", hint, known=False)
    try:
        async with asyncio.timeout(_PATIENCE):
            await registry.check()
    except TimeoutError:
        return Finding("image registry", False, "does not answer", "see [backends.registry]")
    except AshoreError as error:
        return Finding("image registry", False, error.message, "see [backends.registry]")
    return Finding("image registry", True, "answers")


async def of_registry_in_full(registry: Registry) -> list[Finding]:
    """All that images need of it; an upload is begun there, and given up."""
    try:
        async with asyncio.timeout(_PROBE_PATIENCE):
            tried = await probe_registry(registry)
    except TimeoutError:
        return [Finding("registry: login", False, "does not answer", "see [backends.registry]")]
    return [Finding(f"registry: {one.name}", one.ok, one.detail, one.hint, one.known) for one in tried]


async def of_builder(builders: BuilderCheck) -> Finding:
    """What makes images of Dockerfiles."""
    hint = "see [backends.builds]"
    try:
        async with asyncio.timeout(_PROBE_PATIENCE):
            found = await builders.look()
    except TimeoutError:
        return Finding("builder", False, "does not answer", hint)
    except AshoreError as error:
        return Finding("builder", False, error.message, hint)
    if found is None:
        return Finding("builder", True, "none: nobody can build images", hint, known=False)
    return Finding("builder", True, found.detail, found.advice, known=not found.advice)


async def _of_compute(name: str, compute: Compute) -> Finding:
    try:
        async with asyncio.timeout(_PATIENCE):
            return Finding(f"compute {name}", True, await compute.check())
    except TimeoutError:
        return Finding(f"compute {name}", False, "does not answer")
    except AshoreError as error:
        return Finding(f"compute {name}", False, error.message)


async def _of_gpus(name: str, compute: HasGpus) -> Finding:
    try:
        async with asyncio.timeout(_PATIENCE):
            models = Counter(f"{card.model} {card.profile}".strip() for card in await compute.gpus())
    except TimeoutError:
        return Finding(
            f"GPUs {name}", False, "their driver does not answer", "see dmesg and nvidia-smi on that machine"
        )
    except AshoreError as error:
        return Finding(f"GPUs {name}", False, error.message, "see nvidia-smi on that machine")
    words = [f"{count} x {model}" for model, count in models.items()]
    if words and isinstance(compute, HasCuda):
        words += await _driver_words(compute)
    return Finding(f"GPUs {name}", True, ", ".join(words) or "none")


async def _driver_words(compute: HasCuda) -> list[str]:
    """`driver 550.54`, `CUDA 12.4`, as far as they are known."""
    try:
        async with asyncio.timeout(_PATIENCE):
            driver = await compute.driver()
    except (AshoreError, TimeoutError):
        return []
    if driver is None:
        return []
    return [f"driver {driver.version}"] + ([f"CUDA {words_of(driver.cuda)}"] if driver.cuda else [])


def _of_disk(data: Path) -> Finding:
    try:
        usage = shutil.disk_usage(data)
        writable = os.access(data, os.W_OK)
    except OSError as error:
        return Finding("disk", False, f"{data}: {error.strerror}")
    detail = f"{usage.free / _GIB:.1f} GiB free under the data directory"
    if not writable:
        return Finding("disk", False, "the data directory cannot be written", "see its owner and mode")
    enough = usage.free >= 2 * _GIB and usage.free >= usage.total // 50
    return Finding("disk", enough, detail, "make room: uploads and recordings need it")


# ---- inside an environment ---------------------------------------------------------------------------------------
PROBE = r"""
echo "shell=${SHELL:-}"
for tool in bash tar gzip curl wget git; do echo "$tool=$(command -v $tool 2>/dev/null)"; done
echo "libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || { ldd --version 2>&1 || ldd /bin/sh 2>&1; } | head -n 1)"
echo "machine=$(uname -m 2>/dev/null)"
if grep -Eq '^(127\.|::1).*[[:space:]]localhost([[:space:]]|$)' /etc/hosts 2>/dev/null
then echo localhost=yes; else echo localhost=; fi
echo "home=$HOME"
probe="$HOME/.ashore-doctor.$$"
if (umask 077; : > "$probe") 2>/dev/null; then rm -f "$probe"; echo writable=yes; else echo writable=; fi
set -- $(df -Pk "$HOME" 2>/dev/null | tail -n 1)
echo "free=${4:-}"
echo "watches=$(cat /proc/sys/fs/inotify/max_user_watches 2>/dev/null)"
"""
"""A POSIX shell script that prints `name=value` lines; `of_environment` reads them."""


def of_environment(answer: str) -> Sequence[Finding]:
    """What the answer to `PROBE` says about VS Code Remote-SSH and its relatives."""
    facts = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    if "machine" not in facts:
        raise Unavailable("the environment has no shell that could be asked")
    download = facts.get("curl") or facts.get("wget") or ""
    return [
        Finding("shell", bool(facts.get("shell")), facts.get("shell", "") or "none is set"),
        Finding("bash", bool(facts["bash"]), facts["bash"] or "missing", "install bash: editors start with it"),
        Finding("tar", bool(facts["tar"] and facts["gzip"]), facts["tar"] or "missing", "install tar and gzip"),
        Finding("curl or wget", bool(download), download or "missing",
                "install curl or wget, or set remote.SSH.localServerDownload to 'always'"),
        _of_libc(facts.get("libc", "")),
        Finding("processor", facts["machine"] in ("x86_64", "aarch64", "armv7l"), facts["machine"] or "unknown"),
        Finding("localhost", facts.get("localhost") == "yes", "in /etc/hosts" if facts.get("localhost") else "missing",
                "add '127.0.0.1 localhost' to /etc/hosts: forwarded ports need it"),
        Finding("home writable", facts.get("writable") == "yes", facts.get("home", ""),
                "editors put their server into $HOME"),
        _of_space(facts.get("free", "")),
        _of_watches(facts.get("watches", "")),
    ]  # fmt: skip


def _of_libc(text: str) -> Finding:
    words = text.split()
    if "musl" in text:
        return Finding("C library", False, "musl", "VS Code wants glibc 2.28 or newer: take a Debian or Ubuntu image")
    try:
        version = tuple(int(part) for part in words[-1].split(".")[:2])
    except (ValueError, IndexError):
        return Finding("C library", False, text or "unknown", "VS Code wants glibc 2.28 or newer")
    return Finding("C library", version >= (2, 28), f"glibc {words[-1]}", "VS Code wants glibc 2.28 or newer")


def _of_space(kib: str) -> Finding:
    if not kib.isdigit():
        return Finding("free disk", True, "unknown")
    free = int(kib) * 1024
    return Finding("free disk", free >= _GIB, f"{free / _GIB:.1f} GiB", "an editor's server needs about 1 GiB")


def _of_watches(count: str) -> Finding:
    if not count.isdigit():
        return Finding("file watches", True, "unknown")
    hint = "the operator can raise fs.inotify.max_user_watches; large folders will not refresh by themselves"
    return Finding("file watches", int(count) >= 8192, count, hint)
