"""What every builder must do, with the real Docker engine, the real buildah and a real registry."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from backends.builders.buildah import BuildahBuilder, check_local
from backends.builders.contract import LABEL, Builder, Order, StepFailed
from backends.builders.docker import DockerBuilder
from backends.builders.memory import MemoryBuilder, MemoryEngine
from backends.dockerfiles.reading import parse
from backends.dockerfiles.recipes import recipe
from backends.registry_login import auth_file
from backends.settings import BuildSettings, DockerHostSettings, RegistrySettings
from storage.errors import AshoreError, Unavailable
from tests.conformance import registries
from tests.conformance.conftest import IMAGE, docker

_GENEROUS = 120.0


@dataclass
class Workbench:
    """One builder under test, on a base that it can have."""

    name: str
    make: Callable[[RegistrySettings], Builder]
    base: str
    registry: RegistrySettings
    leftovers: Callable[[], Sequence[str]]
    """Containers of ours that are still there."""
    builder: Builder = field(init=False)
    folder: Path = Path()

    def __post_init__(self) -> None:
        self.builder = self.make(self.registry)

    @property
    def runs(self) -> bool:
        return self.name != "memory"

    def order(self, text: str, name: str = "") -> Order:
        made = recipe(parse(text), self.base, {LABEL: "1"})
        build = secrets.token_hex(8)
        return Order(build, made, f"{self.registry.prefix}tests/{name or build}:v1")


class Log:
    """What a build wrote."""

    def __init__(self) -> None:
        self.data = bytearray()

    def __call__(self, data: bytes) -> None:
        self.data += data

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")

    async def says(self, words: str) -> None:
        """Wait until the words are there."""
        async with asyncio.timeout(_GENEROUS):
            while words not in self.text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistrySettings]:
    with registries.served(tmp_path_factory.mktemp("registry")) as settings:
        yield settings


@pytest.fixture(scope="session")
def base(registry: RegistrySettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    return registries.push_base(registry, tmp_path_factory.mktemp("base"), IMAGE)


@pytest.fixture(scope="session")
def buildah_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage for all tests: fetching the base takes longest."""
    return tmp_path_factory.mktemp("buildah")


@pytest.fixture(params=["memory", "docker", "buildah"])
async def bench(request: pytest.FixtureRequest, registry: RegistrySettings) -> AsyncIterator[Workbench]:
    if request.param == "memory":
        engine = MemoryEngine()
        bench = Workbench("memory", lambda _: MemoryBuilder(engine), IMAGE, registry, lambda: sorted(engine.running))
    elif request.param == "docker":
        host = DockerHostSettings(url="unix:///var/run/docker.sock")
        bench = Workbench("docker", lambda one: DockerBuilder(host, one, BuildSettings()), IMAGE, registry, _docker)
    else:
        folder = request.getfixturevalue("buildah_folder")
        bench = Workbench(
            "buildah", lambda one: BuildahBuilder(folder, one, BuildSettings()), request.getfixturevalue("base"),
            registry, lambda: _buildah(folder, "containers", "--quiet").split(), folder=folder,
        )  # fmt: skip
    yield bench
    await bench.builder.close()
    if bench.name == "docker":
        for image in docker("images", "--quiet", "--no-trunc", "--filter", f"label={LABEL}").split():
            subprocess.run(["docker", "rmi", "-f", image], capture_output=True, check=False)


async def test_builds_and_pushes(bench: Workbench) -> None:
    """The registry has the image under the digest that was returned, with our label in it and the file that a RUN
    made; a document of COPY is in it too."""
    log = Log()
    order = bench.order("RUN echo hello there\nCOPY <<'note' /etc/note\n$kept\nnote\nENV COLOUR=blue\n")
    image = await bench.builder.build(order, log)
    assert "hello there" in log.text
    digest = await bench.builder.push(order, image, log)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    if bench.runs:
        config = await asyncio.to_thread(_config, bench.registry, order, digest)
        assert config["config"]["Labels"][LABEL] == "1"
        assert "COLOUR=blue" in config["config"]["Env"]
    assert not bench.leftovers()


