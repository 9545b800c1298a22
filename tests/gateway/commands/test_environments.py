"""`env`, `config` and `doctor` on real use cases, a real reconciler and a pretended engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import select, update

from backends.compute.memory import MemoryCompute
from backends.compute.places import GpuLoad, GpuShare, ProcessLoad
from backends.services import Services
from storage.access import Caller
from storage.clock import now
from storage.records import Artifact, ArtifactState, AuditEvent, Environment
from tests.gateway.commands.conftest import Desk


async def test_create_wait_show_stop_start_restart_delete(desk: Desk, alice: Caller) -> None:
    made = await desk.run(alice, "env create train --cpu 2 --memory 1GiB --env TOKEN=s3cret --wait")
    assert made.status == 0, made.err
    assert "running" in made.out
    assert "1GiB" in made.out
    row = json.loads((await desk.run(alice, "env show train --json")).out)
    assert (row["state"], row["cpus"], row["memory"]) == ("running", 2.0, 1024**3)
    assert row["variables"] == ["TOKEN"]
    stopped = await desk.run(alice, "env stop train --wait")
    assert stopped.out == "train: stopped, wanted stopped\n"
    for verb in ("start", "restart"):
        assert json.loads((await desk.run(alice, f"env {verb} train --wait --json")).out)["state"] == "running"
    gone = await desk.run(alice, "env delete train --wait --json")
    assert (gone.status, json.loads(gone.out)["state"]) == (0, "gone")
    assert (await desk.run(alice, "env show train")).status == 1


async def test_the_same_keys_everywhere(desk: Desk, alice: Caller) -> None:
    created = json.loads((await desk.run(alice, "env create --name a --json")).out)
    (listed,) = json.loads((await desk.run(alice, "env list --json")).out)
    shown = json.loads((await desk.run(alice, "env show a --json")).out)
    assert list(created) == list(listed) == list(shown)


async def test_nothing_yet(desk: Desk, alice: Caller) -> None:
    assert json.loads((await desk.run(alice, "env list --json")).out) == []
    answer = await desk.run(alice, "env list")
    assert (answer.status, answer.out) == (0, "")
    assert "env create" in answer.err


async def test_a_dry_run_says_what_forbids_it(desk: Desk, alice: Caller) -> None:
    answer = await desk.run(alice, "env create ok --dry-run --json")
    assert (answer.status, json.loads(answer.out)["possible"]) == (0, True)
    answer = await desk.run(alice, "env create ok --compute moon --memory 1KiB --dry-run")
    assert answer.status == 1
    assert "moon" in answer.out
    assert json.loads((await desk.run(alice, "env list --json")).out) == []


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("env create", 2),
        ("env create a --name b", 2),
        ("env create Ä", 2),
        ("env create a --memory lots", 2),
        ("env create a --env NOVALUE", 2),
        ("env create a --lifecycle forever", 2),
        ("env create a --lifecycle on-demand --idle soon", 2),
        ("env start nothing", 1),
        ("env list --all", 77),
    ],
)
async def test_refusals(desk: Desk, alice: Caller, command: str, status: int) -> None:
    answer = await desk.run(alice, command)
    assert (answer.status, answer.out) == (status, "")
    assert answer.err


async def test_a_name_that_is_taken(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create a")
    answer = await desk.run(alice, "env create a")
    assert (answer.status, "already" in answer.err) == (1, True)


async def test_administrators_see_and_stop_everybodys(desk: Desk, alice: Caller, bob: Caller, admin: Caller) -> None:
    await desk.run(alice, "env create train --wait")
    assert "alice" in (await desk.run(admin, "env list --all")).out
    assert (await desk.run(bob, "env stop train.alice")).status == 1
    assert (await desk.run(admin, "env stop train.alice --wait")).status == 0


async def test_logs(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create train --wait")
    assert (await desk.run(alice, "env logs train")).out == "train is up\n"
    assert json.loads((await desk.run(alice, "env logs train --json")).out)["lines"] == ["train is up"]


# ---- life cycles -------------------------------------------------------------------------------------------------
async def test_a_life_cycle_is_chosen_shown_and_changed(desk: Desk, alice: Caller) -> None:
    made = await desk.run(alice, "env create nap --lifecycle on-demand --idle 90m --wait --json")
    row = json.loads(made.out)
    assert (row["lifecycle"], row["idle_seconds"], row["next_step"]) == ("on-demand", 5400, "sleep")
    assert "on-demand" in (await desk.run(alice, "env list")).out
    changed = await desk.run(alice, "env set nap --lifecycle ephemeral --json")
    row = json.loads(changed.out)
    assert (row["lifecycle"], row["idle_seconds"], row["next_step"]) == ("ephemeral", None, "delete")
    assert "'nap' is deleted 30 min after your last session there ended, with everything in it" in changed.err
    row = json.loads((await desk.run(alice, "env set nap --idle 1m --json")).out)
    assert (row["lifecycle"], row["idle_seconds"]) == ("ephemeral", 60)
    await desk.run(alice, "env set nap --lifecycle persistent")
    refused = await desk.run(alice, "env set nap --idle 1m")
    assert refused.status == 2
    assert refused.err.startswith("--idle goes with --lifecycle on-demand or ephemeral, and 'nap' has neither\n")
    assert (await desk.run(alice, "env set nap")).status == 2
    refused = await desk.run(alice, "env set nap --lifecycle scheduled --start-at soon")
    assert (refused.status, "'soon' is no cron expression" in refused.err) == (2, True)
    assert (await desk.run(alice, "env set nothing --lifecycle persistent")).status == 1


async def test_a_dry_run_reads_cron(desk: Desk, alice: Caller) -> None:
    command = "env create desk --lifecycle scheduled --start-at '{}' --dry-run --json"
    assert json.loads((await desk.run(alice, command.format("0 8 * * MON-FRI"))).out)["possible"]
    answer = json.loads((await desk.run(alice, command.format("0 25 * * *"))).out)
    (refusal,) = answer["refusals"]
    assert refusal.startswith("'0 25 * * *' is no cron expression")


# ---- config ------------------------------------------------------------------------------------------------------
def resolved(file: Path, host: str) -> dict[str, str]:
    """What the real ssh makes of it."""
    done = subprocess.run(["ssh", "-F", str(file), "-G", host], capture_output=True, text=True, check=True)
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())


async def test_the_configuration_works_in_ssh(desk: Desk, alice: Caller, tmp_path: Path) -> None:
    for name in ("train", "v1.2"):
        await desk.run(alice, f"env create {name}")
    printed = await desk.run(alice, "config", host_keys=["ssh-ed25519 AAAAgateway"])
    assert printed.out == (await desk.run(alice, "config", host_keys=["ssh-ed25519 AAAAgateway"])).out
    file = tmp_path / "config"
    file.write_text(printed.out)
    gateway = resolved(file, "gw")
    assert (gateway["hostname"], gateway["port"], gateway["user"]) == ("gw.example.org", "2022", "alice")
    for name in ("train", "v1.2"):
        host = resolved(file, name)
        assert (host["hostname"], host["port"], host["user"]) == (name, "22", "alice")
        assert host["proxyjump"] == "alice@gw.example.org:2022"
        assert host["hostkeyalias"] == f"{name}.alice.gw.example.org"
        assert host["serveraliveinterval"] == "30"


async def test_known_hosts_lines_are_understood(desk: Desk, alice: Caller, tmp_path: Path) -> None:
    await desk.run(alice, "env create train")
    file = tmp_path / "known_hosts"
    file.write_text((await desk.run(alice, "config --known-hosts")).out)
    found = subprocess.run(
        ["ssh-keygen", "-F", "train.alice.gw.example.org", "-f", file], capture_output=True, text=True, check=True
    )
    key = await desk.services.guests.public_key(alice.user_id, "train")
    assert key in found.stdout


async def test_an_environment_with_the_gateways_name_makes_no_circle(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create gw")
    await desk.run(alice, "env create localhost")
    hosts = json.loads((await desk.run(alice, "config --json", host="localhost")).out)
    assert [host["host"] for host in hosts] == ["gw-ashore", "gw", "localhost.alice"]


async def test_a_link_for_vscode(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create train")
    link = (await desk.run(alice, "config --vscode-link train")).out
    assert link == "vscode://vscode-remote/ssh-remote+train/workspace\n"
    assert (await desk.run(alice, "config --vscode-link nothing")).status == 1


# ---- doctor ------------------------------------------------------------------------------------------------------
async def test_the_house_is_well(desk: Desk, alice: Caller) -> None:
    findings = json.loads((await desk.run(alice, "doctor --json")).out)
    assert {row["name"]: row["ok"] for row in findings} == {
        "database": True, "object store": True, "compute memory": True, "image registry": True,
    }  # fmt: skip
    assert "ok " in (await desk.run(alice, "doctor")).out


async def test_a_compute_that_is_away_is_red(desk: Desk, alice: Caller) -> None:
    desk.services.computes["memory"]._engine.away = True  # type: ignore[attr-defined]
    answer = await desk.run(alice, "doctor")
    assert answer.status == 1
    assert "BAD  compute memory" in answer.out


async def test_an_environment_is_asked_what_an_editor_needs(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "env create train --wait")
    findings = {row["name"]: row for row in json.loads((await desk.run(alice, "doctor train --json")).out)}
    assert findings["bash"]["ok"]
    assert findings["C library"]["detail"].startswith("glibc 2.")
    assert set(findings) >= {"tar", "curl or wget", "localhost", "home writable", "free disk"}


async def test_data_sets_and_models_are_named_and_shown(desk: Desk, alice: Caller) -> None:
    for line in ("dataset create mnist:v1", "dataset create cifar:v1", "model create bert:base"):
        assert (await desk.run(alice, line)).status == 0
    line = "env create train --model bert --data mnist:v1 --dataset cifar"
    mounts = [
        {"kind": "model", "version": "bert:base", "path": "/gemini/pretrain1"},
        {"kind": "dataset", "version": "mnist:v1", "path": "/gemini/data-1"},
        {"kind": "dataset", "version": "cifar:v1", "path": "/gemini/data-2"},
    ]
    assert json.loads((await desk.run(alice, f"{line} --dry-run --json")).out)["mounts"] == mounts
    told = (await desk.run(alice, f"{line} --dry-run")).out
    assert "/gemini/pretrain1=bert:base, /gemini/data-1=mnist:v1, /gemini/data-2=cifar:v1" in told
    assert (await desk.run(alice, line)).status == 0
    shown = json.loads((await desk.run(alice, "env show train --json")).out)
    assert shown["mounts"] == [*mounts[1:], mounts[0]]
    assert shown["variables"] == ["ASHORE_DATA"]
    assert "/gemini/data-2=cifar:v1" in (await desk.run(alice, "env show train")).out
    (listed,) = json.loads((await desk.run(alice, "env list --json")).out)
    assert listed["mounts"] == shown["mounts"]


async def test_what_an_environment_has_is_not_deleted(desk: Desk, alice: Caller, bob: Caller) -> None:
    await desk.run(alice, "dataset create mnist:v1")
    await desk.run(alice, "env create train --data mnist --wait")
    refused = await desk.run(alice, "dataset delete mnist")
    assert (refused.status, refused.err) == (1, "'mnist' is mounted in train (alice): delete that environment first\n")
    assert (await desk.run(alice, "dataset delete mnist:v1")).status == 1
    await desk.run(alice, "env delete train --wait")
    assert (await desk.run(alice, "dataset delete mnist")).status == 0
    await desk.run(bob, "dataset create secret:v1")
    await desk.run(bob, "dataset set secret --visibility private")
    for name in ("secret", "secret:v1", "nothing", "other/secret"):
        answer = await desk.run(alice, f"env create spy --data {name}")
        assert (answer.status, answer.out) == (2, "")
        assert "there is no data set" in answer.err


async def test_what_failed_exits_with_1_and_not_as_if_a_service_were_away(desk: Desk, alice: Caller) -> None:
    said = "'train' failed: there is no image 'missing'\n"
    made = await desk.run(alice, "env create train --image missing --wait")
    assert (made.status, made.err.splitlines(keepends=True)[-1]) == (1, said)
    started = await desk.run(alice, "env start train --wait")
    assert (started.status, started.err.splitlines(keepends=True)[-1]) == (1, said)


async def test_stats_of_each_process_on_a_gpu(desk: Desk, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    made = json.loads((await desk.run(alice, "env create train --wait --json")).out)
    async with desk.services.database.writing() as tx:
        values = {"gpus": 1, "reserves": True, "cards": {"GPU-1": "H100"}}
        await tx.execute(update(Environment).where(Environment.id == made["id"]).values(**values))
    share = GpuShare(90, 3 * 1024**3, (ProcessLoad(4712, None, 0), ProcessLoad(4711, 90, 3 * 1024**3)))

    async def loads(compute: object) -> list[GpuLoad]:
        return [GpuLoad("GPU-1", 97, 4 * 1024**3, 80 * 1024**3, {f"memory-{made['id']}": share})]

    monkeypatch.setattr(MemoryCompute, "gpu_loads", loads)
    (row,) = json.loads((await desk.run(alice, "env stats --json")).out)
    (card,) = row["gpus"]
    assert card["processes"] == [
        {"pid": 4711, "percent": 90, "memory": 3 * 1024**3}, {"pid": 4712, "percent": None, "memory": 0},
    ]  # fmt: skip
    lines = [line.split() for line in (await desk.run(alice, "env stats")).out.splitlines()]
    assert lines[-2:] == [
        ["process", "4711", "90%", "3GiB", "on", "card", "1"], ["process", "4712", "-", "0B", "on", "card", "1"],
    ]  # fmt: skip


async def test_stats_of_what_runs(desk: Desk, alice: Caller, bob: Caller) -> None:
    assert json.loads((await desk.run(alice, "env stats --json")).out) == []
    await desk.run(alice, "env create train --cpu 2 --memory 1GiB --wait")
    await desk.run(alice, "env create asleep --wait")
    await desk.run(alice, "env stop asleep --wait")
    (row,) = json.loads((await desk.run(alice, "env stats --json")).out)
    assert (row["name"], row["cores"], row["cpus"], row["memory_limit"]) == ("train", 0.0, 2.0, 1024**3)
    assert row["gpus"] == []
    shown = await desk.run(alice, "env stats train")
    assert (shown.status, "1GiB" in shown.out, "CORES" in shown.out) == (0, True, True)
    assert shown.out.splitlines()[-1].rstrip().endswith(" -")
    nothing = await desk.run(alice, "env stats asleep")
    assert (nothing.status, nothing.out) == (0, "")
    assert "nothing runs" in nothing.err
    assert (await desk.run(bob, "env stats train.alice")).status == 1
    assert (await desk.run(bob, "env stats --all")).status == 77


async def test_for_how_long_the_output_is_kept(desk: Desk, alice: Caller) -> None:
    async def days(command: str) -> object:
        answer = await desk.run(alice, f"{command} --json")
        assert answer.status == 0, answer.err
        return json.loads(answer.out)["keep_output_days"]

    assert await days("env create train --dry-run --lifecycle ephemeral") == 14
    assert await days("env create train --dry-run --keep-output 5d") == 5
    assert await days("env create train --wait") == 0
    assert await days("env set train --keep-output 9") == 9
    assert await days("env set train --lifecycle on-demand --idle 2h") == 9
    refused = await desk.run(alice, "env set train --keep-output 3 --lifecycle ephemeral --app nosuch")
    assert (refused.status, "no application 'nosuch'" in refused.err) == (2, True)
    shown = json.loads((await desk.run(alice, "env show train --json")).out)
    assert (shown["keep_output_days"], shown["lifecycle"]) == (9, "on-demand")
    assert await days("env set train --keep-output default") == 0
    assert await days("env set train --lifecycle ephemeral --keep-output no") == 0
    assert json.loads((await desk.run(alice, "env show train --json")).out)["lifecycle"] == "ephemeral"
    assert (await desk.run(alice, "env delete train --keep-output 30")).status == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("env create a --keep-output soon", "no number of days"),
        ("env create a --keep-output 9999", "1 to 3650 days"),
        ("env set a", "say what to change"),
        ("env set a --timezone UTC --keep-output 3", "say --lifecycle too"),
        ("env delete a --keep-output 3 --discard-output", "not allowed with"),
        ("env delete a --keep-output", "expected one argument"),
    ],
)
async def test_wrong_words_about_the_output(desk: Desk, alice: Caller, command: str, words: str) -> None:
    answer = await desk.run(alice, command)
    assert answer.status == 2
    assert words in answer.err


async def test_an_output_is_shared(desk: Desk, services: Services, alice: Caller, bob: Caller) -> None:
    """At first it is its owner's alone."""
    async with services.database.writing() as tx:
        tx.add(Artifact(
            workspace_id=alice.workspace_id, owner_id=alice.user_id, owner_name="alice", environment_id="e1",
            environment_name="train", name="train-1", prefix="artifacts/team/train-1/", state=ArtifactState.READY,
            created=now(),
        ))  # fmt: skip
    assert json.loads((await desk.run(bob, "artifact list --json")).out) == []
    hidden = await desk.run(bob, "artifact share train-1 --visibility workspace")
    assert (hidden.status, hidden.err) == (1, "there is no artifact 'train-1'\n")
    assert (await desk.run(alice, "artifact share train-1")).status == 2
    assert (await desk.run(alice, "artifact share train-1 --visibility public")).status == 2
    shared = json.loads((await desk.run(alice, "artifact share train-1 --visibility workspace --json")).out)
    assert shared == {"name": "train-1", "visibility": "workspace"}
    (row,) = json.loads((await desk.run(bob, "artifact list --json")).out)
    assert (row["name"], row["visibility"]) == ("train-1", "workspace")
    assert (await desk.run(bob, "artifact share train-1 --visibility private")).status == 77
    async with services.database.reading() as tx:
        event = (await tx.scalars(select(AuditEvent).where(AuditEvent.action == "artifact.share"))).one()
    assert (event.actor, event.thing, event.detail) == ("alice", "train-1", {"visibility": "workspace"})


async def test_artifacts_that_are_not_there(desk: Desk, alice: Caller, admin: Caller) -> None:
    assert json.loads((await desk.run(alice, "artifact list --json")).out) == []
    assert (await desk.run(alice, "artifact list --all")).status == 77
    assert (await desk.run(admin, "artifact list --all")).status == 0
    for name in ("train-20260301-1a2b3c", "../x", "other/train", "X"):
        for verb in ("show", "delete"):
            answer = await desk.run(alice, f"artifact {verb} {name}")
            assert (answer.status, "there is no artifact" in answer.err) == (1, True)
