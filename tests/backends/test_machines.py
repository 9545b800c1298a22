"""Who may use existing machines, and what they take: planning, creating and starting."""

from __future__ import annotations

from pathlib import Path

import asyncssh
import pytest

from backends.compute.memory import MemoryCompute, MemoryEngine
from backends.environments import Environments
from backends.mounts import Choice
from backends.planning import Request
from backends.settings import BackendSettings, MachineSettings
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.database.engine import Database
from storage.errors import BadInput, NotAllowed
from storage.records import AssetKind

CLOSED = "'box' is not open to you: an administrator can add you to its settings"


def machine(**more: object) -> MachineSettings:
    line = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    facts = {"address": "192.0.2.1", "user": "trainer", "host_key": line, "key_file": "/nowhere"}
    return MachineSettings.model_validate(facts | more)


class House:
    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, directory: Path) -> None:
        self._parts = (database, audit, changes)
        engine = MemoryEngine(directory)
        self._computes = {name: MemoryCompute(engine, name=name) for name in ("local", "box")}

    def environments(self, **more: object) -> Environments:
        return Environments(*self._parts, self._computes, BackendSettings(machines={"box": machine(**more)}))


@pytest.fixture
def house(database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path) -> House:
    return House(database, audit, changes, tmp_path / "memory")


async def test_nobody_but_administrators_by_default(house: House, alice: Caller, admin: Caller) -> None:
    environments = house.environments()
    request = Request("train", compute="box")
    assert (await environments.plan(alice, request)).refusals == [CLOSED]
    assert list(environments.planner.offered(alice)) == ["local"]
    with pytest.raises(BadInput, match="not open to you"):
        await environments.create(alice, request)
    assert (await environments.plan(admin, request)).refusals == []
    assert list(environments.planner.offered(admin)) == ["local", "box"]


async def test_the_refusal_is_the_only_one(house: House, alice: Caller) -> None:
    """What the machine cannot do is no business of those who may not use it."""
    plan = await house.environments().plan(alice, Request("train", compute="box", image="debian", cpus=2))
    assert plan.refusals == [CLOSED]


async def test_people_and_workspaces_of_the_settings(house: House, alice: Caller, bob: Caller) -> None:
    request = Request("train", compute="box")
    chosen = house.environments(users=("alice",))
    assert (await chosen.plan(alice, request)).refusals == []
    assert (await chosen.plan(bob, request)).refusals == [CLOSED]
    everybody = house.environments(workspaces=(bob.workspace,))
    assert (await everybody.plan(bob, request)).refusals == []
    assert list(everybody.planner.offered(bob)) == ["local", "box"]


async def test_what_a_machine_does_not_take(house: House, alice: Caller) -> None:
    environments = house.environments(users=("alice",))
    asked = Request(
        "train", compute="box", image="debian", memory=1 << 30, data=(Choice(AssetKind.DATASET, "mnist:v1"),)
    )
    refusals = (await environments.plan(alice, asked)).refusals
    assert refusals[:3] == [
        "'box' takes no image: it is a machine as it is",
        "'box' cannot limit cores and memory: leave them out",
        "'box' takes no data sets and models yet: nothing is copied to other machines",
    ]


async def test_an_environment_there_has_no_limits_and_takes_no_quota(house: House, alice: Caller) -> None:
    made = await house.environments(users=("alice",)).create(alice, Request("train", compute="box"))
    assert (made.compute, made.image, made.cpus, made.memory) == ("box", "", 0, 0)


async def test_who_is_not_welcome_any_more_starts_nothing(house: House, alice: Caller, admin: Caller) -> None:
    """The operator took alice out of the settings: what she has there can be stopped and deleted, not started."""
    await house.environments(users=("alice",)).create(alice, Request("train", compute="box"))
    environments = house.environments()
    await environments.stop(alice, "train")
    for start in (environments.start, environments.restart):
        with pytest.raises(NotAllowed, match="not open to you"):
            await start(alice, "train")
    await environments.start(admin, "train.alice")
    await environments.delete(alice, "train")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"host_key": "ssh-ed25519 AAAA"}, "as one line"),
        ({"host_key": ""}, "as one line"),
        ({"user": "-oProxyCommand"}, "pattern"),
        ({"key_file": "keys/box"}, "pattern"),
        ({"folder": "$(id)"}, "pattern"),
        ({"port": 0}, "greater"),
    ],
)
def test_settings_that_are_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        machine(**more)


@pytest.mark.parametrize("name", ["docker", "local", "Box", "a/b", ""])
def test_names_that_no_machine_may_have(name: str) -> None:
    with pytest.raises(ValueError, match="a machine's name"):
        BackendSettings(machines={name: machine()})


def test_a_comment_after_the_key_is_dropped() -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILUHRBntthKg9Y8mH+qerxvw+bxhoLptBtHSxo63OpiJ"
    assert machine(host_key=f"{line} root@gpu7\n").host_key == line