async def test_lines_come_as_they_are_printed(bench: Workbench) -> None:
    """The first line is here long before the step ends, and soon after it was printed: measured in one run."""
    log = Log()
    stamp = "date +printed=%s.%N" if bench.runs else f"echo printed={time.time()}"
    order = bench.order(f"RUN {stamp} && sleep 8 && echo the end\n# {secrets.token_hex(4)}")
    if bench.runs:
        order = bench.order(f"ENV NONCE={order.id}\nRUN {stamp} && sleep 8 && echo the end")
    building = asyncio.create_task(bench.builder.build(order, log))
    try:
        await log.says("printed=1")
        came = time.time()
        async with asyncio.timeout(_GENEROUS):
            while (match := re.search(r"^printed=([0-9.]+)$", log.text, re.MULTILINE)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert came - float(match[1]) < 2
        assert "\nthe end" not in log.text
        await building
        assert "\nthe end" in log.text
    finally:
        building.cancel()
        await asyncio.gather(building, return_exceptions=True)


async def test_cancelling_stops_what_runs(bench: Workbench) -> None:
    """Also a daemon that the step has started in a session of its own; nothing of it is there when the call returns."""
    seconds = str(100_000 + secrets.randbelow(800_000))
    log = Log()
    daemon = f"(setsid sleep {seconds} &) && " if bench.runs else ""
    order = bench.order(f"RUN {daemon}echo it has begun && sleep {seconds}")
    building = asyncio.create_task(bench.builder.build(order, log))
    await log.says("\nit has begun")
    assert _sleeps(seconds) or not bench.runs
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    await _gone(seconds, bench)


async def test_a_crash_of_our_process_ends_a_build(bench: Workbench, tmp_path: Path) -> None:
    """The process that asked for it is killed with -9: what it built stops, and `recover` takes the rest away."""
    if not bench.runs:
        return  # it has no process besides ours
    seconds = str(100_000 + secrets.randbelow(800_000))
    text = f"RUN (setsid sleep {seconds} &) && echo it has begun && sleep {seconds}"
    program = _PROGRAM.format(
        name=bench.name, folder=str(bench.folder), registry=bench.registry.url, text=text, base=bench.base,
        target=bench.order(text).target, user=registries.USER, password=registries.PASSWORD,
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(_GENEROUS):
        while (await process.stdout.readline()).strip() != b"it has begun":
            assert process.returncode is None
    assert _sleeps(seconds)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await bench.builder.recover()
    await _gone(seconds, bench)


async def test_a_failure_names_its_step(bench: Workbench) -> None:
    """FROM and our LABEL are the first two; nothing is left but finished layers."""
    log = Log()
    order = bench.order("RUN echo fine\nENV A=1\nRUN echo going wrong && exit 3\nRUN echo never")
    with pytest.raises(StepFailed, match="exit status 3") as failure:
        await bench.builder.build(order, log)
    assert failure.value.step == 5
    assert order.recipe.lines[failure.value.step - 1] == 3
    assert "going wrong" in log.text
    assert "never" not in log.text
    assert not bench.leftovers()


async def test_a_base_that_nobody_has_is_a_failure(bench: Workbench) -> None:
    if not bench.runs:
        return  # it has no bases
    made = recipe(parse("RUN true"), f"{bench.registry.prefix}no/such:base", {LABEL: "1"})
    with pytest.raises(AshoreError) as failure:
        await bench.builder.build(Order("0" * 16, made, f"{bench.registry.prefix}tests/none:v1"), Log())
    assert "no/such" in failure.value.message
    assert registries.PASSWORD not in failure.value.message


@pytest.fixture(scope="session")
def triggering_base(registry: RegistrySettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base in the registry that says ONBUILD."""
    name = "triggering:v1"
    text = f"FROM {IMAGE}\nONBUILD RUN echo the trigger ran\n"
    subprocess.run(["docker", "build", "-t", name, "-"], input=text.encode(), check=True, capture_output=True)
    try:
        return registries.push_base(registry, tmp_path_factory.mktemp("triggering"), name)
    finally:
        subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


async def test_a_base_that_says_onbuild_is_refused(bench: Workbench, triggering_base: str) -> None:
    """What it says would run in the build, and no rule for Dockerfiles has seen it."""
    if not bench.runs:
        return  # it has no bases
    log = Log()
    made = recipe(parse("RUN echo not this either"), triggering_base, {LABEL: "1"})
    try:
        with pytest.raises(StepFailed, match="has ONBUILD instructions") as failure:
            await bench.builder.build(Order("0" * 16, made, f"{bench.registry.prefix}tests/none:v1"), log)
    finally:
        subprocess.run(["docker", "rmi", triggering_base], check=False, capture_output=True)
    assert failure.value.step == 1
    assert "the trigger ran" not in log.text
    assert not bench.leftovers()


async def test_the_pull_of_a_base_is_told_in_a_few_lines(
    bench: Workbench, registry: RegistrySettings, tmp_path: Path
) -> None:
    """Docker tells of each layer some times a second; the log of a build has a line for each tenth of the whole."""
    if bench.name != "docker":
        return  # buildah has its own words, and memory no bases
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY one /\nCOPY two /\n")
    for name in ("one", "two"):
        with (tmp_path / name).open("wb") as file:
            for _ in range(24):
                file.write(secrets.token_bytes(1 << 20))
    (tmp_path / "push").mkdir()
    subprocess.run(["docker", "build", "-t", "heavy:v1", tmp_path], check=True, capture_output=True)
    try:
        heavy = registries.push_base(registry, tmp_path / "push", "heavy:v1")
    finally:
        docker("rmi", "heavy:v1")
    log = Log()
    made = recipe(parse("RUN echo built"), heavy, {LABEL: "1"})
    try:
        await bench.builder.build(Order("0" * 16, made, f"{bench.registry.prefix}tests/heavy:v1"), log)
    finally:
        for image in (f"{bench.registry.prefix}tests/heavy:v1", heavy):
            subprocess.run(["docker", "rmi", image], check=False, capture_output=True)
    lines = [line for line in log.text.splitlines() if line.startswith(f"pulling {heavy}")]
    told = [int(found[1]) for line in lines if (found := re.search(r" (\d+) %$", line))]
    assert lines[0] == f"pulling {heavy}"
    assert told
    assert len(lines) < 30, lines
    assert "built" in log.text


async def test_our_login_does_not_go_with_a_base_that_is_not_ours(bench: Workbench, base: str) -> None:
    """It stands in another project of the same registry, which nobody may read but us."""
    if not bench.runs:
        return  # it has no bases
    builder = bench.make(bench.registry.model_copy(update={"project": "house"}))
    made = recipe(parse("RUN echo copied"), base, {LABEL: "1"})
    log = Log()
    try:
        with pytest.raises(StepFailed) as failure:
            await builder.build(Order("0" * 16, made, f"{bench.registry.prefix}tests/none:v1"), log)
    finally:
        await builder.close()
    assert failure.value.step == 1
    assert "copied" not in log.text


async def test_our_login_does_not_go_with_a_push_that_is_not_to_our_registry(bench: Workbench) -> None:
    """An order of before may be for a port that somebody else has by now; here our login would even do."""
    if not bench.runs:
        return  # it pushes nowhere
    order = bench.order("RUN true")
    image = await bench.builder.build(order, Log())
    builder = bench.make(bench.registry.model_copy(update={"project": "house"}))
    try:
        with pytest.raises(Unavailable, match="the registry does not take it"):
            await builder.push(order, image, Log())
    finally:
        await builder.close()
    assert await bench.builder.push(order, image, Log())


async def test_the_second_build_takes_layers_from_the_cache(bench: Workbench) -> None:
    text = f"RUN echo {secrets.token_hex(8)}\nCOPY <<a /a\n1\na\nRUN echo second"
    first, second = Log(), Log()
    one = await bench.builder.build(bench.order(text, "cached"), first)
    other = await bench.builder.build(bench.order(text, "cached"), second)
    assert one == other
    assert "Using cache" not in first.text.partition("RUN echo")[2].partition("\n")[2].partition("COPY")[0]
    assert second.text.lower().count("using cache") >= 3
    assert not re.search("^second$", second.text, re.MULTILINE)


async def test_builds_at_once_do_not_disturb_each_other(bench: Workbench) -> None:
    """One of them is cancelled, one fails, one succeeds."""
    logs = [Log(), Log(), Log()]
    nonce = secrets.token_hex(8)
    texts = [
        f"RUN echo {nonce}a && sleep 300", f"RUN echo {nonce}b && exit 9", f"RUN echo {nonce}c && sleep 3 && echo done",
    ]  # fmt: skip
    tasks = [
        asyncio.create_task(bench.builder.build(bench.order(text), log)) for text, log in zip(texts, logs, strict=True)
    ]
    await logs[0].says(f"\n{nonce}a")
    await logs[2].says(f"\n{nonce}c")
    tasks[0].cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert isinstance(ended[1], StepFailed)
    assert isinstance(ended[2], str), ended[2]
    assert not bench.leftovers()


async def test_the_wrong_password_is_no_secret_and_no_success(bench: Workbench) -> None:
    if not bench.runs:
        return  # it pushes nowhere
    order = bench.order("RUN echo a")
    image = await bench.builder.build(order, Log())
    wrong = bench.make(bench.registry.model_copy(update={"user": "mallory"}))
    try:
        with pytest.raises(Unavailable, match="the registry does not take it") as failure:
            await wrong.push(order, image, Log())
        assert registries.PASSWORD not in failure.value.message
    finally:
        await wrong.close()


async def test_old_layers_are_pruned_by_their_label(bench: Workbench) -> None:
    """What was made lately stays; the base, which has no label of ours, stays always."""
    order = bench.order(f"RUN echo {secrets.token_hex(8)}\nRUN echo b")
    image = await bench.builder.build(order, Log())
    await bench.builder.prune(days=1)
    again = Log()
    assert await bench.builder.build(order, again) == image
    await asyncio.sleep(1.1)  # engines count whole seconds
    assert await bench.builder.prune(days=0) >= 1
    fresh = Log()
    await bench.builder.build(order, fresh)
    assert "using cache" not in fresh.text.lower()


async def test_a_base_that_is_not_there_gets_a_sentence_that_helps(bench: Workbench) -> None:
    """What the engine said about sockets and resolvers is in the log only."""
    if not bench.runs:
        return  # it fetches nothing
    for host, said in ((bench.registry.prefix.rstrip("/"), "manifest"), ("127.0.0.1:9", "refused")):
        order = replace(bench.order("RUN a"), recipe=recipe(parse("RUN a"), f"{host}/tests/none:v1", {LABEL: "1"}))
        log = Log()
        with pytest.raises(StepFailed) as caught:
            await bench.builder.build(order, log)
        assert caught.value.step == 1
        assert caught.value.message == (
            f"the base '{host}/tests/none:v1' cannot be fetched: see 'image list' and how it is spelt, or ask an "
            f"administrator whether this gateway reaches {host}"
        )
        assert said in log.text


async def test_an_image_that_was_brought_beforehand_is_not_pruned(registry: RegistrySettings, tmp_path: Path) -> None:
    """Pulled by its digest it has no tag, but the label of whoever built it, and would be old on the day it comes."""
    builder = DockerBuilder(DockerHostSettings(url="unix:///var/run/docker.sock"), registry, BuildSettings())
    made = recipe(parse(f"RUN echo {secrets.token_hex(8)}"), IMAGE, {LABEL: "1"})
    order = Order(secrets.token_hex(8), made, f"{registry.prefix}tests/{secrets.token_hex(8)}:v1")
    repository = order.target.rpartition(":")[0]
    try:
        digest = await builder.push(order, await builder.build(order, Log()), Log())
        docker("rmi", order.target)
        (tmp_path / "config.json").write_text(auth_file(registry))
        docker("--config", str(tmp_path), "pull", f"{repository}@{digest}")
        await asyncio.sleep(1.1)  # engines count whole seconds
        await builder.prune(days=0, keep={digest})
        assert docker("image", "ls", "-q", "--digests", repository)
        assert await builder.prune(days=0) >= 1
        assert not docker("image", "ls", "-q", "--digests", repository)
    finally:
        await builder.close()


async def test_steps_of_buildah_cannot_leave_their_chroot(
    registry: RegistrySettings, base: str, buildah_folder: Path
) -> None:
    """Root that may chroot again gets out of a `chroot`, to the account of the gateway. Installing things still works:
    it needs other rights."""
    builder = BuildahBuilder(buildah_folder, registry, BuildSettings())
    text = (
        "RUN chroot / true; echo chroot ended with $?; mknod /n c 1 3; echo mknod ended with $?\n"
        "RUN useradd -m someone && chown someone /opt && su someone -c 'touch /opt/file' && echo still useful"
    )
    log = Log()
    await builder.build(
        Order("0" * 16, recipe(parse(text), base, {LABEL: "1"}), f"{registry.prefix}tests/caps:v1"), log
    )
    assert re.search("^chroot ended with [1-9]", log.text, re.MULTILINE)
    assert re.search("^mknod ended with [1-9]", log.text, re.MULTILINE)
    assert "\nstill useful" in log.text


async def test_layers_can_be_kept_where_the_kernel_gives_no_overlay(
    registry: RegistrySettings, base: str, tmp_path: Path
) -> None:
    """As in most containers. Nothing of the run is left beside the layers: its home held the password."""
    builder = BuildahBuilder(tmp_path / "vfs", registry, BuildSettings(storage="vfs"))
    made = recipe(parse("RUN echo in a copy"), base, {LABEL: "1"})
    log = Log()
    await builder.build(Order("0" * 16, made, f"{registry.prefix}tests/vfs:v1"), log)
    assert "in a copy" in log.text
    assert (tmp_path / "vfs" / "storage" / "vfs").is_dir()
    assert not list((tmp_path / "vfs" / "work").iterdir())


def test_storage_on_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """buildah's layers need what network file systems do not give; it is said before anything runs."""
    check_local(tmp_path / "storage")
    device = tmp_path.stat().st_dev
    line = f"1 1 {device >> 8 & 0xFFF}:{device & 0xFF} / /x rw - nfs4 server:/x rw\n"
    monkeypatch.setattr(Path, "read_text", lambda self: line)
    with pytest.raises(Unavailable, match="must be on a local disk, and .* is on nfs4"):
        check_local(tmp_path / "storage")


_PROGRAM = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from backends.builders.buildah import BuildahBuilder
from backends.builders.contract import Order
from backends.builders.docker import DockerBuilder
from backends.dockerfiles.reading import parse
from backends.dockerfiles.recipes import recipe
from backends.settings import BuildSettings, DockerHostSettings, RegistrySettings

async def main():
    registry = RegistrySettings(url={registry!r}, user={user!r}, password=SecretStr({password!r}), insecure=True)
    if {name!r} == "docker":
        builder = DockerBuilder(DockerHostSettings(url="unix:///var/run/docker.sock"), registry, BuildSettings())
    else:
        builder = BuildahBuilder(Path({folder!r}), registry, BuildSettings())
    def write(data):
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    await builder.build(Order("1" * 16, recipe(parse({text!r}), {base!r}, {{"ashore.built": "1"}}), {target!r}), write)

asyncio.run(main())
"""


def _sleeps(seconds: str) -> Sequence[str]:
    found = subprocess.run(["pgrep", "-x", "-f", f"sleep {seconds}"], capture_output=True, text=True, check=False)
    return found.stdout.split()


async def _gone(seconds: str, bench: Workbench) -> None:
    async with asyncio.timeout(_GENEROUS):
        while _sleeps(seconds) or bench.leftovers():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _docker() -> Sequence[str]:
    return docker("ps", "-a", "--quiet", "--filter", f"label={LABEL}").split()


def _buildah(folder: Path, *words: str) -> str:
    storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run"), "--storage-driver", "overlay"]
    return subprocess.run(["buildah", *storage, *words], check=True, capture_output=True, text=True).stdout


def _config(registry: RegistrySettings, order: Order, digest: str) -> dict[str, dict[str, dict[str, str]]]:
    """The configuration of an image, as the registry has it."""
    repository = order.target.removeprefix(registry.prefix).rpartition(":")[0]
    manifest = json.loads(_get(registry, f"/v2/{repository}/manifests/{digest}"))
    found: dict[str, dict[str, dict[str, str]]] = json.loads(
        _get(registry, f"/v2/{repository}/blobs/{manifest['config']['digest']}")
    )
    return found


def _get(registry: RegistrySettings, path: str) -> bytes:
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, registry.url, registries.USER, registries.PASSWORD)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    request = urllib.request.Request(
        registry.url + path, headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    )
    with opener.open(request, timeout=30) as answer:
        found: bytes = answer.read()
    return found
