"""Official images that the registry lists: real `docker-registry`, and what people see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from backends.image_names import LATEST
from backends.images import Images
from backends.official import OfficialList
from backends.reconcilers.official import OfficialImages
from backends.registry import Registry, official_of
from backends.registry_child import EmbeddedRegistry
from backends.registry_login import is_ours
from backends.settings import ImageSettings, OfficialImageSettings, RegistrySettings
from storage.access import Caller
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import BadInput, NotFound, Unavailable
from storage.records import Environment, ImageKind
from tests.backends.test_image_registry import put_image


class House:
    """The registry with its curator, the loop, and the catalogue of a process beside the one with the loop."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        settings: RegistrySettings,
        data: Path,
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        self.stop = stop
        self.settings = settings.model_copy(update={"official_from": ("library", "team/base")})
        self.curator = Registry(settings)
        self.listings = official_of(self.settings)
        self.loop = OfficialImages(self.listings, OfficialList.in_directory(data))
        chosen = ImageSettings(official=(OfficialImageSettings(name="mine:1", reference="docker.io/library/busybox"),))

        def images_of(settings: RegistrySettings) -> Images:
            return Images(database, audit, changes, settings, chosen, listed=OfficialList.in_directory(data))

        self.images_of = images_of
        self.images = images_of(self.settings)
        self.database = database

    async def names(self, caller: Caller) -> Sequence[str]:
        found = await self.images.list(caller)
        assert all(one.kind is ImageKind.OFFICIAL and one.is_usable for one in found)
        return [one.title for one in found]

    async def close(self) -> None:
        for registry in (self.curator, *self.listings.values()):
            await registry.close()


@pytest.fixture
async def house(database: Database, audit: AuditTrail, changes: Changes, tmp_path: Path) -> AsyncIterator[House]:
    child = EmbeddedRegistry(tmp_path / "registry", log=tmp_path / "registry.log")
    house = House(database, audit, changes, await child.start(RegistrySettings()), tmp_path, child.close)
    yield house
    await house.close()
    await child.close()


async def test_what_the_registry_lists_is_offered_to_everybody(house: House, alice: Caller) -> None:
    assert await house.names(alice) == ["mine:1"]
    first = await put_image(house.curator, "library/debian", "12")
    await put_image(house.curator, "library/pytorch", LATEST, b"torch" * 100)
    await put_image(house.curator, "library/a/b", "1")
    await put_image(house.curator, "library/debian", "V1")
    await put_image(house.curator, "team/base/tools", "v1")
    await put_image(house.curator, "somebody/secret", "v1")
    await house.loop.look()
    assert await house.names(alice) == ["mine:1", "debian:12", "pytorch:latest", "tools:v1"]
    host = house.settings.prefix
    async with house.database.reading() as tx:
        chosen = await house.images.resolve(tx, alice, "debian:12")
        assert (await house.images.resolve(tx, alice, "pytorch")).title == "pytorch:latest"
        with pytest.raises(BadInput, match="write its name instead"):
            await house.images.resolve(tx, alice, f"{host}library/debian:12")
    assert (chosen.reference, chosen.digest, chosen.image_id) == (f"{host}library/debian@{first}", first, "")
    assert house.images.source_of(chosen).auth
    assert is_ours(house.settings, chosen.reference)


async def test_an_environment_keeps_the_digest_and_an_absent_registry_the_list(house: House, alice: Caller) -> None:
    """A tag may be pushed again, and at a start nobody may get what some other registry has under the same name."""
    first = await put_image(house.curator, "library/debian", "12")
    await house.loop.look()
    made = Environment(
        owner_id=alice.user_id, owner_name="alice", workspace_id=alice.workspace_id, name="train", compute="docker",
        image="debian:12", image_digest=first, created=now(),
    )  # fmt: skip
    second = await put_image(house.curator, "library/debian", "12", b"newer" * 100)
    await house.loop.look()
    async with house.database.reading() as tx:
        assert (await house.images.resolve(tx, alice, "debian:12")).digest == second
    assert (await house.images.source(made)).reference == f"{house.settings.prefix}library/debian@{first}"
    await house.stop()
    with pytest.raises(Unavailable):
        await house.loop.look()
    assert await house.names(alice) == ["mine:1", "debian:12"]
    made.image = "other:1"
    with pytest.raises(NotFound, match="is not in the registry of this house any more"):
        await house.images.source(made)


async def test_a_list_of_the_registry_of_before_gets_no_login(house: House, alice: Caller) -> None:
    """Our own registry has another port after a start if somebody has taken the former one; the list is older."""
    await put_image(house.curator, "library/debian", "12")
    await house.loop.look()
    house.images = house.images_of(house.settings.model_copy(update={"url": "http://127.0.0.1:1"}))
    async with house.database.reading() as tx:
        chosen = await house.images.resolve(tx, alice, "debian:12")
    assert chosen.digest
    assert house.images.source_of(chosen).auth == ""
    made = Environment(
        owner_id=alice.user_id, owner_name="alice", workspace_id=alice.workspace_id, name="train", compute="docker",
        image="debian:12", image_digest=chosen.digest, created=now(),
    )  # fmt: skip
    assert (await house.images.source(made)).auth == ""


@pytest.mark.parametrize("project", ["ashore", "ashore/people", "library/people"])
def test_where_people_push_is_nothing_official(project: str) -> None:
    with pytest.raises(ValidationError, match="where people's own images are kept"):
        RegistrySettings(
            url="https://r", user="u", password=SecretStr("p"), project=project, official_from=("ashore", "library")
        )
