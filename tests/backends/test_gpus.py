"""Which cards are chosen, what is said when there are none, and what drivers tell: as data, no machine needed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.compute.places import GpuFact
from backends.gpu_probe import parse_smi, probe
from backends.gpus import Card, GpuHolder, GpuNeed, asked, impossible, lacks, pick
from storage.errors import Unavailable
from storage.records import GpuMode

GIB = 1024**3
EXCLUSIVE, SHARED, MIG = GpuMode.EXCLUSIVE, GpuMode.SHARED, GpuMode.MIG


def holder(name: str, mode: GpuMode = EXCLUSIVE, workspace: str = "w") -> GpuHolder:
    return GpuHolder(name, name, "alice", workspace, mode)


def card(uuid: str, *holders: GpuHolder, model: str = "NVIDIA A100", memory: int = 80, **more: Any) -> Card:
    return Card(uuid, model, memory * GIB, holders=holders, **more)


def device(uuid: str, parent: str, profile: str, *holders: GpuHolder) -> Card:
    return card(uuid, *holders, parent=parent, profile=profile, memory=10)


def got(cards: list[Card], need: GpuNeed, shares: int = 2) -> list[str]:
    return [one.uuid for one in pick(cards, need, shares)]


# ---- what is asked for -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("typed", "need"),
    [
        ((0, "", ""), GpuNeed()),
        ((2, "", ""), GpuNeed(2, EXCLUSIVE)),
        ((0, "a100", ""), GpuNeed(1, EXCLUSIVE, "a100")),
        ((0, "", "shared"), GpuNeed(1, SHARED)),
        ((0, "1g.10gb", "mig"), GpuNeed(1, MIG, "1g.10gb")),
        ((0, "", "none"), GpuNeed()),
    ],
)
def test_what_people_type(typed: tuple[int, str, str], need: GpuNeed) -> None:
    assert (asked(*typed)[0], list(asked(*typed)[1])) == (need, [])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ((1, "", "vgpu"), "there is no GPU mode 'vgpu': use exclusive, shared, mig or none"),
        ((-1, "", ""), "the number of GPUs must be between 0 and 64"),
        ((65, "", ""), "the number of GPUs must be between 0 and 64"),
        ((1, "", "none"), "the GPU mode 'none' goes with no GPUs and no model"),
        ((1, "x" * 65, ""), "a GPU model is up to 64 letters of its name"),
        ((1, "a\x1b[2J", ""), "a GPU model is up to 64 letters of its name"),
    ],
)
def test_what_is_wrong(typed: tuple[int, str, str], said: str) -> None:
    assert asked(*typed)[1] == [said]


# ---- the choice --------------------------------------------------------------------------------------------------
def test_whole_cards_go_to_one() -> None:
    cards = [card("a", holder("x")), card("b"), card("c")]
    assert got(cards, GpuNeed(1, EXCLUSIVE)) == ["b"]
    assert got(cards, GpuNeed(2, EXCLUSIVE)) == ["b", "c"]
    assert got(cards, GpuNeed(3, EXCLUSIVE)) == []


def test_the_model_is_a_part_of_the_name() -> None:
    cards = [card("a", model="Tesla T4", memory=16), card("b", model="NVIDIA H100 PCIe")]
    assert got(cards, GpuNeed(1, EXCLUSIVE, "h100")) == ["b"]
    assert got(cards, GpuNeed(1, EXCLUSIVE, "nvidia pcie")) == ["b"]
    assert got(cards, GpuNeed(1, EXCLUSIVE)) == ["a"], "the smallest: large ones stay for those who name them"
    assert impossible(cards, GpuNeed(1, EXCLUSIVE, "b200")) == "it has no GPU 'b200'"
    assert impossible(cards, GpuNeed(2, EXCLUSIVE, "t4")) == "it has 1 GPU 't4', 2 needed"


def test_several_are_of_one_model_where_that_can_be() -> None:
    cards = [card("a", model="T4", memory=16), card("b"), card("c")]
    assert got(cards, GpuNeed(2, EXCLUSIVE)) == ["b", "c"]
    assert got(cards, GpuNeed(3, EXCLUSIVE)) == ["a", "b", "c"]


def test_shared_cards_are_filled_before_another_is_opened() -> None:
    one, two = holder("x", SHARED), holder("y", SHARED)
    cards = [card("a"), card("b", one), card("c", holder("z"))]
    assert got(cards, GpuNeed(1, SHARED)) == ["b"]
    assert got([card("b", one, two), card("c", holder("z")), card("d")], GpuNeed(1, SHARED)) == ["d"]
    assert got(cards, GpuNeed(1, EXCLUSIVE)) == ["a"]
    assert got([card("b", one, two)], GpuNeed(1, SHARED)) == []


def test_mig_devices_and_their_card() -> None:
    """MIG can be switched on or off while somebody holds the card: then neither it nor its parts are free."""
    devices = [device("m1", "a", "1g.10gb"), device("m2", "a", "3g.40gb", holder("x", MIG))]
    assert got(devices, GpuNeed(1, MIG)) == ["m1"]
    assert got(devices, GpuNeed(1, MIG, "3g")) == []
    assert got(devices, GpuNeed(1, EXCLUSIVE)) == []
    assert impossible(devices, GpuNeed(1, EXCLUSIVE)) == "it has no GPU"
    assert got([*devices, card("a", holder("y"), is_present=False)], GpuNeed(1, MIG)) == []
    assert got([card("a"), *devices], GpuNeed(1, EXCLUSIVE)) == []


def test_those_that_it_had_come_first_and_its_own_are_not_in_its_way() -> None:
    cards = [card("a"), card("b"), card("c", holder("me"))]
    need = GpuNeed(2, EXCLUSIVE, environment_id="me", before={"b", "c"})
    assert got(cards, need) == ["b", "c"]


def test_what_has_vanished_is_not_given_out() -> None:
    cards = [card("a", holder("x"), is_present=False)]
    assert got(cards, GpuNeed(1, EXCLUSIVE)) == []
    assert lacks(cards, GpuNeed(1, EXCLUSIVE), 2) == "GPUs: 0 of 1 left, 1 needed, GPU lost"


def test_the_sentence_names_who_holds_the_last_one() -> None:
    need = GpuNeed(1, EXCLUSIVE, workspace_id="w")
    ours, theirs = holder("train"), holder("secret", workspace="other")
    assert lacks([card("a", ours)], need, 2) == "GPUs: 0 of 1 left, 1 needed, held by alice's 'train' until that stops"
    said = lacks([card("a", theirs)], need, 2)
    assert said == "GPUs: 0 of 1 left, 1 needed, held by somebody of another workspace until that stops"
    said = lacks([card("a", ours), card("b", theirs)], need, 2)
    assert said.endswith("held by alice's 'train' and somebody of another workspace until one of them stops")
    due = replace(ours, due="20:00 UTC (its schedule)")
    assert lacks([card("a", due)], need, 2).endswith("held by alice's 'train' until 20:00 UTC (its schedule)")
    assert lacks([card("a")], need, 2) == lacks([], GpuNeed(), 2) == ""


_modes = st.sampled_from([EXCLUSIVE, SHARED, MIG])


@given(st.lists(st.tuples(_modes, st.integers(1, 3), st.booleans()), max_size=25), st.integers(1, 4))
def test_no_order_of_askers_gives_a_card_twice(steps: list[tuple[GpuMode, int, bool]], shares: int) -> None:
    held: dict[str, tuple[GpuMode, list[str]]] = {}
    kinds = [("a", ""), ("b", ""), ("c", ""), ("m1", "s"), ("m2", "s")]

    def cards() -> list[Card]:
        return [
            Card(uuid, "X", GIB, parent, "1g" if parent else "",
                 holders=[holder(name, mode) for name, (mode, have) in held.items() if uuid in have])
            for uuid, parent in kinds
        ]  # fmt: skip

    for number, (mode, count, stops) in enumerate(steps):
        if stops and held:
            held.pop(next(iter(held)))
        need = GpuNeed(count, mode)
        found = got(cards(), need, shares)
        assert bool(found) is not bool(lacks(cards(), need, shares))
        if found:
            assert len(set(found)) == count
            held[str(number)] = (mode, found)
        for one in cards():
            modes = [each.mode for each in one.holders]
            assert len(modes) <= (shares if set(modes) == {SHARED} else 1)
            assert all((each is MIG) == one.is_mig for each in modes)


# ---- what drivers tell -------------------------------------------------------------------------------------------
SMI = """\
GPU-5b7c1c0e-1d2f-3a4b-8c9d-0e1f2a3b4c5d, NVIDIA A100-SXM4-80GB, 81920, Disabled
GPU-11111111-2222-3333-4444-555555555555, NVIDIA A100-SXM4-80GB, 81920, Enabled
GPU-99999999-2222-3333-4444-555555555555, Tesla T4, 15360, [N/A]
--
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5b7c1c0e-1d2f-3a4b-8c9d-0e1f2a3b4c5d)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-11111111-2222-3333-4444-555555555555)
  MIG 3g.40gb     Device  0: (UUID: MIG-9f54f1a2-7d84-5a3f-a1b0-0c1d2e3f4a5b)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-0f54f1a2-7d84-5a3f-a1b0-0c1d2e3f4a5b)
