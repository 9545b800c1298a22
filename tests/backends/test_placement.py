"""The choice of a host, by every policy; and what is said when there is none."""

from __future__ import annotations

import pytest

from backends.gpus import Card, GpuHolder, GpuNeed
from backends.placement import Need, Offer, Room, choose
from storage.records import GpuMode, HostState

GIB = 1024**3
NEED = Need(2, 4 * GIB)


def room(host: str, **values: object) -> Room:
    facts: dict[str, object] = {"state": HostState.ONLINE, "is_here": True, "cpus": 8.0, "memory": 16 * GIB}
    return Room(host, **(facts | values))  # type: ignore[arg-type]


def chosen(rooms: list[Room], policy: str = "least-used", need: Need = NEED) -> str:
    choice = choose([Offer(one, need) for one in rooms], policy)
    return choice.offer.room.host if choice.offer else choice.sentence


def test_each_policy_has_its_favourite() -> None:
    rooms = [
        room("full", used_cpus=6.0, used_memory=8 * GIB, environments=1),
        room("busy", used_cpus=3.0, used_memory=4 * GIB, environments=3),
        room("calm", used_cpus=2.0, used_memory=2 * GIB, environments=2),
    ]
    assert [chosen(rooms, policy) for policy in ("least-used", "pack", "spread")] == ["calm", "full", "full"]


def test_the_scarcest_thing_counts() -> None:
    rooms = [room("a", used_cpus=1.0, used_memory=8 * GIB), room("b", used_cpus=3.0, used_memory=1 * GIB)]
    assert chosen(rooms) == "b"


def card(uuid: str, *holders: str) -> Card:
    held = [GpuHolder(name, name, "alice", "w", GpuMode.EXCLUSIVE) for name in holders]
    return Card(uuid, "A100", 80 * GIB, holders=held)


GPU = Need(2, 4 * GIB, GpuNeed(1, GpuMode.EXCLUSIVE))


def test_cards_are_among_the_scarce_things() -> None:
    """A host with one card left of four used to be as good as one with four, as long as cores were left."""
    tight = [card("a1", "x"), card("a2", "y"), card("a3", "z"), card("a4")]
    rooms = [
        room("a", used_cpus=1.0, environments=3, cards=tight),
        room("b", used_cpus=2.0, environments=3, cards=[card("b1", "v"), card("b2")]),
    ]
    assert [round(one.fullness, 2) for one in rooms] == [0.75, 0.5]
    assert [chosen(rooms, policy, GPU) for policy in ("least-used", "pack", "spread")] == ["b", "a", "b"]


@pytest.mark.parametrize("policy", ["least-used", "pack", "spread"])
def test_work_without_gpus_goes_to_hosts_with_cards_last(policy: str) -> None:
    gpus = room("gpus", cards=[card("a1"), card("a2")])
    busy = room("busy", used_cpus=4.0, used_memory=8 * GIB, environments=4)
    assert chosen([gpus, busy], policy) == "busy"
    assert chosen([gpus, busy], policy, GPU) == "gpus"
    full = room("full", used_cpus=7.0)
    assert chosen([gpus, full], policy) == "gpus"


def test_the_same_hosts_give_the_same_choice() -> None:
    assert chosen([room("b"), room("a")]) == chosen([room("a"), room("b")]) == "a"


def test_cores_and_memory_may_be_promised_several_times() -> None:
    full = room("a", used_cpus=7.0)
    assert chosen([full]) == "no available host (a: CPUs: 1 of 8 left, 2 needed)"
    assert chosen([room("a", used_cpus=7.0, overcommit=2.0)]) == "a"
    assert chosen([room("a", used_memory=13 * GIB, memory_overcommit=2.0)]) == "a"
    full = room("a", used_memory=13 * GIB, overcommit=2.0)
    assert chosen([full]) == "no available host (a: memory: 3GiB of 16GiB left, 4GiB needed)"
    assert chosen([room("a", used_memory=12 * GIB)]) == "a"


def test_every_host_says_why() -> None:
    rooms = [
        room("b", state=HostState.OFFLINE, reason="its SSH server does not answer"),
        room("a", state=HostState.MAINTENANCE, reason="new cards"),
    ]
    assert chosen(rooms) == (
        "no available host (a: in maintenance, new cards; b: offline, its SSH server does not answer)"
    )
    assert chosen([*rooms, room("c", is_here=False)]) == "c"
    assert chosen([]) == "no available host ()"


def test_what_can_never_be_is_said_in_its_own_words() -> None:
    offers = [Offer(room("a"), NEED, ["cpus must be between 0 (the default) and 1"])]
    choice = choose(offers, "pack")
    assert (choice.is_never, choice.sentence) == (True, "cpus must be between 0 (the default) and 1")
    assert not choose([*offers, Offer(room("b", state=HostState.OFFLINE), NEED)], "pack").is_never


@pytest.mark.parametrize("policy", ["least-used", "pack", "spread"])
def test_a_host_that_has_not_answered_yet_is_no_accident(policy: str) -> None:
    assert chosen([room("new", cpus=0.0, memory=0), room("old")], policy) == "old"
