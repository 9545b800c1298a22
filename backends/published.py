"""Published ports: ports of environments that the gateway opens to everybody who reaches it, without SSH.

Here is who may publish what, and on which port of the gateway. `gateway.published` listens there and carries the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select

from backends.environments import Environments, owned
from backends.port_rows import begin_ports, refusals
from backends.settings import PortSettings
from storage.access import Action, Caller, require
from storage.audit import AuditTrail, Event
from storage.changes import Changes
from storage.clock import Clock, now
from storage.database.engine import Database
from storage.errors import BadInput, Conflict, NotFound
from storage.records import Environment, EnvironmentState, PublishedPort, Wish


@dataclass(frozen=True)
class OpenPort:
    """One that is to be served now."""

    external_port: int
    port: int
    environment: Environment


class PublishedPorts:
    """The use cases about published ports."""

    def __init__(
        self,
        database: Database,
        audit: AuditTrail,
        changes: Changes,
        environments: Environments,
        settings: PortSettings,
        clock: Clock = now,
    ) -> None:
        self._database = database
        self._audit = audit
        self._changes = changes
        self._environments = environments
        self._settings = settings
        self._clock = clock

    @property
    def are_offered(self) -> bool:
        """Whether the operator lets ports be published."""
        return bool(self._settings.first)

    async def of(self, caller: Caller, environments: Sequence[Environment]) -> Mapping[str, Sequence[PublishedPort]]:
        """The published ports of environments that are known already, by the environments' ids."""
        for environment in environments:
            require(caller, Action.ENVIRONMENT_SHOW, owned(environment))
        ids = [environment.id for environment in environments]
        query = select(PublishedPort).where(PublishedPort.environment_id.in_(ids)).order_by(PublishedPort.port)
        found: dict[str, list[PublishedPort]] = {}
        async with self._database.reading() as tx:
            for row in await tx.scalars(query):
                found.setdefault(row.environment_id, []).append(row)
        return found

    async def publish(self, caller: Caller, name: str, port: int) -> PublishedPort:
        """Open `port` of the environment's loopback on a port of the gateway, at once and until it is taken back.

        BadInput: no ports are offered, or this is none. AlreadyExists: it is published. Unavailable: none is left.
        """
        seen = await self._environments.show(caller, name)
        require(caller, Action.PORT_PUBLISH, owned(seen))
        machine = seen.compute if self._environments.planner.is_machine(seen.compute) else ""
        if against := refusals(self._settings, [port], machine=machine):
            raise BadInput("; ".join(against))
        async with self._database.writing() as tx:
            environment = await tx.get(Environment, seen.id, with_for_update=True)
            if environment is None:
                raise NotFound(f"there is no environment '{seen.name}'")
            if environment.wish is Wish.DELETED:
                raise Conflict(f"'{seen.name}' is being deleted")
            (made,) = await begin_ports(tx, self._audit, self._settings, caller, environment, [port], self._clock)
        self._changes.tell("environment", seen.id)
        return made

    async def unpublish(self, caller: Caller, name: str, port: int) -> None:
        """Close it; connections through it end. NotFound: it is not published."""
        environment = await self._environments.show(caller, name)
        require(caller, Action.PORT_UNPUBLISH, owned(environment))
        mine = (PublishedPort.environment_id == environment.id, PublishedPort.port == port)
        async with self._database.writing() as tx:
            external = await tx.scalar(delete(PublishedPort).where(*mine).returning(PublishedPort.external_port))
            if external is None:
                raise NotFound(f"port {port} of '{environment.name}' is not published")
            facts = {"owner": environment.owner_name, "port": port, "external_port": external}
            await self._audit.add(tx, Event.by(caller, Action.PORT_UNPUBLISH, thing=environment.name, **facts))
        self._changes.tell("environment", environment.id)

    async def to_serve(self) -> Sequence[OpenPort]:
        """What the gateway shall listen on now: ports of running environments, within the range of the settings."""
        query = (
            select(PublishedPort, Environment)
            .join(Environment, Environment.id == PublishedPort.environment_id)
            .where(Environment.state == EnvironmentState.RUNNING, Environment.wish == Wish.RUNNING)
        )
        async with self._database.reading() as tx:
            rows = (await tx.execute(query)).all()
        offered = range(self._settings.first, self._settings.last + 1) if self.are_offered else range(0)
        return [
            OpenPort(row.external_port, row.port, environment)
            for row, environment in rows
            if row.external_port in offered
        ]
