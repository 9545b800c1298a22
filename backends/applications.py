"""Applications: which there are, who gets at them and how, and their secrets. Every door asks here.

An application is a row of `storage.records.application` and a template, built in or of the settings. What runs is
brought about by `reconcilers.applications`. Secrets are opened for their owner and for the environment alone.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sqlalchemy import Select, select, update

from backends.application_script import FOLDER, Wanted
from backends.application_templates import refusals
from backends.environments import Environments, owned
from backends.settings import ApplicationSettings
from storage.access import Action, Caller, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.database.engine import Database
from storage.database.transaction import Transaction
from storage.errors import AlreadyExists, BadInput, Conflict, NotFound
from storage.names import printable
from storage.records import Application, ApplicationState, Environment, EnvironmentState, Wish
from storage.vault import Vault

_WANTED = Application.state != ApplicationState.ENDING
_LETTERS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Of passwords: none that are mistaken for others."""
_PASSWORD_LENGTH = 8
_TOKEN_BYTES = 32
_LOCAL_PORTS = range(10_000, 30_000)
"""Ports of people's own machines that are proposed: below those that systems give out by themselves."""


@dataclass(frozen=True)
class Condition:
    """How an application is, without its secret."""

    name: str
    title: str
    state: ApplicationState
    reason: str
    port: int
    """Inside the environment; 0 if the settings do not know it any more."""


@dataclass(frozen=True)
class Access:
    """How its owner gets at an application."""

    condition: Condition
    local_port: int
    """Proposed for the near end of the forward: the same every time, and another one for each application."""
    address: str
    """What to open while the forward is there; with the secret, if it goes into the address."""
    secret: str
    kind: str
    """Of the secret: `token`, `password` or `none`."""
    user: str
    """Whom it asks for beside the secret; mostly empty."""
    advice: str

    def line(self, user: str, environment: str, host: str, port: int) -> str:
        """The ssh line that makes the forward."""
        there = f"-L {self.local_port}:127.0.0.1:{self.condition.port}"
        option = "" if port == 22 else f" -p {port}"
        return f"ssh -N {there} {user}+{environment}@{host}{option}"


