"""Visibility, publication, shares and links, seen through every door of the storage: use cases and the tree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from sqlalchemy import update

from storage.access import Caller, Visibility
from storage.asset_views import Filter, Reference, parse_reference
from storage.assets import Datasets
from storage.audit import AuditTrail
from storage.clock import now
from storage.database.engine import Database
from storage.errors import AlreadyExists, AshoreError, BadInput, Conflict, InUse, NotAllowed, NotFound
from storage.models import Models
from storage.namespace import DataTree
from storage.objects.s3 import S3Store
from storage.records import AssetKind, FileFact, Upload, User, VersionState, Workspace
from storage.tree import Node
from tests.storage.conftest import Desk


async def moved(database: Database, caller: Caller, workspace: str) -> Caller:
    """`caller`, at work in another workspace from now on."""
    async with database.writing() as tx:
        row = Workspace(name=workspace, created=now())
        tx.add(row)
        await tx.flush()
        await tx.execute(update(User).where(User.id == caller.user_id).values(workspace_id=row.id))
    return replace(caller, workspace_id=row.id, workspace=workspace)


@pytest.fixture
async def eve(database: Database, tree: DataTree, bob: Caller) -> Desk:
    """Somebody of the workspace `lab`."""
    return Desk(tree, await moved(database, bob, "lab"))


@pytest.fixture
async def mallory(database: Database, tree: DataTree, admin: Caller) -> Desk:
    """Somebody of the workspace `third`, no administrator."""
    return Desk(tree, replace(await moved(database, admin, "third"), is_admin=False))


def changes_of(tree: DataTree, caller: Caller, root: str) -> list[Callable[[], Awaitable[object]]]:
    """Every way to change something at or below the version `root`, which has a file `f` and a directory `dir`."""
    return [
        lambda: tree.open_writer(caller, f"{root}/f", truncate=True),
        lambda: tree.open_writer(caller, f"{root}/f", truncate=False),
        lambda: tree.open_writer(caller, f"{root}/new", truncate=True),
        lambda: tree.open_writer(caller, f"{root}/dir/new", truncate=True, exclusive=True),
        lambda: tree.mkdir(caller, f"{root}/dir2"),
        lambda: tree.rmdir(caller, f"{root}/dir"),
        lambda: tree.rmdir(caller, root),
        lambda: tree.remove(caller, f"{root}/f"),
        lambda: tree.rename(caller, f"{root}/f", f"{root}/g", replace=True),
        lambda: tree.rename(caller, f"{root}/dir", f"{root}/dir3", replace=False),
        lambda: tree.set_mtime(caller, f"{root}/f", 1),
        lambda: tree.set_mtime(caller, f"{root}/dir", 1),
        lambda: tree.set_mtime(caller, root, 1),
    ]


async def nodes(desk: Desk, path: str) -> list[Node]:
    return [node async for node in desk.tree.list(desk.caller, path)]


# ---- publication -------------------------------------------------------------------------------------------------
async def test_a_published_version_is_closed_in_every_door(desk: Desk, root: str, datasets: Datasets) -> None:
    await desk.put(f"{root}/f", b"12345", mtime=100)
    await desk.put(f"{root}/dir/g", b"1", mtime=100)
    closed = await datasets.publish(desk.caller, "d", "v1")
    assert (closed.state, closed.files, closed.bytes, closed.counted) == (VersionState.READY, 2, 6, True)
    for change in changes_of(desk.tree, desk.caller, root):
        with pytest.raises(NotAllowed, match="published"):
            await change()
    assert await desk.names(root) == ["dir/", "f"]
    assert [(node.mode, node.mtime) for node in await nodes(desk, root) if node.name == "f"] == [(0o444, 100)]
    assert (await desk.tree.stat(desk.caller, root)).mode == 0o555
    assert await desk.get(f"{root}/f") == b"12345"
    await desk.tree.mkdir(desk.caller, "/datasets/d/v2")
    await desk.put("/datasets/d/v2/f", b"next")


async def test_a_file_that_was_being_written_does_not_slip_in(desk: Desk, root: str, datasets: Datasets) -> None:
    await desk.put(f"{root}/f", b"x")
    writer = await desk.tree.open_writer(desk.caller, f"{root}/late", truncate=True)
    await writer.write(0, b"y")
    await datasets.publish(desk.caller, "d", "v1")
    with pytest.raises(AshoreError):
        await writer.finish()
    assert await desk.names(root) == ["f"]


async def test_totals_come_from_the_store(desk: Desk, root: str, datasets: Datasets, store: S3Store) -> None:
    await desk.put(f"{root}/f", b"12345")
    await store.put("datasets/team/d/v1/by-another-tool", b"123")
    await desk.tree.mkdir(desk.caller, f"{root}/empty")
    closed = await datasets.publish(desk.caller, "d", "v1")
    assert (closed.files, closed.bytes) == (2, 8)
    (listed,) = await datasets.list(desk.caller)
    assert (listed.files, listed.bytes) == (2, 8)


async def test_what_cannot_be_published(
    desk: Desk, root: str, datasets: Datasets, bob: Caller, database: Database
) -> None:
    with pytest.raises(Conflict, match="no files"):
        await datasets.publish(desk.caller, "d", "v1")
    await desk.tree.mkdir(desk.caller, f"{root}/empty")
    with pytest.raises(Conflict, match="no files"):
        await datasets.publish(desk.caller, "d", "v1")
    with pytest.raises(NotFound):
        await datasets.publish(desk.caller, "d", "v9")
    with pytest.raises(NotFound):
        await datasets.publish(desk.caller, "d", "")
    await desk.put(f"{root}/f", b"x")
    with pytest.raises(NotAllowed):
        await datasets.publish(bob, "d", "v1")
    async with database.writing() as tx:
        upload = Upload(
            owner_id=bob.user_id, path=f"{root}/big", key="datasets/team/d/v1/big", part_size=1,
            created=now(), touched=now(),
        )  # fmt: skip
        tx.add(upload)
    with pytest.raises(Conflict, match="unfinished"):
        await datasets.publish(desk.caller, "d", "v1")
    async with database.writing() as tx:
        await tx.delete(upload)
    await datasets.publish(desk.caller, "d", "v1")
    with pytest.raises(Conflict, match="published already"):
        await datasets.publish(desk.caller, "d", "v1")


# ---- visibility --------------------------------------------------------------------------------------------------
async def test_private_is_for_the_owner_alone(
    desk: Desk, root: str, datasets: Datasets, bob: Caller, admin: Caller
) -> None:
    await desk.put(f"{root}/f", b"secret")
    await datasets.change(desk.caller, "d", visibility="private")
    other = Desk(desk.tree, bob)
    assert await datasets.list(bob) == []
    assert await other.names("/datasets") == []
    for attempt in (
        datasets.show(bob, "d"), other.names("/datasets/d"), other.names(root), other.get(f"{root}/f"),
        other.tree.stat(bob, "/datasets/d"), other.tree.stat(bob, f"{root}/f"),
        other.tree.digest(bob, f"{root}/f", "md5"),
        datasets.duplicates(bob, "d"), *[change() for change in changes_of(desk.tree, bob, root)],
        datasets.publish(bob, "d", "v1"), datasets.change(bob, "d", visibility="public"),
        datasets.tag(bob, "d", add=["x"]),
        datasets.share(bob, "d", "team"), datasets.delete(bob, "d"), datasets.delete_version(bob, "d", "v1"),
        datasets.create_version(bob, "d", "v2"),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await attempt
    with pytest.raises(NotFound):
        _ = [file async for file in datasets.files(bob, "d")]
    with pytest.raises(AlreadyExists):  # names are one's workspace's, so that it is taken can be known
        await datasets.create(bob, "d")
    assert await desk.get(f"{root}/f") == b"secret"
    assert await Desk(desk.tree, admin).get(f"{root}/f") == b"secret"


async def test_what_is_shared_is_below_shared_and_read_only(
    desk: Desk, root: str, datasets: Datasets, eve: Desk, mallory: Desk
) -> None:
    await desk.put(f"{root}/f", b"content", mtime=100)
    await desk.put(f"{root}/dir/g", b"g")
    assert await eve.names("/shared") == []
    view = await datasets.share(desk.caller, "d", "lab")
    assert list(view.shares.values()) == ["lab"]
    await datasets.share(desk.caller, "d", "lab")
    assert await eve.names("/shared") == ["team/"]
    assert await eve.names("/shared/team") == ["datasets/"]
    assert await eve.names("/shared/team/datasets") == ["d/"]
    assert await eve.names("/shared/team/datasets/d") == ["v1/"]
    shared = "/shared/team/datasets/d/v1"
    assert await eve.names(shared) == ["dir/", "f"]
    assert await eve.names(f"{shared}/dir") == ["g"]
    assert await eve.get(f"{shared}/f") == b"content"
    stat = await eve.tree.stat(eve.caller, f"{shared}/f")
    assert (stat.size, stat.mtime, stat.mode) == (7, 100, 0o444)
    for path in ("/shared", "/shared/team", "/shared/team/datasets", "/shared/team/datasets/d", shared):
        assert (await eve.tree.stat(eve.caller, path)).mode == 0o555
    for change in changes_of(eve.tree, eve.caller, shared):
        with pytest.raises(NotAllowed, match="read-only"):
            await change()
    for path in ("/shared/x", "/shared/team/datasets/x", "/shared/team/datasets/d/v2", "/shared/team/models"):
        with pytest.raises(NotAllowed):
            await eve.tree.mkdir(eve.caller, path)
    for path in ("/shared/team/datasets/d", "/shared/team", "/shared"):
        with pytest.raises(NotAllowed):
            await eve.tree.rmdir(eve.caller, path)
    with pytest.raises(NotAllowed):
        await eve.tree.rename(eve.caller, f"{shared}/f", "/datasets/mine/v1/f", replace=True)
    assert [one.reference(eve.caller) for one in await datasets.shared(eve.caller)] == ["team/d"]
    assert (await datasets.show(eve.caller, "team/d")).files == 2
    assert await eve.names("/datasets") == []
    assert await mallory.names("/shared") == []
    for attempt in (mallory.get(f"{shared}/f"), mallory.names(shared), mallory.names("/shared/team"),
                    mallory.tree.stat(mallory.caller, "/shared/team"), datasets.show(mallory.caller, "team/d"),
                    desk.names(shared), desk.get(f"{shared}/f")):  # fmt: skip
        with pytest.raises(NotFound):
            await attempt
    for attempt in (datasets.publish(eve.caller, "team/d", "v1"), datasets.delete(eve.caller, "team/d"),
                    datasets.change(eve.caller, "team/d", visibility="public")):  # fmt: skip
        with pytest.raises(NotAllowed, match="another workspace"):
            await attempt
    await datasets.share(desk.caller, "d", "lab", wanted=False)
    with pytest.raises(NotFound):
        await eve.get(f"{shared}/f")


async def test_private_ends_what_was_shared_and_public_is_for_everybody(
    desk: Desk, root: str, datasets: Datasets, eve: Desk, mallory: Desk
) -> None:
    await desk.put(f"{root}/f", b"x")
    await datasets.share(desk.caller, "d", "lab")
    await datasets.change(desk.caller, "d", visibility="private")
    for stranger in (eve, mallory):
        assert await stranger.names("/shared") == []
    with pytest.raises(Conflict, match="private"):
        await datasets.share(desk.caller, "d", "third")
    await datasets.change(desk.caller, "d", visibility="public")
    for stranger in (eve, mallory):
        assert await stranger.get("/shared/team/datasets/d/v1/f") == b"x"
    with pytest.raises(NotFound, match="no workspace"):
        await datasets.share(desk.caller, "d", "nowhere")
    with pytest.raises(Conflict, match="itself"):
        await datasets.share(desk.caller, "d", "team")
    with pytest.raises(NotFound, match="not shared"):
        await datasets.share(desk.caller, "d", "third", wanted=False)


@pytest.mark.parametrize(
    "path",
    ["/shared/nobody", "/shared/../etc", "/shared/team/images", "/shared/team/datasets/no", "/shared/a/b/c/d/e/f"],
)
async def test_what_is_not_shared_is_not_there(desk: Desk, path: str) -> None:
    for attempt in (desk.names(path), desk.get(f"{path}/f"), desk.tree.stat(desk.caller, path)):
        with pytest.raises((NotFound, BadInput)):
            await attempt


# ---- words -------------------------------------------------------------------------------------------------------
async def test_tags_descriptions_and_filters(datasets: Datasets, alice: Caller, bob: Caller, audit: AuditTrail,
                                             admin: Caller) -> None:  # fmt: skip
    for name in ("a", "b", "c"):
        await datasets.create(alice, name)
    assert (await datasets.tag(alice, "a", add=["vision", "图像", "vision"])).tags == ("vision", "图像")
    assert (await datasets.tag(alice, "a", add=["x"], remove=["图像", "none"])).tags == ("vision", "x")
    await datasets.change(alice, "b", description=" digits ", visibility="public")
    assert [one.name for one in await datasets.list(bob, Filter(tag="vision"))] == ["a"]
    assert [one.name for one in await datasets.list(bob, Filter(visibility=Visibility.PUBLIC))] == ["b"]
    assert (await datasets.show(bob, "b")).description == "digits"
    for bad in ("", " ", "a b", "a,b", "x" * 49, "\x1b[m", "a\nb"):
        with pytest.raises(BadInput):
            await datasets.tag(alice, "a", add=[bad])
    with pytest.raises(BadInput):
        await datasets.tag(alice, "a", add=[f"t{number}" for number in range(40)])
    with pytest.raises(BadInput):
        await datasets.change(alice, "a", visibility="secret")
    with pytest.raises(BadInput):
        await datasets.change(alice, "a", description="x" * 2000)
    with pytest.raises(NotAllowed):
        await datasets.tag(bob, "a", add=["mine"])
    assert {event.thing for event in await audit.search(admin, action="dataset.change")} == {"a", "b"}


async def test_a_chosen_default_version(desk: Desk, root: str, datasets: Datasets) -> None:
    await desk.put(f"{root}/f", b"x")
    await desk.tree.mkdir(desk.caller, "/datasets/d/v2")
    await datasets.publish(desk.caller, "d", "v1")
    assert (await datasets.find(desk.caller, "d")).version().name == "v1"
    await datasets.change(desk.caller, "d", default_version="v2")
    assert (await datasets.find(desk.caller, "d")).version().name == "v2"
    with pytest.raises(NotFound):
        await datasets.change(desk.caller, "d", default_version="v9")
    await datasets.delete_version(desk.caller, "d", "v2")
    assert (await datasets.find(desk.caller, "d")).version().name == "v1"
    await datasets.change(desk.caller, "d", default_version="")


def test_references() -> None:
    assert parse_reference("mnist") == Reference("mnist")
    assert parse_reference("lab/mnist:v1") == Reference("mnist", "v1", "lab")
    assert parse_reference("lab/mnist:v1").asset == "lab/mnist"
    for bad in (
        "",
        "/",
        "lab/",
        "/mnist",
        "a/b/c",
        "lab/mnist:",
        "../x",
        "lab/../x",
        "Lab/x",
        "a:b/c",
        "lab/mnist:../v1",
    ):
        with pytest.raises(BadInput):
            parse_reference(bad)


# ---- models ------------------------------------------------------------------------------------------------------
@pytest.fixture
async def bert(tree: DataTree, models: Models, eve: Desk) -> Desk:
    """Eve's public model `lab/bert`, version v1 published."""
    await tree.mkdir(eve.caller, "/models/bert")
    await tree.mkdir(eve.caller, "/models/bert/v1")
    await eve.put("/models/bert/v1/weights/a.bin", b"12345")
    await eve.put("/models/bert/v1/config.json", b"{}")
    await models.change(eve.caller, "bert", visibility="public", framework="PyTorch", task="nlp")
    await models.publish(eve.caller, "bert", "v1")
    return eve


