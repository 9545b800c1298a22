"""Images: what people may run environments from; list, show, set visibility, delete, and what a written name means.

Archives and builds announce an image here in their own transaction (`begin`) and say how that ended (`finish`, `fail`).
The bytes are in the registry and none of this file's business: `reconcilers.images` removes what is deleted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Select, String, cast, select

from backends.image_names import LATEST, LOADED, ImageName, check_image, check_plain, parse_image
from backends.official import OfficialList
from backends.registry_login import auth_for
from backends.registry_paths import kept, reachable
from backends.settings import ImageSettings, OfficialImageSettings, RegistrySettings
from storage.access import Action, Caller, Owned, Visibility, decide, may_see, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import BadInput, Conflict, InUse, NotAllowed, NotFound, Unavailable
from storage.names import printable
from storage.quota_limits import holds
from storage.records import Environment, Image, ImageKind, ImageState, User, Workspace

TOPIC = "image"
NO_REGISTRY = (
    "this house keeps no images: an administrator can install the package docker-registry or set backends.registry.url"
)
_NAMED_IN_REFUSAL = 5


@dataclass(frozen=True)
class ImageView:
    """An image as one caller sees it."""

    id: str
    title: str
    """As the caller writes it: `model:v1`, `bob/model:v1`, `team/bob/model:v1`."""
    name: str
    tag: str
    owner: str
    workspace: str
    kind: ImageKind
    state: ImageState
    reason: str = ""
    visibility: Visibility = Visibility.PUBLIC
    description: str = ""
    reference: str = ""
    """In the registry, with its host."""
    digest: str = ""
    size: int = 0
    architecture: str = ""
    cuda: str = ""
    driver: str = ""
    base: str = ""
    created: datetime | None = None
    ready: datetime | None = None

    @property
    def is_usable(self) -> bool:
        return self.kind is ImageKind.OFFICIAL or (bool(self.digest) and self.state is not ImageState.DELETING)


@dataclass(frozen=True)
class Chosen:
    """What a written name means now. `digest` is empty for what is not kept in our registry, `image_id` also for
    official images that are."""

    title: str
    """As it was written; one that is kept here with its tag."""
    reference: str
    """What an engine is told to pull, with its host; the digest in it where one is known."""
    image_id: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Source:
    """Where an engine gets an image."""

    reference: str
    auth: str = field(default="", repr=False)
    """For `X-Registry-Auth`; empty: anybody may have it."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image once it is in the registry. `size` in bytes; see `storage.records.Image`."""

    digest: str
    size: int = 0
    architecture: str = ""
    cuda: str = ""
    driver: str = ""


