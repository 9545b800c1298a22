"""`image …` and `env create --image`, as people type them."""

from __future__ import annotations

import json

from backends.images import ImageFacts
from backends.services import Services
from storage.access import Caller
from storage.records import ImageKind
from tests.gateway.commands.conftest import Desk

DIGEST = "sha256:" + "1" * 64


async def ready(services: Services, owner: Caller, tag: str = "v1") -> None:
    async with services.database.writing() as tx:
        row = await services.images.begin(tx, owner, "model", tag, kind=ImageKind.IMPORTED)
        await services.images.finish(tx, row.id, ImageFacts(DIGEST, 3 * 1024**3, "amd64", "12.4", ">=550"))


async def test_the_list(desk: Desk, services: Services, alice: Caller, bob: Caller) -> None:
    await ready(services, alice)
    mine = json.loads((await desk.run(alice, "image list --json")).out)
    assert [(row["name"], row["kind"], row["usable"]) for row in mine] == [
        ("model:v1", "imported", True), ("pytorch:2.4", "official", True),
    ]  # fmt: skip
    assert mine[0]["digest"] == DIGEST
    text = (await desk.run(alice, "image list")).out
    assert "3GiB" in text
    assert "12.4" in text
    assert "model" not in (await desk.run(bob, "image list")).out
    assert (await desk.run(alice, "image list --all")).status == 77
    assert (await desk.run(alice, "image list --registry")).status == 77


async def test_showing_sharing_deleting(desk: Desk, services: Services, alice: Caller, bob: Caller) -> None:
    await ready(services, alice)
    assert json.loads((await desk.run(alice, "image show model --json")).out)["cuda"] == "12.4"
    assert json.loads((await desk.run(alice, "image show pytorch:2.4 --json")).out)["kind"] == "official"
    hidden = await desk.run(bob, "image show alice/model:v1")
    assert (hidden.status, hidden.err) == (1, "there is no image 'alice/model:v1'\n")
    for command in ("env create spy --image alice/model:v1", "env create spy --image alice/model:v1 --dry-run"):
        answer = await desk.run(bob, command)
        assert answer.status == 1
        assert "there is no image 'alice/model:v1'" in answer.err + answer.out
    assert (await desk.run(bob, "env create spy --image alice/model:v1 --cpu 999")).status == 2
    assert (await desk.run(alice, "image share model:v1")).status == 2
    assert (await desk.run(alice, "image share model:v1 --visibility workspace")).status == 0
    assert (await desk.run(bob, "image show alice/model:v1")).status == 0
    assert (await desk.run(bob, "image delete alice/model:v1")).status == 77
    assert (await desk.run(alice, "image delete model:v1")).status == 0
    assert (await desk.run(alice, "image show model:v1")).status == 1
    assert (await desk.run(alice, "image pull model:v1 here")).status == 77


async def test_environments_are_made_from_them(desk: Desk, services: Services, alice: Caller, bob: Caller) -> None:
    await ready(services, alice)
    plan = json.loads((await desk.run(alice, "env create train --image model --dry-run --json")).out)
    assert (plan["image"], plan["refusals"]) == ("model:v1", [])
    assert (await desk.run(alice, "env create train --image model")).status == 0
    environment = await services.environments.show(alice, "train")
    assert (environment.image, environment.image_digest) == ("model:v1", DIGEST)
    refused = await desk.run(alice, "image delete model:v1")
    assert refused.status == 1
    assert "train.alice" in refused.err
    reference = json.loads((await desk.run(alice, "image show model --json")).out)["reference"]
    for written in (f"{reference}:v1", f"{reference}@{DIGEST}"):
        raw = await desk.run(bob, f"env create steal --image {written}")
        assert raw.status == 2
        assert "registry of this house" in raw.err
    raw = await desk.run(bob, f"env create steal --image {DIGEST}")
    assert raw.status == 2


async def test_official_ones_mean_their_reference(desk: Desk, services: Services, alice: Caller) -> None:
    assert (await desk.run(alice, "env create train --image pytorch:2.4")).status == 0
    environment = await services.environments.show(alice, "train")
    assert (environment.image, environment.image_id) == ("pytorch:2.4", "")
    assert (await services.images.source(environment)).reference == "docker.io/pytorch/pytorch:2.4.1"