async def test_models_have_a_tree_and_keys_of_their_own(desk: Desk, models: Models, datasets: Datasets,
                                                       store: S3Store) -> None:  # fmt: skip
    await desk.tree.mkdir(desk.caller, "/models/d")
    await desk.tree.mkdir(desk.caller, "/models/d/v1")
    await desk.put("/models/d/v1/w", b"123")
    assert (await store.head("models/team/d/v1/w")).size == 3
    assert await desk.names("/models") == ["d/"]
    assert await desk.names("/datasets/d/v1") == []
    assert (await desk.tree.space(desk.caller, "/")).used == 3
    await models.delete(desk.caller, "d")
    assert await desk.names("/models") == []
    assert await desk.names("/datasets") == ["d/"]
    with pytest.raises(NotFound):
        await desk.tree.rename(desk.caller, "/datasets/d/v1/x", "/models/d/v1/x", replace=False)


async def test_metrics_framework_and_task(bert: Desk, models: Models, alice: Caller) -> None:
    (found,) = await models.shared(alice, Filter(framework="pytorch", task="nlp"))
    assert (found.name, found.framework, found.task, found.files) == ("bert", "pytorch", "nlp", 2)
    assert await models.shared(alice, Filter(framework="onnx")) == []
    version = await models.set_metrics(bert.caller, "bert", "v1", {"accuracy": 0.93})
    version = await models.set_metrics(bert.caller, "bert", "", {"f1@10": 0.5})
    assert version.metrics == {"accuracy": 0.93, "f1@10": 0.5}
    for bad in ({"": 1.0}, {"a b": 1.0}, {"x": float("nan")}, {"x": float("inf")}, {"\x1b": 1.0}):
        with pytest.raises(BadInput):
            await models.set_metrics(bert.caller, "bert", "v1", bad)
    with pytest.raises(NotAllowed):
        await models.set_metrics(alice, "lab/bert", "v1", {"accuracy": 1.0})