class Images:
    """The images of all workspaces. Without a registry there are none, and nothing else is different."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        registry: RegistrySettings,
        catalogue: ImageSettings | None = None,
        clock: Clock = now,
        *,
        listed: OfficialList | None = None,
    ) -> None:
        """`listed`: official images of the registry, beside those of the settings."""
        self._database = database
        self._audit = audit
        self._changes = changes
        self._registry = registry
        self._listed = listed
        self._official = {one.name: one for one in (catalogue.official if catalogue else ())}
        self._clock = clock

    # ---- looking ---------------------------------------------------------------------------------------------
    async def list(self, caller: Caller, *, everybody: bool = False) -> Sequence[ImageView]:
        """What the caller may use, own ones first, official ones next; with `everybody` all, for administrators.

        Without it an administrator sees what anybody else would.
        """
        require(caller, Action.IMAGE_LIST)
        if everybody:
            require(caller, Action.USER_MANAGE)
        async with self._database.reading() as tx:
            rows = (await tx.execute(_rows().order_by(Workspace.name, Image.owner_name, Image.name, Image.tag))).all()
        seen = [(row, workspace) for row, workspace in rows if everybody or _is_offered(caller, row)]
        seen.sort(key=lambda one: (not _is_mine(caller, one[0]), one[0].workspace_id != caller.workspace_id))
        views = [self._view(caller, row, workspace) for row, workspace in seen]
        mine = sum(_is_mine(caller, row) for row, _ in seen)
        return [*views[:mine], *map(_official_view, self._offered().values()), *views[mine:]]

    async def show(self, caller: Caller, written: str) -> ImageView:
        """One image by the name that `list` gives it. NotFound if there is none to see."""
        async with self._database.reading() as tx:
            try:
                row, workspace = await self._find(tx, caller, Action.IMAGE_SHOW, written)
            except NotFound:
                if (official := self._official_named(written)) is not None:
                    return _official_view(official)
                raise
        return self._view(caller, row, workspace)

    async def resolve(self, tx: Transaction, caller: Caller, written: str) -> Chosen:
        """What `written` means to the caller: an image of the catalogue, else a reference as it is.

        Without an owner before it, a name is the caller's own or an official one, never a colleague's: else one person
        could put an image under the name of a well-known one. With the name of a person before it, it is never one of
        a registry: else what `bob/model` means would change with what bob deletes, and with a slip of the hand.
        BadInput, Conflict with the reason if it cannot be used; NotFound: that person has none of it for the caller.
        """
        self._refuse_ours(written)
        name = parse_image(written)
        found = await self._named(tx, caller, name) if name is not None else None
        if found is None or not decide(caller, Action.IMAGE_USE, owned(found)).allowed:
            if name is not None and name.owner and await self._is_person(tx, caller, name):
                raise NotFound(f"there is no image '{printable(written, limit=100)}'")
            await self._refuse_hidden(tx, caller, written)
            return self.plain(written)
        if not found.is_usable:
            raise Conflict(_unusable(written, found))
        prefix = written.rpartition("/")[0]
        title = f"{prefix}/{found.title}" if prefix else found.title
        return Chosen(title, self.reference(found), found.id, found.digest)

    def plain(self, written: str) -> Chosen:
        """What `written` means to everybody alike: an official image, or a reference. BadInput: neither."""
        official = self._official_named(written)
        if official is not None:
            return self._chosen(official)
        reference = check_plain(written)
        self._refuse_ours(reference)
        return Chosen(written, reference)

    async def hold(self, tx: Transaction, image_id: str, digest: str) -> None:
        """It is not deleted before `tx` ends. Conflict: it was a moment ago, or has another digest by now."""
        row = await tx.get(Image, image_id, with_for_update=True, populate_existing=True)
        if row is None or not row.is_usable:
            raise Conflict("this image has just been deleted")
        if row.digest != digest:
            raise Conflict("this image has just been made again: try once more")

    async def source(self, environment: Environment) -> Source:
        """Where its engine gets what it was made from; rights are asked at every start.

        NotFound: it is gone, or its owner shares it no more. Unavailable: the registry is not there any more.
        """
        if not environment.image_id:
            return self._plain_source(environment)
        async with self._database.reading() as tx:
            row = await tx.get(Image, environment.image_id)
            if row is None or row.state is ImageState.DELETING:
                raise NotFound(f"the image '{environment.image}' was deleted")
            if not decide(await _maker(tx, environment), Action.IMAGE_USE, owned(row)).allowed:
                raise NotFound(
                    f"the image '{environment.image}' is not shared with '{environment.owner_name}' any more: "
                    "ask its owner to share it again, or make an environment from another one"
                )
        return self._source(self.reference(row, environment.image_digest))

    def source_of(self, chosen: Chosen) -> Source:
        """Where an engine gets what was chosen."""
        return self._source(chosen.reference) if chosen.digest else Source(chosen.reference)

    def reference(self, image: Image, digest: str = "") -> str:
        """What an engine pulls: the manifest `digest`, or else the present one. Unavailable: there is no registry."""
        return f"{self.repository(image)}@{digest or image.digest}"

    def repository(self, image: Image) -> str:
        """`HOST/…` without tag and digest: where a build or an archive pushes to."""
        self.require_registry()
        return self._registry.prefix + image.repository

    def kept(self, reference: str) -> str:
        """`reference` for a record that is used later; see `backends.registry_paths`."""
        return kept(self._registry, reference)

    def reachable(self, path: str) -> str:
        """What `kept` gave, as it is called now. Unavailable: there is no registry any more."""
        if path.startswith("/"):
            self.require_registry()
        return reachable(self._registry, path)

    def require_registry(self) -> None:
        """Unavailable if the house keeps no images."""
        if not self._registry.url:
            raise Unavailable(NO_REGISTRY)

    # ---- changing --------------------------------------------------------------------------------------------
    async def set_visibility(self, caller: Caller, written: str, visibility: Visibility) -> ImageView:
        """Who may use it from now on; environments that run from it go on."""
        async with self._database.writing() as tx:
            row, workspace = await self._find(tx, caller, Action.IMAGE_CHANGE, written)
            row.visibility = visibility
            event = Event.by(caller, Action.IMAGE_CHANGE, thing=row.title, visibility=visibility.value)
            await self._audit.add(tx, event)
        self.tell(row.id)
        return self._view(caller, row, workspace)

    async def delete(self, caller: Caller, written: str) -> ImageView:
        """Nobody can use it any more when this returns; the registry's copy goes soon. InUse: an environment has it.

        One that is at rest, and whose owner may not use the image any more, could not be started anyway.
        """
        async with self._database.writing() as tx:
            row, workspace = await self._find(tx, caller, Action.IMAGE_DELETE, written)
            # No environment comes between this and the commit: those take the row too (`hold`).
            if await tx.get(Image, row.id, with_for_update=True, populate_existing=True) is None:
                raise NotFound(f"there is no image '{printable(written, limit=100)}'")
            if row.state is ImageState.BUILDING:
                raise InUse(f"'{row.title}' is being made: cancel that first")
            made = (await tx.scalars(select(Environment).where(Environment.image_id == row.id))).all()
            if users := [one for one in made if await _needs(tx, one, row)]:
                raise InUse(f"'{row.title}' is used by {_some(users)}: delete that environment first")
            row.state = ImageState.DELETING
            await self._audit.add(tx, Event.by(caller, Action.IMAGE_DELETE, thing=row.title, digest=row.digest))
        self.tell(row.id)
        return self._view(caller, row, workspace)

    # ---- for archives and builds -----------------------------------------------------------------------------
    async def begin(
        self, tx: Transaction, caller: Caller, name: str, tag: str, *, kind: ImageKind, base: str = ""
    ) -> Image:
        """Announce `name:tag` of the caller, new or again; call `tell` after the commit, and `finish` or `fail` later.

        While it is made again, its former digest stays in use. InUse: it is being made already, or deleted.
        """
        require(caller, Action.IMAGE_CREATE)
        check_image(name, tag)
        self.require_registry()
        mine = ImageName(name, tag)
        row = await tx.scalar(_mine(caller, mine).with_for_update())
        if row is not None and row.state is ImageState.BUILDING:
            raise InUse(f"the image '{row.title}' is being made already")
        if row is not None and row.state is ImageState.DELETING:
            raise InUse(f"a former image '{row.title}' is still being deleted, try again soon")
        moment = self._clock()
        if row is None:
            row = Image(
                workspace_id=caller.workspace_id, owner_id=caller.user_id, owner_name=caller.name, name=name, tag=tag,
                kind=kind, created=moment, touched=moment, former=[],
            )  # fmt: skip
            tx.add(row)
        row.kind, row.base, row.state, row.reason, row.touched = kind, base, ImageState.BUILDING, "", moment
        await tx.flush()
        event = Event.by(caller, Action.IMAGE_CREATE, thing=row.title, image=row.id, kind=kind.value)
        await self._audit.add(tx, event)
        return row

    async def finish(self, tx: Transaction, image_id: str, facts: ImageFacts) -> None:
        """It is in the registry: usable with this digest when `tx` commits. NotFound: it is not there any more."""
        row = await self._being_made(tx, image_id)
        if row.digest and row.digest != facts.digest:
            row.former = [*(one for one in row.former if one != facts.digest), row.digest]
        row.digest, row.size, row.architecture = facts.digest, facts.size, facts.architecture
        row.cuda, row.driver = facts.cuda, facts.driver
        row.state, row.reason, row.ready, row.touched = ImageState.READY, "", self._clock(), self._clock()
        await self._audit.add(tx, _event(row, "image.ready", digest=facts.digest, bytes=facts.size))

    async def fail(self, tx: Transaction, image_id: str, reason: str) -> None:
        """It did not come about; a former one stays ready. No-op if it is not there any more."""
        try:
            row = await self._being_made(tx, image_id)
        except NotFound:
            return
        row.state = ImageState.READY if row.digest else ImageState.FAILED
        row.reason, row.touched = reason, self._clock()
        await self._audit.add(tx, _event(row, "image.failed", outcome="failed", reason=printable(reason, limit=500)))

    def tell(self, image_id: str) -> None:
        """Wake whoever looks at images; after a commit."""
        self._changes.tell(TOPIC, image_id)

    # ---- steps -----------------------------------------------------------------------------------------------
    async def _being_made(self, tx: Transaction, image_id: str) -> Image:
        row = await tx.get(Image, image_id, with_for_update=True)
        if row is None or row.state is not ImageState.BUILDING:
            raise NotFound("the image is not being made any more")
        return row

    def _offered(self) -> Mapping[str, OfficialImageSettings]:
        """Official images by name; of two with one name that of the settings."""
        return {**self._official, **{name: one for name, one in self._kept().items() if name not in self._official}}

    def _kept(self) -> Mapping[str, OfficialImageSettings]:
        return self._listed.known() if self._listed is not None and self._registry.official else {}

    def _official_named(self, written: str) -> OfficialImageSettings | None:
        offered = self._offered()
        return offered.get(written) or offered.get(f"{written}:{LATEST}")

    def _chosen(self, official: OfficialImageSettings) -> Chosen:
        is_kept = official.name not in self._official
        reference = check_plain(official.reference)
        return Chosen(official.name, reference, digest=reference.partition("@")[2] if is_kept else "")

    def _plain_source(self, environment: Environment) -> Source:
        """Of what is no image of a person. An official one of the registry stays the one that it was made from."""
        if not environment.image_digest:
            official = self._official.get(environment.image)
            reference = official.reference if official is not None else environment.image
            return Source(check_plain(reference) if reference else "")
        self.require_registry()
        name = environment.image.partition(":")[0]
        repository = next((one.reference for one in self._kept().values() if one.name.partition(":")[0] == name), "")
        if not repository:
            raise NotFound(f"the official image '{environment.image}' is not in the registry of this house any more")
        repository = repository.partition("@")[0]
        return self._source(f"{repository}@{environment.image_digest}")

    def _source(self, reference: str) -> Source:
        """Of what is kept here. The list of official images may be of the registry of before, which gets no login."""
        return Source(reference, auth_for(self._registry, reference))

    def _refuse_official(self, written: str) -> None:
        official = self._official_named(written)
        if official is not None:
            place = "settings" if official.name in self._official else "registry"
            raise NotAllowed(
                f"'{official.name}' is an official image: it comes from the {place}, where an administrator changes it"
            )

    def _refuse_ours(self, written: str) -> None:
        """Our registry's images have names here; by a reference, anybody could start what an engine has already."""
        ours = (self._registry.prefix, *self._registry.official.values(), LOADED)
        if f"{written}/".lower().startswith(tuple(one.lower() for one in ours if one)):
            raise BadInput(f"'{printable(written, limit=80)}' is in the registry of this house: write its name instead")

    async def _refuse_hidden(self, tx: Transaction, caller: Caller, written: str) -> None:
        """Podman and buildah find a digest below any repository that they have, whatever name is before it."""
        digest = written.partition("@")[2]
        if not digest:
            return
        query = select(Image).where((Image.digest == digest) | cast(Image.former, String).contains(digest))
        for row in await tx.scalars(query):
            if not decide(caller, Action.IMAGE_USE, owned(row)).allowed:
                raise NotFound(f"there is no image '{printable(written, limit=100)}'")

    async def _find(self, tx: Transaction, caller: Caller, action: Action, written: str) -> tuple[Image, str]:
        missing = NotFound(f"there is no image '{printable(written, limit=100)}'")
        name = parse_image(written)
        row = await self._named(tx, caller, name) if name is not None else None
        if row is None:
            if action is not Action.IMAGE_SHOW:
                self._refuse_official(written)
            raise missing
        try:
            require(caller, action, owned(row))
        except NotFound:
            raise missing from None  # word for word the same
        return row, await tx.scalar(select(Workspace.name).where(Workspace.id == row.workspace_id)) or ""

    async def _named(self, tx: Transaction, caller: Caller, name: ImageName) -> Image | None:
        """The row that `name` means, whoever may see it; the tag `latest`, or the only one there is, if it has none."""
        query = _mine(caller, name) if not name.owner else _of_others(caller, name)
        rows = {row.tag: row for row in await tx.scalars(query.where(Image.state != ImageState.DELETING))}
        if name.tag:
            return rows.get(name.tag)
        return rows.get(LATEST) or (next(iter(rows.values())) if len(rows) == 1 else None)

    async def _is_person(self, tx: Transaction, caller: Caller, name: ImageName) -> bool:
        """Whether the owner in `name` is somebody of the workspace in it."""
        query = select(User.id).join(Workspace, Workspace.id == User.workspace_id)
        workspace = name.workspace or caller.workspace
        return await tx.scalar(query.where(Workspace.name == workspace, User.name == name.owner)) is not None

    def _view(self, caller: Caller, row: Image, workspace: str) -> ImageView:
        parts = [row.title]
        if not _is_mine(caller, row):
            parts.insert(0, row.owner_name)
            parts[:0] = [workspace] if row.workspace_id != caller.workspace_id else []
        reference = f"{self._registry.prefix}{row.repository}" if self._registry.url else ""
        return ImageView(
            row.id, "/".join(parts), row.name, row.tag, row.owner_name, workspace, row.kind, row.state, row.reason,
            row.visibility, row.description, reference, row.digest, row.size, row.architecture, row.cuda, row.driver,
            row.base, row.created, row.ready,
        )  # fmt: skip


