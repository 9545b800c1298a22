"""Images: whose they are, who may use them, by which name; and what archives and builds say of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from backends.environments import Environments
from backends.image_names import ImageName, check_image, check_plain, name_of_file, parse_image, parse_new
from backends.images import ImageFacts, Images
from backends.planning import Request
from backends.reconcilers.environments import EnvironmentReconciler
from backends.settings import DockerSettings, ImageSettings, OfficialImageSettings, RegistrySettings
from storage.access import Caller, Visibility
from storage.accounts import Accounts
from storage.audit import AuditTrail
from storage.changes import Changes
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AshoreError, BadInput, Conflict, InUse, NotAllowed, NotFound, Unavailable
from storage.records import AuditEvent, Environment, EnvironmentState, Image, ImageKind, ImageState
from tests.backends.test_reconciler_environments import Guests, House
from tests.conftest import person
from tests.databases import KINDS

DATABASES = KINDS

DIGEST = "sha256:" + "1" * 64
NEWER = "sha256:" + "2" * 64
REGISTRY = RegistrySettings(url="http://127.0.0.1:5999")


@pytest.fixture
def images(database: Database, audit: AuditTrail, changes: Changes) -> Images:
    return Images(database, audit, changes, REGISTRY)


class Maker:
    """Makes images as archives and builds do."""

    def __init__(self, database: Database, images: Images) -> None:
        self.database, self.images = database, images

    async def begin(self, owner: Caller, name: str = "model", tag: str = "v1") -> Image:
        async with self.database.writing() as tx:
            return await self.images.begin(tx, owner, name, tag, kind=ImageKind.IMPORTED)

    async def ready(
        self, owner: Caller, name: str = "model", tag: str = "v1", *, digest: str = DIGEST,
        visibility: Visibility = Visibility.PRIVATE,
    ) -> Image:  # fmt: skip
        row = await self.begin(owner, name, tag)
        async with self.database.writing() as tx:
            await self.images.finish(tx, row.id, ImageFacts(digest, 10, "amd64"))
        if visibility is not Visibility.PRIVATE:
            await self.images.set_visibility(owner, f"{name}:{tag}", visibility)
        return row

    async def meant(self, caller: Caller, written: str) -> tuple[str, str]:
        async with self.database.reading() as tx:
            chosen = await self.images.resolve(tx, caller, written)
        return chosen.title, chosen.image_id


@pytest.fixture
def make(database: Database, images: Images) -> Maker:
    return Maker(database, images)


async def elsewhere(accounts: Accounts, name: str) -> Caller:
    """Somebody in another workspace."""
    caller = await person(accounts, name)
    return Caller(caller.user_id, name, False, "w2", "other")


# ---- names -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("written", "found"),
    [("model", ImageName("model")), ("model:v1", ImageName("model", "v1")),
     ("bob/model:v1", ImageName("model", "v1", "bob")), ("t/bob/m:1", ImageName("m", "1", "bob", "t")),
     ("a/b/c/d", None), ("Model", None), ("model@sha256:" + "1" * 64, None), ("model:", None), ("", None),
     ("127.0.0.1:5000/a/b/c", None), ("model:v1:v2", None), ("/model", None), ("a//b", None)],
)  # fmt: skip
def test_written_names(written: str, found: ImageName | None) -> None:
    assert parse_image(written) == found


@pytest.mark.parametrize(
    ("file", "found"),
    [("model_v1.tar", ("model", "v1")), ("my_model_v1.2.tar.gz", ("my_model", "v1.2")),
     ("model.tar", ("model", "latest")),
     ("model_v1.tgz", ("model", "v1")), ("model_v1.tar.zst", ("model", "v1")), ("Model_V1.TAR", ("model", "v1"))],
)  # fmt: skip
def test_names_of_files(file: str, found: tuple[str, str]) -> None:
    assert name_of_file(file) == found


@pytest.mark.parametrize(
    "file", ["model_v1", "model_v1.zip", "_v1.tar", "model_.tar", ".tar", "a b_v1.tar", "m\x1b_v1.tar"]
)
def test_names_of_files_that_say_no_image(file: str) -> None:
    with pytest.raises(BadInput) as caught:
        name_of_file(file)
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("name", ["a..b", "a._b", "a___b", "-a", "a.-b"])
def test_a_name_is_also_one_for_registries(name: str) -> None:
    with pytest.raises(BadInput):
        check_image(name, "v1")


@pytest.mark.parametrize(
    ("written", "found"),
    [("cafe", "docker.io/library/cafe:latest"), ("0123456789ab", "docker.io/library/0123456789ab:latest"),
     ("debian", "docker.io/library/debian:latest"), ("tools:v1", "docker.io/library/tools:v1"),
     ("a/b:c", "docker.io/a/b:c"), ("docker.io/debian:12", "docker.io/library/debian:12"),
     ("index.docker.io/library/debian:12", "docker.io/library/debian:12"), ("localhost/a", "localhost/a:latest"),
     ("quay.io/a/b/c:d", "quay.io/a/b/c:d"), ("r:5000/a:b", "r:5000/a:b"), ("r:5000/a", "r:5000/a:latest"),
     ("Host/a", "Host/a:latest"), ("a/b@" + DIGEST, "docker.io/a/b@" + DIGEST),
     ("a:b@" + DIGEST, "docker.io/library/a@" + DIGEST), ("a__b/c--d", "docker.io/a__b/c--d:latest")],
)  # fmt: skip
def test_references_in_full(written: str, found: str) -> None:
    """Docker takes (a part of) an id for any image that it has; Podman and buildah what ends like a short name."""
    assert check_plain(written) == found
    assert check_plain(found) == found


@pytest.mark.parametrize(
    "written",
    ["sha256:" + "a" * 64, "sha256:abc", "-x", "a b", "a\n", "", "docker://127.0.0.1:5000/a/b/c@" + DIGEST,
     "containers-storage:@abc", "docker-archive:/etc/x", "oci:/etc/x", "oci:a/b", "dir:/", "a@abc", "a@sha256:12",
     "a:", "a:b:c", "/a", "a/", "a//b", "A", "a/B", "r:port/a", "a/../b", "a:.b", "x." * 200 + "y/a",
     "docker.io/loaded.ashore.invalid/w/i/model:1", "index.docker.io/harbor.example.com/a/w/i/model:v1",
     "docker.io/localhost/a", "[::1]:5000/a", "a@" + DIGEST + "@" + DIGEST],
)  # fmt: skip
def test_no_references(written: str) -> None:
    """Also the transports of Podman and buildah, which read files of the host and images of others."""
    with pytest.raises(BadInput):
        check_plain(written)


async def test_engines_get_references_in_full_and_people_see_what_they_wrote(make: Maker, alice: Caller) -> None:
    async with make.database.reading() as tx:
        chosen = await make.images.resolve(tx, alice, "tools:v1")
    assert (chosen.title, chosen.reference) == ("tools:v1", "docker.io/library/tools:v1")
    environment = Environment(image=chosen.title, image_id="", image_digest="")
    assert (await make.images.source(environment)).reference == chosen.reference
    assert (await make.images.source(Environment(image="", image_id=""))).reference == ""


# ---- whose -------------------------------------------------------------------------------------------------------
async def test_two_people_have_images_of_one_name(make: Maker, images: Images, alice: Caller, bob: Caller) -> None:
    first, second = await make.ready(alice), await make.ready(bob, digest=NEWER)
    assert first.repository != second.repository
    assert await make.meant(alice, "model:v1") == ("model:v1", first.id)
    assert await make.meant(bob, "model:v1") == ("model:v1", second.id)
    assert [view.id for view in await images.list(alice)] == [first.id]
    assert [view.id for view in await images.list(bob)] == [second.id]


async def test_a_private_image_is_nobody_elses(make: Maker, images: Images, alice: Caller, bob: Caller) -> None:
    """By no name can it be seen or used: what is hidden is as what does not exist."""
    row = await make.ready(alice)
    for written in ("model:v1", "model", "alice/model:v1", "alice/model", f"{bob.workspace}/alice/model:v1"):
        if "/" not in written:
            assert await make.meant(bob, written) == (written, "")
        for question in (images.show(bob, written), images.delete(bob, written)):
            with pytest.raises(NotFound, match="there is no image"):
                await question
    assert await images.list(bob) == []
    assert (await images.show(alice, "model")).id == row.id


@pytest.mark.parametrize("form", ["{0}{1}:v1", "{0}{1}", "{0}{1}@" + DIGEST, "{0}", "{0}library/debian"])
async def test_the_registry_is_not_reached_by_its_address(make: Maker, alice: Caller, bob: Caller, form: str) -> None:
    """Docker starts what it has under that reference without asking anybody, and so without any password."""
    row = await make.ready(alice)
    written = form.format(REGISTRY.prefix, row.repository).rstrip("/")
    for caller in (alice, bob):
        with pytest.raises(BadInput, match="registry of this house"):
            await make.meant(caller, written)
        with pytest.raises(BadInput, match="registry of this house"):
            await make.meant(caller, written.upper().replace("SHA256", "sha256"))


async def test_a_digest_leads_to_no_hidden_image(make: Maker, images: Images, alice: Caller, bob: Caller) -> None:
    """Podman and buildah take any local image of that digest, whatever name is before it; also a former one."""
    await make.ready(alice)
    await make.ready(alice, digest=NEWER)
    for digest in (DIGEST, NEWER):
        with pytest.raises(NotFound, match="there is no image"):
            await make.meant(bob, f"any/thing@{digest}")
        assert await make.meant(alice, f"any/thing@{digest}") == (f"any/thing@{digest}", "")
    await images.set_visibility(alice, "model:v1", Visibility.WORKSPACE)
    assert await make.meant(bob, f"any/thing@{NEWER}") == (f"any/thing@{NEWER}", "")


async def test_a_colleagues_image_has_its_owner_in_its_name(
    make: Maker, images: Images, alice: Caller, bob: Caller
) -> None:
    """Or one person could put an image under the name of a well-known one, and everybody would start it."""
    row = await make.ready(alice, "debian", "bookworm", visibility=Visibility.WORKSPACE)
    assert await make.meant(bob, "debian:bookworm") == ("debian:bookworm", "")
    assert await make.meant(bob, "alice/debian:bookworm") == ("alice/debian:bookworm", row.id)
    assert [view.title for view in await images.list(bob)] == ["alice/debian:bookworm"]
    with pytest.raises(NotAllowed, match="only its owner"):
        await images.delete(bob, "alice/debian:bookworm")
    with pytest.raises(NotAllowed, match="only its owner"):
        await images.set_visibility(bob, "alice/debian:bookworm", Visibility.PRIVATE)


async def test_a_persons_name_before_an_image_leads_to_no_registry(make: Maker, alice: Caller, bob: Caller) -> None:
    """Or docker.io/alice/model of a stranger would run as soon as alice shares hers no more, or bob mistypes it."""
    await make.ready(alice)
    for written in ("alice/model:v1", "alice/model", "alice/modle:v1", f"{bob.workspace}/alice/model:v1"):
        with pytest.raises(NotFound, match="there is no image"):
            await make.meant(bob, written)
    for written in ("carol/model:v1", "elsewhere/alice/model:v1", "docker.io/alice/model:v1"):
        assert await make.meant(bob, written) == (written, "")


async def test_other_workspaces_see_public_ones(make: Maker, images: Images, accounts: Accounts, alice: Caller) -> None:
    eve = await elsewhere(accounts, "eve")
    row = await make.ready(alice, visibility=Visibility.WORKSPACE)
    written = f"{alice.workspace}/alice/model:v1"
    assert await images.list(eve) == []
    with pytest.raises(NotFound):
        await make.meant(eve, written)
    await images.set_visibility(alice, "model:v1", Visibility.PUBLIC)
    assert [view.title for view in await images.list(eve)] == [written]
    assert await make.meant(eve, written) == (written, row.id)


async def test_the_list_of_administrators(make: Maker, images: Images, alice: Caller, admin: Caller) -> None:
    await make.ready(alice)
    assert await images.list(admin) == []
    assert [view.title for view in await images.list(admin, everybody=True)] == ["alice/model:v1"]
    with pytest.raises(NotAllowed):
        await images.list(alice, everybody=True)


async def test_a_name_without_a_tag(make: Maker, alice: Caller) -> None:
    row = await make.ready(alice, tag="v1")
    assert await make.meant(alice, "model") == ("model:v1", row.id)
    await make.ready(alice, tag="v2")
    assert (await make.meant(alice, "model"))[1] == ""
    latest = await make.ready(alice, tag="latest")
    assert await make.meant(alice, "model") == ("model:latest", latest.id)


# ---- how it comes about ------------------------------------------------------------------------------------------
async def test_a_new_one_replaces_the_former_when_it_is_there(make: Maker, images: Images, alice: Caller) -> None:
    first = await make.ready(alice)
    again = await make.begin(alice)
    assert again.id == first.id
    assert await make.meant(alice, "model:v1") == ("model:v1", first.id)
    with pytest.raises(InUse, match="being made already"):
        await make.begin(alice)
    async with make.database.writing() as tx:
        await images.finish(tx, first.id, ImageFacts(NEWER))
    async with make.database.reading() as tx:
        row = await tx.get_one(Image, first.id)
    assert (row.digest, row.former) == (NEWER, [DIGEST])


async def test_one_that_failed(make: Maker, images: Images, alice: Caller) -> None:
    row = await make.begin(alice)
    async with make.database.writing() as tx:
        await images.fail(tx, row.id, "it broke")
    with pytest.raises(Conflict, match="failed \\(it broke\\)"):
        await make.meant(alice, "model:v1")
    await make.ready(alice)
    await make.begin(alice)
    async with make.database.writing() as tx:
        await images.fail(tx, row.id, "it broke again")
    view = await images.show(alice, "model:v1")
    assert (view.state, view.reason, view.digest) == (ImageState.READY, "it broke again", DIGEST)


async def test_one_that_is_used_stays(make: Maker, images: Images, alice: Caller) -> None:
    row = await make.ready(alice)
    environment = Environment(
        owner_id=alice.user_id, owner_name="alice", workspace_id=alice.workspace_id, name="train", compute="docker",
        image="model:v1", image_id=row.id, image_digest=DIGEST, created=now(),
    )  # fmt: skip
    async with make.database.writing() as tx:
        tx.add(environment)
    with pytest.raises(InUse, match=r"train\.alice"):
        await images.delete(alice, "model:v1")
    async with make.database.writing() as tx:
        await tx.delete(await tx.get_one(Environment, environment.id))
    await images.delete(alice, "model:v1")
    assert await images.list(alice) == []
    assert await make.meant(alice, "model:v1") == ("model:v1", "")
    with pytest.raises(InUse, match="still being deleted"):
        await make.begin(alice)


async def test_the_right_to_an_image_is_asked_again_at_each_start(
    make: Maker, images: Images, audit: AuditTrail, changes: Changes, alice: Caller, bob: Caller, tmp_path: Path
) -> None:
    """An engine would fetch it again with the login of the house, which may read everything."""
    await make.ready(alice, visibility=Visibility.WORKSPACE)
    house = House(make.database, audit, changes, tmp_path)
    environments = Environments(make.database, audit, changes, {"memory": house.compute}, house.settings, images=images)
    loop = EnvironmentReconciler(
        make.database, audit, changes, {"memory": house.compute}, Guests(), house.settings, images=images
    )
    task = asyncio.create_task(loop.run())
    try:
        made = await environments.create(bob, Request("b1", image="alice/model:v1"))
        await house.until_state(made, EnvironmentState.RUNNING)
        await images.set_visibility(alice, "model:v1", Visibility.PRIVATE)
        with pytest.raises(InUse, match=r"used by b1\.bob"):
            await images.delete(alice, "model:v1")
        assert (await house.row(made) or made).state is EnvironmentState.RUNNING
        await environments.stop(bob, "b1")
        await house.until_state(made, EnvironmentState.STOPPED)
        await environments.start(bob, "b1")
        row = await house.until_state(made, EnvironmentState.FAILED)
        assert row.reason.startswith("the image 'alice/model:v1' is not shared with 'bob' any more: ask its owner")
        async with make.database.reading() as tx:
            reasons = [one.detail.get("reason") for one in await tx.scalars(select(AuditEvent))]
        assert row.reason in reasons
        await images.delete(alice, "model:v1")
        await environments.start(bob, "b1")
        await house.until(made, lambda one: one.reason == "the image 'alice/model:v1' was deleted")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_names_for_new_images_and_of_official_ones(
    database: Database, audit: AuditTrail, changes: Changes, alice: Caller
) -> None:
    assert (parse_new("model"), parse_new("model:v1")) == (("model", "latest"), ("model", "v1"))
    with pytest.raises(BadInput, match="'model:' ends with a colon: write NAME:TAG"):
        parse_new("model:")
    one = OfficialImageSettings(name="deb:12", reference="docker.io/library/debian:12")
    images = Images(database, audit, changes, REGISTRY, ImageSettings(official=(one,)))
    with pytest.raises(NotAllowed, match="'deb:12' is an official image: it comes from the settings"):
        await images.delete(alice, "deb:12")
    with pytest.raises(NotAllowed, match="is an official image"):
        await images.set_visibility(alice, "deb:12", Visibility.PUBLIC)
    with pytest.raises(NotFound, match="there is no image 'deb:13'"):
        await images.delete(alice, "deb:13")


async def test_one_is_held_as_it_was_planned(make: Maker, images: Images, alice: Caller) -> None:
    """Between plan and creation it may be made again, after which its former digest may go."""
    row = await make.ready(alice)
    async with make.database.writing() as tx:
        await images.hold(tx, row.id, DIGEST)
        with pytest.raises(Conflict, match="made again"):
            await images.hold(tx, row.id, NEWER)
    await images.delete(alice, "model:v1")
    async with make.database.writing() as tx:
        with pytest.raises(Conflict, match="deleted"):
            await images.hold(tx, row.id, DIGEST)


async def test_without_a_registry(database: Database, audit: AuditTrail, changes: Changes, alice: Caller) -> None:
    """Everything else goes on: plain references mean what they meant."""
    images = Images(database, audit, changes, RegistrySettings())
    make = Maker(database, images)
    with pytest.raises(Unavailable, match="docker-registry"):
        await make.begin(alice)
    assert await images.list(alice) == []
    assert await make.meant(alice, "debian:bookworm") == ("debian:bookworm", "")


@pytest.mark.parametrize(
    "facts",
    [{"url": "ftp://x"}, {"url": "http://registry:5000"}, {"url": "https://u:p@r"}, {"url": "https://r/path"},
     {"url": "https://r", "project": "../x"}],
)  # fmt: skip
def test_settings_that_cannot_be(facts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="url must|http://|project must"):
        RegistrySettings(**facts)  # type: ignore[arg-type]


def test_images_of_the_settings_are_references() -> None:
    with pytest.raises(ValueError, match="is no image"):
        DockerSettings(default_image="docker-archive:/etc/x")
    with pytest.raises(ValueError, match="is no image"):
        OfficialImageSettings(name="a:b", reference="docker://debian")


async def test_every_refusal_is_a_sentence(make: Maker, images: Images, alice: Caller) -> None:
    for written in ("\x1b[31m", "a" * 500, "x/y/z/a/b:c"):
        with pytest.raises(AshoreError) as caught:
            await images.show(alice, written)
        assert "\x1b" not in caught.value.message
        assert len(caught.value.message) < 200