async def test_a_link_reads_what_it_leads_to_and_copies_nothing(
    bert: Desk, desk: Desk, models: Models, store: S3Store
) -> None:
    alice = desk.caller
    await models.create(alice, "mine")
    view = await models.link(alice, "mine", "base", Reference("bert", "v1", "lab"))
    version = view.version("base")
    assert (version.link, version.sealed, version.files, version.bytes) == ("lab/bert:v1", True, 2, 7)
    assert view.bytes == 0
    assert await desk.names("/models/mine/base") == ["config.json", "weights/"]
    assert await desk.get("/models/mine/base/weights/a.bin") == b"12345"
    assert [file.path async for file in models.files(alice, "mine", "base")] == ["config.json", "weights/a.bin"]
    assert [page async for page in store.list("models/team/")] == []
    for change in changes_of(desk.tree, alice, "/models/mine/base"):
        with pytest.raises(NotAllowed, match="published"):
            await change()
    # a link to a link leads to where the files are
    await models.link(alice, "mine", "again", Reference("mine", "base"))
    await models.delete_version(alice, "mine", "base")
    assert await desk.get("/models/mine/again/config.json") == b"{}"
    with pytest.raises(InUse, match="linked by team/mine:again"):
        await models.delete(bert.caller, "bert")
    with pytest.raises(InUse):
        await models.delete_version(bert.caller, "bert", "v1")
    await models.delete(alice, "mine")
    assert await bert.get("/models/bert/v1/config.json") == b"{}"
    await models.delete(bert.caller, "bert")
    assert [page async for page in store.list("models/")] == []