def _official_view(one: OfficialImageSettings) -> ImageView:
    name, _, tag = one.name.partition(":")
    digest = one.reference.partition("@")[2]
    return ImageView(
        "", one.name, name, tag, "", "", ImageKind.OFFICIAL, ImageState.READY, description=one.title,
        reference=one.reference, digest=digest, architecture=one.architecture, cuda=one.cuda, driver=one.driver,
    )  # fmt: skip


def owned(image: Image) -> Owned:
    """The image as `decide()` sees it."""
    return Owned("image", image.title, image.owner_id, image.workspace_id, visibility=image.visibility)


async def _needs(tx: Transaction, environment: Environment, image: Image) -> bool:
    return holds(environment) or decide(await _maker(tx, environment), Action.IMAGE_USE, owned(image)).allowed


async def _maker(tx: Transaction, environment: Environment) -> Caller:
    """Whose environment it is, as rights are asked for."""
    user = await tx.get_one(User, environment.owner_id)
    workspace = await tx.get_one(Workspace, user.workspace_id)
    return Caller(user.id, user.name, user.is_admin, workspace.id, workspace.name)


def _rows() -> Select[Image, str]:
    query: Select[Image, str] = select(Image, Workspace.name).join(Workspace, Workspace.id == Image.workspace_id)
    return query.where(Image.state != ImageState.DELETING)


