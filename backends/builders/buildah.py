"""Builds with buildah, as a child of this process, with its own storage below the data directory.

Its steps run with the network of this machine, and `chroot` keeps them apart from it less than a container would:
this builder is for machines without a Docker engine. Nothing of the machine's own configuration is read, and each
registry's certificates and insecurity are its own: they are written into a home that is made for each run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from backends.builders.contract import LABEL, BuilderState, Order, StepFailed, Steps, Write, no_base, refuse_triggers
from backends.builders.process import check_namespaces, require_programs, run
from backends.dockerfiles.recipes import Recipe
from backends.registry_login import auth_file, is_ours
from backends.settings import BuildSettings, RegistrySettings
from storage.errors import Unavailable
from storage.names import printable

_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"})
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
_TAIL = 4096
_VFS = "vfs copies every layer in full: put the data directory on a file system of its own, which is no overlay"
_DROPPED = "CAP_SYS_CHROOT,CAP_MKNOD"
"""Of the rights that steps have by default: with the first, root leaves a `chroot` by a second one inside."""


class BuildahBuilder:
    """buildah with the storage in `directory`."""

    name = "buildah"

    def __init__(self, directory: Path, registry: RegistrySettings, settings: BuildSettings) -> None:
        self._directory = directory
        self._registry = registry
        self._settings = settings
        self._driver = settings.storage if settings.storage != "auto" else ""
        self._gate = asyncio.Lock()
        self._active = 0
        self._is_dirty = False

    async def check(self) -> BuilderState:
        require_programs("buildah")
        await asyncio.to_thread(check_local, self._directory)
        if os.geteuid() != 0:
            await check_namespaces()
        with self._home() as home:
            words = (await self._must(home, "--version")).split()
            driver = await self._storage_driver(home)
        advice = _VFS if driver == "vfs" and self._settings.storage == "auto" else ""
        return BuilderState(f"buildah {words[2] if len(words) > 2 else ''}, {driver}", advice)

    async def recover(self) -> None:
        """Working containers are removed; what they mounted went with the namespace of the process that had them."""
        shutil.rmtree(self._directory / "work", ignore_errors=True)
        if (self._directory / "storage").exists():
            with self._home() as home:
                await self._must(home, "rm", "--all")

    async def build(self, order: Order, write: Write) -> str:
        async with self._gate:
            self._active += 1
        try:
            return await self._build(order, write)
        except BaseException:
            self._is_dirty = True
            raise
        finally:
            self._active -= 1
            await asyncio.shield(self._tidy())

    async def _build(self, order: Order, write: Write) -> str:
        steps, tail = Steps(), _Tail()
        with self._home() as home:
            base = await self._base(home, order.recipe.base, write)
            context = home / "context"
            _write_context(context, order.recipe.on(base))

            def see(data: bytes) -> None:
                steps.see(data)
                tail.see(data)
                write(data)

            status = await self._run(
                home, see, "build", "--isolation", self._settings.isolation, "--layers", "--format", "docker",
                "--network", "host", "--cap-drop", _DROPPED, *self._limits(), "--pull=never", "--iidfile",
                str(home / "id"), "--tag", order.target, "--file", str(home / "Dockerfile"), str(context),
            )  # fmt: skip
            if status != 0:
                raise StepFailed(tail.reason(status), steps.step)
            return (home / "id").read_text().strip()

    async def _base(self, home: Path, base: str, write: Write) -> str:
        """The id of the base, as its registry has it now.

        Always fetched: what is here already would be found by the end of its name, whoever it belongs to.
        """
        tail = _Tail()

        def see(data: bytes) -> None:
            tail.see(data)
            write(data)

        status = await self._run(
            home, see, "pull", "--policy", "always", "--authfile", self._login(home, base), f"docker://{base}"
        )
        if status != 0:
            raise no_base(base)
        found = tail.last_line
        facts = json.loads(await self._must(home, "inspect", "--type", "image", found))
        refuse_triggers(facts["Docker"]["config"].get("OnBuild"))
        return found

    async def push(self, order: Order, image: str, write: Write) -> str:
        tail = _Tail()
        with self._home() as home:

            def see(data: bytes) -> None:
                tail.see(data)
                write(data)

            status = await self._run(
                home, see, "push", "--authfile", self._login(home, order.target), "--format", "v2s2",
                "--digestfile", str(home / "digest"), image.removeprefix("sha256:"), f"docker://{order.target}",
            )  # fmt: skip
            if status != 0:
                raise Unavailable(f"the registry does not take it: {tail.reason(status)}")
            return (home / "digest").read_text().strip()

    def _login(self, home: Path, reference: str) -> str:
        """The file with our login, or one without for what is not kept in our registry."""
        return str(home / ("auth.json" if is_ours(self._registry, reference) else "no-auth.json"))

    async def prune(self, *, days: float, keep: Collection[str] = ()) -> int:
        """Whatever is to be kept: no environment runs from this storage."""
        if not (self._directory / "storage").exists():
            return 0
        before = time.time() - days * 86400
        with self._home() as home:
            old = {one["id"] for one in await self._ours(home) if _made(one) < before}
            for one in old:
                # One that a newer one stands on is refused, and goes some other day. With one others may go, and then
                # buildah may call it a failure: what is gone is counted.
                await self._run(home, lambda _: None, "rmi", "--force", one.removeprefix("sha256:"))
            return len(old - {one["id"] for one in await self._ours(home)})

    async def _ours(self, home: Path) -> Sequence[Mapping[str, str]]:
        """Images with our label."""
        # In full: of an account that is not root, an id that is cut short is not found again.
        listing = await self._must(home, "images", "--all", "--no-trunc", "--json", "--filter", f"label={LABEL}")
        found: Sequence[Mapping[str, str]] = json.loads(listing or "[]") or ()
        return found

    async def close(self) -> None:
        return

    # ---- running it ------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _home(self) -> Iterator[Path]:
        """A home for one run, with everything that buildah reads; gone afterwards, as it holds the password."""
        work = self._directory / "work"
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix="run-", dir=work))
        try:
            self._configure(home)
            yield home
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def _configure(self, home: Path) -> None:
        host = urlsplit(self._registry.url).netloc
        (home / "networks").mkdir()
        (home / "tmp").mkdir()
        (home / "containers.conf").write_text(f'[network]\nnetwork_config_dir = "{home}/networks"\n')
        registries = 'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "disabled"\n'
        if self._registry.insecure or urlsplit(self._registry.url).scheme == "http":
            registries += f'[[registry]]\nlocation = "{host}"\ninsecure = true\n'
        (home / "registries.conf").write_text(registries)
        settings = home / ".config" / "containers"
        certificates = settings / "certs.d" / host
        certificates.mkdir(parents=True)
        (settings / "policy.json").write_text(json.dumps(_POLICY))
        # Signatures of images, of which we have none, are looked for in /var/lib otherwise: root in a user namespace
        # takes itself for root, and may not look there.
        (settings / "registries.d").mkdir()
        (settings / "registries.d" / "default.yaml").write_text(
            f"default-docker:\n  lookaside: file://{home}/signatures\n"
        )  # fmt: skip
        if self._registry.ca_file:
            shutil.copyfile(self._registry.ca_file, certificates / "ca.crt")
        (home / "no-auth.json").write_text('{"auths": {}}')
        descriptor = os.open(home / "auth.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(auth_file(self._registry))

    async def _run(self, home: Path, write: Write, command: str, *words: str) -> int:
        driver = await self._storage_driver(home)
        return await run(self._command(driver, command, *words), _environment(home), write)

    async def _must(self, home: Path, command: str, *words: str) -> str:
        """Its output; Unavailable if it fails."""
        output = bytearray()
        status = await self._run(home, output.extend, command, *words)
        if status != 0:
            raise Unavailable(f"buildah {command} failed: {printable(_last_line(bytes(output)), limit=300)}")
        return output.decode("utf-8", "replace")

    async def _storage_driver(self, home: Path) -> str:
        """`overlay` where the kernel lets us, else `vfs`, which copies every layer in full."""
        if not self._driver:
            require_programs("buildah")
            check_local(self._directory)
            status = await run(self._command("overlay", "info"), _environment(home), lambda _: None)
            self._driver = "overlay" if status == 0 else "vfs"
        return self._driver

    def _command(self, driver: str, *words: str) -> Sequence[str]:
        storage = ["--root", str(self._directory / "storage"), "--runroot", str(self._directory / "run")]
        return ["buildah", *storage, "--storage-driver", driver, *words]

    def _limits(self) -> Sequence[str]:
        """Only a container of its own can be limited; `chroot` has no cgroup."""
        if self._settings.isolation == "chroot":
            return []
        memory = [f"--memory={self._settings.memory_mib}m"] if self._settings.memory_mib else []
        cpus = ["--cpu-period=100000", f"--cpu-quota={int(self._settings.cpus * 100_000)}"]
        return [*memory, *(cpus if self._settings.cpus else [])]

    async def _tidy(self) -> None:
        """Remove the working containers of builds that were ended, once none is at work: they bear no name of ours."""
        async with self._gate:
            if self._is_dirty and not self._active:
                self._is_dirty = False
                with self._home() as home:
                    await self._run(home, lambda _: None, "rm", "--all")


class _Tail:
    """The last bytes of what a program said."""

    def __init__(self) -> None:
        self._data = b""

    def see(self, data: bytes) -> None:
        self._data = (self._data + data)[-_TAIL:]

    @property
    def last_line(self) -> str:
        return _last_line(self._data)

    def reason(self, status: int) -> str:
        """Its last line without what buildah puts in front of it."""
        said = self.last_line
        _, _, behind = said.rpartition('": ')
        return printable(behind or said.removeprefix("Error: "), limit=500) or f"exit status {status}"


def _last_line(data: bytes) -> str:
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _write_context(context: Path, recipe: Recipe) -> None:
    """Files get one time, or no COPY would come from the cache."""
    context.mkdir()
    (context.parent / "Dockerfile").write_text(recipe.text)
    for path, data in recipe.files.items():
        target = context / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o644)
        os.utime(target, (0, 0))


def _environment(home: Path) -> Mapping[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "HOME": str(home), "LC_ALL": "C.UTF-8",
        "TMPDIR": str(home / "tmp"), "CONTAINERS_CONF": str(home / "containers.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(home / "registries.conf"), "BUILDAH_ISOLATION": "chroot",
        "XDG_RUNTIME_DIR": str(home / "tmp"), "REGISTRY_AUTH_FILE": str(home / "no-auth.json"),
    }  # fmt: skip


def _made(image: Mapping[str, str]) -> float:
    return datetime.fromisoformat(image["createdatraw"].replace("Z", "+00:00")).timestamp()


def check_local(directory: Path) -> None:
    """Unavailable if a directory is on a file system of another machine, on which layers cannot be kept."""
    directory.mkdir(parents=True, exist_ok=True)
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        front, _, behind = line.partition(" - ")
        kind = behind.split(" ")[0]
        if front.split(" ")[2] == wanted and (kind in _REMOTE or kind.startswith("fuse")):
            raise Unavailable(f"buildah's storage must be on a local disk, and {directory} is on {kind}")
