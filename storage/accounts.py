"""People and their keys: who a proven key belongs to, invitations, and the keys that somebody may log in with.

Only `sign_in` makes a Caller, and only a door that has seen a signature may call it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError

from storage.access import Action, Caller, Owned, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AlreadyExists, BadInput, Conflict, NotAllowed, NotFound
from storage.names import check_user, printable
from storage.records import Invite, SshKey, User, Workspace

_WORKSPACE = "team"
_INVITE_LIFE = timedelta(days=7)
_LAST_USED_STEP = timedelta(minutes=1)
"""`last_used` is written no more often than this, so that scripts that log in all the time share commits."""


@dataclass(frozen=True)
class PublicKey:
    """A public key as its owner gave it: `line` is type and base64, without options or comment."""

    line: str
    fingerprint: str
    title: str = ""


class Accounts:
    """Users, keys and invitations."""

    def __init__(self, database: Database, audit: AuditTrail, changes: Changes, clock: Clock = now) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._clock = clock

    async def keys_of(self, user_name: str) -> dict[str, str]:
        """Fingerprint → key line of everything that may log in as `user_name`; empty for strangers.

        Called before a client has proven anything, so it tells nothing but what can be checked against.
        """
        query = (
            select(SshKey.fingerprint, SshKey.line)
            .join(User, User.id == SshKey.user_id)
            .where(User.name == user_name, User.disabled.is_(False))
        )
        return {row.fingerprint: row.line for row in await self._database.fetch(query)}

    async def sign_in(self, user_name: str, fingerprint: str, *, address: str, connection: str) -> Caller:
        """The caller whose key was *proven* on this connection; the sign-in is audited. NotAllowed otherwise."""
        query = (
            select(User.id, User.is_admin, Workspace.id.label("workspace_id"), Workspace.name, SshKey.last_used)
            .join(SshKey, SshKey.user_id == User.id)
            .join(Workspace, Workspace.id == User.workspace_id)
            .where(User.name == user_name, SshKey.fingerprint == fingerprint, User.disabled.is_(False))
        )
        rows = await self._database.fetch(query)
        if not rows:
            raise NotAllowed("this key is not, or no longer, one of yours")
        row = rows[0]
        caller = Caller(row.id, user_name, row.is_admin, row.workspace_id, row.name, address, connection)
        event = Event.by(caller, "login", thing=user_name, key=fingerprint, method="publickey")
        if row.last_used is not None and row.last_used > self._clock() - _LAST_USED_STEP:
            await self._audit.record(event)
            return caller
        async with self._database.writing() as tx:
            await tx.execute(update(SshKey).where(SshKey.fingerprint == fingerprint).values(last_used=self._clock()))
            await self._audit.add(tx, event)
        return caller

    async def stale(self, logins: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of `logins`, pairs of user id and fingerprint, that would not be let in any more."""
        if not logins:
            return set()
        query = (
            select(SshKey.user_id, SshKey.fingerprint)
            .join(User, User.id == SshKey.user_id)
            .where(User.disabled.is_(False), SshKey.fingerprint.in_({fingerprint for _, fingerprint in logins}))
        )
        valid = {(row.user_id, row.fingerprint) for row in await self._database.fetch(query)}
        return set(logins) - valid

    async def caller_for(self, user_name: str, *, address: str = "", connection: str = "") -> Caller:
        """The caller of a user whose identity another process of this house has proven (a TUI worker's hello)."""
        async with self._database.reading() as tx:
            user = await tx.scalar(select(User).where(User.name == user_name, User.disabled.is_(False)))
            if user is None:
                raise NotFound(f"there is no user '{printable(user_name, limit=40)}'")
            workspace = await tx.get_one(Workspace, user.workspace_id)
        return _caller(user, workspace, address=address, connection=connection)

    async def language_of(self, caller: Caller) -> str:
        """`en`, `zh`, or empty when the person never chose."""
        async with self._database.reading() as tx:
            return await tx.scalar(select(User.language).where(User.id == caller.user_id)) or ""

    async def choose_language(self, caller: Caller, language: str) -> None:
        if language not in ("", "en", "zh"):
            raise BadInput("choose en or zh")
        async with self._database.writing() as tx:
            await tx.execute(update(User).where(User.id == caller.user_id).values(language=language))

    # ---- keys ------------------------------------------------------------------------------------------------
    async def keys(self, caller: Caller) -> Sequence[SshKey]:
        """The caller's keys, oldest first."""
        require(caller, Action.KEY_LIST)
        async with self._database.reading() as tx:
            return (
                await tx.scalars(select(SshKey).where(SshKey.user_id == caller.user_id).order_by(SshKey.created))
            ).all()

    async def add_key(self, caller: Caller, key: PublicKey) -> SshKey:
        """One more key for the caller. AlreadyExists if it belongs to anybody yet."""
        require(caller, Action.KEY_ADD)
        async with self._database.writing() as tx:
            row = await self._bind(tx, caller.user_id, key)
            await self._audit.add(tx, Event.by(caller, "key.add", thing=key.fingerprint))
        self._changes.tell("key", caller.user_id)
        return row

    async def remove_key(self, caller: Caller, fingerprint: str) -> None:
        """Take a key away; an unambiguous beginning of its fingerprint is enough. The last one stays."""
        keys = await self.keys(caller)
        wanted = fingerprint.removeprefix("SHA256:")
        found = [key for key in keys if wanted and key.fingerprint.removeprefix("SHA256:").startswith(wanted)]
        if len(found) != 1:
            raise NotFound("no key of yours begins like that" if not found else "several of your keys begin like that")
        if len(keys) == 1:
            raise Conflict("this is your only key: add another one first, or you could not log in again")
        require(caller, Action.KEY_REMOVE, Owned("key", found[0].fingerprint, found[0].user_id))
        async with self._database.writing() as tx:
            await tx.execute(delete(SshKey).where(SshKey.id == found[0].id))
            await self._audit.add(tx, Event.by(caller, "key.remove", thing=found[0].fingerprint))
        self._changes.tell("key", caller.user_id)

    # ---- users, for administrators and the operator's command line --------------------------------------------
    async def users(self, caller: Caller) -> Sequence[User]:
        require(caller, Action.USER_MANAGE)
        return await self.all_users()

    async def all_users(self) -> Sequence[User]:
        """For the operator, who owns the data directory."""
        async with self._database.reading() as tx:
            return (await tx.scalars(select(User).order_by(User.name))).all()

    async def add_user(self, name: str, keys: Sequence[PublicKey], *, is_admin: bool, actor: str) -> User:
        """A new user. AlreadyExists if the name or a key is taken."""
        check_user(name)
        async with self._database.writing() as tx:
            user = await self._add_user(tx, name, is_admin=is_admin)
            for key in keys:
                await self._bind(tx, user.id, key)
            await self._audit.add(
                tx, Event("user.add", actor=actor, thing=name, detail={"admin": is_admin, "keys": len(keys)})
            )
        self._changes.tell("user", user.id)
        return user

    async def set_disabled(self, name: str, *, disabled: bool, actor: str) -> None:
        """Lock a user out, or let them in again."""
        async with self._database.writing() as tx:
            user = await tx.scalar(select(User).where(User.name == name))
            if user is None:
                raise NotFound(f"there is no user '{printable(name, limit=40)}'")
            user.disabled = disabled
            await self._audit.add(tx, Event("user.disable" if disabled else "user.enable", actor=actor, thing=name))
        self._changes.tell("user", user.id)

    async def is_empty(self) -> bool:
        """Whether nobody has ever been added."""
        async with self._database.reading() as tx:
            return not await tx.scalar(select(func.count()).select_from(User))

    # ---- invitations -----------------------------------------------------------------------------------------
    async def invite(self, name: str, *, is_admin: bool, actor: str) -> str:
        """The login name (`invite-…`) that binds the first key that comes with it to `name`; good for a week, once."""
        check_user(name)
        token = secrets.token_hex(12)
        moment = self._clock()
        async with self._database.writing() as tx:
            tx.add(
                Invite(
                    token_hash=_hash(token), user_name=name, is_admin=is_admin,
                    expires=moment + _INVITE_LIFE, created=moment,
                )
            )  # fmt: skip
            await self._audit.add(tx, Event("invite.create", actor=actor, thing=name, detail={"admin": is_admin}))
        return f"invite-{token}"

    async def invited_name(self, login: str) -> str | None:
        """The user that an invitation is for; None if it is unknown, used or too old."""
        async with self._database.reading() as tx:
            invite = await tx.get(Invite, _hash(login.removeprefix("invite-")))
        if invite is None or invite.used is not None or invite.expires < self._clock():
            return None
        return invite.user_name

    async def redeem(self, login: str, key: PublicKey, *, address: str, connection: str) -> Caller:
        """Bind a *proven* key to the invited user (who is made if new) and sign in. NotAllowed if it cannot be used."""
        async with self._database.writing() as tx:
            invite = await tx.get(Invite, _hash(login.removeprefix("invite-")), with_for_update=True)
            if invite is None or invite.used is not None or invite.expires < self._clock():
                raise NotAllowed("this invitation is not valid, or was used before")
            invite.used = self._clock()
            user = await tx.scalar(select(User).where(User.name == invite.user_name))
            if user is None:
                user = await self._add_user(tx, invite.user_name, is_admin=invite.is_admin)
            elif user.disabled:
                raise NotAllowed("this account is locked")
            await self._bind(tx, user.id, key)
            workspace = await tx.get_one(Workspace, user.workspace_id)
            caller = _caller(user, workspace, address=address, connection=connection)
            await self._audit.add(tx, Event.by(caller, "invite.redeem", thing=user.name, key=key.fingerprint))
        self._changes.tell("key", user.id)
        return caller

    # ---- inside a transaction --------------------------------------------------------------------------------
    async def _add_user(self, tx: Transaction, name: str, *, is_admin: bool) -> User:
        if await tx.scalar(select(User.id).where(User.name == name)):
            raise AlreadyExists(f"there is a user '{name}' already")
        workspace = await tx.scalar(select(Workspace).where(Workspace.name == _WORKSPACE))
        if workspace is None:
            workspace = Workspace(name=_WORKSPACE, created=self._clock())
            tx.add(workspace)
            await tx.flush()
        user = User(name=name, is_admin=is_admin, workspace_id=workspace.id, created=self._clock())
        tx.add(user)
        await tx.flush()
        return user

    async def _bind(self, tx: Transaction, user_id: str, key: PublicKey) -> SshKey:
        row = SshKey(
            user_id=user_id, fingerprint=key.fingerprint, line=key.line,
            title=printable(key.title, limit=90), created=self._clock(),
        )  # fmt: skip
        tx.add(row)
        try:
            await tx.flush()
        except IntegrityError as error:
            raise AlreadyExists("this key is in use already") from error
        return row


def _caller(user: User, workspace: Workspace, *, address: str, connection: str) -> Caller:
    return Caller(
        user_id=user.id, name=user.name, is_admin=user.is_admin, workspace_id=workspace.id,
        workspace=workspace.name, address=address, connection=connection,
    )  # fmt: skip


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
