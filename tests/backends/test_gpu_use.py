"""How busy GPUs are: what drivers tell and what they do not, whose it is, and when it is a sign of life."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from sqlalchemy import update

from backends.compute.docker.config import shared_out
from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.compute.places import GpuDriver, GpuFact, GpuLoad, GpuShare, ProcessLoad
from backends.cuda import wanted_cuda
from backends.environments import Environments
from backends.gpu_load import CardLoad, card_loads, driver_here, parse_driver, parse_load
from backends.gpu_use import GpuSigns, GpuUse, gpu_uses, is_busy
from backends.lifecycle import LifecycleChoice
from backends.planning import Request
from backends.reconcilers.hosts import HostWatch
from backends.settings import BackendSettings
from backends.usage import Loads
from gateway.health import _of_gpus
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import NotFound, Unavailable
from storage.records import Environment, EnvironmentState, GpuMode, Lifecycle

GIB = 1024**3
IDS = ("a" * 64, "b" * 64)


# ---- what drivers tell -------------------------------------------------------------------------------------------
class Nvml:
    """The functions of pynvml that are called, with its own errors and structures, over cards that are namespaces."""

    def __init__(self, *cards: SimpleNamespace) -> None:
        self.cards = cards
        self.asked_since: list[int] = []
        self.shut = 0

    def __getattr__(self, name: str) -> Any:  # errors and constants are the real module's
        return getattr(pynvml, name)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> SimpleNamespace:
        if isinstance(self.cards[index], Exception):
            raise self.cards[index]
        return self.cards[index]

    def nvmlDeviceGetMigMode(self, card: SimpleNamespace) -> tuple[int, int]:
        if not hasattr(card, "devices"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 1, 1

    def nvmlDeviceGetMaxMigDeviceCount(self, card: SimpleNamespace) -> int:
        return len(card.devices) + 1

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: SimpleNamespace, index: int) -> SimpleNamespace:
        if index >= len(card.devices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        found: SimpleNamespace = card.devices[index]
        return found

    def nvmlDeviceGetUUID(self, card: SimpleNamespace) -> str:
        return str(card.uuid)

    def nvmlDeviceGetMemoryInfo(self, card: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(used=card.used, total=80 * GIB)

    def nvmlDeviceGetUtilizationRates(self, card: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(gpu=_or_raise(card.busy), memory=0)

    def nvmlDeviceGetProcessUtilization(self, card: SimpleNamespace, since: int) -> Any:
        self.asked_since.append(since)
        return _or_raise(card.samples)

    def nvmlDeviceGetComputeRunningProcesses(self, card: SimpleNamespace) -> Any:
        return _or_raise(card.running)


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def sample(pid: int, sm: int, *, at: int = 1) -> Any:
    made = pynvml.c_nvmlProcessUtilizationSample_t()
    made.pid, made.smUtil, made.timeStamp = pid, sm, at
    return made


def running(pid: int, memory: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


def gpu(uuid: str = "GPU-1", **more: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"uuid": uuid, "used": GIB, "busy": 50, "samples": [], "running": []} | more))


def test_cards_with_their_processes() -> None:
    """Samples are asked for since a time in microseconds; zeros and what is over 100 are the driver's filling."""
    samples = [sample(7, 20), sample(7, 60), sample(8, 0), sample(0, 99), sample(7, 4_000_000_000), sample(7, 90, at=0)]
    nvml = Nvml(gpu(samples=samples, running=[running(7, GIB), running(8, None), running(7, GIB), running(9, 5)]))
    (card,) = card_loads(nvml)
    assert card == CardLoad("GPU-1", 50, GIB, 80 * GIB, [
        ProcessLoad(7, 60, 2 * GIB), ProcessLoad(8, 0, 0), ProcessLoad(9, 0, 5),
    ])  # fmt: skip
    assert nvml.shut == 1
    (since,) = nvml.asked_since
    assert 0 < now().timestamp() * 1e6 - since < 120e6


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS])
def test_no_samples_mean_that_nothing_ran(error: int) -> None:
    """NVML says NOT_FOUND; and where it has room for no sample, pynvml raises its success."""
    nvml = Nvml(gpu(samples=pynvml.NVMLError(error), running=[running(7, GIB)]))
    assert card_loads(nvml)[0].processes == [ProcessLoad(7, 0, GIB)]