def _mine(caller: Caller, name: ImageName) -> Select[Image]:
    query = select(Image).where(Image.workspace_id == caller.workspace_id, Image.owner_id == caller.user_id)
    return query.where(*_is_called(name))


def _of_others(caller: Caller, name: ImageName) -> Select[Image]:
    workspace = name.workspace or caller.workspace
    query = select(Image).join(Workspace, Workspace.id == Image.workspace_id)
    return query.where(Workspace.name == workspace, Image.owner_name == name.owner, *_is_called(name))


def _is_called(name: ImageName) -> Sequence[ColumnElement[bool]]:
    found = [Image.name == name.name]
    return [*found, Image.tag == name.tag] if name.tag else found


def _is_mine(caller: Caller, row: Image) -> bool:
    return row.owner_id == caller.user_id and row.workspace_id == caller.workspace_id


def _is_offered(caller: Caller, row: Image) -> bool:
    """Whether it belongs in the caller's list. Administrators may use private ones too, but nobody wants them there."""
    is_private = row.visibility is Visibility.PRIVATE and not _is_mine(caller, row)
    is_foreign = row.visibility is Visibility.WORKSPACE and row.workspace_id != caller.workspace_id
    return not is_private and not is_foreign and may_see(caller, owned(row))


def _event(row: Image, action: str, *, outcome: str = "ok", **detail: object) -> Event:
    return Event(action, outcome, row.owner_name, row.title, detail={"image": row.id, **detail})


def _unusable(written: str, image: Image) -> str:
    if image.reason:
        return f"the image '{written}' cannot be used: it is {image.state.value} ({image.reason})"
    return f"the image '{written}' cannot be used: it is {image.state.value}"


def _some(environments: Sequence[Environment]) -> str:
    names = [f"{one.name}.{one.owner_name}" for one in environments]
    more, shown = len(names) - _NAMED_IN_REFUSAL, ", ".join(names[:_NAMED_IN_REFUSAL])
    return f"{shown} and {more} more" if more > 0 else shown