async def test_a_link_opens_nothing_that_its_reader_may_not_read(
    bert: Desk, desk: Desk, mallory: Desk, models: Models
) -> None:
    alice = desk.caller
    await models.create(alice, "mine")
    await models.change(alice, "mine", visibility="public")
    await models.link(alice, "mine", "base", Reference("bert", "v1", "lab"))
    link = "/shared/team/models/mine/base/config.json"
    assert await mallory.get(link) == b"{}"
    await models.change(bert.caller, "bert", visibility="workspace")
    await models.share(bert.caller, "bert", "team")
    assert await desk.get("/models/mine/base/config.json") == b"{}"
    with pytest.raises(NotFound, match="not shared with you"):
        await mallory.get(link)
    assert (await models.show(mallory.caller, "team/mine")).version("base").is_broken
    await models.change(bert.caller, "bert", visibility="private")
    with pytest.raises(NotFound, match="not shared with you"):
        await desk.names("/models/mine/base")
    assert [view.name for view in await models.list(alice)] == ["mine"]
    with pytest.raises(NotFound):
        await models.link(alice, "mine", "other", Reference("bert", "v1", "lab"))


async def test_only_what_is_published_is_linked(bert: Desk, desk: Desk, models: Models, bob: Caller) -> None:
    await bert.tree.mkdir(bert.caller, "/models/bert/v2")
    await models.create(desk.caller, "mine")
    with pytest.raises(Conflict, match="not published"):
        await models.link(desk.caller, "mine", "base", Reference("bert", "v2", "lab"))
    with pytest.raises(NotFound):
        await models.link(desk.caller, "mine", "base", Reference("bert", "v9", "lab"))
    await models.link(desk.caller, "mine", "base", Reference("bert", "", "lab"))
    with pytest.raises(AlreadyExists):
        await models.link(desk.caller, "mine", "base", Reference("bert", "v1", "lab"))