def test_what_a_card_does_not_tell_is_not_known() -> None:
    unsupported = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    nvml = Nvml(
        gpu(busy=unsupported, samples=unsupported, running=[running(7, GIB)]), gpu("GPU-2", running=unsupported),
        pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST),
    )  # fmt: skip
    assert card_loads(nvml) == [
        CardLoad("GPU-1", None, GIB, 80 * GIB, [ProcessLoad(7, None, GIB)]), CardLoad("GPU-2", 50, GIB, 80 * GIB, None),
    ]  # fmt: skip


def test_mig_devices_have_no_utilisation() -> None:
    """NVML refuses to tell it, also that of processes; memory and who runs are there."""
    split = gpu(devices=[gpu("MIG-1", running=[running(7, 5)]), gpu("MIG-2")])
    assert card_loads(Nvml(split)) == [
        CardLoad("MIG-1", None, GIB, 80 * GIB, [ProcessLoad(7, None, 5)]), CardLoad("MIG-2", None, GIB, 80 * GIB, []),
    ]  # fmt: skip
    assert not Nvml(split).asked_since


def test_a_machine_without_a_driver_and_a_broken_one() -> None:
    class Broken(Nvml):
        def nvmlInit(self) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    class Without(Nvml):
        def nvmlInit(self) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    assert card_loads(Without()) == []
    with pytest.raises(Unavailable, match="the GPU driver cannot be asked"):
        card_loads(Broken())


def test_what_smi_says() -> None:
    text = "GPU-1, 97, 40960, 81920\nGPU-2, [N/A], 0, 81920\nGPU-3, 5, [N/A], 1\nNVIDIA-SMI has failed\n"
    text += "GPU-4\x1b, 0, 0, 1\n"
    assert parse_load(text) == [
        CardLoad("GPU-1", 97, 40 * GIB, 80 * GIB), CardLoad("GPU-2", None, 0, 80 * GIB),
        CardLoad("GPU-4\ufffd", 0, 0, 1024**2),
    ]  # fmt: skip


def test_the_driver_and_its_cuda() -> None:
    """NVML counts 12.4 as 12040, and asks libcuda for it, which a machine with the driver may lack."""

    class Driver(Nvml):
        def __init__(self, cuda: Any) -> None:
            super().__init__()
            self.cuda = cuda

        def nvmlSystemGetDriverVersion(self) -> str:
            return "550.54.15"

        def nvmlSystemGetCudaDriverVersion(self) -> int:
            return int(_or_raise(self.cuda))

    assert driver_here(Driver(12040)) == GpuDriver("550.54.15", (12, 4))
    missing = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert driver_here(Driver(missing)) == GpuDriver("550.54.15", None)


def test_the_driver_by_smi() -> None:
    line = "| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: {} |"
    assert parse_driver(line.format("12.2 ")) == GpuDriver("535.104.05", (12, 2))
    assert parse_driver(line.format("N/A  ")) == GpuDriver("535.104.05", None)
    assert parse_driver("NVIDIA-SMI has failed") is None


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        (["PATH=/bin", "CUDA_VERSION=12.4.1"], (12, 4)),
        (["NVIDIA_REQUIRE_CUDA=cuda>=11.8 brand=tesla,driver>=470"], (11, 8)),
        (["CUDA_VERSION=11.8.0", "NVIDIA_REQUIRE_CUDA=cuda>=12.0"], (12, 0)),
        (["CUDA_VERSION=latest"], None), ([], None), (["CUDA_VERSION"], None),
    ],
)  # fmt: skip
def test_what_an_image_wants(variables: list[str], wanted: tuple[int, int] | None) -> None:
    assert wanted_cuda(variables) == wanted