class Applications:
    """The use cases about applications."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        environments: Environments,
        vault: Vault,
        templates: Mapping[str, ApplicationSettings],
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._environments = environments
        self._vault = vault
        self._templates = templates

    async def of(self, caller: Caller, environments: Sequence[Environment]) -> Mapping[str, Sequence[Condition]]:
        """How the applications of environments are that are known already, by the environments' ids."""
        for environment in environments:
            require(caller, Action.ENVIRONMENT_SHOW, owned(environment))
        known = {environment.id: environment for environment in environments}
        async with self._database.reading() as tx:
            rows = await tx.scalars(
                select(Application).where(Application.environment_id.in_(known), _WANTED).order_by(Application.name)
            )
            found: dict[str, list[Condition]] = {}
            for row in rows:
                found.setdefault(row.environment_id, []).append(self._condition(row, known[row.environment_id]))
        return found

    async def access(self, caller: Caller, name: str, *, only: str = "") -> tuple[Environment, Sequence[Access]]:
        """How the owner of environment `name` gets at its applications, or at one; their secrets are in the answer.

        NotFound: there is none.
        """
        environment = await self._environments.show(caller, name)
        require(caller, Action.APPLICATION_ACCESS, owned(environment))
        rows = await self._rows(environment, only)
        found = [self._access(row, environment, secret) for row, secret in await self._with_secrets(rows)]
        async with self._database.writing() as tx:
            names = [row.name for row in rows]
            event = Event.by(caller, Action.APPLICATION_ACCESS, thing=environment.name, applications=names)
            await self._audit.add(tx, event)
        return environment, found

    async def new_secrets(self, caller: Caller, name: str, *, only: str = "") -> None:
        """Forget the secrets of the applications of environment `name`, or of one; they are started with new ones."""
        environment = await self._environments.show(caller, name)
        require(caller, Action.APPLICATION_NEW_SECRET, owned(environment))
        rows = await self._rows(environment, only)
        async with self._database.writing() as tx:
            names = [row.name for row in rows]
            mine = (Application.environment_id == environment.id, Application.name.in_(names))
            await tx.execute(update(Application).where(*mine).values(secret="", seen=None))
            event = Event.by(caller, Action.APPLICATION_NEW_SECRET, thing=environment.name, applications=names)
            await self._audit.add(tx, event)
        self._changes.tell("environment", environment.id)

    async def change(self, caller: Caller, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Keep other programs running in environment `name`. If it runs, they are started and ended at once.

        AlreadyExists: it has one of them. BadInput: one cannot be started there. NotFound: it has none of that name.
        """
        seen = await self._allowed(caller, name, add, remove)
        changes = {Action.APPLICATION_ADD: tuple(add), Action.APPLICATION_REMOVE: tuple(dict.fromkeys(remove))}
        async with self._database.writing() as tx:
            environment, rows = await self._changeable(tx, seen, add, remove, lock=True)
            for one in remove:
                rows[one].state, rows[one].secret = ApplicationState.ENDING, ""
            await tx.flush()
            for one in add:
                if (row := rows.get(one)) is not None:
                    row.state, row.reason, row.seen = ApplicationState.WAITING, "", None
                else:
                    tx.add(Application(environment_id=environment.id, name=one))
            for action, names in changes.items():
                if names:
                    facts: dict[str, Any] = {"owner": environment.owner_name, "applications": list(names)}
                    await self._audit.add(tx, Event.by(caller, action, thing=environment.name, **facts))
        self._changes.tell("environment", seen.id)

    async def check(self, caller: Caller, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Raise what `change` would raise now, and change nothing."""
        seen = await self._allowed(caller, name, add, remove)
        async with self._database.reading() as tx:
            await self._changeable(tx, seen, add, remove)

    async def wanted(self, environment_id: str) -> Sequence[Wanted]:
        """What shall run in an environment, with open secrets; for the reconciler alone."""
        async with self._database.reading() as tx:
            rows = (await tx.scalars(_of(environment_id).where(_WANTED))).all()
        known = [row for row in rows if row.name in self._templates]
        return [Wanted(row.name, self._templates[row.name], secret) for row, secret in await self._with_secrets(known)]

    async def unwanted(self, environment_id: str) -> Sequence[str]:
        """What shall be ended there and forgotten."""
        query = select(Application.name).where(Application.environment_id == environment_id, ~_WANTED)
        async with self._database.reading() as tx:
            return (await tx.scalars(query.order_by(Application.name))).all()

    # ---- inside ----------------------------------------------------------------------------------------------
    async def _allowed(self, caller: Caller, name: str, add: Sequence[str], remove: Sequence[str]) -> Environment:
        environment = await self._environments.show(caller, name)
        for action, names in ((Action.APPLICATION_ADD, add), (Action.APPLICATION_REMOVE, remove)):
            if names:
                require(caller, action, owned(environment))
        return environment

    async def _changeable(
        self, tx: Transaction, seen: Environment, add: Sequence[str], remove: Sequence[str], *, lock: bool = False
    ) -> tuple[Environment, Mapping[str, Application]]:
        environment = await tx.get(Environment, seen.id, with_for_update=lock)
        if environment is None:
            raise NotFound(f"there is no environment '{seen.name}'")
        if environment.wish is Wish.DELETED:
            raise Conflict(f"'{seen.name}' is being deleted")
        rows = {row.name: row for row in await tx.scalars(_of(environment.id))}
        had = [row.name for row in rows.values() if row.state is not ApplicationState.ENDING]
        self._check(environment, had, add, remove)
        return environment, rows

    def _check(self, environment: Environment, had: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> None:
        for one in remove:
            if one not in had:
                raise _no_such(environment, had, one)
        kept = [one for one in had if one not in remove]
        for one in add:
            if one in kept:
                raise AlreadyExists(f"'{environment.name}' has the application '{one}' already")
        machine = environment.compute if self._environments.planner.is_machine(environment.compute) else ""
        wanted = [*(one for one in kept if one in self._templates), *add]
        if add and (against := refusals(self._templates, wanted, machine=machine)):
            raise BadInput("; ".join(against))

    async def _rows(self, environment: Environment, only: str) -> Sequence[Application]:
        async with self._database.reading() as tx:
            rows = (await tx.scalars(_of(environment.id).where(_WANTED))).all()
        if not rows:
            raise NotFound(f"'{environment.name}' has no applications: env set {environment.name} --app jupyter")
        chosen = [row for row in rows if only in ("", row.name)]
        if not chosen:
            raise _no_such(environment, [row.name for row in rows], only)
        return chosen

    async def _with_secrets(self, rows: Sequence[Application]) -> Sequence[tuple[Application, str]]:
        return [(row, await self._secret(row)) for row in rows]

    async def _secret(self, row: Application) -> str:
        """Its secret, made when it is needed first."""
        template = self._templates.get(row.name)
        if template is None or template.secret == "none":
            return ""
        sealed = row.secret
        if not sealed:
            mine = (Application.environment_id == row.environment_id, Application.name == row.name)
            fresh = self._vault.seal(_new_secret(template.secret))
            async with self._database.writing() as tx:
                # Whoever comes second takes what the first has written.
                await tx.execute(update(Application).where(*mine, Application.secret == "").values(secret=fresh))
                sealed = await tx.scalar(select(Application.secret).where(*mine)) or ""
        if not sealed:
            raise NotFound("the environment is gone")
        return self._vault.open(sealed)

    def _condition(self, row: Application, environment: Environment) -> Condition:
        template = self._templates.get(row.name)
        if template is None:
            reason = f"the settings know no application '{row.name}' any more"
            return Condition(row.name, row.name, ApplicationState.FAILED, reason, 0)
        state, reason = row.state, row.reason
        if environment.state is not EnvironmentState.RUNNING:
            state, reason = ApplicationState.WAITING, "its environment does not run"
        elif row.seen is None or (environment.started is not None and row.seen < environment.started):
            state, reason = ApplicationState.STARTING, ""
        return Condition(row.name, template.title, state, reason, template.port)

    def _access(self, row: Application, environment: Environment, secret: str) -> Access:
        condition = self._condition(row, environment)
        template = self._templates.get(row.name)
        if template is None:
            return Access(condition, 0, "", "", "none", "", "")
        local = local_port(environment, row.name)
        address = template.address.replace("{port}", str(local)).replace("{secret}", quote(secret, safe=""))
        return Access(condition, local, address, secret, template.secret, template.user, template.advice)


def _of(environment_id: str) -> Select[Application]:
    return select(Application).where(Application.environment_id == environment_id).order_by(Application.name)


def _no_such(environment: Environment, had: Sequence[str], wanted: str) -> NotFound:
    offered = ", ".join(had) or "none"
    return NotFound(f"'{environment.name}' has no application '{printable(wanted, limit=48)}' (it has {offered})")


def missing_words(one: Wanted) -> str:
    """What is said of a program that is not there."""
    install = one.settings.install or "install it"
    return f"'{one.name}' is not in this environment: {install}; it starts by itself then"


def ended_words(one: Wanted, status: int | None) -> str:
    """What is said of a program that ended."""
    folder = f"~/{FOLDER}/{one.name}"
    return f"it ended with status {status}, and is started again; why may stand in {folder}/log"


def local_port(environment: Environment, application: str) -> int:
    """A port of people's own machines for an application: two environments get two, and nothing well-known is hit."""
    number = zlib.crc32(f"{environment.name}/{application}".encode())
    return _LOCAL_PORTS[number % len(_LOCAL_PORTS)]


def _new_secret(kind: str) -> str:
    if kind == "password":
        return "".join(secrets.choice(_LETTERS) for _ in range(_PASSWORD_LENGTH))
    return secrets.token_urlsafe(_TOKEN_BYTES)