# ---- duplicates --------------------------------------------------------------------------------------------------
async def test_duplicates_are_found_within_what_one_may_see(
    datasets: Datasets, alice: Caller, bob: Caller, database: Database
) -> None:
    for name in ("a", "b", "hidden"):
        await datasets.create(alice, name)
        await datasets.create_version(alice, name, "v1")
    await datasets.change(alice, "hidden", visibility="private")
    facts = {
        "datasets/team/a/v1/x": ("h1", 5), "datasets/team/a/v1/y": ("h1", 5), "datasets/team/b/v1/z": ("h1", 5),
        "datasets/team/a/v1/big": ("h2", 100), "datasets/team/hidden/v1/big": ("h2", 100),
        "datasets/team/a/v1/alone": ("h3", 7), "datasets/team/a/v1/none": ("", 7), "datasets/team/b/v1/none": ("", 7),
        "datasets/team/a/v1/empty": ("h0", 0), "datasets/team/b/v1/empty": ("h0", 0),
        "datasets/lab/a/v1/big": ("h2", 100),
    }  # fmt: skip
    async with database.writing() as tx:
        for key, (sha256, size) in facts.items():
            tx.add(FileFact(key=key, size=size, mtime=1, sha256=sha256))
    big, small = await datasets.duplicates(alice, "a", "v1")
    assert (big.paths, big.elsewhere, big.wasted) == (("big",), ("/datasets/hidden/v1/big",), 100)
    assert (small.paths, small.elsewhere, small.wasted) == (("x", "y"), ("/datasets/b/v1/z",), 10)
    (seen,) = await datasets.duplicates(bob, "a")
    assert seen.paths == ("x", "y")
    assert (await datasets.duplicates(alice, "b"))[0].elsewhere == ("/datasets/a/v1/x", "/datasets/a/v1/y")


def test_kinds_speak() -> None:
    assert [(kind.noun, kind.folder) for kind in AssetKind] == [("data set", "datasets"), ("model", "models")]
