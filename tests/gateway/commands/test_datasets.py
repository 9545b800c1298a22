"""`dataset` and `model` on the real use cases."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from backends.reconcilers.deletions import DeletionReconciler
from storage.access import Caller
from storage.clock import now
from storage.records import FileFact, Workspace
from storage.uses import Mount
from tests.gateway.commands.conftest import Desk, Shelf


async def test_create_show_files_delete(desk: Desk, alice: Caller, shelf: Shelf) -> None:
    assert (await desk.run(alice, "dataset create mnist:v1")).out == "/datasets/mnist/v1\n"
    shelf.objects = {
        "datasets/team/mnist/v1/train/a": b"12345",
        "datasets/team/mnist/v1/test/b\x1b[2J": b"1",
        "datasets/team/other/v1/c": b"",
    }
    shown = json.loads((await desk.run(alice, "dataset show mnist --json")).out)
    assert (shown["files"], shown["bytes"], shown["default_version"]) == (2, 6, "v1")
    assert shown["versions"][0]["state"] == "uploading"
    assert json.loads((await desk.run(alice, "dataset show mnist:v1 --json")).out)["bytes"] == 6
    rows = json.loads((await desk.run(alice, "dataset files mnist --json")).out)
    assert [(row["path"], row["size"]) for row in rows] == [("test/b\x1b[2J", 1), ("train/a", 5)]
    text = (await desk.run(alice, "dataset files mnist:v1")).out
    assert "train/a" in text
    assert "\x1b" not in text
    below = json.loads((await desk.run(alice, "dataset files mnist:v1 train --json")).out)
    assert [row["path"] for row in below] == ["train/a"]
    assert (await desk.run(alice, "dataset delete mnist")).status == 0
    assert list(shelf.objects) == ["datasets/team/other/v1/c"]


async def test_list(desk: Desk, alice: Caller, bob: Caller) -> None:
    assert json.loads((await desk.run(alice, "dataset list --json")).out) == []
    await desk.run(alice, "dataset create mnist:v1")
    await desk.run(alice, "dataset create mnist:v2")
    (row,) = json.loads((await desk.run(bob, "dataset list --json")).out)
    assert (row["name"], row["owner"]) == ("mnist", "alice")
    assert "v1, v2" in (await desk.run(bob, "dataset list")).out
    text = (await desk.run(bob, "dataset show mnist")).out
    assert "uploading" in text


async def test_one_version_goes_and_the_others_stay(desk: Desk, alice: Caller) -> None:
    for version in ("v1", "v2"):
        await desk.run(alice, f"dataset create mnist:{version}")
    assert (await desk.run(alice, "dataset delete mnist:v1")).status == 0
    (row,) = json.loads((await desk.run(alice, "dataset list --json")).out)
    assert [version["name"] for version in row["versions"]] == ["v2"]


async def test_only_its_owner_deletes(desk: Desk, alice: Caller, bob: Caller) -> None:
    await desk.run(alice, "dataset create mnist")
    assert (await desk.run(bob, "dataset delete mnist")).status == 77
    assert (await desk.run(bob, "dataset create mnist:v1")).status == 77


async def test_publish_tag_set_share(desk: Desk, alice: Caller, bob: Caller, shelf: Shelf) -> None:
    created = "dataset create mnist:v1 --visibility private --tag vision --description 'all digits' --json"
    row = json.loads((await desk.run(alice, created)).out)
    assert (row["visibility"], row["tags"], row["description"]) == ("private", ["vision"], "all digits")
    assert json.loads((await desk.run(bob, "dataset list --json")).out) == []
    assert (await desk.run(bob, "dataset show mnist")).status == 1
    assert "no files" in (await desk.run(alice, "dataset publish mnist:v1")).err
    shelf.objects = {"datasets/team/mnist/v1/a": b"12345"}
    assert (await desk.run(alice, "dataset publish mnist")).status == 2
    answer = await desk.run(alice, "dataset publish mnist:v1")
    assert answer.out == "mnist:v1 is published: 1 file, 5B, read-only from now on\n"
    assert "published already" in (await desk.run(alice, "dataset publish mnist:v1")).err
    tags = json.loads((await desk.run(alice, "dataset tag mnist small --remove vision --json")).out)["tags"]
    assert tags == ["small"]
    assert (await desk.run(alice, "dataset tag mnist")).status == 2
    assert "private" in (await desk.run(alice, "dataset share mnist --with lab")).err
    assert (await desk.run(alice, "dataset set mnist")).status == 2
    assert (await desk.run(alice, "dataset set mnist --visibility secret")).status == 2
    text = (await desk.run(alice, "dataset set mnist --visibility public --default v1")).out
    assert "public" in text
    assert "ready" in text
    (row,) = json.loads((await desk.run(bob, "dataset list --tag small --visibility public --json")).out)
    assert (row["default_version"], row["versions"][0]["state"]) == ("v1", "ready")
    assert (await desk.run(bob, "dataset set mnist --visibility private")).status == 77
    assert (await desk.run(bob, "dataset publish mnist:v1")).status == 77


async def test_sharing_with_another_workspace(desk: Desk, alice: Caller, bob: Caller) -> None:
    async with desk.services.database.writing() as tx:
        lab = Workspace(name="lab", created=now())
        tx.add(lab)
    eve = replace(bob, workspace_id=lab.id, workspace="lab")
    await desk.run(alice, "dataset create mnist:v1")
    assert (await desk.run(alice, "dataset share mnist --with nowhere")).status == 1
    shared = json.loads((await desk.run(alice, "dataset share mnist --with lab --json")).out)
    assert shared == {"name": "mnist", "visibility": "workspace", "shared_with": ["lab"]}
    (row,) = json.loads((await desk.run(eve, "dataset list --shared --json")).out)
    assert (row["name"], row["workspace"]) == ("mnist", "team")
    assert "team/mnist" in (await desk.run(eve, "dataset list --shared")).out
    assert (await desk.run(eve, "dataset show team/mnist:v1")).status == 0
    assert (await desk.run(eve, "dataset show mnist")).status == 1
    assert (await desk.run(eve, "dataset delete team/mnist")).status == 77
    await desk.run(alice, "dataset share mnist --with lab --stop")
    assert (await desk.run(eve, "dataset show team/mnist")).status == 1


async def test_uses_and_duplicates(desk: Desk, alice: Caller) -> None:
    await desk.run(alice, "dataset create mnist:v1")
    version = (await desk.services.datasets.find(alice, "mnist")).version("v1")
    async with desk.services.database.writing() as tx:
        await desk.services.uses.begin(tx, alice, version.id, Mount("e1", "train", "/gemini/data-1"))
        for name in ("a", "b\x1b[2J"):
            tx.add(FileFact(key=f"datasets/team/mnist/v1/{name}", size=7, mtime=1, sha256="5" * 64))
    (row,) = json.loads((await desk.run(alice, "dataset uses mnist --json")).out)
    assert (row["environment"], row["user"], row["unmounted"]) == ("train", "alice", None)
    answer = await desk.run(alice, "dataset delete mnist")
    assert (answer.status, "train (alice)" in answer.err) == (1, True)
    (row,) = json.loads((await desk.run(alice, "dataset duplicates mnist:v1 --json")).out)
    assert (row["size"], len(row["paths"]), row["elsewhere"]) == (7, 2, [])
    text = (await desk.run(alice, "dataset duplicates mnist")).out
    assert "7B" in text
    assert "\x1b" not in text


async def test_delete_waits_and_shows_how_far_it_is(desk: Desk, alice: Caller, shelf: Shelf) -> None:
    services = desk.services
    await desk.run(alice, "dataset create big:v1")
    shelf.objects = {f"datasets/team/big/v1/{number}": b"" for number in range(5)}
    shelf.away = True
    answer = await desk.run(alice, "dataset delete big --json")
    assert json.loads(answer.out) == {"deleted": "big", "finished": False, "objects": 0}
    assert "being deleted: big: 0 objects removed; the object store" in (await desk.run(alice, "dataset list")).err
    shelf.away = False
    loop = asyncio.create_task(DeletionReconciler(services.deletions, services.changes).run())
    await desk.run(alice, "dataset create small:v1")
    answer = await desk.run(alice, "dataset delete small --wait --json")
    assert json.loads(answer.out)["finished"]
    async with asyncio.timeout(60):
        while await services.deletions.pending():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert not shelf.objects


async def test_models(desk: Desk, alice: Caller, shelf: Shelf) -> None:
    await desk.run(alice, "model create bert:v1 --framework PyTorch --task nlp")
    shelf.objects = {"models/team/bert/v1/weights": b"12345"}
    assert (await desk.run(alice, "model set bert:v1 --metric accuracy=0.93 --metric f1=1")).status == 0
    for bad in ("accuracy", "accuracy=x", "=1", "accuracy=nan"):
        assert (await desk.run(alice, f"model set bert:v1 --metric {bad}")).status == 2
    assert (await desk.run(alice, "model link mine --to bert:v1")).status == 2
    assert (await desk.run(alice, "model link mine:base --to bert:v1")).status == 1
    await desk.run(alice, "model publish bert:v1")
    linked = json.loads((await desk.run(alice, "model link mine:base --to bert:v1 --json")).out)
    assert linked["versions"][0]["link"] == "team/bert:v1"
    assert (linked["bytes"], linked["versions"][0]["bytes"]) == (0, 5)
    (row,) = json.loads((await desk.run(alice, "model list --framework pytorch --task nlp --json")).out)
    assert row["versions"][0]["metrics"] == {"accuracy": 0.93, "f1": 1.0}
    text = (await desk.run(alice, "model show bert")).out
    assert "accuracy=0.93" in text
    assert [row["path"] for row in json.loads((await desk.run(alice, "model files mine --json")).out)] == ["weights"]
    assert "team/mine:base" in (await desk.run(alice, "model delete bert")).err
    assert json.loads((await desk.run(alice, "dataset list --json")).out) == []


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("dataset create mnist", 1),
        ("dataset show nothing", 1),
        ("dataset show mnist:v9", 1),
        ("dataset files mnist", 1),
        ("dataset create ..", 2),
        ("dataset files x:../../..", 2),
        ("dataset create a:b:c", 2),
    ],
)
async def test_refusals(desk: Desk, alice: Caller, command: str, status: int) -> None:
    await desk.run(alice, "dataset create mnist")
    answer = await desk.run(alice, command)
    assert (answer.status, answer.out) == (status, "")