GPU 2: Tesla T4 (UUID: GPU-99999999-2222-3333-4444-555555555555)
"""


def test_what_nvidia_smi_says() -> None:
    whole, t4, large, small = parse_smi(SMI)
    assert whole == GpuFact("GPU-5b7c1c0e-1d2f-3a4b-8c9d-0e1f2a3b4c5d", "NVIDIA A100-SXM4-80GB", 80 * GIB)
    assert (t4.model, t4.memory) == ("Tesla T4", 15 * GIB)
    parent = "GPU-11111111-2222-3333-4444-555555555555"
    uuid = "MIG-9f54f1a2-7d84-5a3f-a1b0-0c1d2e3f4a5b"
    assert large == GpuFact(uuid, "NVIDIA A100-SXM4-80GB", 40 * GIB, parent, "3g.40gb")
    assert (small.profile, small.memory) == ("1g.10gb+me", 10 * GIB)


@given(st.text())
def test_other_words_are_no_cards(text: str) -> None:
    assert parse_smi(text) == []
    assert parse_smi("No devices were found\n--\nNVIDIA-SMI has failed\n" + text.replace("GPU", "")) == []


class Nvml(SimpleNamespace):
    """The functions of pynvml that the probe calls, over a table: uuid, model, MIG devices; `None` fell off its bus."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError): ...

    class NVMLError_DriverNotLoaded(NVMLError): ...

    class NVMLError_NotFound(NVMLError): ...

    class NVMLError_GpuIsLost(NVMLError): ...

    class NVMLError_NoPermission(NVMLError): ...

    class NVMLError_NotSupported(NVMLError): ...

    def __init__(self, table: list[Any], trouble: Exception | None = None) -> None:
        super().__init__(table=table, trouble=trouble, shut=0)

    def nvmlInit(self) -> None:
        if self.trouble:
            raise self.trouble

    def nvmlShutdown(self) -> None:
        self.shut += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.table)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if self.table[index] is None:
            raise self.NVMLError_GpuIsLost
        return self.table[index]

    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes:
        return handle[0]  # type: ignore[no-any-return]

    def nvmlDeviceGetName(self, handle: Any) -> str | bytes:
        return handle[1]  # type: ignore[no-any-return]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(total=handle[2] * GIB)

    def nvmlDeviceGetMigMode(self, handle: Any) -> tuple[int, int]:
        if len(handle) == 3:
            raise self.NVMLError_NotSupported
        return (1, 1) if handle[3] is not None else (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        if index >= len(handle[3]):
            raise self.NVMLError_NotFound
        return handle[3][index]


def test_what_nvml_says() -> None:
    """Older bindings give bytes; a card that fell off its bus is not there, the others are."""
    mig = [("MIG-1", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10)]
    nvml = Nvml([
        ("GPU-1", "Tesla T4", 15), (b"GPU-2", b"NVIDIA A100-SXM4-80GB", 80, mig), None,
        ("GPU-4", "NVIDIA H200", 140, None),
    ])  # fmt: skip
    assert probe(nvml) == [
        GpuFact("GPU-1", "Tesla T4", 15 * GIB),
        GpuFact("MIG-1", "NVIDIA A100-SXM4-80GB", 10 * GIB, "GPU-2", "1g.10gb"),
        GpuFact("GPU-4", "NVIDIA H200", 140 * GIB),
    ]
    assert nvml.shut == 1


def test_a_machine_without_cards_and_one_whose_driver_is_broken() -> None:
    """After an update of the driver NVML refuses until the reboot; that must not look as if all cards had vanished."""
    assert probe(Nvml([], Nvml.NVMLError_LibraryNotFound())) == []
    assert probe(Nvml([], Nvml.NVMLError_DriverNotLoaded())) == []
    with pytest.raises(Unavailable, match="Driver/library version mismatch"):
        probe(Nvml([], Nvml.NVMLError("Driver/library version mismatch")))


def test_the_real_library_on_this_machine_answers_or_is_not_there() -> None:
    assert isinstance(probe(), list)
