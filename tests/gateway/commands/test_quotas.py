"""`quota`, and what `env` says about quotas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storage.access import Caller
from tests.gateway.commands.conftest import Desk

GIB = 1024**3


async def rows(desk: Desk, caller: Caller, command: str) -> list[dict[str, Any]]:
    answer = await desk.run(caller, f"{command} --json")
    assert answer.status == 0, answer.err
    found: list[dict[str, Any]] = json.loads(answer.out)
    return found


async def test_everybody_sees_their_own(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create a --cpu 2 --memory 1GiB")
    found = {(row["of"], row["name"], row["resource"]): row for row in await rows(desk, alice, "quota show")}
    assert found["user", "alice", "environments"] == {
        "of": "user", "name": "alice", "resource": "environments", "used": 1, "allowed": 20, "left": 19, "set_by": "",
    }  # fmt: skip
    memory = found["workspace", "team", "memory"]
    assert (memory["used"], memory["allowed"], memory["left"]) == (GIB, None, None)
    shown = await desk.run(alice, "quota show")
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ["OF", "RESOURCE", "USED", "ALLOWED", "LEFT", "SET", "BY"]
    assert ["user", "alice", "memory", "1GiB", "no", "limit", "-"] in lines


async def test_set_refuse_raise_clear(desk: Desk, alice: Caller, admin: Caller) -> None:
    made = await desk.run(admin, "quota set --user alice --memory 4GiB --environments unlimited --cpus 2.5")
    assert made.status == 0, made.err
    assert "root-admin" in made.out
    assert (await desk.run(alice, "env create a --memory 3GiB --cpu 1")).status == 0
    plan = await desk.run(alice, "env create b --memory 2GiB --cpu 1 --dry-run --json")
    sentence = "your quota of memory is 4GiB, with 3GiB in use, and this needs 2GiB: an administrator can raise it"
    assert (plan.status, json.loads(plan.out)["refusals"]) == (1, [sentence])
    refused = await desk.run(alice, "env create b --memory 2GiB --cpu 1")
    assert (refused.status, refused.out, refused.err) == (1, "", f"{sentence}\n")
    assert len(await rows(desk, admin, "quota list")) == 3
    await desk.run(admin, "quota set --user alice --memory default")
    assert (await desk.run(alice, "env create b --memory 2GiB --cpu 1")).status == 0
    await desk.run(admin, "quota clear --user alice")
    assert await rows(desk, admin, "quota list") == []
    assert "no exceptions" in (await desk.run(admin, "quota list")).err


async def test_a_dry_run_tells_the_real_numbers(desk: Desk, alice: Caller) -> None:
    limits = desk.services.environments.planner.limits
    plan = json.loads((await desk.run(alice, "env create a --dry-run --json")).out)
    assert (plan["cpus"], plan["memory"]) == (limits.default_cpus, limits.default_memory)
    await desk.run(alice, "env create a")
    shown = json.loads((await desk.run(alice, "env show a --json")).out)
    assert (shown["cpus"], shown["memory"]) == (plan["cpus"], plan["memory"])
    assert "no limit" not in (await desk.run(alice, "env list")).out


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("quota set --user alice --cpus 1", 77, "only administrators"),
        ("quota clear --user alice", 77, "only administrators"),
        ("quota list", 77, "only administrators"),
        ("quota show --user root-admin", 1, "there is no user 'root-admin'"),
        ("quota show --workspace moon", 1, "there is no workspace 'moon'"),
        ("quota show --user a --workspace b", 2, "not both"),
    ],
)
async def test_what_others_may_not(
    desk: Desk, alice: Caller, admin: Caller, command: str, status: int, words: str
) -> None:
    answer = await desk.run(alice, command)
    assert (answer.status, answer.out) == (status, "")
    assert words in answer.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("quota set --user root-admin", "say what to set"),
        ("quota set --cpus 1", "say for whom"),
        ("quota set --user a --workspace b --cpus 1", "say for whom"),
        ("quota set --user root-admin --cpus many", "'many' is no number"),
        ("quota set --user root-admin --cpus -1", "from 0 to"),
        ("quota set --user root-admin --memory lots", "'lots' is no amount"),
        ("quota set --user root-admin --environments 1.5", "whole number"),
        ("quota set --workspace team --uploads 5", "a workspace has no quota of interrupted uploads"),
    ],
)
async def test_wrong_usage(desk: Desk, admin: Caller, command: str, words: str) -> None:
    answer = await desk.run(admin, command)
    assert (answer.status, answer.out) == (2, "")
    assert words in answer.err