# ---- whose it is -------------------------------------------------------------------------------------------------
def groups(folder: Path, **known: str) -> Path:
    for pid, group in known.items():
        (folder / pid.removeprefix("p")).mkdir()
        (folder / pid.removeprefix("p") / "cgroup").write_text(group)
    return folder


def test_processes_belong_to_the_container_of_their_control_group(tmp_path: Path) -> None:
    """By the container's whole id: process 9 is another one's, by the same number in another namespace."""
    folder = groups(
        tmp_path, p1=f"0::/system.slice/docker-{IDS[0]}.scope\n", p2=f"4:devices:/docker/{IDS[1]}\n",
        p3=f"0::/docker/{IDS[0]}/sub\n", p9="0::/user.slice\n",
    )  # fmt: skip
    processes = [ProcessLoad(1, 30, 5), ProcessLoad(2, None, 7), ProcessLoad(3, 80, 6), ProcessLoad(9, 50, 1)]
    (load,) = shared_out(
        [CardLoad("GPU-1", 90, 20, 80, [*processes, ProcessLoad(77, 1, 1)])], dict(zip(IDS, "xy", strict=True)), folder
    )
    x, y = GpuShare(100, 11, (processes[0], processes[2])), GpuShare(None, 7, (processes[1],))
    assert load == GpuLoad("GPU-1", 90, 20, 80, {"x": x, "y": y})


def test_processes_that_nobody_knows_say_nothing_of_anybody(tmp_path: Path) -> None:
    """As in another pid namespace: then it must not be said that an environment takes nothing."""
    unknown = CardLoad("GPU-1", 90, 20, 80, [ProcessLoad(1, 30, 5)])
    idle, silent = CardLoad("GPU-2", 0, 0, 80, []), CardLoad("GPU-3", 0, 0, 80, None)
    loads = shared_out([unknown, idle, silent], {IDS[0]: "x"}, tmp_path)
    assert [load.shares for load in loads] == [None, {}, None]


@pytest.mark.parametrize(
    ("mode", "use", "busy"),
    [
        (GpuMode.EXCLUSIVE, GpuUse("u", "m", 6, 0, 1), True), (GpuMode.EXCLUSIVE, GpuUse("u", "m", 5, 0, 1), False),
        (GpuMode.EXCLUSIVE, GpuUse("u", "m", None, 0, 1), False), (GpuMode.SHARED, GpuUse("u", "m", 99, 0, 1), False),
        (GpuMode.SHARED, GpuUse("u", "m", 99, 0, 1, 0, 0), False),
        (GpuMode.SHARED, GpuUse("u", "m", 99, 0, 1, 6, 0), True),
        (GpuMode.MIG, GpuUse("u", "m", None, 9, 9, None, 9), False),
    ],
)  # fmt: skip
def test_what_is_a_sign_of_life(mode: GpuMode, use: GpuUse, busy: bool) -> None:
    assert is_busy(Environment(gpu_mode=mode), [use], 5.0) is busy


# ---- through the house -------------------------------------------------------------------------------------------
class House:
    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, folder: Path) -> None:
        self.database = database
        self.engine = MemoryEngine(folder)
        self.engine.gpus = [GpuFact("GPU-1", "NVIDIA H200", 80 * GIB)]
        computes = {"memory/here": MemoryCompute(self.engine)}
        settings = BackendSettings()
        self.computes = computes
        self.environments = Environments(database, audit, changes, computes, settings)
        self.hosts = HostWatch(database, audit, changes, computes, settings.placement)
        self.signs = GpuSigns(database, computes, self.environments.activity, settings.lifecycle)

    async def add(self, caller: Caller, lifecycle: Lifecycle = Lifecycle.ON_DEMAND) -> Environment:
        await self.hosts.look()
        made = await self.environments.create(caller, Request("train", gpus=1, lifecycle=LifecycleChoice(lifecycle)))
        values = {"state": EnvironmentState.RUNNING, "handle": "h", "started": now() - timedelta(hours=5)}
        async with self.database.writing() as tx:
            await tx.execute(update(Environment).where(Environment.id == made.id).values(**values))
        return await self.environments.show(caller, "train")

    async def last_active(self, caller: Caller) -> bool:
        """Whether a look at the cards is a sign of life."""
        await self.signs.look()
        await self.environments.activity.flush()
        return (await self.environments.show(caller, "train")).last_active is not None


@pytest.fixture
def house(database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path) -> House:
    return House(database, audit, changes, tmp_path / "memory")


async def test_a_card_that_computes_keeps_its_environment_awake(house: House, alice: Caller) -> None:
    await house.add(alice)
    for loads in ([], [GpuLoad("GPU-1", None, 0, 1)], [GpuLoad("GPU-1", 2, 0, 1)], [GpuLoad("GPU-2", 99, 0, 1)]):
        house.engine.gpu_loads = loads
        assert not await house.last_active(alice)
    house.engine.gpu_loads = [GpuLoad("GPU-1", 97, 0, 1)]
    house.engine.away = True
    assert not await house.last_active(alice)  # unknown is no sign, and no error
    house.engine.away = False
    assert await house.last_active(alice)


async def test_nobody_is_asked_where_nothing_depends_on_it(house: House, alice: Caller) -> None:
    await house.add(alice, Lifecycle.PERSISTENT)
    house.engine.gpu_loads = [GpuLoad("GPU-1", 97, 0, 1)]
    assert not await house.last_active(alice)


async def test_figures_for_people(house: House, alice: Caller, bob: Caller) -> None:
    train = await house.add(alice)
    one, two = ProcessLoad(7, 60, 20 * GIB), ProcessLoad(9, 30, 10 * GIB)
    other = GpuShare(7, 10 * GIB, (ProcessLoad(8, 7, 10 * GIB),))
    shares = {"h": GpuShare(90, 30 * GIB, (two, one)), "other": other}
    house.engine.gpu_loads = [GpuLoad("GPU-1", 97, 40 * GIB, 80 * GIB, shares)]
    uses = await Loads(house.computes).gpus(alice, [train])
    assert uses == {train.id: [GpuUse("GPU-1", "NVIDIA H200", 97, 40 * GIB, 80 * GIB, 90, 30 * GIB, (one, two))]}
    with pytest.raises(NotFound):
        await Loads(house.computes).gpus(bob, [train])
    train.state = EnvironmentState.STOPPED
    assert await gpu_uses(house.computes, [train]) == {}


async def test_an_image_that_is_too_new_is_warned_of(house: House, alice: Caller) -> None:
    await house.hosts.look()
    house.engine.image_variables = ["CUDA_VERSION=12.4.1"]
    request = Request("train", gpus=1)
    for driver in (None, GpuDriver("550.54", None), GpuDriver("550.54", (12, 4)), GpuDriver("570.1", (13, 0))):
        house.engine.driver = driver
        assert (await house.environments.plan(alice, request)).warnings == []
    house.engine.driver = GpuDriver("535.104", (12, 2))
    plan = await house.environments.plan(alice, request)
    assert plan.warnings == ["the image is made for CUDA 12.4, and its host's driver knows CUDA 12.2"]
    assert not plan.refusals
    await house.environments.plan(alice, Request("train", gpus=1, image="cuda:12"))
    assert house.engine.images_asked[-1] == "docker.io/library/cuda:12"  # what the engine knows, not what people see
    assert not (await house.environments.plan(alice, Request("train"))).warnings  # without a GPU, nobody is asked
    house.engine.away = True
    assert not (await house.environments.plan(alice, request)).warnings
    finding = (await _of_gpus("memory/here", house.computes["memory/here"])).detail
    assert "does not answer" in finding
    house.engine.away = False
    assert (await _of_gpus("memory/here", house.computes["memory/here"])).detail == (
        "1 x NVIDIA H200, driver 535.104, CUDA 12.2"
    )
